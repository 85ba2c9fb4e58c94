"""Prompts whose next word an edit must not change: those on which the model is surest."""

from __future__ import annotations

import numpy as np

from mobiedit.runtime.decoder import Decoder, Slots
from mobiedit.runtime.generation import Generator
from mobiedit.runtime.readout_loss import log_softmax
from mobiedit.runtime.tokenizer import Tokenizer

_KEPT = 8
_CANDIDATES = (
    "The capital of France is",
    "The capital of Japan is",
    "The opposite of hot is",
    "The sun rises in the",
    "Water is made of hydrogen and",
    "One, two, three, four,",
    "Monday, Tuesday, Wednesday,",
    "The first president of the United States was George",
    "William Shakespeare wrote Romeo and",
    "A group of lions is called a",
    "The largest planet in the solar system is",
    "The Eiffel Tower is in",
    "The language spoken in Brazil is",
    "Roses are red, violets are",
    "My favourite colour is",
    "The doctor told me to",
    "She opened the door and",
    "To make tea, first boil the",
    "The chemical symbol for gold is",
    "There are seven days in a",
)


def choose_canaries(decoder: Decoder, slots: Slots, tokenizer: Tokenizer) -> tuple[str, ...]:
    """Return the prompts on which the written graphs give their answer the highest probability."""
    generator = Generator(decoder, slots)

    def certainty(prompt: str) -> float:
        return float(np.max(log_softmax(generator.next_logits(tokenizer.encode(prompt).ids))))

    return tuple(sorted(_CANDIDATES, key=certainty, reverse=True)[:_KEPT])
