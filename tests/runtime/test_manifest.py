"""The manifest: every way in which it can be wrong, and the files it names."""

import hashlib
import json
import string
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mobiedit.runtime.errors import BundleError
from mobiedit.runtime.manifest import (
    BaseModel,
    FileEntry,
    Manifest,
    ModelShape,
    parse_manifest,
    read_manifest,
    to_json,
    verify_files,
)

HASH = "0123456789abcdef" * 4
DATA = b"graph"
EXAMPLE = Manifest(
    schema_version=3,
    base=BaseModel("model", "llama", None, HASH),
    shape=ModelShape(4, 8, 16, 2, 1, 4, 32, 64, True),
    edit_layer=2,
    precision="float32",
    target="cpu",
    sink_token=0,
    eos_tokens=(1, 31),
    mask_value=-65504.0,
    slots=4,
    row_prefixes=("{}", "Note: {}"),
    canaries=("The sky is",),
    statistics={"rows": 100},
    checks={"error": 1e-6},
    tools={"torch": "2.0"},
    created="2026-01-02T03:04:05+00:00",
    files={"graph.onnx": FileEntry(hashlib.sha256(DATA).hexdigest(), len(DATA))},
)

TEXTS = st.text()
HASHES = st.text("0123456789abcdef", min_size=64, max_size=64)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=5,
)
OBJECTS = st.dictionaries(TEXTS, JSON, max_size=3)
NAMES = st.text(string.ascii_letters + string.digits + "_-", min_size=1, max_size=9).map(lambda name: f"f{name}.bin")
SHAPES = st.builds(ModelShape, st.integers(2, 99), *[st.integers(1, 9999)] * 7, st.booleans())


@st.composite
def manifests(draw: st.DrawFn) -> Manifest:
    shape = draw(SHAPES)
    tokens = st.integers(0, shape.vocabulary - 1)
    around = st.text(string.ascii_letters + " :")
    prefixes = draw(st.lists(st.builds("{}{{}}{}".format, around, around), max_size=3))
    return Manifest(
        schema_version=3,
        base=draw(st.builds(BaseModel, TEXTS, TEXTS, st.none() | TEXTS, HASHES)),
        shape=shape,
        edit_layer=draw(st.integers(0, shape.n_layers - 2)),
        precision=draw(TEXTS),
        target=draw(TEXTS),
        sink_token=draw(tokens),
        eos_tokens=tuple(draw(st.lists(tokens, max_size=3))),
        mask_value=draw(st.floats(allow_nan=False, allow_infinity=False)),
        slots=draw(st.integers(1, 999)),
        row_prefixes=("{}", *prefixes),
        canaries=tuple(draw(st.lists(TEXTS, max_size=3))),
        statistics=draw(OBJECTS),
        checks=draw(OBJECTS),
        tools=draw(st.dictionaries(TEXTS, TEXTS, max_size=3)),
        created=draw(TEXTS),
        files=draw(st.dictionaries(NAMES, st.builds(FileEntry, HASHES, st.integers(0)), max_size=3)),
    )


def changed(path: str, value: object) -> str:
    """Return the example as JSON with the value at a dotted path replaced."""
    content: dict[str, Any] = json.loads(to_json(EXAMPLE))
    *parents, last = path.split("/")
    inner = content
    for parent in parents:
        inner = inner[parent]
    inner[last] = value
    return json.dumps(content)


def refusal(text: str) -> str:
    with pytest.raises(BundleError) as caught:
        parse_manifest(text)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    assert len(message) < 400
    return message


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    (tmp_path / "graph.onnx").write_bytes(DATA)
    (tmp_path / "manifest.json").write_text(to_json(EXAMPLE), encoding="utf-8")
    return tmp_path


@settings(deadline=None)
@given(manifest=manifests())
def test_parse_gives_the_same_manifest_when_text_is_its_json(manifest: Manifest) -> None:
    assert parse_manifest(to_json(manifest)) == manifest


@settings(deadline=None)
@given(text=TEXTS | JSON.map(json.dumps))
def test_parse_refuses_when_text_is_no_manifest(text: str) -> None:
    refusal(text)


@settings(deadline=None)
@given(key=st.sampled_from(sorted(json.loads(to_json(EXAMPLE)))), value=JSON)
def test_parse_raises_nothing_else_when_any_value_is_any_json(key: str, value: object) -> None:
    with suppress(BundleError):
        parse_manifest(changed(key, value))


def test_to_json_is_stable_when_order_differs() -> None:
    turned = replace(EXAMPLE, statistics={"b": 1, "a": 2})
    assert to_json(turned) == to_json(replace(EXAMPLE, statistics={"a": 2, "b": 1}))


def test_to_json_refuses_when_a_number_is_not_finite() -> None:
    with pytest.raises(ValueError, match="JSON"):
        to_json(replace(EXAMPLE, mask_value=float("-inf")))


@pytest.mark.parametrize("key", sorted(json.loads(to_json(EXAMPLE))))
def test_parse_names_the_key_when_it_is_missing(key: str) -> None:
    content = json.loads(to_json(EXAMPLE))
    del content[key]
    assert key in refusal(json.dumps(content))


