"""What `make test-aarch64` is judged by; the run itself is kept in docs/aarch64.md."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mobiedit.device.transport import Completed
from scripts.aarch64_check import _failures
from scripts.support.emulated import EmulatedTransport

ROW: dict[str, Any] = {
    "precision": "w8a16",
    "answer_before_on_host": "'a'",
    "answer_before_on_device": "'a'",
    "answer_after_on_host": "'b'",
    "answer_after_on_device": "'c'",
    "answer_here_with_the_edit_of_device": "'c'",
    "learned_on_host": True,
    "learned_on_device": True,
    "target_probability_on_host": 0.5,
    "target_probability_on_device": 0.4,
    **{f"{name}_cosine": 0.9995 for name in ("key", "value", "direction")},
    "delta_cosine": 0.985,
}


def test_a_row_within_its_tolerances_passes() -> None:
    assert _failures(ROW) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"answer_before_on_device": "'b'"}, "before the edit"),
        ({"answer_here_with_the_edit_of_device": "'d'"}, "another answer here"),
        ({"learned_on_device": False}, "did not take on the device"),
        ({"key_cosine": 0.99}, "key: cosine"),
        ({"precision": "fp32"}, "value: cosine"),
        ({"delta_cosine": float("nan")}, "delta: cosine"),
        ({"target_probability_on_device": 0.3}, "probabilities"),
    ],
)
def test_what_differs_is_named(changes: dict[str, Any], message: str) -> None:
    assert any(message in failure for failure in _failures({**ROW, **changes}))


def test_a_program_of_the_root_runs_under_its_own_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "usr/bin").mkdir(parents=True)
    real = tmp_path / "usr/bin/python3.11"
    real.touch()
    (tmp_path / "usr/bin/python3").symlink_to("python3.11")
    environment = tmp_path / "runner-python"
    environment.symlink_to(real)
    seen: list[list[str]] = []

    def run(_self: object, words: list[str], **_more: object) -> Completed:
        seen.append(words)
        return Completed(0, b"", b"")

    monkeypatch.setattr("mobiedit.device.local.LocalTransport.run", run)
    device = EmulatedTransport(tmp_path)
    device.run(["python3", "-c", "pass"])
    device.run([str(environment), "-m", "x"])
    device.run(["missing"])
    assert [words[words.index("-0") + 1 :] for words in seen[:2]] == [
        [str(tmp_path / "usr/bin/python3"), str(real), "-c", "pass"],
        [str(environment), str(real), "-m", "x"],
    ]
    assert seen[2] == [str(tmp_path / "usr/bin/missing")]
