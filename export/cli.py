"""``mobiedit-export``: turn a Hugging Face model into a bundle."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from mobiedit.calibration.activation_ranges import RangeMethod
from mobiedit.runtime.bundle_info import describe_contexts
from mobiedit.runtime.cli_support import CONTEXT_SETTINGS, ErrorCommand, echo_json
from mobiedit.runtime.errors import RequestError

from .activation_table import activation_lines
from .configuration import BLOCK, KEY_STATISTICS_BYTES, ExportConfig, Precision, Target
from .libraries import prepare_libraries


@click.command(cls=ErrorCommand, context_settings=CONTEXT_SETTINGS)
@click.version_option(package_name="mobiedit")
@click.argument("model")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The bundle to write.")
@click.option("--layer", default="auto", help="The edit layer: auto, which tries a few, or its index.")
@click.option(
    "--precision",
    type=click.Choice([p.value for p in Precision]),
    default=Precision.W8A16.value,
    help="Numbers of all graphs but the edit layer's MLP.",
)
@click.option(
    "--target",
    type=click.Choice([t.value for t in Target]),
    default=Target.CPU.value,
    help="What the bundle is for; qnn takes w8a16, w8a8 and mixed.",
)
@click.option(
    "--ranges",
    type=click.Choice([m.value for m in RangeMethod]),
    help="How static activation ranges are chosen; by default minmax, at 8 bits mse.",
)
@click.option(
    "--nll-budget",
    type=float,
    help="mixed: what 8-bit activations may add to the NLL of calibration text, nats a token; 0.05 by default.",
)
@click.option("--rotate/--no-rotate", default=None, help="Rotate the residual stream, folded into the weights.")
@click.option(
    "--report",
    type=click.Path(path_type=Path),
    help="A folder for the error of each layer: a table, a plot and the figures.",
)
@click.option("--samples", type=int, default=32, help="Lines of calibration text that the ranges are taken from.")
@click.option(
    "--calibration-text",
    type=click.Path(path_type=Path),
    help="A file with one sentence a line; the project's own by default.",
)
@click.option("--block", type=int, default=BLOCK, help="Inputs that share a scale in w8 and w4: 64 saves memory.")
@click.option(
    "--dynamic-multiplier",
    type=float,
    default=10.0,
    help="Key vectors for the statistics, as a multiple of the MLP's width.",
)
@click.option(
    "--key-statistics-mb",
    type=float,
    default=KEY_STATISTICS_BYTES / 1e6,
    help="Megabytes of the statistics in the bundle, at most.",
)
@click.option(
    "--facts",
    type=click.Path(path_type=Path),
    help="Evaluation records that the lens is fitted on; the project's own relations by default.",
)
@click.option("--lens-rows", type=int, default=6000, help="Facts that the fitting of the lens sees.")
@click.option("--slots", type=int, default=32, help="Edits that the bundle holds at once.")
@click.option("--soc", help="SoCs to compile for, as SM8650,SM8750; for --target qnn.")
@click.option("--compile/--no-compile", default=None, help="Compile for them; by default when --soc is given.")
@click.option("--revision", help="Revision of a Hub id.")
@click.option("--trust-remote-code", is_flag=True, help="Let code in the checkpoint run.")
@click.option("--dry-run", is_flag=True, help="Print sizes and predicted peak memory, write nothing.")
@click.option("--force", is_flag=True, help="Replace the bundle that is there, with its edits.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def main(
    model: str,
    out: Path,
    layer: str,
    precision: str,
    target: str,
    ranges: str | None,
    soc: str | None,
    key_statistics_mb: float,
    dry_run: bool,
    as_json: bool,
    **options: Any,  # noqa: ANN401 - click passes the options
) -> None:
    """Export MODEL: smollm2-135m, a local folder, a .gguf file, or a Hub id."""
    config = ExportConfig(
        model=model,
        out=out,
        layer=_layer(layer),
        precision=Precision(precision),
        target=Target(target),
        ranges=None if ranges is None else RangeMethod(ranges),
        key_statistics_bytes=round(1e6 * key_statistics_mb) if math.isfinite(key_statistics_mb) else 0,
        soc=() if soc is None else tuple(name.strip() for name in soc.split(",")),
        **options,
    )
    prepare_libraries("exporting")
    # Imported late: torch and transformers take seconds, `--help` and a mistyped option should not.
    from .pipeline import export_bundle
    from .prediction import predict
    from .progress import Stages

    if dry_run:
        plan = predict(config)
        if as_json:
            echo_json(
                {
                    "files": plan.files,
                    "total_bytes": plan.total_bytes,
                    "peak_bytes": plan.peak_bytes,
                    "parameters": plan.parameters,
                    "notes": list(plan.notes),
                }
            )
            return
        for note in plan.notes:
            click.echo(f"note: {note}", err=True)
        for name, size in plan.files.items():
            click.echo(f"{name:<28} {size / 2**20:10.1f} MiB")
        click.echo(f"{'bundle':<28} {plan.total_bytes / 2**20:10.1f} MiB")
        click.echo(f"{'peak memory of the export':<28} {plan.peak_bytes / 2**20:10.1f} MiB")
        return
    report = export_bundle(config, Stages(quiet=as_json))
    manifest, written = report.manifest, report.written
    if as_json:
        echo_json(
            {
                "bundle": str(out),
                "edit_layer": manifest.edit_layer,
                "checks": manifest.checks,
                "statistics": manifest.statistics,
                "contexts": describe_contexts(manifest),
                "notes": list(report.notes),
            }
        )
        return
    for note in report.notes:
        click.echo(f"note: {note}", err=True)
    layers = f"edit layer {manifest.edit_layer} of {manifest.shape.n_layers}"
    click.echo(f"wrote {out}: {manifest.base.name}, {layers}, {manifest.precision}")
    if candidates := manifest.statistics["layer"].get("candidates"):
        click.echo(_choice_line(manifest.statistics["layer"], candidates))
    click.echo(
        f"  FP32 graphs against the source model: largest logit difference {report.fp32.max_abs_logit_difference:.1e}"
    )
    click.echo(_statistics_line(manifest.statistics))
    lens = manifest.statistics["lens"]
    losses, divergences = (
        " -> ".join(f"{nats:.2f}" for nats in lens[name]) for name in ("held_out_nll", "held_out_divergence")
    )
    click.echo(
        f"  lens: {lens['bytes'] / 2**20:.1f} MiB, {lens['rows']} facts in {lens['seconds']:.0f} s; at no delta, start "
        f"and steps: NLL of other facts {losses}, divergence where else their subjects are asked about {divergences}"
    )
    click.echo(
        f"  {manifest.precision} graphs: cosine {written.mean_cosine:.4f}, NLL {written.nll:.3f} "
        f"{written.nll_change:+.4f}, on {written.tokens} held-out tokens"
    )
    if activations := manifest.statistics.get("activations"):
        for line in activation_lines(activations):
            click.echo(line)
    for name, each in describe_contexts(manifest).items():
        click.echo(
            f"  compiled for {name} ({each['htp']}) by QAIRT {each['qairt']}: "
            f"{each['files']} contexts, {each['bytes'] / 2**20:.1f} MiB"
        )
    if chosen := manifest.statistics.get("ranges"):
        for line in _range_lines(chosen):
            click.echo(line)


def _choice_line(choice: dict[str, Any], candidates: list[dict[str, Any]]) -> str:
    """Return the line that says what the edit layer was chosen by."""
    scores = ", ".join(f"{each['layer']}: {each['score']:.2f}" for each in candidates)
    return f"  edit layer: {choice['chosen']}, by {choice['facts']} facts in {choice['seconds']:.0f} s; scores {scores}"


def _statistics_line(statistics: dict[str, Any]) -> str:
    """Return the line that says what the key statistics are made of."""
    return (
        f"  key statistics: {statistics['bytes'] / 1e6:.1f} MB, {statistics['rank']} directions of "
        f"{statistics['keys']} keys in {statistics['seconds']:.0f} s"
    )


def _range_lines(chosen: dict[str, Any]) -> Iterator[str]:
    """Return the table of the activation ranges: a line a graph."""
    yield f"  activation ranges: {chosen['method']}, from {chosen['samples']} lines"
    yield f"    {'graph':<8}{'tensors':>9}{'median bound':>15}{'largest bound':>15}{'clipped':>12}"
    for graph, each in chosen["graphs"].items():
        bounds = f"{each['median_bound']:>15.2f}{each['largest_bound']:>15.2f}"
        yield f"    {graph:<8}{each['tensors']:>9}{bounds}{each['clipped']:>12.4%}"


def _layer(text: str) -> int | None:
    if text == "auto":
        return None
    if not text.isdecimal():
        raise RequestError(f"--layer {text!r} is neither auto nor an index: give for example 10")
    return int(text)


if __name__ == "__main__":
    main()