@pytest.mark.parametrize("path", ["extra", "base/extra", "shape/extra", "files/graph.onnx/extra"])
def test_parse_names_the_key_when_it_is_unknown(path: str) -> None:
    assert "unknown: ['extra']" in refusal(changed(path, 1))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("schema_version", True),
        ("schema_version", 1.0),
        ("schema_version", "1"),
        ("schema_version", 0),
        ("base", []),
        ("base/name", None),
        ("base/revision", 1),
        ("base/weights_sha256", HASH.upper()),
        ("base/weights_sha256", HASH[1:]),
        ("base/weights_sha256", HASH + "\n"),
        ("shape", None),
        ("shape/width", 0),
        ("shape/width", -1),
        ("shape/width", True),
        ("shape/width", 8.0),
        ("shape/tied_head", 1),
        ("edit_layer", -1),
        ("edit_layer", 3),
        ("precision", 1),
        ("target", None),
        ("sink_token", -1),
        ("sink_token", 32),
        ("eos_tokens", 1),
        ("eos_tokens", [32]),
        ("eos_tokens", [True]),
        ("mask_value", "x"),
        ("mask_value", True),
        ("mask_value", 10**400),
        ("slots", 0),
        ("row_prefixes", []),
        ("row_prefixes", ["a {}"]),
        ("row_prefixes", ["{}", "none"]),
        ("row_prefixes", ["{}", "{} {}"]),
        ("row_prefixes", ["{}", 1]),
        ("row_prefixes", "{}"),
        ("canaries", {}),
        ("canaries", [None]),
        ("statistics", []),
        ("checks", "none"),
        ("tools", {"torch": 2}),
        ("created", 0),
        ("files", []),
        ("contexts", []),
        ("contexts", {"SM8650": 1}),
        ("files/graph.onnx", HASH),
        ("files/graph.onnx/size", -1),
        ("files/graph.onnx/size", True),
        ("files/graph.onnx/sha256", "x"),
    ],
)
def test_parse_names_the_place_when_a_value_is_wrong(path: str, value: object) -> None:
    assert path.split("/")[0] in refusal(changed(path, value))


@pytest.mark.parametrize("name", ["..", "../a", "a/b", "a\\b", "/a", "", "nul", "x" * 9999])
def test_parse_refuses_when_a_file_name_is_not_flat(name: str) -> None:
    content = json.loads(to_json(EXAMPLE))
    content["files"] = {name: {"sha256": HASH, "size": 0}}
    assert "leaves the bundle" in refusal(json.dumps(content))


def test_parse_asks_for_an_update_when_schema_is_newer() -> None:
    message = "bundle has schema 4, this version reads up to 3: update mobiedit"
    assert refusal('{"schema_version": 4, "unheard_of": 1}') == message


def test_parse_asks_for_an_export_when_schema_is_older() -> None:
    message = "bundle has schema 1, this version reads 3: export the bundle again"
    assert refusal('{"schema_version": 1}') == message


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", "-1e999", "1" * 5000])
def test_parse_refuses_when_a_number_is_not_finite(number: str) -> None:
    refusal(to_json(EXAMPLE).replace('"rows": 100', f'"rows": {number}'))


@pytest.mark.parametrize("text", ["[" * 10**6, '{"a":' * 10**6])
def test_parse_refuses_when_json_is_too_deep(text: str) -> None:
    refusal(text)


def test_parse_refuses_when_a_key_is_there_twice() -> None:
    assert "twice" in refusal(to_json(EXAMPLE).replace('"rows": 100', '"rows": 1, "rows": 2'))


def test_read_gives_the_manifest_when_bundle_has_one(bundle: Path) -> None:
    assert read_manifest(bundle) == EXAMPLE


def test_read_refuses_when_manifest_is_missing(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"no manifest\.json in .*; name the folder of a bundle"):
        read_manifest(tmp_path)


def test_read_refuses_when_manifest_is_a_link(bundle: Path) -> None:
    moved = (bundle / "manifest.json").rename(bundle / "moved")
    try:
        (bundle / "manifest.json").symlink_to(moved)
    except OSError:
        pytest.skip("this user may not make links")
    with pytest.raises(BundleError, match="is a link"):
        read_manifest(bundle)


def test_read_refuses_when_manifest_is_too_large(bundle: Path) -> None:
    (bundle / "manifest.json").write_bytes(b" " * (16 * 2**20 + 1))
    with pytest.raises(BundleError, match="larger than"):
        read_manifest(bundle)


def test_read_refuses_when_manifest_is_not_utf8(bundle: Path) -> None:
    (bundle / "manifest.json").write_bytes(b"\xff\xfe{}")
    with pytest.raises(BundleError, match="UTF-8"):
        read_manifest(bundle)


@pytest.mark.parametrize("hashes", [False, True])
def test_verify_accepts_when_files_are_as_stated(bundle: Path, hashes: bool) -> None:
    verify_files(bundle, EXAMPLE, hashes=hashes)


def test_verify_names_the_file_when_it_is_missing(bundle: Path) -> None:
    (bundle / "graph.onnx").unlink()
    with pytest.raises(BundleError, match=r"graph\.onnx is missing .*; export the bundle again or copy it again"):
        verify_files(bundle, EXAMPLE, hashes=False)


def test_verify_names_the_file_when_its_size_differs(bundle: Path) -> None:
    (bundle / "graph.onnx").write_bytes(DATA[:-1])
    with pytest.raises(BundleError, match=r"graph\.onnx has 4 bytes instead of 5; export"):
        verify_files(bundle, EXAMPLE, hashes=False)


def test_verify_names_the_file_when_its_content_differs(bundle: Path) -> None:
    (bundle / "graph.onnx").write_bytes(DATA[::-1])
    verify_files(bundle, EXAMPLE, hashes=False)
    with pytest.raises(BundleError, match=r"graph\.onnx does not have the content .*; export"):
        verify_files(bundle, EXAMPLE, hashes=True)
