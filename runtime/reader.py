"""Reads texts with a fixed set of edits in force: continues them, and tells how probable an answer is."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .decoder import Decoder, Slots
from .errors import RequestError
from .generation import Generator, most_probable
from .manifest import Manifest
from .readout_loss import log_softmax
from .tokenizer import Tokenizer

Floats = NDArray[np.float32]
_TOP = 5


@dataclass(frozen=True, eq=False)
class Reading:
    """How the model takes an answer of t tokens, each read behind the prompt and the answer's tokens before it.

    Attributes
    ----------
    answer
        [t] the answer's tokens.
    log_probs
        [t] their log-probabilities, in nats.
    best
        [t] the most probable token in each place.
    top
        The most probable tokens behind the prompt alone, with their probabilities.
    """

    answer: NDArray[np.int64]
    log_probs: Floats
    best: NDArray[np.int64]
    top: tuple[tuple[int, float], ...]

    @property
    def mean_log_prob(self) -> float:
        """The mean log-probability of the answer's tokens, in nats."""
        return float(self.log_probs.mean())

    @property
    def token_accuracy(self) -> float:
        """The share of the answer's tokens that are the most probable ones."""
        return float((self.best == self.answer).mean())

    @property
    def exact(self) -> bool:
        """Whether each of the answer's tokens is the most probable one."""
        return bool((self.best == self.answer).all())


class Reader:
    """The model with the edits of some slots in force, whatever becomes of the journal.

    Parameters
    ----------
    decoder
        The graphs.
    slots
        The edits.
    """

    def __init__(self, decoder: Decoder, tokenizer: Tokenizer, manifest: Manifest, slots: Slots) -> None:
        self._generator = Generator(decoder, slots)
        self._tokenizer = tokenizer
        self._manifest = manifest

    def ask(self, prompt: str, max_tokens: int = 32) -> str:
        """Return the greedy continuation of ``prompt``."""
        return "".join(self.stream(prompt, max_tokens))

    def stream(self, prompt: str, max_tokens: int = 32) -> Iterator[str]:
        """Yield the greedy continuation of ``prompt`` piece by piece; it ends where the context does."""
        ids = self._tokenizer.encode(prompt).ids
        limit = max(1, min(max_tokens, self._room(ids)))
        produced: list[int] = []
        shown = ""
        for token in self._generator.tokens(ids, limit, self.stops):
            produced.append(token)
            text = self._tokenizer.decode(produced)
            if not text.endswith("\N{REPLACEMENT CHARACTER}"):  # half of a character: wait for its other bytes
                yield text[len(shown) :]
                shown = text

    def continuation(
        self, prompt: str, tokens: int, choose: Callable[[Floats], int] = most_probable
    ) -> tuple[int, ...]:
        """Return the next ``tokens`` tokens behind ``prompt``, or as many as the context has room for.

        A token that ends a text is never written, so that continuations of different models are of one length.

        Parameters
        ----------
        choose
            Logits [V] to the token that is written.
        """
        stops = list(self.stops)

        def choose_other(logits: Floats) -> int:
            logits = logits.copy()
            logits[stops] = -np.inf
            return choose(logits)

        ids = self._tokenizer.encode(prompt.rstrip()).ids
        return tuple(self._generator.tokens(ids, min(tokens, self._room(ids)), choose=choose_other))

    def answer(self, prompt: str, tokens: int) -> tuple[int, ...]:
        """Return at most ``tokens`` greedy tokens behind ``prompt``, up to the end of the text or of the context."""
        ids = self._tokenizer.encode(prompt.rstrip()).ids
        return tuple(self._generator.tokens(ids, min(tokens, self._room(ids)), self.stops))

    def length(self, text: str) -> int:
        """Return the number of tokens of ``text``."""
        return len(self._tokenizer.encode(text).ids)

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of tokens, special ones included."""
        return self._tokenizer.decode(tokens, special=True)

    def log_probabilities(self, text: str) -> Floats:
        """Return [T, V] log-probabilities of the token behind each token of ``text``."""
        return log_softmax(self._generator.all_logits(self._tokenizer.encode(text).ids))

    def read(self, prompt: str, answer: str | Sequence[int]) -> Reading:
        """Return how the model takes ``answer`` behind ``prompt``, teacher-forced.

        Parameters
        ----------
        answer
            A text, which is tokenized together with the prompt, so that its first token is the one that the model
            would write there; or tokens, which are put behind the prompt's.

        Raises
        ------
        RequestError
            When prompt or answer has no tokens of its own, or they are longer than the context.
        """
        prompt = prompt.rstrip()
        if isinstance(answer, str):
            answer = answer.strip()
            encoding = self._tokenizer.encode(f"{prompt} {answer}")
            ids, start = encoding.ids, encoding.first_token_from(len(prompt))
        else:
            before = self._tokenizer.encode(prompt).ids
            ids, start = (*before, *answer), len(before)
        if not answer or not 0 < start < len(ids):
            raise RequestError(f"prompt {prompt!r} or answer {answer!r} is empty: give at least one word of each")
        log_probs = log_softmax(self._generator.all_logits(ids[:-1])[start - 1 :])
        wanted = np.array(ids[start:], np.int64)
        chosen = np.take_along_axis(log_probs, wanted[:, None], axis=-1)[:, 0]
        top = tuple((int(i), float(np.exp(log_probs[0, i]))) for i in np.argsort(-log_probs[0], kind="stable")[:_TOP])
        return Reading(wanted, chosen, log_probs.argmax(axis=-1), top)

    def score(self, prompt: str, answer: str) -> tuple[float, bool]:
        """Return how the model takes ``answer`` behind ``prompt``.

        Returns
        -------
        tuple
            The mean log-probability of the answer's tokens in nats, and whether each of them is the most probable one.
        """
        reading = self.read(prompt, answer)
        return reading.mean_log_prob, reading.exact

    @property
    def stops(self) -> tuple[int, ...]:
        """The tokens that end a text: a model that writes the one in front of every text has begun another."""
        return (*self._manifest.eos_tokens, self._manifest.sink_token)

    def _room(self, ids: Sequence[int]) -> int:
        return self._manifest.shape.context - len(ids)
