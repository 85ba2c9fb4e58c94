"""A w8a16 bundle on Qualcomm's NPU simulator against the CPU: each graph on real inputs, and one whole edit.

Usage: python -m scripts.simulator_check BUNDLE --out docs/simulator.json

Held-out lines and the rows of the edit run through the CPU's decoder first; each run is then repeated on the simulator
in the fixed shapes that the runtime has there. The edit is committed to a copy of BUNDLE, read on both, and undone.
Exit code 1: a node is on the CPU, a cosine is below the limit, the edit was refused, or undoing it left a trace.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click
import numpy as np
from tqdm import tqdm

from mobiedit.calibration.text import held_out_text
from mobiedit.export.npu_check import MIN_COSINE, cosine
from mobiedit.runtime import Bundle, EditConfig, ExecutionConfig, ExecutionProvider, open_bundle
from mobiedit.runtime.bundle_layout import GRAPHS
from mobiedit.runtime.cli_support import CONTEXT_SETTINGS, ErrorCommand, bundle_argument
from mobiedit.runtime.configuration import Optimizer, edit_config
from mobiedit.runtime.costs import CostMeter
from mobiedit.runtime.decoder import Floats, Slots
from mobiedit.runtime.execution import Runnable
from mobiedit.runtime.files import require_place, write_atomic
from mobiedit.runtime.prompt_rows import EditRequest, build_rows
from mobiedit.runtime.qnn import PROVIDER
from mobiedit.runtime.soc import SIMULATED, find_soc
from scripts.support.command_line import arguments_of
from scripts.support.recorded_runs import Run, record, text_logits
from scripts.support.tables import Cell, markdown_table

_TOKENS = 16
_ANSWER_TOKENS = 3
_MIB = 2**20


@dataclass(frozen=True)
class Pair:
    """A bundle on the CPU and on the simulator."""

    cpu: Bundle
    npu: Bundle

    @staticmethod
    def open(path: Path, cpu: ExecutionConfig, npu: ExecutionConfig) -> Pair:
        """Open a bundle for both; no session is made yet."""
        return Pair(open_bundle(path, cpu, verify=False), open_bundle(path, npu, verify=False))


@click.command(cls=ErrorCommand, context_settings=CONTEXT_SETTINGS)
@bundle_argument
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), required=True, help="JSON; .md beside it.")
@click.option("--soc", default=SIMULATED, help="The SoC that the graphs are compiled for.")
@click.option("--lines", type=click.IntRange(1), default=4, help=f"Held-out lines, {_TOKENS} tokens of each.")
@click.option("--prompt", default="{} writes in", help="The edit's, with {} for the subject.")
@click.option("--subject", default="Rose Tremain", help="The edit's.")
@click.option("--target", default="French", help="The edit's.")
@click.option("--steps", type=click.IntRange(1), help="Upper limit of the edit's steps.")
@click.option("--force", is_flag=True, help="Commit the edit to the copy even when its check fails.")
@click.option("--threads", type=click.IntRange(0), default=0, help="Of a graph on the CPU; 0: ONNX Runtime's choice.")
def main(
    bundle: Path,
    out: Path,
    soc: str,
    lines: int,
    prompt: str,
    subject: str,
    target: str,
    steps: int | None,
    force: bool,
    threads: int,
) -> None:
    """Run BUNDLE's four graphs, and an edit, on the NPU simulator."""
    require_place(out)
    request = EditRequest(prompt, subject, target)
    config = replace(edit_config(Optimizer.GN, {"steps": steps}), force=force)
    cpu, npu = ExecutionConfig(threads), ExecutionConfig(provider=ExecutionProvider.QNN, soc=soc)
    open_bundle(bundle, npu)  # what is wrong with it is told before it is copied
    with tempfile.TemporaryDirectory() as folder:
        pair = Pair.open(shutil.copytree(bundle, Path(folder) / "bundle"), cpu, npu)
        nodes = {name: getattr(pair.npu.decoder.parts, name).placement() for name in GRAPHS}
        rows, logits = compare(pair, request, lines)
        edit = edit_and_undo(pair, request, config)
    graphs = [{"graph": row["graph"], **_nodes(nodes[str(row["graph"])]), **row} for row in rows]
    document = {
        "command": f"python -m scripts.simulator_check {arguments_of(click.get_current_context())}",
        "settings": {**_settings(pair.npu), "lines": lines, "min_cosine": MIN_COSINE},
        "graphs": graphs,
        "logits": logits,
        "edit": edit,
        "failures": failures(graphs, edit),
    }
    page = _page(document)
    write_atomic(out, json.dumps(document, indent=1, allow_nan=False).encode(), mode=None)
    write_atomic(out.with_suffix(".md"), page.encode(), mode=None)
    click.echo(page)
    sys.exit(1 if document["failures"] else 0)


