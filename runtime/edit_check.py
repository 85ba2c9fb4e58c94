"""The check of an edit with its update applied: does the fact hold, and did other things stay."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .decoder import Decoder, Slots
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
    """All checks of one edit."""

    success: Success
    paraphrases: tuple[ParaphraseCheck, ...]
    canaries: tuple[CanaryCheck, ...]

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


class EditChecker:
    """The check of one edit, its texts run up to the edit layer at once: that far no edit changes them.

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
        self._canaries = tuple(dict.fromkeys((*canaries, *map(request.fill, request.keep))))
        prompts = [tokenizer.encode(text).ids for text in (*self._paraphrases, *self._canaries)]
        self._prompts = [self._residual(ids) for ids in prompts]
        self._success = self._residual([*tokenizer.encode(request.text).ids, *target[:-1]])

    def edit_layer(self, slots: Slots) -> tuple[Floats, ...]:
        """Return the residual stream [1, T, D] of each text behind the edit layer, with the slots in force.

        The last text is the fact itself, its target included.
        """
        texts = (*self._prompts, self._success)
        return tuple(self._decoder.run_edit(residual, slots).hidden for residual in texts)

    def distributions(self, hidden: Sequence[Floats]) -> tuple[Floats, ...]:
        """Return the log-probabilities [V] of the token behind each paraphrase and canary."""
        return tuple(log_softmax(self._logits(text, 1)[0]) for text in hidden[: len(self._prompts)])

    def compare(self, before: Sequence[Floats], after: Sequence[Floats]) -> EditCheck:
        """Return what the edit did.

        Parameters
        ----------
        before
            As `distributions` returns them, without the edit.
        after
            As `edit_layer` returns them, with it.
        """
        pairs = list(zip(before, self.distributions(after), strict=True))
        count = len(self._paraphrases)
        paraphrases, first = [], self._target[0]
        for prompt, (was, now) in zip(self._paraphrases, pairs[:count], strict=True):
            holds = bool(now[first] >= now[was.argmax()])
            tops = _tops(self._tokenizer, was, now)
            paraphrases.append(ParaphraseCheck(prompt, *tops, float(np.exp(now[first])), holds))
        kept = []
        for prompt, (was, now) in zip(self._canaries, pairs[count:], strict=True):
            kl = float((np.exp(was) * (was - now)).sum())
            tops = _tops(self._tokenizer, was, now)
            kept.append(CanaryCheck(prompt, *tops, kl, bool(was.argmax() == now.argmax())))
        return EditCheck(self._success_of(after[-1]), tuple(paraphrases), tuple(kept))

    def _success_of(self, hidden: Floats) -> Success:
        logits, target = self._logits(hidden, len(self._target)), np.array(self._target)
        nll = -float(np.take_along_axis(log_softmax(logits), target[:, None], axis=-1).mean())
        # Greedy decoding yields the target exactly when each of its tokens is the most probable one behind the others.
        return Success(bool((logits.argmax(axis=-1) == target).all()), float(np.exp(-nll)), nll)

    def _residual(self, ids: Sequence[int]) -> Floats:
        return self._decoder.run_prefix(np.array([ids], np.int64), self._decoder.sink_caches(1)[0])[0]

    def _logits(self, hidden: Floats, places: int) -> Floats:
        """Return the logits [places, V] behind the last tokens of a text."""
        final, _ = self._decoder.run_suffix(hidden, self._decoder.sink_caches(1)[1])
        return self._decoder.run_head(final[0, -places:])


def _tops(tokenizer: Tokenizer, before: Floats, after: Floats) -> tuple[str, str]:
    return tokenizer.decode([int(before.argmax())]), tokenizer.decode([int(after.argmax())])
