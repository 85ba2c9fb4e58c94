"""A Hugging Face folder with random weights in the shape of a real model: for sizes, memory and time, not for answers.

Usage: python -m scripts.make_checkpoint qwen2.5-3b --out DIR

Matrices are normal with a standard deviation of 1 / sqrt(width): 0.022 at a width of 2,048, where transformers'
``Qwen2Config`` initialises with 0.02. Those that write to the residual stream are smaller by sqrt(2 layers), as in
GPT-2 (Radford et al. 2019, section 2.3), so that neither it nor the logits grow with depth. Norm weights spread around
1 and biases around 0 by 0.1: with ones and zeros a norm or bias that gets lost would not be noticed. No figure is taken
from a trained model, whose outliers and sink token are missing here.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import click
import torch
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm
from transformers import AutoModelForCausalLM, Qwen2Config
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME

from mobiedit.runtime.cli_support import CONTEXT_SETTINGS, ErrorCommand
from mobiedit.runtime.errors import StorageError
from mobiedit.runtime.files import library_storage_errors, storage_errors
from scripts.support.byte_level import train_tokenizer

SHARD_BYTES = 2_000_000_000
_SPREAD = 0.1
_CHUNK = 2**24  # numbers that are drawn at once, in FP32


@dataclass(frozen=True)
class Shape:
    """A Qwen2 model's shape.

    Attributes
    ----------
    vocabulary
        Rows of the embedding; the tokenizer may know fewer tokens.
    context
        Longest text in tokens.
    """

    layers: int
    width: int
    mlp_width: int
    heads: int
    kv_heads: int
    vocabulary: int
    context: int

    def config(self) -> Qwen2Config:
        """Return transformers' configuration, of a tied model in bfloat16."""
        return Qwen2Config(
            architectures=["Qwen2ForCausalLM"],
            num_hidden_layers=self.layers,
            hidden_size=self.width,
            intermediate_size=self.mlp_width,
            num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads,
            vocab_size=self.vocabulary,
            max_position_embeddings=self.context,
            max_window_layers=self.layers,
            use_sliding_window=False,
            rope_parameters={"rope_type": "default", "rope_theta": 1e6},
            rms_norm_eps=1e-6,
            tie_word_embeddings=True,
            bos_token_id=0,
            eos_token_id=0,
            dtype="bfloat16",
        )


SHAPES = {
    "qwen2.5-3b": Shape(36, 2048, 11008, 16, 2, 151_936, 32_768),
    "qwen2.5-1.5b": Shape(28, 1536, 8960, 12, 2, 151_936, 32_768),
    "tiny": Shape(4, 64, 128, 4, 2, 600, 256),
}


@click.command(cls=ErrorCommand, context_settings=CONTEXT_SETTINGS)
@click.argument("shape", type=click.Choice(list(SHAPES)))
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The folder that is made.")
@click.option("--seed", type=click.IntRange(0), default=0, help="Of the weights.")
def main(shape: str, out: Path, seed: int) -> None:
    """Write a checkpoint of SHAPE with random weights."""
    written = write_checkpoint(SHAPES[shape], out, seed)
    click.echo(f"wrote {out}: {shape}, {written / 1e9:.2f} GB of weights")


def write_checkpoint(shape: Shape, out: Path, seed: int, shard_bytes: int = SHARD_BYTES) -> int:
    """Write configuration, tokenizer and weights, one shard in memory at a time; the folder appears when it is whole.

    Parameters
    ----------
    shard_bytes
        Of a file's tensors; one that is larger has a file of its own.

    Returns
    -------
    int
        Bytes of the weights.

    Raises
    ------
    StorageError
        When the place is taken, or the disk refuses.
    """
    if out.exists():
        raise StorageError(f"{out} exists: choose another folder, or remove it")
    if not out.absolute().parent.is_dir():
        raise StorageError(f"folder {out.parent} is missing: create it, or name another folder")
    temporary = tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.")
    with storage_errors(f"write {out}"), library_storage_errors(), temporary as beside:
        work = Path(beside) / "checkpoint"
        config = shape.config()
        config.save_pretrained(work)
        train_tokenizer(shape.vocabulary).save_pretrained(work)
        size = _write_weights(config, work, seed, shard_bytes)
        work.rename(out)
    return size


def _write_weights(config: Qwen2Config, folder: Path, seed: int, shard_bytes: int) -> int:
    """Write the shards with their index; return the bytes of all tensors."""
    with torch.device("meta"):
        parameters = dict(AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).named_parameters())
    shards = list(_shards(parameters, shard_bytes))
    generator = torch.Generator().manual_seed(seed)
    weight_map, size = {}, sum(each.nbytes for each in parameters.values())
    with tqdm(total=size, unit="B", unit_scale=True) as bar:
        for number, names in enumerate(shards, 1):
            file = f"model-{number:05}-of-{len(shards):05}.safetensors"
            tensors = {}
            for name in names:
                tensors[name] = _random(name, parameters[name].shape, config, generator)
                bar.update(tensors[name].nbytes)
            save_file(tensors, folder / file, metadata={"format": "pt"})
            weight_map |= dict.fromkeys(names, file)
    index = {"metadata": {"total_size": size}, "weight_map": weight_map}
    (folder / SAFE_WEIGHTS_INDEX_NAME).write_text(json.dumps(index, indent=1), "utf-8")
    return size


def _shards(parameters: Mapping[str, Tensor], shard_bytes: int) -> Iterator[list[str]]:
    """Yield the names of each shard's tensors, in the model's order."""
    names: list[str] = []
    held = 0
    for name, parameter in parameters.items():
        if names and held + parameter.nbytes > shard_bytes:
            yield names
            names, held = [], 0
        names.append(name)
        held += parameter.nbytes
    yield names


def _random(name: str, shape: Sequence[int], config: Qwen2Config, generator: torch.Generator) -> Tensor:
    """Return a parameter of the model in bfloat16."""
    mean, std = (1.0 if "norm" in name else 0.0), _SPREAD
    if len(shape) == 2:
        std = 1 / math.sqrt(config.hidden_size)
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            std /= math.sqrt(2 * config.num_hidden_layers)
    flat = torch.empty(math.prod(shape), dtype=torch.bfloat16)
    for part in flat.split(_CHUNK):  # drawn in FP32: bfloat16's own draws have coarse tails
        part.copy_(torch.randn(len(part), generator=generator).mul_(std).add_(mean))
    return flat.view(*shape)


if __name__ == "__main__":
    main()
