"""The edits as an adapter of the PEFT library (LoRA, Hu et al. 2021, arXiv 2106.09685)."""

from __future__ import annotations

import json
from pathlib import Path

from mobiedit.runtime.bundle_writer import save_tensors

from .weight_update import WeightUpdate

_CONFIG, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def write_adapter(folder: Path, update: WeightUpdate, base: str, revision: str | None) -> None:
    """Write the two files that ``PeftModel.from_pretrained`` reads.

    LoRA adds ``(alpha / r) B A``: with alpha = r, ``A = directions`` [r, F] and ``B = deltas.T`` [D, r] that is the
    update itself, in FP32. The one target is the edit layer's down projection, by its full name.

    Parameters
    ----------
    base
        The name or path that PEFT shall load the base model from.
    """
    rank = len(update.deltas)
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "revision": revision,
        "target_modules": [update.module],
        "r": rank,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "use_rslora": False,
        "inference_mode": True,
    }
    prefix = f"base_model.model.{update.module}"
    tensors = {f"{prefix}.lora_A.weight": update.directions, f"{prefix}.lora_B.weight": update.deltas.T}
    save_tensors(folder / _WEIGHTS, tensors)
    (folder / _CONFIG).write_text(json.dumps(config, indent=2) + "\n", "utf-8")
