"""The report: one page that stands alone, whatever the results hold, and one line for what is no result."""

import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from click.testing import CliRunner

from mobiedit.runtime.cli import main
from mobiedit.runtime.costs import Cost
from mobiedit.runtime.evaluation.measured import MeasuredRecord, Metrics
from mobiedit.runtime.evaluation.report_data import read_results
from mobiedit.runtime.evaluation.report_plots import compact
from mobiedit.runtime.evaluation.summary import SCORES, summarise, summarise_further

# A warning would stand on the standard error of the command.
# Every warning of a plot is an error; what is told of other tests' garbage, wherever it is collected, is not a plot's.
pytestmark = pytest.mark.filterwarnings("error", "ignore::pytest.PytestUnraisableExceptionWarning")

PLOTS = ("success", "loss", "costs", "metrics")
HOSTILE = "<script>alert('x')</script>\"&"
FAILURE = "the prompt does not lead to the target"


def record(number: int, **changes: Any) -> MeasuredRecord:
    """Return a made-up record: the even ones take, the odd ones fail."""
    took = number % 2 == 0
    steps = np.arange(6)
    fields: dict[str, Any] = {
        "identifier": f"record-{number}",
        "prompt": f"The mother tongue of person {number} is",
        "subject": f"person {number}",
        "target": "English",
        "pre": Metrics(paraphrase=0.1, neighbourhood=0.8, argmax_unchanged=1.0, fluency=5.9),
        "post": Metrics(took, took, took, paraphrase=0.5, neighbourhood=0.7, argmax_unchanged=0.9, fluency=5.5),
        "top_tokens": {"pre": ((" French", 0.71), ("\n", 0.05)), "post": ((" English", 0.93), (" French", 0.03))},
        "answer": {"pre": " French. She was born", "post": " English. She was"},
        "optimizer": "zo",
        "failures": () if took else (FAILURE,),
        "looks": tuple((1 + 20 * int(s), 6.0 / (1 + s), float(s) / 5 if took else 0.1) for s in steps),
        "cost": Cost(100 * (number + 1), 1_000_000, 12.5, 900 << 20),
    }
    return MeasuredRecord(**{**fields, **changes})


def document(*records: MeasuredRecord) -> dict[str, Any]:
    """Return what `mobiedit bench` writes for records."""
    data = {
        "settings": {"precision": "w8a16", "limit": None, "edits": [], "edit": {"search": {"mu": 0.1}}},
        "records": [each.to_dict() for each in records],
        "summary": summarise(records),
        "further": summarise_further(records),
    }
    copied: dict[str, Any] = json.loads(json.dumps(data))
    return copied


def write(path: Path, data: Any) -> Path:
    """Write a result."""
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(data), "utf-8")
    return path


def page_of(tmp_path: Path, *paths: Path) -> str:
    """Return the page that the command makes."""
    out = tmp_path / "page.html"
    done = CliRunner().invoke(main, ["report", *map(str, paths), "--out", str(out)])
    assert done.exit_code == 0, done.output
    assert done.stderr == ""
    return out.read_text("utf-8")


def plots_of(page: str) -> dict[str, str]:
    """Return every figure of the page by its name."""
    return dict(re.findall(r'<figure id="plot-(\w+)">(.*?)</figure>', page, re.DOTALL))


def drawn(figure: str) -> str:
    """Return the text of a figure's SVG, which must be well-formed XML."""
    return " ".join(
        "".join(ElementTree.fromstring(re.findall(r"<svg.*</svg>", figure, re.DOTALL)[0]).itertext()).split()
    )


@pytest.fixture
def result(tmp_path: Path) -> Path:
    """A result of 24 records, half of which failed."""
    return write(tmp_path / "zo-w8a16.json", document(*map(record, range(24))))


