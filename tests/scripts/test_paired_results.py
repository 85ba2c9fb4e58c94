"""Two results, record by record: what is in both is compared, by parts that belong together."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from mobiedit.runtime.costs import Cost
from mobiedit.runtime.evaluation import MeasuredRecord, Metrics
from mobiedit.runtime.evaluation.result_file import ResultFile
from scripts.paired_results import main


def write(
    path: Path, portability: dict[str, float | None], forwards: int, data: str = "d", said: str = " so it is"
) -> Path:
    """Write a result whose records have these portabilities and no neighbourhood, and their target "so" in answers."""
    file = ResultFile(path, {"data_sha256": data}, resume=False)
    for name, value in portability.items():
        pre = Metrics(portability=None if value is None else 0.25)
        post = Metrics(token_accuracy=1.0, portability=value)
        top, answer, cost = {"pre": (), "post": ()}, {"pre": " no", "post": said}, Cost(forwards, 10 * forwards, 1.0, 4)
        file.append(MeasuredRecord(name, "A is", "A", "so", pre, post, top, answer, "gn", cost=cost))
    return path


def compare(first: Sequence[Path], second: Sequence[Path]) -> Result:
    given = [
        word
        for option, paths in (("--first", first), ("--second", second))
        for path in paths
        for word in (option, path)
    ]
    return CliRunner().invoke(main, [str(word) for word in given])


def cells(output: str, score: str) -> list[str]:
    """Return a row of the table without its name."""
    (row,) = [line for line in output.splitlines() if line.startswith(f"| {score} ")]
    return [cell.strip() for cell in row.split("|")[2:-1]]


def test_records_of_both_are_paired_when_a_result_is_in_parts(tmp_path: Path) -> None:
    parts = [write(tmp_path / "a", {"0": 0.5, "1": 1.0}, 20), write(tmp_path / "b", {"2": 0.0, "9": 0.0}, 20)]
    other = write(tmp_path / "c", {"2": 0.0, "1": 0.5, "0": 0.0, "8": 1.0}, 10)
    output = compare(parts, [other]).output
    assert output.startswith("3 records in both, 1 and 1 in one alone")
    # Differences of .5, .5 and 0: their mean is 1/3, their standard error sqrt(1/12) / sqrt(3) = 1/6.
    assert cells(output, "portability")[:6] == ["3", "0.250", "0.500", "0.167", "+0.333", "0.167"]
    assert "forwards: x 2.00, geometric mean of 3 records" in output


def test_echo_is_the_share_of_answers_that_repeat_the_target_when_compared(tmp_path: Path) -> None:
    once = write(tmp_path / "a", {"0": 0.5, "1": 0.5}, 1)
    parts = [write(tmp_path / "b", {"0": 0.5}, 1, said=" so, so, so"), write(tmp_path / "c", {"1": 0.5}, 1)]
    assert cells(compare([once], parts).output, "echo")[:5] == ["2", "0.000", "0.000", "0.500", "-0.500"]


def test_score_is_left_out_when_no_record_tells_it(tmp_path: Path) -> None:
    first = write(tmp_path / "a", {"0": 0.5, "1": None}, 1)
    output = compare([first], [write(tmp_path / "b", {"0": 0.5, "1": 0.5}, 1)]).output
    assert cells(output, "portability")[0] == "1"
    assert "neighbourhood" not in output


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        (["a", "a"], ["b"], "a has record 0 again: give parts that do not overlap"),
        (["a"], ["c"], "no record is in both results: give those of one data file"),
        (["a"], ["nowhere"], "nowhere is missing: name a file that `mobiedit bench` wrote"),
        (["broken"], ["a"], "broken is damaged or no result of a benchmark"),
        (["a"], ["other"], "are of different data files: give results of the same one"),
    ],
)
def test_results_are_refused_when_they_cannot_be_compared(
    tmp_path: Path, first: list[str], second: list[str], message: str
) -> None:
    write(tmp_path / "a", {"0": 0.5}, 1)
    write(tmp_path / "b", {"0": 0.5}, 1)
    write(tmp_path / "c", {"7": 0.5}, 1)
    write(tmp_path / "other", {"0": 0.5}, 1, data="e")
    (tmp_path / "broken").write_text('{"settings": {}, "records": [1]}', "utf-8")
    result = compare([tmp_path / name for name in first], [tmp_path / name for name in second])
    assert result.exit_code == 2
    assert message in result.output
