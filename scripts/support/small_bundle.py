"""A small bundle: a manifest with context binaries, files of a few bytes, a journal of every kind of record."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from mobiedit.runtime.bundle_layout import EDITS, GRAPHS, graph_file
from mobiedit.runtime.contexts import AXES, ContextFile, SocContexts
from mobiedit.runtime.journal import Journal
from mobiedit.runtime.journal_records import EditRecord
from mobiedit.runtime.manifest import SCHEMA_VERSION, BaseModel, FileEntry, Manifest, ModelShape, to_json

WIDTH, MLP_WIDTH = 4, 6


def write_small_bundle(folder: Path) -> Manifest:
    """Write the bundle to a new folder and return its manifest."""
    folder.mkdir(parents=True)
    names = ("weights.bin", "tokenizer.json", "context.onnx", "context.bin")
    contents = {name: name.encode() * 3 for name in names} | {graph_file(graph): _graph() for graph in GRAPHS}
    files = {}
    for name, data in contents.items():
        (folder / name).write_bytes(data)
        files[name] = FileEntry(hashlib.sha256(data).hexdigest(), len(data))
    contexts = tuple(
        ContextFile(
            graph, {axis: 2 if axis == "total" else 1 for axis in sorted(AXES[graph])}, "context.onnx", "context.bin"
        )
        for graph in GRAPHS
    )
    manifest = Manifest(
        schema_version=SCHEMA_VERSION,
        base=BaseModel("small", "llama", None, "a" * 64),
        shape=ModelShape(4, WIDTH, MLP_WIDTH, 2, 1, 2, 32, 64, True),
        edit_layer=2,
        precision="w8a16",
        target="qnn",
        sink_token=0,
        eos_tokens=(1,),
        mask_value=-100.0,
        slots=8,
        row_prefixes=("{}", "Note: {}"),
        canaries=("The sky is",),
        statistics={"layer": {"score": 0.5}},
        checks={"nll": 1e-3},
        tools={"mobiedit": "0.1"},
        created="2026-01-02T03:04:05+00:00",
        files=files,
        contexts={"SM8650": SocContexts(75, "2.51.0", contexts)},
    )
    (folder / "manifest.json").write_text(to_json(manifest), encoding="utf-8")
    journal = Journal(folder / EDITS, manifest.edit_base)
    journal.append_edits([_edit(name, manifest.edit_base) for name in ("a", "b")])
    journal.append_undo("a")
    journal.append_edits((_edit("c", manifest.edit_base),))
    journal.forget("c")
    journal.append_edits((_edit("d", manifest.edit_base, prompt="The B of {} is"),))
    return manifest


def _graph() -> bytes:
    """Return an ONNX file of one tensor that lies in weights.bin."""
    entry = _message(1, b"location") + _message(2, b"weights.bin")
    return _message(7, _message(5, _message(13, entry)))


def _message(field: int, content: bytes) -> bytes:
    """Return a field of a protobuf message, shorter than 128 bytes."""
    return bytes([field << 3 | 2, len(content)]) + content


def _edit(edit_id: str, base: str, prompt: str | None = None) -> EditRecord:
    rng = np.random.default_rng(list(edit_id.encode()))
    sizes = {"key": MLP_WIDTH, "direction": MLP_WIDTH, "value": WIDTH, "delta": WIDTH}
    return EditRecord(
        edit_id=edit_id,
        created="2026-01-02T03:04:05+00:00",
        prompt=prompt or f"The {edit_id} of {{}} is",
        subject="France",
        target="Paris",
        paraphrases=("What is it?",),
        keep=(),
        base_sha256=base,
        tool_version="1",
        optimizer="gn",
        method="rome",
        gate=None,
        batch=None,
        leverage=2.0,
        report={"success": {"target_prob": 0.5, "greedy_match": True}, "failures": []},
        **{name: rng.standard_normal(size).astype(np.float32) for name, size in sizes.items()},
    )
