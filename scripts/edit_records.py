"""Edit CounterFact records one at a time with the zeroth-order optimiser, measure each, undo it, and print a table.

Usage: python scripts/edit_records.py BUNDLE --data counterfact-dev.json --limit 20 [--json OUT]
"""

from __future__ import annotations

import json
import math
import shutil
import statistics
import tempfile
from pathlib import Path
from typing import Any

import click
from tqdm import tqdm

from mobiedit.runtime import Bundle, EditConfig, ZerothOrderConfig, open_bundle
from mobiedit.runtime.prompt_rows import EditRequest


def measure(bundle: Bundle, record: dict[str, Any], config: EditConfig) -> dict[str, Any]:
    """Edit one record, measure it with the edit in force, and undo it."""
    request = EditRequest.from_text(record["prompt"], record["subject"], record["target_new"])
    result = bundle.edit(request.prompt, request.subject, request.target, config=config)
    new, exact = bundle.score(record["prompt"], record["target_new"])
    old, _ = bundle.score(record["prompt"], record["ground_truth"])
    locality, _ = bundle.score(record["locality_prompt"], record["locality_ground_truth"])
    bundle.undo(result.edit_id)
    locality_before, _ = bundle.score(record["locality_prompt"], record["locality_ground_truth"])
    return {
        "subject": record["subject"],
        "target": record["target_new"],
        "efficacy": new > old,
        "exact_match": exact,
        "greedy_match": result.check.success.greedy_match,
        "probability": math.exp(new),
        "locality_change": locality - locality_before,
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
    config = EditConfig(search=ZerothOrderConfig(seed=seed), force=True)
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(shutil.copytree(bundle, Path(folder) / "bundle"))
        opened = open_bundle(copy)
        rows = [measure(opened, record, config) for record in tqdm(records, unit="edit")]
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
    kept = statistics.mean(row["canaries_kept"] for row in rows)
    click.echo(f"canaries kept    {kept:.2f} of {len(opened.manifest.canaries)} on average")
    if out:
        out.write_text(json.dumps(rows, indent=2), "utf-8")


if __name__ == "__main__":
    main()
