"""``mobiedit edit``: teach a bundle a fact, or a file of facts."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import click
from tqdm import tqdm

from .batch_file import read_batch
from .batch_result import BatchProgress, BatchResult
from .bundle import Bundle, open_bundle
from .cli_support import (
    bundle_argument,
    contrast_option,
    echo_json,
    execution_options,
    json_option,
    progress_option,
    staging_option,
)
from .closed_form import Method
from .configuration import EditConfig, ExecutionConfig, LossConfig, Optimizer, PrefixCache, edit_config
from .contrast import contrasts_of
from .costs import Cost
from .edit_result import EditResult
from .errors import RequestError
from .memory_plan import memory_warning
from .prompt_rows import EditRequest
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
_OPTIONS = {"prompt": "prompt", "subject": "subject", "target": "target", "paraphrases": "paraphrase", "keep": "keep"}


@click.command()
@bundle_argument
@click.option("--prompt", help='The fact with {} for the subject: "The mother tongue of {} is".')
@click.option("--subject", help="What the fact is about.")
@click.option("--target", help="What shall follow the prompt.")
@click.option(
    "--batch",
    metavar="FILE",
    help="Teach the facts of a file instead, a JSON object a line: prompt, subject, target, and if wanted the lists "
    "paraphrases and keep. - is standard input.",
)
@click.option(
    "--method",
    type=click.Choice([m.value for m in Method]),
    default=EditConfig().method.value,
    help="How edits are fitted in among one another: rome not at all, memit by least squares, emmet by equality; "
    "gated: as emmet, and each acts on keys like its own alone.",
)
@contrast_option
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
@click.option("--echo-factor", type=float, default=_LOSS.echo_factor, help="Weight of an answer that repeats itself.")
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
    prompt: str | None,
    subject: str | None,
    target: str | None,
    batch: str | None,
    execution: ExecutionConfig,
    **options: Any,  # noqa: ANN401 - click passes the options
) -> None:
    """Teach BUNDLE a fact, or with --batch many at once.

    A fact is committed only if it took and nothing else changed. Exit code 1 says that one did not pass, 2 that the
    request was wrong.
    """
    fact = {name: options.pop(name) for name in ("paraphrases", "keep")}
    requests = _requests({"prompt": prompt, "subject": subject, "target": target, **fact}, batch)
    config = edit_config(Optimizer(options["optimizer"]), {name: options[name] for name in _SEARCH_OPTIONS})
    loss = LossConfig(options["kl_factor"], options["weight_decay"], options["echo_factor"])
    prefix_cache = PrefixCache(options["prefix_cache"])
    method = Method(options["method"])
    contrasts = contrasts_of(method, wanted=options["contrast"])
    force = options["force"]
    config = replace(config, method=method, contrasts=contrasts, loss=loss, prefix_cache=prefix_cache, force=force)
    opened = open_bundle(bundle, execution)
    if warning := memory_warning(opened.predicted_peaks()["edit"]):
        click.echo(warning, err=True)
    hidden = not options["progress"] if options["progress"] is not None else options["as_json"] or None
    if batch is None:
        result = _teach(opened, requests[0], config, hidden)
        told, whole = result.to_dict(), result.committed
        show: Callable[[], None] = partial(_print_result, result)
    else:
        taught = _teach_batch(opened, requests, config, hidden)
        told, whole = taught.to_dict(), taught.committed == len(requests)
        show = partial(_print_batch, taught)
    if options["as_json"]:
        echo_json(told)
    else:
        show()
    sys.exit(0 if whole else 1)


def _requests(given: dict[str, Any], batch: str | None) -> tuple[EditRequest, ...]:
    """Return what shall be taught: a fact of the command line, or those of a file."""
    if batch is not None:
        for name, value in given.items():
            if value not in (None, ()):
                raise RequestError(f"--{_OPTIONS[name]} and --batch exclude each other: write it into the file's lines")
        return read_batch(batch)
    for name in ("prompt", "subject", "target"):
        if given[name] is None:
            raise RequestError(f"--{name} is missing: give --prompt, --subject and --target, or --batch FILE")
    return (EditRequest(**given),)


def _teach(bundle: Bundle, request: EditRequest, config: EditConfig, hidden: bool | None) -> EditResult:
    with tqdm(total=config.of_optimizer.steps, desc="search", unit="step", disable=hidden) as bar:

        def show(progress: Progress) -> None:
            bar.update(progress.step - bar.n)
            bar.set_postfix(loss=f"{progress.loss:.3f}", target=f"{progress.target_probability:.3f}")

        return bundle.edit(
            request.prompt,
            request.subject,
            request.target,
            paraphrases=request.paraphrases,
            keep=request.keep,
            config=config,
            report=show,
        )


def _teach_batch(
    bundle: Bundle, requests: tuple[EditRequest, ...], config: EditConfig, hidden: bool | None
) -> BatchResult:
    with tqdm(total=len(requests), desc="search", unit="fact", disable=hidden) as bar:

        def show(progress: BatchProgress) -> None:
            bar.update(progress.done - bar.n)
            if search := progress.search:
                bar.set_postfix(step=search.step, target=f"{search.target_probability:.3f}")

        return bundle.edit_batch(requests, config, show)


def _print_batch(result: BatchResult) -> None:
    for request, edit in zip(result.requests, result.edits, strict=True):
        success = edit.check.success
        click.echo(
            f"{edit.edit_id or 'left out':<8}  {request.text} -> {request.target}  "
            f"{edit.check.success_before.target_prob:.3f} to {success.target_prob:.3f}, {edit.cost.forwards} forwards"
        )
        if edit.replaces:
            click.echo(f"  replaces {edit.replaces}")
        for failure in edit.failures:
            click.echo(f"  failed: {failure}", err=not edit.committed)
    total = len(result.edits)
    click.echo(f"{result.committed} of {total} committed as batch {result.batch} ({result.method})")
    _print_costs(result.cost, result.compaction_error)


def _print_result(result: EditResult) -> None:
    success, cost, locality = result.check.success, result.cost, result.check.locality()
    click.echo(f"committed as {result.edit_id}" if result.committed else "not committed")
    if result.replaces:
        click.echo(f"  replaces            {result.replaces}")
    click.echo(
        f"  target probability  {success.target_prob:.3f} (greedy match: {'yes' if success.greedy_match else 'no'})"
    )
    for paraphrase in result.check.paraphrases:
        click.echo(f"  paraphrase          {paraphrase.prompt!r}: {paraphrase.before!r} -> {paraphrase.after!r}")
    click.echo(f"  other prompts kept  {locality['kept']} of {locality['checked']}")
    _print_costs(cost, result.compaction_error)
    for failure in result.failures:
        click.echo(f"  failed: {failure}", err=not result.committed)


def _print_costs(cost: Cost, compaction_error: float) -> None:
    click.echo(
        f"  cost                {cost.forwards} forwards, {cost.token_layers:,} token-layers, {cost.wall_s:.1f} s, "
        f"{cost.peak_rss_bytes / 2**20:.0f} MiB"
    )
    click.echo(f"  dispatches          {cost.dispatches:,}, {cost.io_bytes / 2**20:,.0f} MiB in and out")
    if compaction_error:
        click.echo(f"  more than slots     an edit's effect changes by {compaction_error:.1%} at most")
