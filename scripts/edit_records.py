"""Edit CounterFact records one at a time with the zeroth-order optimiser, measure each, undo it, and print a table.

Usage: python scripts/edit_records.py BUNDLE --data counterfact-dev.json --limit 20 [--json OUT]
"""

from __future__ import annotations

import json
import math
import shutil
import statistics
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from mobiedit.calibration.text import held_out_text
from mobiedit.runtime import Bundle, EditConfig, ZerothOrderConfig, open_bundle
from mobiedit.runtime.prompt_rows import EditRequest

_TEXT_LINES = 20


@dataclass(frozen=True)
class PlainText:
    """What the model without edits expects of text that no edit should touch: log-probabilities [T, V] of each line."""

    expected: dict[str, NDArray[np.float32]]

    @staticmethod
    def read(bundle: Bundle, lines: list[str]) -> PlainText:
        """Run the lines through a bundle without edits."""
        return PlainText({line: bundle.log_probabilities(line) for line in lines})

    def change(self, bundle: Bundle) -> tuple[float, float]:
        """Return the share of tokens whose most probable successor is another one now, and the mean KL divergence."""
        changed, kl = [], []
        for line, before in self.expected.items():
            now = bundle.log_probabilities(line)
            changed.append(now.argmax(axis=-1) != before.argmax(axis=-1))
            kl.append((np.exp(before) * (before - now)).sum(axis=-1))
        return float(np.concatenate(changed).mean()), float(np.concatenate(kl).mean())


def measure(bundle: Bundle, record: dict[str, Any], plain: PlainText, config: EditConfig) -> dict[str, Any]:
    """Edit one record, measure it with the edit in force, and undo it."""
    request = EditRequest.from_text(record["prompt"], record["subject"], record["target_new"])
    result = bundle.edit(request.prompt, request.subject, request.target, config=config)
    new, exact = bundle.score(record["prompt"], record["target_new"])
    old, _ = bundle.score(record["prompt"], record["ground_truth"])
    text_changed, text_kl = plain.change(bundle)
    bundle.undo(result.edit_id)
    return {
        "subject": record["subject"],
        "target": record["target_new"],
        "efficacy": new > old,
        "exact_match": exact,
        "greedy_match": result.check.success.greedy_match,
        "probability": math.exp(new),
        "text_changed": text_changed,
        "text_kl": text_kl,
        "canaries_kept": result.check.locality()["kept"],
        "stopped_early": result.stopped_early,
        **result.cost.to_dict(),
    }


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path, exists=True))
@click.option("--data", type=click.Path(path_type=Path, exists=True), required=True, help="CounterFact records.")
@click.option("--limit", default=20, show_default=True)
@click.option("--skip", default=0, show_default=True)
@click.option("--seed", default=0, show_default=True)
@click.option("--json", "out", type=click.Path(path_type=Path), help="Write the rows there.")
def main(bundle: Path, data: Path, limit: int, skip: int, seed: int, out: Path | None) -> None:
    """Edit the first LIMIT records of DATA in a copy of BUNDLE."""
    records = json.loads(data.read_text("utf-8"))[skip : skip + limit]
    config = EditConfig(zeroth_order=ZerothOrderConfig(seed=seed), force=True)
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(shutil.copytree(bundle, Path(folder) / "bundle"))
        opened = open_bundle(copy)
        plain = PlainText.read(opened, held_out_text()[:_TEXT_LINES])
        rows = [measure(opened, record, plain, config) for record in tqdm(records, unit="edit")]
    for row in rows:
        click.echo(
            f"{row['subject'][:32]:<32} -> {row['target'][:14]:<14} p {row['probability']:.3f} "
            f"{'exact' if row['exact_match'] else '-----'} {'P(new)>P(old)' if row['efficacy'] else '-------------'} "
            f"{row['forwards']:5d} forwards {row['wall_s']:6.1f} s"
        )
    click.echo(f"precision {opened.manifest.precision}, edit layer {opened.manifest.edit_layer}, {len(rows)} records")
    for name in ("efficacy", "exact_match"):
        click.echo(f"{name:<16} {sum(row[name] for row in rows)} of {len(rows)}")
    for name in ("forwards", "token_layers", "wall_s", "peak_rss_bytes"):
        values = [row[name] for row in rows]
        click.echo(f"{name:<16} median {statistics.median(values):,.1f}, max {max(values):,.1f}")
    for name in ("text_changed", "text_kl"):
        click.echo(f"{name:<16} mean {statistics.mean(row[name] for row in rows):.4f}")
    kept = statistics.mean(row["canaries_kept"] for row in rows)
    click.echo(f"canaries kept    {kept:.2f} of {len(opened.manifest.canaries)} on average")
    if out:
        out.write_text(json.dumps(rows, indent=2), "utf-8")


if __name__ == "__main__":
    main()
