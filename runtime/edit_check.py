"""The check of an edit with its update applied: does the fact hold, and did other things stay."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .decoder import Decoder, Slots
from .generation import Generator
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


def check_edit(
    decoder: Decoder,
    tokenizer: Tokenizer,
    request: EditRequest,
    target: Sequence[int],
    canaries: Sequence[str],
    before: Slots,
    after: Slots,
) -> EditCheck:
    """Compare the model with and without the edit.

    Parameters
    ----------
    target
        The target's tokens.
    canaries
        Prompts that must stay, beside the request's own.
    before, after
        The slots without and with the edit.
    """
    old, new = Generator(decoder, before), Generator(decoder, after)

    def distributions(prompt: str) -> tuple[Floats, Floats]:
        ids = tokenizer.encode(prompt).ids
        return log_softmax(old.next_logits(ids)), log_softmax(new.next_logits(ids))

    paraphrases = []
    for prompt in map(request.fill, request.paraphrases):
        was, now = distributions(prompt)
        holds = bool(now[target[0]] >= now[was.argmax()])
        paraphrases.append(ParaphraseCheck(prompt, *_tops(tokenizer, was, now), float(np.exp(now[target[0]])), holds))
    kept = []
    for prompt in dict.fromkeys((*canaries, *map(request.fill, request.keep))):
        was, now = distributions(prompt)
        kl = float((np.exp(was) * (was - now)).sum())
        kept.append(CanaryCheck(prompt, *_tops(tokenizer, was, now), kl, bool(was.argmax() == now.argmax())))
    return EditCheck(_success(new, tokenizer.encode(request.text).ids, target), tuple(paraphrases), tuple(kept))


def _success(generator: Generator, prompt: Sequence[int], target: Sequence[int]) -> Success:
    logits = generator.all_logits([*prompt, *target[:-1]])[len(prompt) - 1 :]
    chosen = np.take_along_axis(log_softmax(logits), np.array(target)[:, None], axis=-1)
    nll = -float(chosen.mean())
    produced = list(generator.tokens(prompt, len(target)))
    return Success(produced == list(target), float(np.exp(-nll)), nll)


def _tops(tokenizer: Tokenizer, before: Floats, after: Floats) -> tuple[str, str]:
    return tokenizer.decode([int(before.argmax())]), tokenizer.decode([int(after.argmax())])
