"""Whatever a user or a disk does wrong: one line with cause and remedy, exit code 2, bundle and journal as before."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from mobiedit.runtime import Bundle, EditConfig, ZerothOrderConfig
from mobiedit.runtime.cli import main
from mobiedit.runtime.configuration import Optimizer
from mobiedit.runtime.lock import editing_lock

QUICK = ["--optimizer", "zo", "--steps", "2", "--directions", "2", "--check-every", "1", "--force"]
EDIT = {"--prompt": "The capital of {} is", "--subject": "France", "--target": "Rome"}


def edit_arguments(path: Path, **changes: str) -> list[str]:
    """Return the arguments of a quick forced edit, with changes to its request."""
    request = {**EDIT, **{f"--{name}": value for name, value in changes.items()}}
    return ["edit", str(path), *(part for pair in request.items() for part in pair), *QUICK]


def snapshot(path: Path) -> dict[str, str]:
    """Return the content of every file but the lock."""
    return {
        str(file.relative_to(path)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in path.rglob("*")
        if file.is_file() and file.name != "lock"
    }


def refuse(path: Path, arguments: list[str], message: str) -> None:
    """Run a command that must fail with one line, and leave the bundle as it was."""
    before = snapshot(path) if path.exists() else None
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert re.fullmatch(r"error: [^\n]+\n", result.stderr)
    assert re.search(message, result.stderr), result.stderr
    assert (snapshot(path) if path.exists() else None) == before


@pytest.fixture
def edited_path(bundle: Bundle) -> Path:
    """A bundle with one edit in its journal, so that there is something to lose."""
    config = EditConfig(Optimizer.ZO, zeroth_order=ZerothOrderConfig(steps=1, directions=1), force=True)
    bundle.edit("The mother tongue of {} is", "Danielle Darrieux", "old", config=config)
    return bundle.path


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompt": "The capital of France is"}, r"no \{\}: write 'The capital of \{\} is'"),
        ({"prompt": "The capital is"}, "subject 'France' is not in the prompt"),
        ({"prompt": "{} and {}"}, "2 {}: keep the one"),
        ({"subject": "  "}, "subject is empty"),
        ({"target": ""}, "target is empty"),
        ({"target": "very " * 200}, "at most 32 can be taught: shorten it"),
        ({"prompt": "word " * 400 + "{} is"}, "the bundle's context is 256: shorten it"),
        ({"target": "\ud800"}, "not valid Unicode"),
        ({"mu": "-1"}, "mu, learning rate and clamp must be above 0"),
        ({"stop-probability": "2"}, "stop probability must lie between 0 and 1"),
    ],
)
def test_request_is_refused_when_it_is_not_well_formed(
    edited_path: Path, changes: dict[str, str], message: str
) -> None:
    refuse(edited_path, edit_arguments(edited_path, **changes), message)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--prompt", "{} is", "--subject", "x"], "--target is missing"),
        ([], "--prompt is missing: give --prompt, --subject and --target, or --batch FILE"),
        (["--batch", "FILE", "--target", "x"], "--target and --batch exclude each other"),
        (["--batch", "FILE", "--prompt", ""], "--prompt and --batch exclude each other"),
        (["--batch", "FILE", "--paraphrase", "x"], "--paraphrase and --batch exclude each other"),
        (["--batch", "FILE"], "facts.jsonl, line 2 is not JSON"),
        (["--batch", "nowhere.jsonl"], "nowhere.jsonl is not a file"),
    ],
)
def test_edit_is_refused_when_fact_or_batch_is_wrong(
    edited_path: Path, arguments: list[str], message: str, tmp_path: Path
) -> None:
    path = tmp_path / "facts.jsonl"
    path.write_text('{"prompt": "{} is", "subject": "x", "target": "y"}\n{')
    given = [str(path) if word == "FILE" else word for word in arguments]
    refuse(edited_path, ["edit", str(edited_path), *given, *QUICK], message)


def test_request_is_refused_when_the_vocabulary_does_not_know_a_token(edited_path: Path) -> None:
    vocabulary = {"<unk>": 0, "The": 1, "capital": 2, "of": 3, "France": 4, "is": 5}
    tokenizer = {
        "version": "1.0",
        "pre_tokenizer": {"type": "Whitespace"},
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "<unk>"},
    }
    rewrite(edited_path, "tokenizer.json", json.dumps(tokenizer).encode())
    refuse(edited_path, edit_arguments(edited_path), "does not know 'Rome': write it another way|does not know 'a'")


def rewrite(path: Path, name: str, data: bytes) -> None:
    """Replace a file and its entry in the manifest, as somebody who makes a bundle by hand would."""
    (path / name).write_bytes(data)
    change_manifest(
        path, lambda m: m["files"].update({name: {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}})
    )


def change_manifest(path: Path, change: Callable[[dict], None]) -> None:  # type: ignore[type-arg]
    """Apply a change to the manifest's JSON."""
    manifest = json.loads((path / "manifest.json").read_text("utf-8"))
    change(manifest)
    (path / "manifest.json").write_text(json.dumps(manifest), "utf-8")


