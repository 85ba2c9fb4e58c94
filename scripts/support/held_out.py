"""What held-out text says of a model."""

from __future__ import annotations

import numpy as np

from mobiedit.calibration.text import held_out_text
from mobiedit.runtime.reader import Reader
from mobiedit.runtime.tokenizer import Tokenizer

LINES = 24


def perplexity(reader: Reader, tokenizer: Tokenizer) -> float:
    """Return the model's perplexity, by token, on the first lines of held-out text."""
    losses = []
    for line in held_out_text()[:LINES]:
        log_probs, ids = reader.log_probabilities(line), tokenizer.encode(line).ids
        losses.append(-log_probs[np.arange(len(ids) - 1), ids[1:]])
    return float(np.exp(np.concatenate(losses).mean()))
