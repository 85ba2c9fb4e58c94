"""The file primitives: names that lead out, links, and writes that fail."""

import errno
import os
import stat
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mobiedit.runtime.errors import BundleError, StorageError
from mobiedit.runtime.files import (
    ensure_folder,
    fsync_folder,
    is_regular,
    read_regular,
    safe_child,
    sha256_of,
    storage_errors,
    write_atomic,
    write_tail,
)

posix_only = pytest.mark.skipif(os.name != "posix", reason="permissions are of POSIX")
REFUSALS = ("ENOSPC", "EDQUOT", "EFBIG", "EROFS", "EACCES", "EPERM")


def link(path: Path, to: Path) -> None:
    try:
        path.symlink_to(to)
    except OSError:
        pytest.skip("this user may not make links")


def fail_fsync(monkeypatch: pytest.MonkeyPatch) -> None:
    def fsync(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "fsync", fsync)


def test_sha256_of_is_the_known_one_when_file_is_abc(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")
    assert sha256_of(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_safe_child_is_the_path_when_file_is_regular(tmp_path: Path) -> None:
    (tmp_path / "graph_1-a.onnx").touch()
    assert safe_child(tmp_path, "graph_1-a.onnx") == tmp_path / "graph_1-a.onnx"


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "../a",
        "a/b",
        "a\\b",
        "/a",
        "C:a",
        "a..b",
        ".hidden",
        "-a",
        "a\n",
        "a\x00",
        "a.",
        "ä",
        "a" * 256,
        "CON",
        "nul",
        "Aux.txt",
        "com1",
        "LPT9.tar.gz",
    ],
)
def test_safe_child_refuses_when_name_is_not_flat_and_portable(tmp_path: Path, name: str) -> None:
    with pytest.raises(BundleError, match=r"^file name .* leaves the bundle or is not portable; export"):
        safe_child(tmp_path, name)


@settings(deadline=None)
@given(name=st.text())
def test_safe_child_never_leaves_the_folder_when_name_is_any_text(name: str) -> None:
    folder = Path(__file__).parent
    with suppress(BundleError):
        assert safe_child(folder, name).resolve().parent == folder.resolve()


def test_safe_child_refuses_when_file_is_missing(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="file a is missing from the bundle"):
        safe_child(tmp_path, "a")


def test_safe_child_refuses_when_file_is_a_link(tmp_path: Path) -> None:
    (tmp_path / "target").touch()
    link(tmp_path / "a", tmp_path / "target")
    with pytest.raises(BundleError, match="is a link"):
        safe_child(tmp_path, "a")


def test_safe_child_refuses_when_link_is_broken(tmp_path: Path) -> None:
    link(tmp_path / "a", tmp_path / "nowhere")
    with pytest.raises(BundleError, match="is a link"):
        safe_child(tmp_path, "a")


def test_safe_child_refuses_when_it_is_a_folder(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with pytest.raises(BundleError, match="is not a regular file"):
        safe_child(tmp_path, "a")


def test_is_regular_is_false_when_folder_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    assert not is_regular(tmp_path / "a" / "b")


def test_read_regular_is_none_when_file_is_missing(tmp_path: Path) -> None:
    assert read_regular(tmp_path / "a") is None


def test_read_regular_returns_all_when_size_is_the_limit(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"\r\n\x1a4")
    assert read_regular(tmp_path / "a", limit=4) == b"\r\n\x1a4"


def test_read_regular_refuses_when_file_is_over_the_limit(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"12345")
    with pytest.raises(BundleError, match="larger than 4 bytes"):
        read_regular(tmp_path / "a", limit=4)


@pytest.mark.parametrize("name", [name for name in REFUSALS if hasattr(errno, name)])
def test_storage_errors_names_action_and_remedy_when_disk_refuses(name: str) -> None:
    with pytest.raises(StorageError, match=r"^cannot write it: [^\n]+; [^\n]+$"), storage_errors("write it"):
        raise OSError(getattr(errno, name), "refused")


def test_storage_errors_passes_when_error_is_another(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), storage_errors("read it"):
        (tmp_path / "a").read_bytes()


def test_fsync_folder_does_nothing_when_folders_cannot_be_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> int:
        raise PermissionError(errno.EACCES, "a folder")

    monkeypatch.setattr(os, "open", refuse)
    fsync_folder(tmp_path)


def test_ensure_folder_creates_when_parent_exists(tmp_path: Path) -> None:
    ensure_folder(tmp_path / "a")
    ensure_folder(tmp_path / "a")
    assert (tmp_path / "a").is_dir()


def test_ensure_folder_refuses_when_parent_is_missing(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="check the path"):
        ensure_folder(tmp_path / "a" / "b")


def test_ensure_folder_refuses_when_a_file_is_there(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    with pytest.raises(BundleError, match="check the path"):
        ensure_folder(tmp_path / "a")


def test_write_atomic_replaces_when_file_exists(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"former")
    write_atomic(tmp_path / "a", b"new\n")
    assert (tmp_path / "a").read_bytes() == b"new\n"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_write_atomic_keeps_former_content_when_disk_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").write_bytes(b"former")
    fail_fsync(monkeypatch)
    with pytest.raises(StorageError, match="disk is full"):
        write_atomic(tmp_path / "a", b"new")
    assert (tmp_path / "a").read_bytes() == b"former"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_write_atomic_leaves_target_alone_when_file_is_a_link(tmp_path: Path) -> None:
    (tmp_path / "target").write_bytes(b"former")
    link(tmp_path / "a", tmp_path / "target")
    write_atomic(tmp_path / "a", b"new")
    assert (tmp_path / "target").read_bytes() == b"former"
    assert (tmp_path / "a").read_bytes() == b"new"


@posix_only
def test_write_atomic_is_private_when_mode_is_default(tmp_path: Path) -> None:
    write_atomic(tmp_path / "a", b"")
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o600


@posix_only
def test_write_atomic_has_mode_of_any_file_when_mode_is_none(tmp_path: Path) -> None:
    (tmp_path / "any").touch()
    write_atomic(tmp_path / "a", b"", mode=None)
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "any").stat().st_mode


def test_write_tail_replaces_the_end_when_file_is_longer(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"keep torn tail")
    write_tail(tmp_path / "a", 5, b"new")
    assert (tmp_path / "a").read_bytes() == b"keep new"


def test_write_tail_goes_back_when_disk_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").write_bytes(b"keep")
    fail_fsync(monkeypatch)
    with pytest.raises(StorageError, match="disk is full"):
        write_tail(tmp_path / "a", 4, b"new")
    assert (tmp_path / "a").read_bytes() == b"keep"
