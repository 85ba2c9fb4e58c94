"""The options of an export for the NPU, what they refuse, and what its stages leave in the manifest."""

from __future__ import annotations

import platform
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from mobiedit.export import npu_stage
from mobiedit.export.cli import main
from mobiedit.export.configuration import ExportConfig, Target
from mobiedit.export.pipeline import export_bundle
from mobiedit.export.prediction import predict
from mobiedit.export.progress import Stages
from mobiedit.runtime import open_bundle
from mobiedit.runtime.contexts import Shapes
from mobiedit.runtime.errors import RequestError

simulator = pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() != "x86_64", reason="the compiler is in the x86-64 Linux wheel alone"
)


def small_shapes(rows: int, context: int) -> Shapes:
    """One shape a graph, for time's sake."""
    text = {"batch": 1, "tokens": 1, "past": 16, "total": 17}
    return {"prefix": (text,), "edit": ({"batch": 1, "tokens": 1},), "suffix": (text,), "head": ({"rows": 1},)}


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--target", "qnn", "--soc", "SM1"], "SoC 'SM1' is not known: give one of "),
        (["--target", "qnn", "--soc", "SM8650,SM1"], "SoC 'SM1' is not known: give one of "),
        (["--target", "qnn", "--soc", "SM8650,"], "SoC '' is not known: give one of "),
        (["--target", "qnn", "--soc", "SM8350"], "has no FP16, which the edit layer needs: leave it out of --soc"),
        (["--soc", "SM8650"], "--soc means nothing to --target cpu: add --target qnn, or leave --soc out"),
        (["--target", "qnn", "--compile"], "--compile needs a SoC: add --target qnn --soc "),
        (["--compile"], "--compile needs a SoC: add --target qnn --soc "),
        (["--target", "qnn", "--soc", "SM8650", "--precision", "w8"], "the NPU does not take w8 graphs"),
    ],
)
def test_export_is_refused_before_any_work_when_an_option_does_not_fit(
    options: list[str], told: str, tmp_path: Path, contents: Callable[[Path], dict[str, str]]
) -> None:
    done = CliRunner().invoke(main, [str(tmp_path / "no-model"), "--out", str(tmp_path / "bundle"), *options])
    assert (done.exit_code, done.stdout) == (2, "")
    assert told in done.stderr
    assert done.stderr.count("\n") == 1
    assert contents(tmp_path) == {}


def test_socs_are_compiled_for_once_each_unless_compiling_is_off(tmp_path: Path) -> None:
    names = ("sm8750", "SM8650", "SM8750")

    def compiled_for(**options: bool) -> list[str]:
        config = ExportConfig("model", tmp_path, target=Target.QNN, soc=names, **options)  # type: ignore[arg-type]
        return [soc.name for soc in config.compiled_for]

    assert compiled_for() == compiled_for(compile=True) == ["SM8750", "SM8650"]
    assert compiled_for(compile=False) == []
    with pytest.raises(RequestError, match="SM1"):
        ExportConfig("model", tmp_path, target=Target.QNN, soc=("SM1",), compile=False)


def test_prediction_says_that_contexts_are_left_out_when_there_are_some(llama: Path, tmp_path: Path) -> None:
    config = ExportConfig(str(llama), tmp_path / "bundle", layer=1, target=Target.QNN, soc=("SM8650",))
    assert predict(config).notes == ("context binaries are not in these sizes",)


@simulator
@pytest.mark.usefixtures("written_graphs")
def test_bundle_has_contexts_when_a_soc_is_named(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(npu_stage, "compiled_shapes", small_shapes)
    out = tmp_path / "bundle"
    config = ExportConfig(str(llama), out, layer=1, target=Target.QNN, slots=3, lens_rows=24, soc=("SM8750",))
    report = export_bundle(config, Stages(quiet=True))
    assert report.notes == ()
    bundle = open_bundle(out)
    assert bundle.manifest == report.manifest
    contexts = bundle.manifest.contexts["SM8750"]
    assert (contexts.htp, contexts.shapes) == (79, small_shapes(7, 256))
    assert sorted(path.name for path in out.glob("*.SM8750.*")) == sorted(
        name for file in contexts.files for name in (file.wrapper, file.binary)
    )


@simulator
@pytest.mark.usefixtures("written_graphs")
def test_bundle_has_no_contexts_and_a_note_says_so_when_compiling_is_off(llama: Path, tmp_path: Path) -> None:
    options = [
        "--target",
        "qnn",
        "--soc",
        "SM8650",
        "--no-compile",
        "--layer",
        "1",
        "--slots",
        "3",
        "--lens-rows",
        "24",
    ]
    done = CliRunner().invoke(main, [str(llama), "--out", str(tmp_path / "bundle"), *options])
    assert done.exit_code == 0, done.stderr
    assert "note: no context binaries: " in done.stderr
    assert open_bundle(tmp_path / "bundle").manifest.contexts == {}
