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
MOST_CERTAIN = 1 - 1e-6  # probability whose complement float32 still tells from 0


@dataclass(frozen=True)
class LossTerms:
    """The loss of N deltas.

    Attributes
    ----------
    total
        [N] what the search minimises.
    token_log_probs
        [N, R, t] log-probability of each target token in each rewriting row.
    leads
        [N, R] nats by which each of the target's tokens is ahead of the most probable other one, at least.
    echoing
        [N] whether greedy decoding begins the target once more behind itself, where it did not before the edit.
    """

    total: Floats
    token_log_probs: Floats
    leads: Floats
    echoing: NDArray[np.bool_]

    @property
    def greedy(self) -> NDArray[np.bool_]:
        """[N, R] whether the target's tokens are the most probable ones, so that greedy decoding yields it."""
        return np.asarray(self.leads >= 0)

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

    And the unlikelihood -log(1 - p) of the target's first token behind the target (Welleck et al. 2020, eq. 4): what
    lends a token all its probability at one place mostly does so at the next ones too, and the answer has no end.

    Parameters
    ----------
    head
        Hidden states [M, D] to logits [M, V].
    target
        The target's t tokens.
    kept_log_probs
        [K, V] log-probabilities at the kept row's read-outs, and behind the target, before the edit.
    value_norm
        Norm of the value at the subject before the edit.
    behind
        How many of the K are behind the target; they come last.
    """

    def __init__(
        self,
        head: Callable[[Floats], Floats],
        target: tuple[int, ...],
        kept_log_probs: Floats,
        value_norm: float,
        config: LossConfig,
        behind: int = 0,
    ) -> None:
        self._head = head
        self._target = np.array(target)
        self.kept_log_probs = kept_log_probs
        self.behind = behind
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
            [N, K, D] those of the kept row and behind the target.
        deltas
            [N, D].
        """
        n, rows, tokens, width = readouts.shape
        flat = readouts.reshape(-1, width)
        wanted = np.tile(self._target, n * rows)
        log_probs = np.empty(len(flat), np.float32)
        leads = np.empty(len(flat), np.float32)
        for start in range(0, len(flat), self._chunk):
            part = slice(start, start + self._chunk)
            logits = self._head(flat[part])
            target = wanted[part, None]
            chosen = np.take_along_axis(logits, target, axis=-1)[:, 0]
            np.put_along_axis(logits, target, -np.inf, axis=-1)
            other = logits.max(axis=-1)
            np.put_along_axis(logits, target, chosen[:, None], axis=-1)
            leads[part], top = chosen - other, np.maximum(chosen, other)
            logits -= top[:, None]  # in place: logits are wide
            log_probs[part] = chosen - top - np.log(np.exp(logits, out=logits).sum(axis=-1))
        token_log_probs = log_probs.reshape(n, rows, tokens)
        places = kept.shape[1] - self.behind
        echo, echoing = self._echo(kept[:, places:])
        decay = np.linalg.norm(deltas, axis=-1) / self._value_norm**2
        total = -token_log_probs.mean(axis=(1, 2)) + self.config.weight_decay * decay
        total += self.config.kl_factor * self._kept_kl(kept[:, :places]) + self.config.echo_factor * echo
        leads_of_rows = leads.reshape(n, rows, tokens).min(axis=2)
        return LossTerms(total.astype(np.float32), token_log_probs, leads_of_rows, echoing)

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

    def _echo(self, behind: Floats) -> tuple[Floats, NDArray[np.bool_]]:
        """[N] unlikelihood of the target's first token behind it, and whether it comes again.

        A place weighs what a token of the target does in its mean: long answers have enough to do.
        """
        n, places, width = behind.shape
        first, flat = self._target[0], behind.reshape(-1, width)
        unlikelihood, chosen = np.zeros(len(flat), np.float32), np.zeros(len(flat), np.int64)
        for start in range(0, len(flat), self._chunk):
            part = slice(start, start + self._chunk)
            log_probs = log_softmax(self._head(flat[part]))
            unlikelihood[part] = -np.log1p(-np.minimum(np.exp(log_probs[:, first]), MOST_CERTAIN))
            chosen[part] = log_probs.argmax(axis=-1)
        before = self.kept_log_probs[len(self.kept_log_probs) - places :].argmax(axis=-1)
        again = (chosen.reshape(n, places) == first) & (before != first)
        return unlikelihood.reshape(n, places).sum(axis=1) / np.float32(len(self._target)), again.any(axis=1)