def test_page_stands_alone(tmp_path: Path, result: Path) -> None:
    page = page_of(tmp_path, result)

    class Checker(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            assert tag not in {"script", "link", "img", "iframe", "object", "base"}
            for name, value in attrs:
                if name in {"src", "href", "xlink:href"}:
                    assert (value or "").startswith("#")

    Checker().feed(page)
    addresses = set(re.findall(r"\w+://[^\"' <)]*", page))
    assert addresses <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
    assert not re.search(r"url\((?!#)|@import", page)
    assert "#0a0b0c" not in page
    identifiers = re.findall(r'\bid="([^"]*)"', page)
    assert len(identifiers) == len(set(identifiers))


def test_every_plot_and_figure_is_there(tmp_path: Path, result: Path) -> None:
    page = page_of(tmp_path, result)
    plots = plots_of(page)
    assert tuple(plots) == PLOTS
    for figure in plots.values():
        assert "zo-w8a16" in drawn(figure)
        assert "currentColor" in figure
    assert "peak memory, MiB" in drawn(plots["costs"])
    assert "fluency" in drawn(plots["metrics"])
    assert "Not measured: portability." in plots["metrics"]
    assert "0.000 → 0.500" in page
    assert "1,250 (max 2,400)" in page
    assert "900 (max 900)" in page
    assert "edit.search.mu" in page
    assert "worst_decile.exact_match" in page


def test_examples_are_twenty_with_failed_ones_first(tmp_path: Path, result: Path) -> None:
    page = page_of(tmp_path, result)
    shown = [int(number) for number in re.findall(r"<td>record-(\d+)<br>", page)]
    assert shown == [*range(1, 24, 2), *range(0, 16, 2)]
    assert page.count("✗ failed") == page.count(FAILURE) == 12
    assert "<code> English</code> 0.930" in page
    assert "<code>↵</code>" in page


def test_hostile_text_is_escaped(tmp_path: Path) -> None:
    hostile = record(
        1,
        identifier=HOSTILE,
        prompt=f"{HOSTILE} is",
        subject=HOSTILE,
        target=HOSTILE,
        top_tokens={"pre": ((HOSTILE, 0.5),), "post": (("\ud800", 0.5),)},
        answer={"pre": HOSTILE, "post": HOSTILE},
        failures=(HOSTILE,),
    )
    data = document(hostile)
    data["settings"] |= {HOSTILE: HOSTILE}
    path = write(tmp_path / "_<b>$x_1$&.json", data)
    page = page_of(tmp_path, path)
    assert "<script" not in page
    assert "<b>$" not in page
    assert page.count("&lt;script&gt;") >= 9
    assert "_<b>$x_1$&" in drawn(plots_of(page)["metrics"])


def test_results_of_one_name_are_told_apart(tmp_path: Path) -> None:
    data = document(record(0), record(1))
    paths = [write(tmp_path / folder / f"{'long-' * 20}name.json", data) for folder in ("a", "b", "c")]
    names = [each.name for each in read_results(paths)]
    assert len(set(names)) == 3
    assert names[1] == f"{names[0]} (2)"
    assert "(3)" in drawn(plots_of(page_of(tmp_path, *paths))["costs"])


def test_result_without_looks_is_left_out_of_the_curves_alone(tmp_path: Path, result: Path) -> None:
    oracle = document(record(0), record(1))
    for each in oracle["records"]:
        for name in ("looks", "top_tokens", "answer", "failures", "optimizer"):
            del each[name]
    del oracle["settings"], oracle["further"]
    path = write(tmp_path / "oracle.json", oracle)
    plots = plots_of(page_of(tmp_path, result, path))
    for name in ("success", "loss"):
        assert "oracle" not in drawn(plots[name])
        assert "Left out: oracle, which has no looks." in plots[name]
    assert "oracle" in drawn(plots["costs"])
    alone = plots_of(page_of(tmp_path, path))
    assert "<svg" not in alone["success"]
    assert "No result has looks" in alone["success"]


@pytest.mark.parametrize("absent", [None, float("nan")])
def test_what_was_not_measured_is_a_dash(tmp_path: Path, absent: float | None) -> None:
    data = document(record(0))
    data["summary"] = dict.fromkeys(data["summary"])
    data["summary"]["efficacy"] = {"pre": absent, "post": 1.0, "ci95": None}
    data["summary"]["forwards"] = {"median": absent, "max": 3}
    data["records"][0]["looks"][0][1] = absent
    page = page_of(tmp_path, write(tmp_path / "r.json", data))
    assert "– → 1.000<" in page  # noqa: RUF001
    assert "No result has costs." in plots_of(page)["costs"]
    assert "Not measured: exact match" in plots_of(page)["metrics"]


def test_no_record_at_all_makes_a_page(tmp_path: Path) -> None:
    page = page_of(tmp_path, write(tmp_path / "empty.json", document()))
    assert "<svg" not in page
    assert "0 of 0 records" in page


def test_refused_record_counts_as_not_reached_and_says_why(tmp_path: Path) -> None:
    refused = record(2, looks=(), cost=None, failures=(), error="the target is too long: shorten it")
    page = page_of(tmp_path, write(tmp_path / "r.json", document(record(0), refused)))
    assert page.index("the target is too long: shorten it") < page.index("record-0")
    assert page.count("✗ failed") == 1
    assert "no looks" not in plots_of(page)["success"]


def test_many_results_fit(tmp_path: Path) -> None:
    paths = [write(tmp_path / f"result-{i}.json", document(record(0), record(i))) for i in range(9)]
    plots = plots_of(page_of(tmp_path, *paths))
    assert all(f"result-{i}" in drawn(plots[name]) for i in range(9) for name in PLOTS)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "No such file"),
        (b"{", "is not JSON"),
        (b"\xff\xfe", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b"[]", "the file is no object"),
        (b'{"records": []}', "it has no 'summary'"),
        (b'{"summary": {}, "records": {}}', "records is no list"),
        (b'{"summary": {}, "records": [3]}', r"records\[0\] is no object"),
        (b'{"summary": {"efficacy": 1}, "records": []}', "summary.efficacy is no object"),
        (b'{"summary": {"forwards": {"median": "x"}}, "records": []}', "summary.forwards.median is no number"),
        (b'{"summary": {}, "records": [{"looks": [[1, 2]]}]}', r"records\[0\].looks does not hold"),
        (b'{"summary": {}, "records": [{"top_tokens": {"pre": [["a"]]}}]}', "top_tokens.pre does not hold pairs"),
        (b'{"summary": {}, "records": [{"prompt": 3}]}', "prompt is no text"),
    ],
)
def test_what_is_no_result_is_refused_in_one_line(tmp_path: Path, content: bytes | None, message: str) -> None:
    path, out = tmp_path / "bad.json", tmp_path / "page.html"
    if content is not None:
        path.write_bytes(content)
    done = CliRunner().invoke(main, ["report", str(path), "--out", str(out)])
    assert done.exit_code == 2
    assert re.fullmatch(r"error: [^\n]*bad\.json[^\n]*name a file that `mobiedit bench` wrote\n", done.stderr)
    assert re.search(message, done.stderr), done.stderr
    assert not out.exists()


