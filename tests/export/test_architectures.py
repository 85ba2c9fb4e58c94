"""Each family's graphs against the real transformers class."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from mobiedit.export.checkpoint import find_source, read_config
from mobiedit.export.configuration import ExportConfig, Precision
from mobiedit.export.pipeline import export_bundle
from mobiedit.export.progress import Stages
from mobiedit.runtime import open_bundle
from mobiedit.runtime.decoder import Slots
from mobiedit.runtime.errors import ExportError
from mobiedit.runtime.generation import Generator

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
# Three layers suffice: one before the edit layer and one behind it. The Llama of all tests, with a tied head and four
# layers, is compared in tests/runtime/test_decoder.py.
LAYERS = 3
FAMILIES = {
    "llama-untied-biases": ("llama", {"tie_word_embeddings": False, "attention_bias": True, "mlp_bias": True}),
    "llama-multi-head-llama3-rope": ("llama", {"num_key_value_heads": 4, "rope_parameters": LLAMA3}),
    "mistral-own-head-size": ("mistral", {"head_dim": 24, "sliding_window": None}),
    "mistral-wide-window": ("mistral", {"sliding_window": 256}),
    "qwen2-biases": ("qwen2", {"tie_word_embeddings": True}),
    "qwen3-head-norms": ("qwen3", {"head_dim": 24, "tie_word_embeddings": False}),
}
IDS = list(range(40, 90))


@pytest.mark.parametrize("family", FAMILIES)
def test_fp32_logits_match_transformers(family: str, make_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    model_type, changes = FAMILIES[family]
    folder = make_checkpoint(model_type, num_hidden_layers=LAYERS, **changes)
    config = ExportConfig(str(folder), tmp_path / "bundle", layer=1, precision=Precision.FP32, slots=2, lens_rows=24)
    sink = export_bundle(config, Stages(quiet=True)).manifest.sink_token
    opened = open_bundle(tmp_path / "bundle")
    generator = Generator(opened.decoder, Slots.empty(2, opened.manifest.shape))
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    with torch.no_grad():
        reference = model(torch.tensor([[sink, *IDS]])).logits[0, 1:].numpy()
    # Sums in another order differ by about 1e-5 on logits of this size.
    np.testing.assert_allclose(generator.all_logits(IDS), reference, atol=1e-4)


@pytest.mark.parametrize(
    ("model_type", "changes", "reason"),
    [
        ("mixtral", {}, "mixtral"),
        ("gpt2", {}, "gpt2"),
        ("mistral", {"sliding_window": 16}, "sliding window of 16"),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 0}, "sliding window of 16"),
        ("llama", {"hidden_act": "gelu"}, "gelu"),
        ("llama", {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0}}, "yarn"),
    ],
)
def test_model_is_refused_by_name_before_its_weights_are_read(
    model_type: str, changes: dict[str, object], reason: str, tmp_path: Path
) -> None:
    from transformers import AutoConfig

    AutoConfig.for_model(model_type, **changes).save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"never read")
    with pytest.raises(ExportError, match=reason):
        read_config(find_source(str(tmp_path)))
