"""What many edits cost: a batch against as many single edits, and opening and asking with a thousand against with none.

The two sides of each ratio are run in turn in one process. The thousand edits are made up: keys mixed from those of
the batch, so that they are like real ones, with random deltas of the usual length; each gated, as the product's are.
"""

from __future__ import annotations

import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import numpy as np
from tqdm import tqdm

from mobiedit.runtime import Bundle, Method, open_bundle
from mobiedit.runtime.bundle_layout import EDITS, KEY_STATISTICS
from mobiedit.runtime.cli_support import CONTEXT_SETTINGS, ErrorCommand
from mobiedit.runtime.errors import RequestError
from mobiedit.runtime.evaluation.summary import bootstrap_interval
from mobiedit.runtime.files import require_place, write_atomic
from mobiedit.runtime.journal import Journal
from mobiedit.runtime.journal_records import EditRecord
from mobiedit.runtime.key_statistics import KeyStatistics
from mobiedit.runtime.prompt_rows import EditRequest
from mobiedit.runtime.rank_one import solve_key
from scripts.support.bench_options import BenchOptions, bench_parameters
from scripts.support.command_line import arguments_of
from scripts.support.tables import Cell, markdown_table

_PROMPT = "The capital of France is"


@click.command(
    cls=ErrorCommand,
    context_settings=CONTEXT_SETTINGS,
    params=bench_parameters("method", "resume", "fluency_tokens"),
)
@click.option(
    "--edits", type=click.IntRange(2), default=1000, help="How many are in force when it is opened and asked."
)
@click.option("--repeats", type=click.IntRange(1), default=9, help="Of opening and asking.")
@click.option("--tokens", type=click.IntRange(1), default=32, help="Of an answer.")
def main(edits: int, repeats: int, tokens: int, **given: Any) -> None:  # noqa: ANN401 - click gives options of any type
    """Time edits of records, alone and as a batch, and a copy of BUNDLE with many edits."""
    options = BenchOptions(**given, method=Method.GATED, resume=False, fluency_tokens=0)
    require_place(options.out)
    records = options.read().part(options.skip, options.limit)
    empty = options.open()
    if empty.edits():
        raise RequestError(f"{options.bundle} has edits, and is measured without any: undo them, or use another bundle")
    if (slots := empty.manifest.slots) < max(edits, len(records)):
        raise RequestError(f"the bundle has {slots} slots for {edits} edits: export it with --slots {edits}")
    with tempfile.TemporaryDirectory() as folder:
        bundle = open_bundle(shutil.copytree(options.bundle, Path(folder) / "bundle"), empty.execution)
        rows = batch_against_singles(bundle, [record.request for record in records])
        if not (samples := bundle.edits()):
            raise RequestError(
                "none of the edits was committed, so there is nothing to make others from: give other records"
            )
        fill(bundle, samples, edits, options.seed)
        rows += with_and_without(empty, bundle, edits, repeats, tokens)
    document = {
        "command": f"python -m scripts.many_edits {arguments_of(click.get_current_context())}",
        "rows": rows,
    }
    write_atomic(options.out, json.dumps(document, indent=1).encode(), mode=None)
    click.echo(markdown_table(rows))


def batch_against_singles(bundle: Bundle, requests: Sequence[EditRequest]) -> list[dict[str, Cell]]:
    """Teach each request alone, on the unedited model, and all of them as a batch, which stays.

    The forwards' ratio has an interval, of the paired differences with the singles' sum held: a search takes more or
    fewer of them with any change of its directions.
    """
    bundle.ask(_PROMPT, 1)  # the graphs are open on both sides
    singles: list[int] = []
    start, alone = time.perf_counter(), 0
    for request in tqdm(requests, unit="edit"):
        result = bundle.edit(request.prompt, request.subject, request.target)
        singles.append(result.cost.forwards)
        if result.committed:
            alone += 1
            bundle.undo()
    seconds = time.perf_counter() - start
    start = time.perf_counter()
    batch = bundle.edit_batch(requests)
    together = time.perf_counter() - start
    count, forwards = len(requests), sum(singles)
    paired = [edit.cost.forwards - single for edit, single in zip(batch.edits, singles, strict=True)]
    low, high = (1 + count * bound / forwards for bound in bootstrap_interval(paired))
    return [
        {
            "": f"forwards, {count} edits",
            "alone": forwards,
            "batch": batch.cost.forwards,
            "ratio": batch.cost.forwards / forwards,
            "interval": f"{low:.3f} to {high:.3f}",
        },
        {"": f"seconds, {count} edits", "alone": seconds, "batch": together, "ratio": together / seconds},
        {"": "committed", "alone": alone, "batch": batch.committed, "ratio": None},
    ]


def fill(bundle: Bundle, samples: Sequence[EditRecord], count: int, seed: int) -> None:
    """Put edits that are made up into the journal, so that ``count`` are in force."""
    rng = np.random.default_rng(seed)
    statistics_of_keys = KeyStatistics.find(bundle.path / KEY_STATISTICS)
    keys = np.stack([record.key for record in samples])
    made = []
    for place in range(count - len(samples)):
        mixed = rng.standard_normal(len(keys)) @ keys / len(keys) ** 0.5
        key = mixed.astype(np.float32)
        direction, leverage = solve_key(key, statistics_of_keys)
        like = samples[place % len(samples)]
        delta = rng.standard_normal(like.delta.shape)
        delta *= np.linalg.norm(like.delta) / np.linalg.norm(delta)
        made.append(
            replace(
                like,
                edit_id=f"made{place}",
                subject=f"made up {place}",
                batch=None,
                key=key,
                direction=direction,
                leverage=leverage,
                delta=delta.astype(np.float32),
            )
        )
    Journal(bundle.path / EDITS, bundle.manifest.edit_base).append_edits(made)


def with_and_without(empty: Bundle, full: Bundle, count: int, repeats: int, tokens: int) -> list[dict[str, Cell]]:
    """Time opening and asking, in turn, without edits and with many."""

    def opened(bundle: Bundle) -> Callable[[], object]:
        return lambda: open_bundle(bundle.path, bundle.execution, verify=False).reader()

    def asked(bundle: Bundle) -> Callable[[], object]:
        return lambda: bundle.ask(_PROMPT, tokens)

    rows: list[dict[str, Cell]] = []
    for name, act in (("open and solve", opened), (f"ask, {tokens} tokens", asked)):
        pair = [act(empty), act(full)]
        times: list[list[float]] = [[], []]
        for turn in range(repeats + 1):
            for side, run in enumerate(pair):
                start = time.perf_counter()
                run()
                if turn:  # the first one warms up
                    times[side].append(time.perf_counter() - start)
        none, many = (statistics.median(each) for each in times)
        rows.append({"": f"{name}: seconds", "none": none, f"{count}": many, "ratio": many / none, "more": many - none})
    return rows


if __name__ == "__main__":
    main()