def test_page_replaces_a_page_but_never_a_result(tmp_path: Path, result: Path) -> None:
    page = page_of(tmp_path, result)
    assert page_of(tmp_path, result) == page
    before = result.read_bytes()
    done = CliRunner().invoke(main, ["report", str(result), "--out", str(tmp_path / "." / result.name)])
    assert done.exit_code == 2
    assert "is one of the results" in done.stderr
    assert result.read_bytes() == before


@pytest.mark.parametrize("place", ["missing/page.html", "."])
def test_page_without_a_place_is_refused_in_one_line(tmp_path: Path, result: Path, place: str) -> None:
    done = CliRunner().invoke(main, ["report", str(result), "--out", str(tmp_path / place)])
    assert done.exit_code == 2
    assert re.fullmatch(r"error: cannot write [^\n]+\n", done.stderr), done.output
    assert [path.name for path in tmp_path.iterdir()] == [result.name]


def test_json_names_the_page(tmp_path: Path, result: Path) -> None:
    out = tmp_path / "page.html"
    done = CliRunner().invoke(main, ["report", str(result), "--out", str(out), "--json"])
    assert json.loads(done.stdout) == {"report": str(out), "results": 1, "records": 24}


@pytest.mark.parametrize("missing", ["matplotlib", "jinja2"])
def test_missing_library_is_named_with_its_remedy(
    tmp_path: Path, result: Path, missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("report", "report_plots"):
        monkeypatch.delitem(sys.modules, f"mobiedit.runtime.evaluation.{name}", raising=False)
    monkeypatch.setitem(sys.modules, missing, None)
    done = CliRunner().invoke(main, ["report", str(result), "--out", str(tmp_path / "page.html")])
    assert done.exit_code == 2
    assert done.stderr.startswith(f"error: a report needs {missing}, which is not installed: run `pip install")
    assert done.stderr.count("\n") == 1


def test_commands_do_not_import_what_only_a_report_needs() -> None:
    script = "import sys, mobiedit.runtime.cli; print({'matplotlib', 'jinja2'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout == "set()\n"


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.25, "0.25"), (643, "643"), (1199, "1,199"), (12_000, "12k"), (999_900, "1M"), (1.2e6, "1.2M"), (3e9, "3G")],
)
def test_compact_keeps_few_characters(value: float, text: str) -> None:
    assert compact(value) == text


def test_every_score_is_in_the_summary(tmp_path: Path, result: Path) -> None:
    page = page_of(tmp_path, result)
    assert all(f'<th scope="row">{name.replace("_", " ")}</th>' in page for name in SCORES)