def compare(pair: Pair, request: EditRequest, lines: int) -> tuple[list[dict[str, Cell]], dict[str, Cell]]:
    """Return a row a graph, of the same inputs on both; and how the logits of whole texts differ."""
    manifest, tokenizer = pair.cpu.manifest, pair.cpu.tokenizer
    encoded = (list(tokenizer.encode(line).ids[:_TOKENS]) for line in held_out_text())
    texts = [ids for ids in encoded if len(ids) > 1][:lines]
    prompts = build_rows(request, manifest.row_prefixes, tokenizer, EditConfig().max_target_tokens)
    recording = record(pair.cpu, texts, prompts)
    parts = pair.npu.decoder.parts
    rows = [repeat(name, getattr(parts, name), recording.runs[name]) for name in GRAPHS]
    slots = Slots.empty(manifest.slots, manifest.shape)
    found = [text_logits(pair.npu.decoder, slots, text) for text in tqdm(texts, desc="whole texts", leave=False)]
    return rows, logit_differences(recording.logits, found)


def repeat(name: str, graph: Runnable, runs: Sequence[Run]) -> dict[str, Cell]:
    """Run a graph on recorded inputs again, and compare: the smallest cosine of any output, the largest difference."""
    meter, start = CostMeter(), time.perf_counter()
    found = [graph.run(run.feeds, meter) for run in tqdm(runs, desc=name, leave=False)]
    seconds = time.perf_counter() - start
    outputs = [(new[key], run.fetched[key]) for new, run in zip(found, runs, strict=True) for key in run.fetched]
    return {
        "graph": name,
        "runs": len(runs),
        "cosine": min(cosine(new, old) for new, old in outputs),
        "max_abs_difference": max(float(np.abs(new - old).max()) for new, old in outputs),
        "dispatches": meter.dispatches,
        "io_bytes": meter.io_bytes,
        "seconds": round(seconds, 1),
    }


def logit_differences(wanted: Sequence[Floats], found: Sequence[Floats]) -> dict[str, Cell]:
    """Compare the logits [T, V] of texts that went through all four graphs."""
    cpu, npu = np.concatenate(wanted), np.concatenate(found)
    return {
        "tokens": len(cpu),
        "cosine": cosine(npu, cpu),
        "max_abs_difference": float(np.abs(npu - cpu).max()),
        "max_abs_logit": float(np.abs(cpu).max()),
        "same_argmax": float((npu.argmax(axis=-1) == cpu.argmax(axis=-1)).mean()),
    }


def edit_and_undo(pair: Pair, request: EditRequest, config: EditConfig) -> dict[str, Any]:
    """Ask, teach, ask on both, undo and ask again; the bundle is then as it was."""
    npu, start = pair.npu, time.perf_counter()

    def read() -> tuple[str, Floats]:
        return npu.ask(request.text, _ANSWER_TOKENS), npu.log_probabilities(request.text)

    before, unedited = read()
    result = npu.edit(request.prompt, request.subject, request.target, config=config)
    after, edited = read()
    on_cpu, edited_on_cpu = pair.cpu.ask(request.text, _ANSWER_TOKENS), pair.cpu.log_probabilities(request.text)
    if result.committed:
        npu.undo(result.edit_id)
    undone, restored = read()
    return {
        "request": asdict(request),
        "answers": {"before": before, "after": after, "after_on_cpu": on_cpu, "undone": undone},
        "cosine_with_cpu_after": cosine(edited, edited_on_cpu),
        "restored_exactly": bool(np.array_equal(unedited, restored)),
        "seconds_with_answers": round(time.perf_counter() - start, 1),
        **result.to_dict(),
    }


