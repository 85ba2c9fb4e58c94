"""The manifest of a bundle: what the model is, how the graphs are cut, and the hash of every file."""

import hashlib
import json
import math
import re
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from reprlib import repr as short
from typing import Any, TypeVar

from .errors import BundleError
from .files import EXPORT_AGAIN, check_name, read_regular, safe_child, sha256_of, storage_errors

SCHEMA_VERSION = 1
MANIFEST_NAME = "manifest.json"

_KINDS = {dict: "a JSON object", list: "a list", str: "a text", int: "an integer", bool: "true or false"}
_SHA256 = re.compile(r"[0-9a-f]{64}")
T = TypeVar("T")


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
        raw = json.loads(text, object_pairs_hook=_unique, parse_constant=_finite, parse_float=_finite)
    except (ValueError, RecursionError) as error:
        raise _bad("the file", f"valid JSON ({error})") from error
    # Before the other keys: a newer schema may have more of them.
    schema = _integer(_typed(raw, dict, "the file").get("schema_version"), "schema_version", 1)
    if schema > SCHEMA_VERSION:
        raise BundleError(
            f"bundle has schema {short(schema)}, this version reads up to {SCHEMA_VERSION}: update mobiedit"
        )
    raw = _fields(raw, "the file", Manifest)
    shape = _shape(raw["shape"])
    last_token = shape.vocabulary - 1
    eos_tokens = _typed(raw["eos_tokens"], list, "eos_tokens")
    prefixes = _texts(raw["row_prefixes"], "row_prefixes")
    if prefixes[:1] != ("{}",) or any(prefix.count("{}") != 1 for prefix in prefixes):
        raise _bad("row_prefixes", "templates with one {} each, the first of them {} alone")
    return Manifest(
        schema_version=schema,
        base=_base(raw["base"]),
        shape=shape,
        edit_layer=_integer(raw["edit_layer"], "edit_layer", 0, shape.n_layers - 2),
        precision=_typed(raw["precision"], str, "precision"),
        target=_typed(raw["target"], str, "target"),
        sink_token=_integer(raw["sink_token"], "sink_token", 0, last_token),
        eos_tokens=tuple(_integer(token, "eos_tokens", 0, last_token) for token in eos_tokens),
        mask_value=_number(raw["mask_value"], "mask_value"),
        slots=_integer(raw["slots"], "slots", 1),
        row_prefixes=prefixes,
        canaries=_texts(raw["canaries"], "canaries"),
        statistics=_typed(raw["statistics"], dict, "statistics"),
        checks=_typed(raw["checks"], dict, "checks"),
        tools={name: _typed(text, str, "tools") for name, text in _typed(raw["tools"], dict, "tools").items()},
        created=_typed(raw["created"], str, "created"),
        files={check_name(name): _file(entry, name) for name, entry in _typed(raw["files"], dict, "files").items()},
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
        raise _bad("the file", "valid UTF-8") from error


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


def _bad(where: str, wanted: str) -> BundleError:
    return BundleError(f"{MANIFEST_NAME}: {where} is not {wanted}; {EXPORT_AGAIN}")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        raise ValueError("a key is there twice")
    return result


def _finite(literal: str) -> float:
    if not math.isfinite(number := float(literal)):
        raise ValueError(f"{short(literal)} is not a finite number")
    return number


def _typed(value: object, kind: type[T], where: str) -> T:
    # Not isinstance: a bool is an int in Python, not in JSON.
    if type(value) is not kind:
        raise _bad(where, _KINDS[kind])
    return value


def _fields(value: object, where: str, of: type[BaseModel | FileEntry | Manifest | ModelShape]) -> dict[str, Any]:
    """Return a JSON object that has exactly the fields of a dataclass."""
    found, wanted = _typed(value, dict, where), {field.name for field in fields(of)}
    if found.keys() != wanted:
        missing, unknown = sorted(wanted - found.keys()), sorted(found.keys() - wanted)
        raise _bad(where, f"complete and exact (missing: {short(missing)}, unknown: {short(unknown)})")
    return found


def _texts(value: object, where: str) -> tuple[str, ...]:
    return tuple(_typed(text, str, where) for text in _typed(value, list, where))


def _hash(value: object, where: str) -> str:
    if not _SHA256.fullmatch(text := _typed(value, str, where)):
        raise _bad(where, "a SHA-256 of 64 lowercase hexadecimal digits")
    return text


def _integer(value: object, where: str, low: int, high: int | None = None) -> int:
    number = _typed(value, int, where)
    if number < low or (high is not None and number > high):
        raise _bad(where, f"at least {low}" + ("" if high is None else f" and at most {high}"))
    return number


def _number(value: object, where: str) -> float:
    with suppress(OverflowError):
        if type(value) is int or isinstance(value, float):
            return float(value)
    raise _bad(where, "a finite number")


def _shape(value: object) -> ModelShape:
    sizes = _fields(value, "shape", ModelShape)
    tied_head = _typed(sizes.pop("tied_head"), bool, "shape.tied_head")
    return ModelShape(tied_head=tied_head, **{name: _integer(size, f"shape.{name}", 1) for name, size in sizes.items()})


def _base(value: object) -> BaseModel:
    base = _fields(value, "base", BaseModel)
    return BaseModel(
        name=_typed(base["name"], str, "base.name"),
        architecture=_typed(base["architecture"], str, "base.architecture"),
        revision=None if base["revision"] is None else _typed(base["revision"], str, "base.revision"),
        weights_sha256=_hash(base["weights_sha256"], "base.weights_sha256"),
    )


def _file(value: object, name: str) -> FileEntry:
    where = f"files.{short(name)}"
    entry = _fields(value, where, FileEntry)
    return FileEntry(sha256=_hash(entry["sha256"], f"{where}.sha256"), size=_integer(entry["size"], f"{where}.size", 0))
