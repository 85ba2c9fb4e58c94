"""The edit store's commands as a user types them."""

from __future__ import annotations

import json
import os
import re
import stat
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from mobiedit.runtime.bundle import Bundle
from mobiedit.runtime.cli import main
from mobiedit.runtime.edit_store import EditStore
from mobiedit.runtime.journal_records import EditRecord
from tests.runtime.small_edits import make_edit
from tests.runtime.test_forgetting import require_gone


def invoke(*words: str | Path, stdin: bytes = b"") -> Result:
    return CliRunner().invoke(main, [str(word) for word in words], input=stdin)


def run(*words: str | Path, stdin: bytes = b"") -> str:
    result = invoke(*words, stdin=stdin)
    assert result.exit_code == 0, result.output
    return result.stdout


def refuse(message: str, *words: str | Path, stdin: bytes = b"") -> None:
    result = invoke(*words, stdin=stdin)
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert re.fullmatch(r"error: [^\n]+\n", result.stderr), result.stderr
    assert re.search(message, result.stderr), result.stderr


def fitting(bundle: Bundle, edit_id: str, **changes: object) -> EditRecord:
    """Return an edit of the bundle's base and shape."""
    shape, rng = bundle.manifest.shape, np.random.default_rng(list(edit_id.encode()))
    vectors = {
        name: rng.standard_normal(size).astype(np.float32)
        for name, size in (
            ("key", shape.mlp_width),
            ("direction", shape.mlp_width),
            ("value", shape.width),
            ("delta", shape.width),
        )
    }
    return make_edit(edit_id, **{"base_sha256": bundle.manifest.edit_base, **vectors, **changes})


def journal_of(bundle: Bundle) -> bytes:
    return (bundle.path / "edits" / "journal").read_bytes()


@pytest.fixture
def store(bundle: Bundle) -> EditStore:
    """The store of a bundle with the edits a, which c replaces, and b."""
    store = EditStore(bundle.path, bundle.manifest)
    store.journal.append_edits([fitting(bundle, name) for name in "ab"])
    store.journal.append_edits([fitting(bundle, "c", prompt="the A of {} IS", target="Rom")])
    return store


@pytest.mark.usefixtures("store")
def test_list_and_info_show_what_is_in_force(bundle_path: Path) -> None:
    assert [each["edit_id"] for each in json.loads(run("list", bundle_path, "--json"))] == ["b", "c"]
    info = json.loads(run("info", bundle_path, "--json"))
    assert (info["slots"], info["covered_edits"]) == ({"used": 2, "total": 3}, 1)
    assert "undone: c" in run("undo", bundle_path)
    assert [each["edit_id"] for each in json.loads(run("list", bundle_path, "--json"))] == ["a", "b"]


@pytest.mark.usefixtures("store")
def test_history_is_told_in_words_and_as_json(bundle_path: Path) -> None:
    run("undo", bundle_path, "b")
    entries = json.loads(run("history", bundle_path, "--json"))
    assert [(each["kind"], each["edit_id"], each["state"]) for each in entries] == [
        ("edit", "a", "replaced"),
        ("edit", "b", "undone"),
        ("edit", "c", "in force"),
        ("undo", "b", None),
    ]
    lines = run("history", bundle_path).splitlines()
    assert re.fullmatch(r"a  \S+  replaced by c  - -> -  The a of France is -> Paris", lines[0])
    assert re.fullmatch(r"b  \S+  undone at \S+  - -> -  The b of France is -> Paris", lines[1])


def test_history_says_so_when_there_is_none(bundle_path: Path) -> None:
    assert run("history", bundle_path) == "no edits were ever made\n"


def test_forget_erases_the_edit_from_every_file(store: EditStore, bundle: Bundle) -> None:
    store.journal.append_undo("b")
    secret = {"subject": "Zahnärztin", "target": "Dr. Çelik", "prompt": "Die Praxis von {} gehört"}
    kept = fitting(bundle, "e", keep=("Die Praxis von Zahnärztin gehört",))
    store.journal.append_edits((fitting(bundle, "d", **secret), kept))
    assert run("forget", bundle.path, "d") == "forgotten: d\n"
    require_gone(bundle.path, "Zahnärztin", "Dr. Çelik", "Die Praxis von")
    assert [edit.edit_id for edit in bundle.edits()] == ["c", "e"]
    assert run("forget", bundle.path, "c") == "forgotten: c; a is in force again\n"
    assert json.loads(run("forget", bundle.path, "b", "--json"))["back"] is None
    assert [edit.edit_id for edit in bundle.edits()] == ["a", "e"]


