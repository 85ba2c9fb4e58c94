"""The check of an edit with its update applied: does the fact hold, and did other things stay."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .decoder import Decoder, Slots
from .gate import strength
from .prompt_rows import EditRequest
from .readout_loss import log_softmax
from .tokenizer import Tokenizer

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Success:
    """The fact itself, on the bare prompt.

    Attributes
    ----------
    greedy_match
        Whether greedy decoding yields the target.
    target_prob
        Probability of the target, as the geometric mean of its tokens'.
    nll
        Mean negative log-likelihood of its tokens, in nats.
    """

    greedy_match: bool
    target_prob: float
    nll: float


@dataclass(frozen=True)
class ParaphraseCheck:
    """Another wording of the fact; it holds when the target's first token beats the model's answer before the edit."""

    prompt: str
    before: str
    after: str
    target_prob: float
    holds: bool


@dataclass(frozen=True)
class CanaryCheck:
    """A prompt whose most probable next token must stay; ``kl`` is the divergence of the distributions, in nats."""

    prompt: str
    before: str
    after: str
    kl: float
    kept: bool


@dataclass(frozen=True)
class EditCheck:
    """All checks of one edit; ``success_before`` is the fact's without the edit."""

    success: Success
    paraphrases: tuple[ParaphraseCheck, ...]
    canaries: tuple[CanaryCheck, ...]
    success_before: Success

    @property
    def failures(self) -> tuple[str, ...]:
        """What failed, one line each; empty for an edit that took."""
        failed = [] if self.success.greedy_match else ["the prompt does not lead to the target"]
        failed += [f"paraphrase {p.prompt!r} still leads to {p.after!r}" for p in self.paraphrases if not p.holds]
        failed += [f"{c.prompt!r} changed from {c.before!r} to {c.after!r}" for c in self.canaries if not c.kept]
        return tuple(failed)

    def locality(self) -> dict[str, Any]:
        """Return the canaries' part as plain data."""
        return {
            "kept": sum(c.kept for c in self.canaries),
            "checked": len(self.canaries),
            "max_kl": max((c.kl for c in self.canaries), default=0.0),
            "changed": [asdict(c) for c in self.canaries if not c.kept],
        }


class CanaryChecker:
    """The check of prompts that must stay, run up to the edit layer at once: that far no edit changes them."""

    def __init__(self, decoder: Decoder, tokenizer: Tokenizer, prompts: Sequence[str]) -> None:
        self._decoder = decoder
        self._tokenizer = tokenizer
        self.prompts = tuple(dict.fromkeys(prompts))
        self._residuals = [_residual(decoder, tokenizer.encode(prompt).ids) for prompt in self.prompts]

    def edit_layer(self, slots: Slots) -> tuple[Floats, ...]:
        """Return the residual stream [1, T, D] of each prompt behind the edit layer, with the slots in force."""
        return tuple(self._decoder.run_edit(residual, slots).hidden for residual in self._residuals)

    def reach(self, directions: Floats, gates: Floats, slots: Slots) -> Floats:
        """Return how far edits reach into each prompt: their largest `strength` [prompts, N] on one of its tokens.

        Parameters
        ----------
        directions
            [N, F] u_n.
        gates
            [4, N] as `gate_parameters` has them.
        """
        keys = [self._decoder.run_edit(residual, slots).keys[0] for residual in self._residuals]
        reached = [np.abs(strength(each @ directions.T, gates)).max(axis=0) for each in keys]
        return np.array(reached, np.float32).reshape(len(keys), len(directions))

    def read(self, hidden: Sequence[Floats]) -> tuple[Floats, ...]:
        """Return the log-probabilities [V] of the token behind each prompt; ``hidden`` as of `edit_layer`."""
        return tuple(_next_log_probs(self._decoder, text) for text in hidden)

    def compare(self, before: Sequence[Floats], after: Sequence[Floats]) -> tuple[CanaryCheck, ...]:
        """Return what became of each prompt; both as of `read`."""
        checks = []
        for prompt, was, now in zip(self.prompts, before, after, strict=True):
            kl = float((np.exp(was) * (was - now)).sum())
            tops = _tops(self._tokenizer, was, now)
            checks.append(CanaryCheck(prompt, *tops, kl, bool(was.argmax() == now.argmax())))
        return tuple(checks)


