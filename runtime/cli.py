"""``mobiedit``: teach a bundle a fact, ask it, list and undo."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
from tqdm import tqdm

from .bundle import open_bundle
from .cli_support import (
    CONTEXT_SETTINGS,
    ErrorGroup,
    bundle_argument,
    echo_json,
    execution_options,
    progress_option,
    staging_option,
)
from .configuration import EditConfig, ExecutionConfig, LossConfig, Optimizer, PrefixCache, edit_config
from .editor import EditResult
from .evaluation.commands import bench
from .evaluation.report_command import report
from .memory_plan import memory_warning
from .search import Progress

_LOSS = LossConfig()
_SEARCH_OPTIONS = (
    "steps",
    "directions",
    "mu",
    "learning_rate",
    "clamp",
    "check_every",
    "stop_probability",
    "seed",
)

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.group(cls=ErrorGroup, context_settings=CONTEXT_SETTINGS)
@click.version_option(package_name="mobiedit")
def main() -> None:
    """Teach a language model a new fact on the device where it runs, by forward passes alone."""


main.add_command(bench)
main.add_command(report)


@main.command()
@bundle_argument
@click.option("--prompt", required=True, help='The fact with {} for the subject: "The mother tongue of {} is".')
@click.option("--subject", required=True, help="What the fact is about.")
@click.option("--target", required=True, help="What shall follow the prompt.")
@click.option(
    "--paraphrase", "paraphrases", multiple=True, help="Another wording that shall lead to the target; may be repeated."
)
@click.option("--keep", multiple=True, help="A prompt whose next word shall not change; may be repeated.")
@click.option("--force", is_flag=True, help="Commit even when the check fails.")
@click.option(
    "--optimizer",
    type=click.Choice([o.value for o in Optimizer]),
    default=EditConfig().optimizer.value,
    help="gn: Gauss-Newton on differences of hidden states; zo: zeroth order. Both by forward passes alone.",
)
@click.option("--steps", type=click.IntRange(1), help="Upper limit of optimiser steps.")
@click.option("--directions", type=click.IntRange(1), help="Random directions a step.")
@click.option("--mu", type=float, help="Perturbation, relative to the value's norm; more at 8 bits.")
@click.option("--learning-rate", type=float, help="First step, relative to the value's norm.")
@click.option("--clamp", type=float, help="Largest norm of the change, relative to the value's.")
@click.option("--kl-factor", type=float, default=_LOSS.kl_factor, help="Weight of keeping the subject's other facts.")
@click.option("--weight-decay", type=float, default=_LOSS.weight_decay, help="Weight of a small change.")
@click.option(
    "--check-every",
    type=click.IntRange(1),
    help="Steps between looks at the stopping rule.",
)
@click.option(
    "--stop-probability",
    type=float,
    help="Probability of the target that ends the search.",
)
@click.option(
    "--prefix-cache",
    type=click.Choice([c.value for c in PrefixCache]),
    default=PrefixCache.EXACT.value,
    help="What a forward reuses.",
)
@click.option("--seed", type=int, help="Seed of the directions.")
@progress_option
@staging_option
@execution_options
@json_option
def edit(
    bundle: Path,
    prompt: str,
    subject: str,
    target: str,
    execution: ExecutionConfig,
    **options: Any,  # noqa: ANN401 - click passes the options
) -> None:
    """Teach BUNDLE a fact.

    The fact is committed only if it took and nothing else changed. Exit code 1 says that it did not pass, 2 that the
    request was wrong.
    """
    config = edit_config(Optimizer(options["optimizer"]), {name: options[name] for name in _SEARCH_OPTIONS})
    loss = LossConfig(options["kl_factor"], options["weight_decay"])
    prefix_cache = PrefixCache(options["prefix_cache"])
    config = replace(config, loss=loss, prefix_cache=prefix_cache, force=options["force"])
    opened = open_bundle(bundle, execution)
    if warning := memory_warning(opened.predicted_peaks()["edit"]):
        click.echo(warning, err=True)
    hidden = not options["progress"] if options["progress"] is not None else options["as_json"] or None
    with tqdm(total=config.steps, desc="search", unit="step", disable=hidden) as bar:

        def show(progress: Progress) -> None:
            bar.update(progress.step - bar.n)
            bar.set_postfix(loss=f"{progress.loss:.3f}", target=f"{progress.target_probability:.3f}")

        result = opened.edit(
            prompt,
            subject,
            target,
            paraphrases=options["paraphrases"],
            keep=options["keep"],
            config=config,
            report=show,
        )
    if options["as_json"]:
        echo_json(result.to_dict())
    else:
        _print_result(result)
    sys.exit(0 if result.committed else 1)


@main.command()
@bundle_argument
@click.argument("prompt")
@click.option("--max-tokens", type=click.IntRange(1), default=32, help="Longest answer.")
@execution_options
@json_option
def ask(bundle: Path, prompt: str, max_tokens: int, execution: ExecutionConfig, as_json: bool) -> None:
    """Let BUNDLE continue PROMPT, with all its edits."""
    opened = open_bundle(bundle, execution)
    if as_json:
        echo_json({"prompt": prompt, "answer": opened.ask(prompt, max_tokens)})
        return
    for piece in opened.stream(prompt, max_tokens):
        click.echo(piece, nl=False)
    click.echo()


@main.command(name="list")
@bundle_argument
@json_option
def list_edits(bundle: Path, as_json: bool) -> None:
    """List the edits of BUNDLE, oldest first."""
    edits = open_bundle(bundle, verify=False).edits()
    if as_json:
        names = ("edit_id", "created", "prompt", "subject", "target", "optimizer", "report")
        echo_json([{name: getattr(e, name) for name in names} for e in edits])
        return
    for e in edits:
        click.echo(f"{e.edit_id}  {e.created}  {e.prompt.replace('{}', e.subject)} -> {e.target}")
    if not edits:
        click.echo("no edits")


@main.command()
@bundle_argument
@click.argument("edit_id", required=False)
@json_option
def undo(bundle: Path, edit_id: str | None, as_json: bool) -> None:
    """Take an edit of BUNDLE back: the one named, or the last."""
    edit = open_bundle(bundle, verify=False).undo(edit_id)
    if as_json:
        echo_json({"edit_id": edit.edit_id, "undone": True})
    else:
        click.echo(f"undone: {edit.edit_id}  {edit.prompt.replace('{}', edit.subject)} -> {edit.target}")


@main.command()
@bundle_argument
@staging_option
@execution_options
@json_option
def info(bundle: Path, execution: ExecutionConfig, as_json: bool) -> None:
    """Show what BUNDLE is: model, layer, precision, checks, slots; with --ep qnn also which nodes run on the NPU."""
    data = open_bundle(bundle, execution, verify=False).info()
    if as_json:
        echo_json(data)
        return
    for name, value in _flat(data):
        click.echo(f"{name:<40} {value}")


@main.command()
@bundle_argument
@json_option
def verify(bundle: Path, as_json: bool) -> None:
    """Compare every file of BUNDLE with its hash, and read the journal to its end."""
    opened = open_bundle(bundle)
    data = {
        "files": len(opened.manifest.files),
        "edits": len(opened.edits()),
        "torn_journal_bytes": opened.info()["torn_journal_bytes"],
    }
    if as_json:
        echo_json({"ok": True, **data})
        return
    click.echo(f"{data['files']} files and {data['edits']} edits are intact")
    if data["torn_journal_bytes"]:
        click.echo(f"{data['torn_journal_bytes']} bytes of an interrupted edit will be dropped by the next edit")


def _flat(data: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the leaves of nested data under dotted names."""
    for name, value in data.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", f"{value:.6g}" if isinstance(value, float) else value


def _print_result(result: EditResult) -> None:
    success, cost, locality = result.check.success, result.cost, result.check.locality()
    click.echo(f"committed as {result.edit_id}" if result.committed else "not committed")
    click.echo(
        f"  target probability  {success.target_prob:.3f} (greedy match: {'yes' if success.greedy_match else 'no'})"
    )
    for paraphrase in result.check.paraphrases:
        click.echo(f"  paraphrase          {paraphrase.prompt!r}: {paraphrase.before!r} -> {paraphrase.after!r}")
    click.echo(f"  other prompts kept  {locality['kept']} of {locality['checked']}")
    click.echo(
        f"  cost                {cost.forwards} forwards, {cost.token_layers:,} token-layers, {cost.wall_s:.1f} s, "
        f"{cost.peak_rss_bytes / 2**20:.0f} MiB"
    )
    click.echo(f"  dispatches          {cost.dispatches:,}, {cost.io_bytes / 2**20:,.0f} MiB in and out")
    for failure in result.failures:
        click.echo(f"  failed: {failure}", err=not result.committed)


if __name__ == "__main__":
    main()