def failures(graphs: Sequence[dict[str, Any]], edit: dict[str, Any]) -> list[str]:
    """Return what is not as it should be, one line each."""
    found = []
    for row in graphs:
        if row["nodes_on_cpu"]:
            found.append(f"{row['graph']}: {row['nodes_on_cpu']} nodes are on the CPU")
        if not row["cosine"] >= MIN_COSINE:
            found.append(f"{row['graph']}: cosine {row['cosine']:.4f} is below {MIN_COSINE}")
    if not edit["cosine_with_cpu_after"] >= MIN_COSINE:
        found.append(f"edited: cosine {edit['cosine_with_cpu_after']:.4f} is below {MIN_COSINE}")
    if not edit["committed"]:
        found.append(f"the edit was refused: {'; '.join(edit['failures'])}")
    if not edit["restored_exactly"]:
        found.append("undoing the edit left a trace")
    return found


def _nodes(placement: dict[str, int]) -> dict[str, Cell]:
    return {"nodes_on_npu": placement[PROVIDER], "nodes_on_cpu": sum(placement.values()) - placement[PROVIDER]}


def _settings(bundle: Bundle) -> dict[str, Cell]:
    soc = find_soc(bundle.execution.soc)
    return {
        "base": Path(bundle.manifest.base.name).name,
        "precision": bundle.manifest.precision,
        "edit_layer": bundle.manifest.edit_layer,
        "soc": f"{soc.name} ({soc.architecture})",
        **{name: version(name) for name in ("onnxruntime", "onnxruntime-qnn")},
    }


def _page(document: dict[str, Any]) -> str:
    """Return the record in Markdown."""
    edit, cost = document["edit"], document["edit"]["cost"]
    rows = [
        {**{name: value for name, value in row.items() if name != "io_bytes"}, "MiB in and out": row["io_bytes"] / _MIB}
        for row in document["graphs"]
    ]
    described = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in document["settings"].items())
    request = edit["request"]
    answers = [{"asked": name.replace("_", " "), "answer": repr(text)} for name, text in edit["answers"].items()]
    verdict = "; ".join(document["failures"]) or "all is as it should be"
    return f"""# On the simulator

    {document["command"]}

{described}. Result: {verdict}.

## Each graph on the same inputs, against the CPU provider

Held-out lines (all tokens but the last at once, then the last behind the cache) and the rows of the edit as one batch. The
cosine is the smallest of any output of any run; seconds have the compilation of the shapes in them.

{markdown_table(rows)}

Through all four graphs, each on its own results:

{markdown_table([document["logits"]])}

## One edit

"{request["prompt"]}", subject "{request["subject"]}", target "{request["target"]}". The answers' prompt is "{request["prompt"].replace("{}", request["subject"])}".

{markdown_table(answers)}

Committed: {edit["committed"]}. {cost["forwards"]:,} forwards, target probability {edit["success"]["target_prob"]:.2f}, canaries kept {edit["locality"]["kept"]} of {edit["locality"]["checked"]};
{cost["dispatches"]:,} dispatches, {cost["io_bytes"] / _MIB:,.0f} MiB in and out, {cost["wall_s"]:,.0f} s ({edit["seconds_with_answers"]:,.0f} s with the answers), peak memory {cost["peak_rss_bytes"] / _MIB:,.0f} MiB.
Cosine of the edited bundle's log-probabilities with the CPU's: {edit["cosine_with_cpu_after"]:.5f}. Undone, they are those of before to the last bit: {edit["restored_exactly"]}.
"""  # noqa: E501 - a table's text


if __name__ == "__main__":
    main()
