"""The loss of an edit with the read-outs linear in delta, minimised without a forward.

The hidden states are taken to be h + J c for coefficients c along a basis; the softmax above them stays what it is,
on the tokens that matter. That is Gauss-Newton's model for a loss known in closed form (Schraudolph 2002): the
curvature of the softmax is exact but for improbable tokens, that of the network is left to the damping.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .configuration import LossConfig
from .jacobian import Jacobian
from .readout_loss import MOST_CERTAIN
from .top_logits import TopLogits

Floats = NDArray[np.float32]
_NEWTON_STEPS = 12
_DOUBT = 0.5  # squared error of a guessed column, of its squared length: what rows have not in common
_WALL = 20.0  # nats for a delta whose squared norm is twice what is allowed
_ENOUGH = 1e-3  # relative fall of the model's loss below which another Newton step changes nothing
_NEGLIGIBLE = 1e-6  # probability below which a token is left out of the curvature: most are, and next to nothing of it


@dataclass(frozen=True)
class _Softmax:
    """Truncated softmaxes of R rows of t read-outs, their logits linear in c.

    Attributes
    ----------
    base, rest
        [R, t, K] logits and [R, t] rest at c = 0.
    slopes
        [R, t, K, n] of the logits, relative to the rest's: a softmax is the same whatever all logits rise by.
    """

    base: Floats
    rest: Floats
    slopes: Floats

    @staticmethod
    def relative_to_rest(base: Floats, rest: Floats, slopes: Floats) -> _Softmax:
        """Return the softmaxes of logits that have these slopes themselves.

        The rest rises as its tokens do, whose rows are not at hand: they are taken to be like those that are kept, the
        improbable ones more so than in proportion. Were the rest to stay where it is, to raise all logits that are kept
        would look like a gain.
        """
        weights = np.exp((base - base.max(axis=-1, keepdims=True)) / 2)
        weights /= weights.sum(axis=-1, keepdims=True)
        return _Softmax(base, rest, slopes - weights[..., None, :] @ slopes)

    def part(self, places: slice) -> _Softmax:
        """Return the softmaxes of some read-outs of each row."""
        return _Softmax(self.base[:, places], self.rest[:, places], self.slopes[:, places])

    def at(self, c: Floats) -> tuple[Floats, Floats, Floats]:
        """Return logits and probabilities of the kept tokens [R, t, K], and the log-normaliser [R, t, 1]."""
        logits = self.base + self.slopes @ c
        top = np.maximum(logits.max(axis=-1, keepdims=True), self.rest[..., None])
        exponentials = np.exp(logits - top)
        total = exponentials.sum(axis=-1, keepdims=True) + np.exp(self.rest[..., None] - top)
        return logits, exponentials / total, top + np.log(total)

    def gradient(self, of_logits: Floats) -> Floats:
        """Return the gradient [n] in c of what has the gradient ``of_logits`` [R, t, K] in the logits."""
        return np.asarray(np.tensordot(of_logits, self.slopes, 3))

    def curvature(self, probabilities: Floats) -> Floats:
        """Return Fisher's matrix [n, n]: the sum of S^T (diag(p) - p p^T) S over read-outs with slopes S.

        Improbable tokens are left out: it only steers Newton's steps, whose gradient has every token.
        """
        likely = probabilities > _NEGLIGIBLE
        means = (np.where(likely, probabilities, 0)[..., None, :] @ self.slopes).reshape(-1, self.slopes.shape[-1])
        weighted = np.sqrt(probabilities[likely])[:, None] * self.slopes[likely]
        return np.asarray(weighted.T @ weighted - means.T @ means)

    def diagonals(self, probabilities: Floats) -> Floats:
        """Return the diagonal [R, n] of what each row adds to `curvature`."""
        means = (probabilities[..., None, :] @ self.slopes)[..., 0, :]
        squares = np.einsum("rtk,rtkn,rtkn->rn", probabilities, self.slopes, self.slopes)
        return np.asarray(squares - (means**2).sum(axis=1))


class LinearisedLoss:
    """The loss around a delta, as a function of coefficients c [n] along the Jacobian's basis.

    Parameters
    ----------
    readouts
        Truncated softmax of the rewriting rows' read-outs, row after row, M = R t.
    kept
        The same of the kept row's and of those behind the target, M = K.
    unembedding
        Rows [k, D] for the k tokens of ``readouts.ids``.
    kept_unembedding
        The same for ``kept.ids``.
    target
        [t] the target's tokens.
    kept_log_probs
        [K, V] log-probabilities at the kept read-outs before the edit.
    delta
        [D] where the model is expanded.
    value_norm
        Norm of the value at the subject before the edit.
    norm_penalty
        Weight of delta's squared length, relative to the value's.
    limit
        Largest norm of delta. The model feels it as a wall: without one it would spend a step on length, which the
        clamp takes away again.
    behind
        How many of the K are behind the target; they come last.
    """

    def __init__(
        self,
        readouts: TopLogits,
        kept: TopLogits,
        unembedding: Floats,
        kept_unembedding: Floats,
        jacobian: Jacobian,
        target: NDArray[np.int64],
        kept_log_probs: Floats,
        delta: Floats,
        value_norm: float,
        norm_penalty: float,
        limit: float,
        config: LossConfig,
        behind: int = 0,
    ) -> None:
        tokens = len(target)
        logits = readouts.logits.reshape(-1, tokens, len(readouts.ids))
        rest = readouts.rest.reshape(-1, tokens)
        self._readouts = _Softmax.relative_to_rest(logits, rest, unembedding @ jacobian.readouts)
        slopes, places = kept_unembedding @ jacobian.kept, len(kept.logits) - behind
        kept_softmax = _Softmax.relative_to_rest(kept.logits[None], kept.rest[None], slopes[None])
        self._kept, self._behind = kept_softmax.part(slice(places)), kept_softmax.part(slice(places, None))
        self._again = int(kept.index(target[:1])[0])
        self._wanted = readouts.index(target)
        self._before = np.exp(kept_log_probs[:places, kept.ids])
        self._lost = np.maximum(1 - self._before.sum(axis=-1), 0)
        self._along = jacobian.basis @ delta
        self._square = float(delta @ delta)
        self._config = config
        self._echo_factor = np.float32(config.echo_factor / tokens)
        self._value_norm = value_norm
        self._norm_penalty = norm_penalty
        self._limit = limit
        self._doubt = self._doubted(jacobian.guessed)

    def minimise(self, damping: float, start: Floats) -> Floats:
        """Return the coefficients [n] of least loss + ``damping`` times the step's squared relative length.

        Newton's method.
        """
        c = start
        value, gradient = self._evaluate(c, damping)
        for _ in range(_NEWTON_STEPS):
            step = self._newton_step(c, gradient, damping)
            slope, fraction = float(gradient @ step), 1.0
            while fraction > 1e-2:
                tried = c + np.float32(fraction) * step
                new_value, new_gradient = self._evaluate(tried, damping)
                if new_value < value + 1e-4 * fraction * slope:
                    break
                fraction /= 2
            else:
                return c
            fall, c, value, gradient = value - new_value, tried, new_value, new_gradient
            if fall < _ENOUGH * max(value, 0.05):
                break
        return c

    def _doubted(self, guessed: NDArray[np.bool_]) -> Floats:
        """Return [n] the curvature that guesses add: their errors are independent, so they add up in squares."""
        nowhere = np.zeros(guessed.shape[1], np.float32)
        _, readouts, _ = self._readouts.at(nowhere)
        doubt = _DOUBT * (self._readouts.diagonals(readouts) * guessed).sum(axis=0) / readouts[..., 0].size
        return np.asarray(doubt, np.float32)

    def _evaluate(self, c: Floats, damping: float) -> tuple[float, Floats]:
        logits, probabilities, normaliser = self._readouts.at(c)
        positions = np.arange(len(self._wanted))
        nll = float((normaliser[..., 0] - logits[:, positions, self._wanted]).mean())
        error = probabilities
        error[:, positions, self._wanted] -= 1
        gradient = self._readouts.gradient(error) / error[..., 0].size

        logits, probabilities, normaliser = self._kept.at(c)
        factor = self._config.kl_factor
        # The divergence but for the entropy of what was there, which does not move.
        kl = float((self._before * (normaliser - logits)[0]).sum())
        kl += float(self._lost @ (normaliser[0, :, 0] - self._kept.rest[0]))
        gradient += factor * self._kept.gradient(probabilities - self._before)

        again, against = self._echo(c)
        echo = -float(self._echo_factor * np.log1p(-again).sum())
        gradient += self._echo_factor * again @ against
        square = float(c @ c)
        norm = np.sqrt(max(self._square + 2 * float(c @ self._along) + square, 1e-12))
        unit = self._value_norm**2
        pull = self._config.weight_decay / norm + 2 * self._norm_penalty
        gradient += (pull * (self._along + c) + 2 * damping * c) / unit + self._doubt * c
        excess = max((norm / self._limit) ** 2 - 1, 0.0)
        gradient += 4 * _WALL * excess / self._limit**2 * (self._along + c)
        lengths = self._config.weight_decay * norm + self._norm_penalty * norm**2 + damping * square
        value = nll + factor * kl + echo + lengths / unit + float(self._doubt @ c**2) / 2 + _WALL * excess**2
        return value, np.asarray(gradient, np.float32)

    def _echo(self, c: Floats) -> tuple[Floats, Floats]:
        """Return the probability [E] of the target's first token behind it, and its logit's slope [E, n].

        The logit is the logarithm of the odds: the unlikelihood -log(1 - p) is its softplus.
        """
        _, probabilities, _ = self._behind.at(c)
        slopes = self._behind.slopes[0]
        again = np.minimum(probabilities[0, :, self._again], MOST_CERTAIN)
        means = (probabilities[0, :, None] @ slopes)[:, 0]
        return again, (slopes[:, self._again] - means) / (1 - again[:, None])

    def _newton_step(self, c: Floats, gradient: Floats, damping: float) -> Floats:
        """Solve the Gauss-Newton system for the step [n]."""
        _, readouts, _ = self._readouts.at(c)
        _, kept, _ = self._kept.at(c)
        curvature = self._readouts.curvature(readouts).astype(np.float64) / readouts[..., 0].size
        curvature += self._config.kl_factor * self._kept.curvature(kept)
        again, against = self._echo(c)
        curvature += self._echo_factor * (against.T * (again * (1 - again))) @ against

        place = (self._along + c).astype(np.float64)
        square = max(self._square + 2 * float(c @ self._along) + float(c @ c), 1e-12)
        excess = max(square / self._limit**2 - 1, 0.0)
        ridge = 2 * (damping + self._norm_penalty) / self._value_norm**2
        if excess:
            ridge += 4 * _WALL * excess / self._limit**2
            curvature += 8 * _WALL / self._limit**4 * np.outer(place, place)
        curvature[np.diag_indices_from(curvature)] += ridge + self._doubt
        return np.asarray(np.linalg.solve(curvature, -gradient.astype(np.float64)), np.float32)
