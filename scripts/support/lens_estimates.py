"""Estimates of the loss's gradient from the lens, alone and with vector-valued differences along its directions."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from mobiedit.runtime.jacobian import orthonormal
from mobiedit.runtime.lens import Lens
from mobiedit.runtime.readout_loss import log_softmax
from mobiedit.runtime.search import SearchTask

Floats = NDArray[np.float32]


def lens_gradient(task: SearchTask, delta: Floats, lens: Lens) -> Floats:
    """Return the gradient's direction [D] as the lens sees it: against the step that it would take."""
    return -_images(_errors(task, _readouts(task, delta[None])[0]), lens).sum(axis=0)


def projected_gradients(task: SearchTask, delta: Floats, mu: float, lens: Lens, counts: Sequence[int]) -> list[Floats]:
    """Return the gradient's part [D] in the span of the first n directions of the lens, for each n of ``counts``.

    Parameters
    ----------
    mu
        Length of a perturbation.
    counts
        Numbers of directions, the largest last; each direction costs one forward, and the point itself one more.
    """
    here = _readouts(task, delta[None])[0]
    errors = _errors(task, here)
    images = _images(errors, lens)
    candidates = chain((images.sum(axis=0), *images), lens.subspace.astype(np.float32))
    directions = orthonormal(candidates, counts[-1], np.zeros((0, len(delta)), np.float32))
    changes = (_readouts(task, (delta + mu * directions).astype(np.float32)) - here) / mu
    slopes = -np.einsum("krtd,rtd->k", changes, errors) / (errors.shape[0] * errors.shape[1])
    return [np.asarray(slopes[:n] @ directions[:n], np.float32) for n in counts]


def _readouts(task: SearchTask, deltas: Floats) -> Floats:
    return task.problem.readouts(deltas)[0]


def _errors(task: SearchTask, readouts: Floats) -> Floats:
    """Return the gradient of each target token's log-probability in its hidden state, [R, t, D]."""
    decoder, target = task.decoder, np.array(task.problem.rows.target)
    probabilities = np.exp(log_softmax(decoder.run_head(readouts.reshape(-1, readouts.shape[-1]))))
    rows = decoder.unembedding(np.arange(probabilities.shape[-1]))
    return np.asarray(decoder.unembedding(target) - (probabilities @ rows).reshape(readouts.shape), np.float32)


def _images(errors: Floats, lens: Lens) -> Floats:
    return lens.images(errors.mean(axis=0))