def flip_byte(path: Path) -> None:
    """Change one byte in the middle of a weight file."""
    data = bytearray((path / "suffix.onnx.data").read_bytes())
    data[len(data) // 2] ^= 1
    (path / "suffix.onnx.data").write_bytes(data)


def link_away(path: Path) -> None:
    """Put a link in place of a file."""
    moved = path.parent / "elsewhere.json"
    shutil.move(path / "tokenizer.json", moved)
    (path / "tokenizer.json").symlink_to(moved)


def leave_bundle(path: Path) -> None:
    """List a file outside the bundle."""
    (path.parent / "outside").write_bytes(b"x")
    change_manifest(path, lambda m: m["files"].update({"../outside": {"sha256": "0" * 64, "size": 1}}))


def take_weights_from_outside(path: Path) -> None:
    """Let a graph's weights come from a file beside the bundle, with hashes that are right."""
    shutil.copy(path / "head.onnx.data", path.parent / "outside_it.data")
    graph = (path / "head.onnx").read_bytes()
    assert graph.count(b"head.onnx.data") == 1
    # A name of the same length, so that the lengths around it stay right.
    rewrite(path, "head.onnx", graph.replace(b"head.onnx.data", b"../outside.dat"))


DAMAGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "changed-byte": (flip_byte, r"suffix\.onnx\.data"),
    "missing-file": (lambda path: (path / "head.onnx").unlink(), r"head\.onnx is missing"),
    "path-leaves-bundle": (leave_bundle, r"\.\./outside.* leaves the bundle"),
    "link": (link_away, r"tokenizer\.json.*link"),
    "weights-outside": (take_weights_from_outside, r"\.\./outside\.dat.* leaves the bundle"),
    "newer-schema": (lambda p: change_manifest(p, lambda m: m.update(schema_version=99)), "schema 99.*update mobiedit"),
    "manifest-is-no-json": (lambda path: (path / "manifest.json").write_text("{"), "JSON"),
    "no-manifest": (lambda path: (path / "manifest.json").unlink(), r"manifest\.json"),
    "linked-edits": (
        lambda path: (shutil.move(path / "edits", path.parent / "e"), (path / "edits").symlink_to(path.parent / "e"))[
            1
        ],
        "edits is a link",
    ),
}


@pytest.mark.parametrize("command", ["edit", "ask", "verify"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_bundle_is_refused_when_it_is_damaged(edited_path: Path, damage: str, command: str) -> None:
    apply, message = DAMAGES[damage]
    apply(edited_path)
    arguments = {"edit": edit_arguments(edited_path), "ask": ["ask", str(edited_path), "hello"]}
    refuse(edited_path, arguments.get(command, [command, str(edited_path)]), message)


def test_bundle_is_refused_when_it_is_not_there(tmp_path: Path) -> None:
    refuse(tmp_path / "none", ["ask", str(tmp_path / "none"), "hello"], "is not a folder")


def test_graph_that_is_no_graph_is_refused_when_its_hash_is_right(edited_path: Path) -> None:
    rewrite(edited_path, "suffix.onnx", b"not a graph")
    refuse(edited_path, edit_arguments(edited_path), r"suffix\.onnx cannot be loaded .*export the bundle again")


def test_edit_is_refused_when_a_graph_returns_nan(edited_path: Path) -> None:
    weights = np.fromfile(edited_path / "suffix.onnx.data", np.float32)
    weights[:] = np.nan
    rewrite(edited_path, "suffix.onnx.data", weights.tobytes())
    refuse(edited_path, edit_arguments(edited_path), r"suffix\.onnx returned NaN or infinity")


def test_edit_is_refused_when_another_process_edits(edited_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from mobiedit.runtime.lock import editing_lock\n"
        "with editing_lock(Path(sys.argv[1])): print('held', flush=True); sys.stdin.readline()"
    )
    command = [sys.executable, "-c", script, str(edited_path / "edits")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        refuse(edited_path, edit_arguments(edited_path), "another process is editing this bundle")
        refuse(edited_path, ["undo", str(edited_path)], "another process is editing this bundle")
        assert CliRunner().invoke(main, ["list", str(edited_path)]).exit_code == 0
        other.communicate("end\n", timeout=30)
    with editing_lock(edited_path / "edits"):
        pass


@pytest.mark.skipif(sys.platform == "win32", reason="limits of file size are POSIX's")
def test_edit_is_refused_when_the_disk_takes_no_more(edited_path: Path) -> None:
    # A limit on file size is the one full disk that a test can make without privileges: the append fails half-way.
    limit = (edited_path / "edits" / "journal").stat().st_size + 512
    script = (
        f"import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))\n"
        "from mobiedit.runtime.cli import main; main(sys.argv[1:])"
    )
    before = snapshot(edited_path)
    command = [sys.executable, "-c", script, *edit_arguments(edited_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 2
    errors = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert len(errors) == 1
    assert "free some space" in errors[0]
    assert "Traceback" not in done.stderr
    assert snapshot(edited_path) == before


def test_edit_is_refused_when_the_bundle_is_read_only(edited_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # As a read-only file system answers; permission bits would not stop a test that runs as root.
    real_open = os.open

    def read_only(path: str | os.PathLike[str], flags: int, *rest: int, **more: int) -> int:
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) and str(edited_path) in os.fspath(path):
            raise OSError(30, "Read-only file system", str(path))
        return real_open(path, flags, *rest, **more)

    monkeypatch.setattr(os, "open", read_only)
    refuse(edited_path, edit_arguments(edited_path), "copy")


def test_newlines_in_a_request_do_not_break_the_line(edited_path: Path) -> None:
    refuse(edited_path, edit_arguments(edited_path, prompt="two\nlines"), "is not in the prompt")
