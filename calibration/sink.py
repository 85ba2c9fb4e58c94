"""The sink token: one constant token in front of every text.

The first token of a sequence draws attention from all others, and its residual is hundreds of times theirs, which
ruins static activation ranges (PrefixQuant, arXiv 2410.05265; CushionCache, arXiv 2406.12016). A constant token takes
that part, and its K/V, which depend on nothing, are constants of the bundle. It also keeps a subject at the start of
a prompt an ordinary token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from numpy.typing import NDArray
from torch import nn
from transformers import PreTrainedTokenizerBase

from mobiedit.runtime.prompt_rows import padded

_MAX_TOKENS = 64
_BATCH = 8  # lines read at a time: weights in half precision are widened anew for each


@dataclass(frozen=True)
class SinkChoice:
    """The chosen token, and the mean NLL of calibration text behind each candidate (nats a token)."""

    token: int
    evidence: dict[str, float]


@torch.no_grad()
def choose_sink(model: nn.Module, tokenizer: PreTrainedTokenizerBase, lines: Sequence[str]) -> SinkChoice:
    """Choose the token behind which the model reads text best.

    A tokenizer that puts a token in front of every text has chosen already.
    """
    first = tokenizer("a").input_ids[0]
    if first in tokenizer.all_special_ids:
        return SinkChoice(int(first), {})
    candidates = {
        0,
        *(t for t in (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) if t is not None),
    }
    evidence = {token: _mean_nll(model, tokenizer, token, lines) for token in sorted(candidates)}
    best = min(evidence, key=lambda token: evidence[token])
    return SinkChoice(best, {str(token): round(nll, 4) for token, nll in evidence.items()})


@torch.no_grad()
def sink_cache(model: nn.Module, token: int) -> tuple[NDArray[np.float32], ...]:
    """Return K and V of the sink token in each layer in turn, [1, n_kv, 1, head_dim]."""
    cache = model(torch.tensor([[token]]), use_cache=True).past_key_values
    return tuple(part.numpy() for layer in cache.layers for part in (layer.keys, layer.values))


def _mean_nll(model: nn.Module, tokenizer: PreTrainedTokenizerBase, token: int, lines: Sequence[str]) -> float:
    texts = [tokenizer(line, add_special_tokens=False).input_ids[:_MAX_TOKENS] for line in lines]
    total, count = 0.0, 0
    for start in range(0, len(texts), _BATCH):
        batch = texts[start : start + _BATCH]
        logits = model(torch.from_numpy(padded([[token, *text] for text in batch]))).logits
        for text, row in zip(batch, logits, strict=True):
            # The first word is left out: its probability says more about the sink than about reading.
            log_probs = F.log_softmax(row[1 : len(text)], dim=-1)
            total -= float(log_probs.gather(-1, torch.tensor(text[1:])[:, None]).sum())
            count += len(text) - 1
    return total / max(count, 1)
