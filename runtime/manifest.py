"""The manifest of a bundle: what the model is, how the graphs are cut, and the hash of every file."""

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from reprlib import repr as short
from typing import Any

from .contexts import SocContexts, parse_contexts
from .errors import BundleError
from .files import EXPORT_AGAIN, check_name, read_regular, safe_child, sha256_of, storage_errors
from .manifest_fields import MANIFEST_NAME, bad, exact, finite, integer, number, sha256, texts, typed, unique

SCHEMA_VERSION = 3
MAX_SLOT_BYTES = 256 * 2**20
"""What the slots' inputs may take: a manifest alone must not fill the memory of whoever reads the edits."""


@dataclass(frozen=True)
class FileEntry:
    """What a file of the bundle must be."""

    sha256: str
    size: int


@dataclass(frozen=True)
class BaseModel:
    """The model that the bundle was exported from."""

    name: str
    architecture: str
    revision: str | None
    weights_sha256: str


@dataclass(frozen=True)
class ModelShape:
    """The sizes of the model, all positive."""

    n_layers: int
    width: int
    mlp_width: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    vocabulary: int
    context: int
    tied_head: bool


@dataclass(frozen=True)
class Manifest:
    """All that a bundle states about itself."""

    schema_version: int
    base: BaseModel
    shape: ModelShape
    edit_layer: int
    precision: str
    target: str
    sink_token: int
    eos_tokens: tuple[int, ...]
    mask_value: float
    slots: int
    row_prefixes: tuple[str, ...]
    canaries: tuple[str, ...]
    statistics: dict[str, Any]
    checks: dict[str, Any]
    tools: dict[str, str]
    created: str
    files: dict[str, FileEntry]
    contexts: dict[str, SocContexts] = field(default_factory=dict)

    @property
    def edit_base(self) -> str:
        """The hash of all that an edit depends on: weights, edit layer and sink token."""
        parts = (self.base.weights_sha256, str(self.edit_layer), str(self.sink_token))
        return hashlib.sha256(":".join(parts).encode()).hexdigest()


def to_json(manifest: Manifest) -> str:
    """Return the manifest as JSON: sorted keys, so that the same manifest is the same text.

    Raises
    ------
    ValueError, TypeError
        If a number is NaN or infinite, or the statistics or checks are not JSON.
    """
    return json.dumps(asdict(manifest), indent=2, sort_keys=True, allow_nan=False) + "\n"


def parse_manifest(text: str) -> Manifest:
    """Return the manifest of a JSON text.

    Raises
    ------
    BundleError
        If the text is not exactly a manifest of this schema.
    """
    try:
        raw = json.loads(text, object_pairs_hook=unique, parse_constant=finite, parse_float=finite)
    except (ValueError, RecursionError) as error:
        raise bad("the file", f"valid JSON ({error})") from error
    # Before the other keys: another schema may have others.
    schema = integer(typed(raw, dict, "the file").get("schema_version"), "schema_version", 1)
    if schema > SCHEMA_VERSION:
        raise BundleError(
            f"bundle has schema {short(schema)}, this version reads up to {SCHEMA_VERSION}: update mobiedit"
        )
    if schema < SCHEMA_VERSION:
        raise BundleError(f"bundle has schema {schema}, this version reads {SCHEMA_VERSION}: export the bundle again")
    raw = exact(raw, "the file", Manifest)
    shape = _shape(raw["shape"])
    last_token = shape.vocabulary - 1
    eos_tokens = typed(raw["eos_tokens"], list, "eos_tokens")
    prefixes = texts(raw["row_prefixes"], "row_prefixes")
    if prefixes[:1] != ("{}",) or any(prefix.count("{}") != 1 for prefix in prefixes):
        raise bad("row_prefixes", "templates with one {} each, the first of them {} alone")
    files = {check_name(name): _file(entry, name) for name, entry in typed(raw["files"], dict, "files").items()}
    return Manifest(
        schema_version=schema,
        base=_base(raw["base"]),
        shape=shape,
        edit_layer=integer(raw["edit_layer"], "edit_layer", 0, shape.n_layers - 2),
        precision=typed(raw["precision"], str, "precision"),
        target=typed(raw["target"], str, "target"),
        sink_token=integer(raw["sink_token"], "sink_token", 0, last_token),
        eos_tokens=tuple(integer(token, "eos_tokens", 0, last_token) for token in eos_tokens),
        mask_value=number(raw["mask_value"], "mask_value"),
        slots=integer(raw["slots"], "slots", 1, MAX_SLOT_BYTES // (4 * (shape.width + shape.mlp_width))),
        row_prefixes=prefixes,
        canaries=texts(raw["canaries"], "canaries"),
        statistics=typed(raw["statistics"], dict, "statistics"),
        checks=typed(raw["checks"], dict, "checks"),
        tools={name: typed(text, str, "tools") for name, text in typed(raw["tools"], dict, "tools").items()},
        created=typed(raw["created"], str, "created"),
        files=files,
        contexts=parse_contexts(raw["contexts"], files),
    )


def read_manifest(folder: Path) -> Manifest:
    """Read the manifest of the bundle in `folder`.

    Raises
    ------
    BundleError
        If it is missing, a link, too large, not UTF-8 or not valid.
    StorageError
        If it may not be read.
    """
    if (data := read_regular(folder / MANIFEST_NAME, limit=16 * 2**20)) is None:
        raise BundleError(f"no {MANIFEST_NAME} in {folder}; name the folder of a bundle")
    try:
        return parse_manifest(data.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise bad("the file", "valid UTF-8") from error


def verify_files(folder: Path, manifest: Manifest, *, hashes: bool) -> None:
    """Check that every file of the bundle is there and of its size, and of its content if `hashes`.

    Raises
    ------
    BundleError
        If a file is missing, a link, or another one.
    StorageError
        If a file may not be read.
    """
    for name, entry in manifest.files.items():
        path = safe_child(folder, name)
        with storage_errors(f"read {path}"):
            if (size := path.stat().st_size) != entry.size:
                raise BundleError(f"file {name} has {size} bytes instead of {entry.size}; {EXPORT_AGAIN}")
            if hashes and sha256_of(path) != entry.sha256:
                raise BundleError(f"file {name} does not have the content of its export (SHA-256); {EXPORT_AGAIN}")


def _shape(value: object) -> ModelShape:
    sizes = exact(value, "shape", ModelShape)
    tied_head = typed(sizes.pop("tied_head"), bool, "shape.tied_head")
    return ModelShape(tied_head=tied_head, **{name: integer(size, f"shape.{name}", 1) for name, size in sizes.items()})


def _base(value: object) -> BaseModel:
    base = exact(value, "base", BaseModel)
    return BaseModel(
        name=typed(base["name"], str, "base.name"),
        architecture=typed(base["architecture"], str, "base.architecture"),
        revision=None if base["revision"] is None else typed(base["revision"], str, "base.revision"),
        weights_sha256=sha256(base["weights_sha256"], "base.weights_sha256"),
    )


def _file(value: object, name: str) -> FileEntry:
    where = f"files.{short(name)}"
    entry = exact(value, where, FileEntry)
    return FileEntry(sha256=sha256(entry["sha256"], f"{where}.sha256"), size=integer(entry["size"], f"{where}.size", 0))
