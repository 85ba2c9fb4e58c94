"""The lens: what the host learned once a model about which delta makes which token likely.

A device has no gradient. The lens stands in for it: linear maps, fitted on the host through the frozen model, from what
the read-outs lack to the delta that supplies it. It gives the search its start, cheap first steps, and the directions
in which differences are worth a forward.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .bundle_parts import read_tensors
from .errors import BundleError

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Lens:
    """Maps from unembedding space to deltas, in units of the value's norm; stored as float16.

    Attributes
    ----------
    centre
        [D] mean row of the unembedding.
    start
        [P, D, D] from the direction of a target token, by its position in the target; the last serves all behind it.
    context
        [D, D] from the direction of the residual stream at the subject.
    bias
        [D] what every start has in common.
    step
        [P, D, D] from the error of a read-out, by its position.
    subspace
        [S, D] orthonormal: where gradients lie, the strongest direction first.
    """

    centre: NDArray[np.float16]
    start: NDArray[np.float16]
    context: NDArray[np.float16]
    bias: NDArray[np.float16]
    step: NDArray[np.float16]
    subspace: NDArray[np.float16]

    @staticmethod
    def read(path: Path) -> Lens:
        """Read the lens of a bundle.

        Raises
        ------
        BundleError
            When it has none, or the file is damaged.
        """
        if not path.exists():
            raise BundleError("this bundle has no lens: export it again, or use --optimizer zo")
        tensors = read_tensors(path)
        names = ("centre", "start", "context", "bias", "step", "subspace")
        missing = [name for name in names if name not in tensors]
        if missing:
            raise BundleError(f"{path.name} lacks {missing[0]!r}: export the bundle again")
        return Lens(*(tensors[name] for name in names))  # type: ignore[arg-type]  # float16 in this file

    def first_delta(self, targets: Floats, context: Floats) -> Floats:
        """Return the delta [D] to start from, in units of the value's norm.

        Parameters
        ----------
        targets
            [t, D] rows of the unembedding for the target's tokens.
        context
            [R, D] residual stream behind the edit layer at the subject of each rewriting row.
        """
        delta = self.bias.astype(np.float32) + _directions(context).mean(axis=0) @ self.context.astype(np.float32)
        for position, direction in enumerate(_directions(targets - self.centre)):
            delta += direction @ self._map(self.start, position)
        return np.asarray(delta)

    def images(self, errors: Floats) -> Floats:
        """Return the step [t, D] that each read-out's error [t, D] asks for, in units of the value's norm.

        An error is the target's row of the unembedding less the mean row under the model's distribution: the gradient
        of the target's log-probability in the hidden state.
        """
        return np.stack([error @ self._map(self.step, position) for position, error in enumerate(errors)])

    def image(self, difference: Floats, position: int) -> Floats:
        """Return the delta [D] that moves the read-out at ``position`` along ``difference`` [D]."""
        return np.asarray(difference @ self._map(self.step, position))

    def _map(self, maps: NDArray[np.float16], position: int) -> Floats:
        return np.asarray(maps[min(position, len(maps) - 1)], np.float32)


def _directions(vectors: Floats) -> Floats:
    return np.asarray(vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-9), np.float32)