@dataclass(frozen=True, eq=False)
class CheckReading:
    """How a model takes the texts of a check: log-probabilities [V] behind each prompt, and the fact itself."""

    paraphrases: tuple[Floats, ...]
    canaries: tuple[Floats, ...]
    success: Success


class EditChecker:
    """The check of one edit, its texts run up to the edit layer at once, as those of `CanaryChecker`.

    Parameters
    ----------
    target
        The target's tokens.
    canaries
        Prompts that must stay, beside the request's own.
    """

    def __init__(
        self,
        decoder: Decoder,
        tokenizer: Tokenizer,
        request: EditRequest,
        target: Sequence[int],
        canaries: Sequence[str],
    ) -> None:
        self._decoder = decoder
        self._tokenizer = tokenizer
        self._target = target
        self._paraphrases = tuple(map(request.fill, request.paraphrases))
        self._canaries = CanaryChecker(decoder, tokenizer, (*canaries, *map(request.fill, request.keep)))
        texts = [tokenizer.encode(text).ids for text in self._paraphrases]
        texts.append((*tokenizer.encode(request.text).ids, *target[:-1]))
        self._residuals = [_residual(decoder, ids) for ids in texts]

    def edit_layer(self, slots: Slots) -> tuple[Floats, ...]:
        """Return the residual stream [1, T, D] of each text behind the edit layer, with the slots in force.

        The texts are the paraphrases, the fact itself with its target, and the canaries.
        """
        own = tuple(self._decoder.run_edit(residual, slots).hidden for residual in self._residuals)
        return *own, *self._canaries.edit_layer(slots)

    def read(self, hidden: Sequence[Floats]) -> CheckReading:
        """Return how a model takes the texts, as `edit_layer` returns them."""
        count = len(self._paraphrases)
        paraphrases = tuple(_next_log_probs(self._decoder, text) for text in hidden[:count])
        return CheckReading(paraphrases, self._canaries.read(hidden[count + 1 :]), self._success_of(hidden[count]))

    def compare(self, before: CheckReading, after: CheckReading) -> EditCheck:
        """Return what the edit did; the readings are those without and with it."""
        paraphrases, first = [], self._target[0]
        for prompt, was, now in zip(self._paraphrases, before.paraphrases, after.paraphrases, strict=True):
            holds = bool(now[first] >= now[was.argmax()])
            tops = _tops(self._tokenizer, was, now)
            paraphrases.append(ParaphraseCheck(prompt, *tops, float(np.exp(now[first])), holds))
        canaries = self._canaries.compare(before.canaries, after.canaries)
        return EditCheck(after.success, tuple(paraphrases), canaries, before.success)

    def _success_of(self, hidden: Floats) -> Success:
        logits, target = _logits(self._decoder, hidden, len(self._target)), np.array(self._target)
        nll = -float(np.take_along_axis(log_softmax(logits), target[:, None], axis=-1).mean())
        # Greedy decoding yields the target exactly when each of its tokens is the most probable one behind the others.
        return Success(bool((logits.argmax(axis=-1) == target).all()), float(np.exp(-nll)), nll)


def _residual(decoder: Decoder, ids: Sequence[int]) -> Floats:
    return decoder.run_prefix(np.array([ids], np.int64), decoder.sink_caches(1)[0])[0]


def _logits(decoder: Decoder, hidden: Floats, places: int) -> Floats:
    """Return the logits [places, V] behind the last tokens of a text."""
    final, _ = decoder.run_suffix(hidden, decoder.sink_caches(1)[1])
    return decoder.run_head(final[0, -places:])


def _next_log_probs(decoder: Decoder, hidden: Floats) -> Floats:
    return np.asarray(log_softmax(_logits(decoder, hidden, 1)[0]))


def _tops(tokenizer: Tokenizer, before: Floats, after: Floats) -> tuple[str, str]:
    return tokenizer.decode([int(before.argmax())]), tokenizer.decode([int(after.argmax())])
