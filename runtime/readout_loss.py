"""The loss of an edit, from hidden states at the read-outs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .configuration import LossConfig

Floats = NDArray[np.float32]
_CHUNK = 64  # hidden states whose logits are held at once, at most
_CHUNK_BYTES = 16 * 2**20  # of those logits


@dataclass(frozen=True)
class LossTerms:
    """The loss of N deltas.

    Attributes
    ----------
    total
        [N] what the search minimises.
    token_log_probs
        [N, R, t] log-probability of each target token in each rewriting row.
    greedy
        [N, R] whether the target's tokens are the most probable ones, so that greedy decoding yields it.
    """

    total: Floats
    token_log_probs: Floats
    greedy: NDArray[np.bool_]

    @property
    def nll(self) -> Floats:
        """[N] mean negative log-likelihood of the target."""
        return np.asarray(-self.token_log_probs.mean(axis=(1, 2)))

    @property
    def row_probabilities(self) -> Floats:
        """[N, R] the target's probability in each rewriting row, as the geometric mean of its tokens'."""
        return np.asarray(np.exp(self.token_log_probs.mean(axis=2)))

    @property
    def target_probability(self) -> Floats:
        """[N] their mean over the rows."""
        return np.asarray(self.row_probabilities.mean(axis=1))


def log_softmax(logits: Floats) -> Floats:
    """Return log-probabilities over the last axis."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return np.asarray(shifted)


def logits_at_once(vocabulary: int) -> int:
    """Return for how many hidden states the logits are held at once: they are wide."""
    return max(1, min(_CHUNK, _CHUNK_BYTES // (4 * vocabulary)))


class ReadoutLoss:
    """ROME's objective for the value (Meng et al. 2022, eq. 4): NLL of the target, KL on the kept row, decay.

    Parameters
    ----------
    head
        Hidden states [M, D] to logits [M, V].
    target
        The target's t tokens.
    kept_log_probs
        [K, V] log-probabilities at the kept row's read-outs before the edit.
    value_norm
        Norm of the value at the subject before the edit.
    """

    def __init__(
        self,
        head: Callable[[Floats], Floats],
        target: tuple[int, ...],
        kept_log_probs: Floats,
        value_norm: float,
        config: LossConfig,
    ) -> None:
        self._head = head
        self._target = np.array(target)
        self.kept_log_probs = kept_log_probs
        self._value_norm = value_norm
        self.config = config
        self._chunk = logits_at_once(kept_log_probs.shape[1])

    def __call__(self, readouts: Floats, kept: Floats, deltas: Floats) -> LossTerms:
        """Evaluate the loss.

        Parameters
        ----------
        readouts
            [N, R, t, D] normalised hidden states of the rewriting rows.
        kept
            [N, K, D] those of the kept row.
        deltas
            [N, D].
        """
        n, rows, tokens, width = readouts.shape
        flat = readouts.reshape(-1, width)
        wanted = np.tile(self._target, n * rows)
        log_probs = np.empty(len(flat), np.float32)
        greedy = np.empty(len(flat), np.bool_)
        for start in range(0, len(flat), self._chunk):
            part = slice(start, start + self._chunk)
            logits = self._head(flat[part])
            top = logits.max(axis=-1)
            chosen = np.take_along_axis(logits, wanted[part, None], axis=-1)[:, 0]
            greedy[part] = chosen >= top
            logits -= top[:, None]  # in place: logits are wide
            log_probs[part] = chosen - top - np.log(np.exp(logits, out=logits).sum(axis=-1))
        token_log_probs = log_probs.reshape(n, rows, tokens)
        kl = self._kept_kl(kept)
        decay = np.linalg.norm(deltas, axis=-1) / self._value_norm**2
        total = -token_log_probs.mean(axis=(1, 2)) + self.config.kl_factor * kl + self.config.weight_decay * decay
        return LossTerms(
            total.astype(np.float32), token_log_probs, np.asarray(greedy.reshape(n, rows, tokens).all(axis=2))
        )

    def _kept_kl(self, kept: Floats) -> Floats:
        """[N] KL divergence at the kept read-outs from the distributions before the edit, summed over them."""
        before, (n, places, width) = self.kept_log_probs, kept.shape
        probabilities, flat = np.exp(before), kept.reshape(-1, width)
        kl = np.empty(len(flat), np.float32)
        for start in range(0, len(flat), self._chunk):
            part = slice(start, start + self._chunk)
            log_probs = log_softmax(self._head(flat[part]))
            for i, now in enumerate(log_probs, start):
                kl[i] = probabilities[i % places] @ (before[i % places] - now)
        return np.asarray(kl.reshape(n, places).sum(axis=1))
