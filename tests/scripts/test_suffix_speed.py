"""The suffix's times, on the tiny model: the table's rows, and that all contenders compute the same."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from mobiedit.runtime.errors import RequestError
from scripts.suffix_speed import Contender, Shape, Times, main, rows_of, time_in_turns


def test_table_has_a_row_a_bundle_and_shape_when_bundles_are_timed(
    fp32_bundle: Path, w8a16_bundle: Path, llama: Path, tmp_path: Path, run: Callable[..., Result]
) -> None:
    out = tmp_path / "speed.json"
    given = [fp32_bundle, w8a16_bundle, "--model", llama, "--shapes", "2x5,1x3", "--repeats", "3", "--threads", "1"]
    result = run(main, [*given, "--json", out])
    document = json.loads(out.read_text("utf-8"))
    rows = document["rows"]
    assert [(row["rows x tokens"], row["precision"]) for row in rows] == [
        ("2x5", "fp32"),
        ("2x5", "w8a16"),
        ("1x3", "fp32"),
        ("1x3", "w8a16"),
    ]
    assert len([line for line in result.stdout.splitlines() if line.startswith("| ")]) == 2 + len(rows)
    for row in rows:
        assert row["ratio"] > 0
        assert row["ms"] > 0
        # The same numbers in another order of summation; INT8 weights and INT16 activations of a tiny model.
        assert row["cosine"] > (0.999999 if row["precision"] == "fp32" else 0.99)
        assert (row["goal"] is None) == (row["precision"] == "fp32")
    assert {len(times) for shape in document["seconds"].values() for times in shape.values()} == {3}
    assert str(tmp_path) not in document["command"]


def test_contenders_take_turns_when_they_are_timed() -> None:
    ran: list[str] = []

    def contender(name: str) -> Contender:
        return Contender(name, "fp32", lambda feeds: ran.append(name) or np.zeros(1, np.float32))

    times = time_in_turns([contender("a"), contender("b")], {}, 3, "")
    assert (times.wall.shape, times.processor.shape) == ((2, 3), (2, 3))
    assert ran == ["a", "b"] * 5  # two rounds do not count


def test_ratio_is_the_median_of_the_rounds_when_one_is_disturbed() -> None:
    contenders = [Contender(name, name, lambda feeds: feeds["x"]) for name in ("torch", "w8")]
    times = Times(np.array([[1.0, 2.0, 1.0], [0.5, 1.0, 9.0]]), np.array([[4.0, 4.0, 4.0], [1.0, 9.0, 1.0]]))
    (row,) = rows_of(Shape(8, 16), contenders, times, [np.ones(4), 2 * np.ones(4)])
    assert (row["ratio"], row["ms"], row["torch_ms"], row["reached"]) == (0.5, 1000, 1000, True)
    assert row["processor_ratio"] == 0.25
    assert row["cosine"] == pytest.approx(1)


@pytest.mark.parametrize("text", ["8", "8x", "0x4", "8x16x2", "axb", ""])
def test_shape_is_refused_when_it_is_none(text: str) -> None:
    with pytest.raises(RequestError, match=r"is no shape: write rows and tokens, as 8x16\Z"):
        Shape.of(text)


def test_bundle_is_refused_in_one_line_when_it_is_of_another_model(
    fp32_bundle: Path, tmp_path: Path, make_checkpoint: Callable[..., Path]
) -> None:
    other = make_checkpoint("llama", tie_word_embeddings=True, num_hidden_layers=3)
    done = CliRunner().invoke(main, [str(fp32_bundle), "--model", str(other), "--json", str(tmp_path / "a.json")])
    assert (done.exit_code, done.stdout) == (2, "")
    assert "was exported from other weights than" in done.stderr.splitlines()[-1]
    assert not (tmp_path / "a.json").exists()