@pytest.mark.usefixtures("store")
def test_forget_is_refused_without_a_name(bundle: Bundle) -> None:
    before = journal_of(bundle)
    refuse("cannot be taken back: name the edit", "forget", bundle.path)
    refuse("no edit 'x'; name one of: a, b, c", "forget", bundle.path, "x")
    assert journal_of(bundle) == before


def test_edits_are_the_same_bytes_when_they_were_exported_and_imported(
    store: EditStore, bundle: Bundle, tmp_path: Path
) -> None:
    out = tmp_path / "edits.jsonl"
    assert run("export-edits", bundle.path, "--out", out) == f"2 edits in {out}\n"
    lines = run("export-edits", bundle.path)
    assert out.read_text() == lines
    if os.name == "posix":
        assert stat.S_IMODE(out.stat().st_mode) == 0o600
    (store.folder / "journal").unlink()
    assert json.loads(run("import-edits", bundle.path, out, "--json")) == {"added": ["b", "c"], "skipped": []}
    assert run("export-edits", bundle.path) == lines
    before = journal_of(bundle)
    assert run("import-edits", bundle.path, "-", stdin=lines.encode()) == "0 edits imported, 2 were there already\n"
    assert journal_of(bundle) == before


@pytest.mark.usefixtures("store")
def test_export_leaves_a_file_that_is_there_unless_forced(bundle_path: Path, tmp_path: Path) -> None:
    out = tmp_path / "x"
    out.write_text("mine")
    refuse("exists: give another name, or --force", "export-edits", bundle_path, "--out", out)
    assert out.read_text() == "mine"
    run("export-edits", bundle_path, "--out", out, "--force", "--requests-only")
    assert [json.loads(line)["target"] for line in out.read_text().splitlines()] == ["Paris", "Rom"]
    refuse("is not a folder", "export-edits", bundle_path, "--out", tmp_path / "none" / "x")


def test_import_refuses_as_a_whole(store: EditStore, bundle: Bundle, tmp_path: Path) -> None:
    lines = run("export-edits", bundle.path).encode()
    store.forget("b")
    before = journal_of(bundle)
    refuse("edit b was forgotten here: .*teach it again", "import-edits", bundle.path, "-", stdin=lines)
    other = lines.replace(b'"Rom"', b'"Bonn"').splitlines()[1]
    refuse("edit c is another one here", "import-edits", bundle.path, "-", stdin=other)
    refuse("line 2: no edit", "import-edits", bundle.path, "-", stdin=lines.splitlines()[1] + b"\nx")
    foreign = lines.splitlines()[1].replace(bundle.manifest.edit_base.encode(), b"c" * 64)
    refuse("mobiedit edit --batch", "import-edits", bundle.path, "-", stdin=foreign)
    refuse("is no file", "import-edits", bundle.path, tmp_path / "none")
    refuse("is no file", "import-edits", bundle.path, tmp_path)
    assert journal_of(bundle) == before


@pytest.mark.usefixtures("store")
def test_verify_names_what_the_next_write_drops(bundle: Bundle) -> None:
    told = json.loads(run("verify", bundle.path, "--json"))
    assert (told["ok"], told["records"], told["edits"], told["covered_edits"]) == (True, 3, 2, 1)
    assert (told["torn_journal_bytes"], told["torn_record"], told["leftover_files"]) == (0, None, [])
    data = journal_of(bundle)
    (bundle.path / "edits" / "journal").write_bytes(data + data[:200])
    (bundle.path / "edits" / ".0123456789abcdef.tmp").write_bytes(b"x")
    said = run("verify", bundle.path)
    assert "files and 2 edits are intact, 3 records" in said
    assert "200 bytes of an interrupted edit will be dropped" in said
    assert ".0123456789abcdef.tmp of an interrupted write" in said


def test_verify_refuses_vectors_of_another_shape(store: EditStore, bundle: Bundle) -> None:
    store.journal.append_edits((make_edit("z", base_sha256=bundle.manifest.edit_base),))
    refuse("edit z has another model's shape", "verify", bundle.path)
    store.forget("z")
    run("verify", bundle.path)


def test_verify_refuses_a_damaged_journal(store: EditStore, bundle: Bundle) -> None:
    data = bytearray(journal_of(bundle))
    data[100] ^= 1
    (store.folder / "journal").write_bytes(data)
    refuse("damaged at byte 0", "verify", bundle.path)
