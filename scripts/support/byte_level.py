"""A byte-level BPE tokenizer for models with random weights."""

from __future__ import annotations

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from mobiedit.calibration.text import default_text

END = "<|endoftext|>"
"""What ends a text; its id is 0."""


def train_tokenizer(vocabulary: int) -> PreTrainedTokenizerFast:
    """Return a tokenizer trained on the project's sentences.

    Parameters
    ----------
    vocabulary
        Tokens at most; the sentences give fewer than a large model's vocabulary has.
    """
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=[END], initial_alphabet=alphabet, show_progress=False
    )
    core.train_from_iterator(default_text(), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token=END)
