"""Teach records one after the other and see what becomes of all that was taught before: methods and remedies compared.

Every search starts from the model with all earlier edits in force; nothing is checked or left out, and nothing is
committed. At each count of edits: efficacy, exact match and paraphrase over all edits so far; exact match of the first
and of the last ten; prompts about neighbours of the first records whose most probable token is still that of the
unedited model; fluency; perplexity on held-out text.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import click
import numpy as np
from tqdm import tqdm

from mobiedit.runtime import Bundle, Method
from mobiedit.runtime.cli_support import CONTEXT_SETTINGS, ErrorCommand
from mobiedit.runtime.edit_set import EditSet
from mobiedit.runtime.errors import RequestError
from mobiedit.runtime.evaluation import EvaluationRecord, metrics
from mobiedit.runtime.evaluation.cached_reader import CachedReader
from mobiedit.runtime.evaluation.fluency import fluency
from mobiedit.runtime.files import require_place, write_atomic
from mobiedit.runtime.reader import Reader
from mobiedit.runtime.tokenizer import Tokenizer
from scripts.support.bench_options import BenchOptions, bench_parameters
from scripts.support.command_line import arguments_of, numbers_above_0
from scripts.support.held_out import perplexity
from scripts.support.host_model import refuse_edits
from scripts.support.sequence import Variant, mean
from scripts.support.tables import Cell, markdown_table, text_table

VARIANTS = {
    "gated": Variant(Method.GATED),
    "rome": Variant(Method.ROME),
    "rome, bare key in the denominator": Variant(Method.ROME, bare_denominator=True),
    "emmet": Variant(Method.EMMET),
    "memit": Variant(Method.MEMIT),
    "emmet, clamp 2": Variant(Method.EMMET, clamp=2.0),
    "emmet, norm anchor": Variant(Method.EMMET, anchored=True),
    "emmet, null space": Variant(Method.EMMET, null_space=0.9),
}
_NEIGHBOURS, _FLUENT, _FLUENCY_TOKENS = 100, 10, 50


@dataclass(frozen=True)
class Baseline:
    """The unedited model on what shall stay."""

    reader: CachedReader
    tokenizer: Tokenizer
    perplexity: float


@click.command(
    cls=ErrorCommand,
    context_settings=CONTEXT_SETTINGS,
    params=bench_parameters("method", "resume", "fluency_tokens"),
)
@click.option("--at", default="1,10,30,100,300,1000", help="Counts of edits at which is measured.")
@click.option(
    "--variant", "names", multiple=True, default=("gated",), type=click.Choice(list(VARIANTS)), help="May be repeated."
)
@click.option("--forwards", type=click.IntRange(1), help="Of a search, at most; the product's own limit when left out.")
def main(at: str, names: tuple[str, ...], forwards: int | None, **given: Any) -> None:  # noqa: ANN401 - click gives options of any type
    """Edit BUNDLE in sequence by each variant, and write what is left of the edits."""
    options = BenchOptions(**given, method=Method.GATED, resume=False, fluency_tokens=0)
    require_place(options.out)
    counts = sorted(numbers_above_0(at, int))
    bundle = options.open()
    refuse_edits(bundle, options.bundle)
    records = options.read().part(options.skip, options.limit)
    if len(records) > bundle.manifest.slots:
        raise RequestError(
            f"{len(records)} edits need as many slots: export with --slots {len(records)}, or give --limit"
        )
    rows: list[dict[str, Cell]] = []
    for name in names:
        for row in sequence(bundle, replace(VARIANTS[name], forwards=forwards), records, counts, options.seed):
            rows.append({"variant": name, **row})
            document = {"command": f"python -m scripts.sequential_edits {arguments_of(click.get_current_context())}"}
            text = json.dumps({**document, "rows": rows}, indent=1)
            write_atomic(options.out, text.encode(), mode=None)
            tqdm.write(text_table(rows[-1:]))
    click.echo(markdown_table(rows))


def sequence(
    bundle: Bundle, variant: Variant, records: Sequence[EvaluationRecord], counts: Sequence[int], seed: int
) -> Iterator[dict[str, Cell]]:
    """Yield what is left of the edits at each count; ``seed`` is of the texts that fluency is measured on."""
    bench, manifest = variant.workbench(bundle), bundle.manifest
    edits = EditSet((), manifest.slots, manifest.shape)
    read = partial(Reader, bundle.decoder, bundle.tokenizer, manifest)
    unedited = read(edits.slots)
    base = Baseline(CachedReader(unedited), bundle.tokenizer, perplexity(unedited, bundle.tokenizer))
    forwards: list[int] = []
    start = time.perf_counter()
    for count, record in enumerate(tqdm(records, unit="edit"), start=1):
        edit, cost = variant.teach(bench, record.request, edits)
        edits = edits.extended([edit])
        forwards.append(cost)
        if count in counts or count == len(records):
            spent = time.perf_counter() - start
            told = measure(read(edits.slots), base, records[:count], seed)
            yield {"edits": count, **told, "forwards": float(np.median(forwards)), "seconds": round(spent)}


def measure(reader: Reader, base: Baseline, records: Sequence[EvaluationRecord], seed: int) -> dict[str, Cell]:
    """Return what the model with edits of these records knows of them, and what else it has lost."""
    now = CachedReader(reader)
    exact = [float(metrics.exact_match(record, now)) for record in records]
    first = records[:_NEIGHBOURS]
    now_perplexity = perplexity(reader, base.tokenizer)
    sampled = enumerate(records[:_FLUENT])
    return {
        "efficacy": mean([float(metrics.efficacy(record, now, base.reader)) for record in records]),
        "exact match": mean(exact),
        "first ten": mean(exact[:10]),
        "last ten": mean(exact[-10:]),
        "paraphrase": mean([metrics.paraphrase(record, now) for record in records]),
        "argmax unchanged": mean([metrics.argmax_unchanged(record, now, base.reader) for record in first]),
        "fluency": mean([fluency(reader, record.prompt, _FLUENCY_TOKENS, (seed, i)) for i, record in sampled]),
        "perplexity": now_perplexity,
        "of the unedited": now_perplexity / base.perplexity,
    }


if __name__ == "__main__":
    main()
