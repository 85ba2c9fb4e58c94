"""A batch that is spread over layers, on the tiny model; its edit layer is 1."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from mobiedit.calibration.key_statistics import collect_key_statistics
from mobiedit.calibration.text import default_text
from mobiedit.export.checkpoint import find_source, load_checkpoint
from mobiedit.runtime import Bundle, EditConfig, EditRequest, Method
from mobiedit.runtime.decoder import Slots
from mobiedit.runtime.edit_set import EditSet, NewEdit
from mobiedit.runtime.prompt_rows import PromptRows, build_rows
from mobiedit.runtime.rank_one import solve_key
from mobiedit.runtime.reader import Reader
from scripts.experiments.memit_layers import _name, main
from scripts.support.backprop import BackpropConfig, backprop
from scripts.support.backprop_batch import backprop_batch
from scripts.support.captured import capture_task
from scripts.support.host_decoder import host_decoder
from scripts.support.host_model import HostModel
from scripts.support.layer_spread import (
    Spread,
    down_projections,
    fingerprint,
    joint_update,
    read_subjects,
    written,
)

METHODS = [Method.MEMIT, Method.EMMET]
WEIGHT = 0.01  # the product's
LAYERS = [[1], [0, 1]]
SUBJECTS = ("Anna Miller", "France", "my old bicycle")


@pytest.fixture(scope="session")
def statistics(llama: Path, tiny: Bundle) -> dict[int, Any]:
    checkpoint = load_checkpoint(find_source(str(llama)))
    sink = tiny.manifest.sink_token
    collected = collect_key_statistics(checkpoint.model, checkpoint.tokenizer, [0, 1], sink, default_text(), 10)
    return {layer: each.inverse_covariance for layer, each in collected.items()}


@pytest.fixture(scope="session")
def rows(tiny: Bundle) -> list[PromptRows]:
    requests = [EditRequest("The book of {} was", subject, "old") for subject in SUBJECTS]
    return [build_rows(request, tiny.manifest.row_prefixes, tiny.tokenizer, 8) for request in requests]


@pytest.fixture(scope="session")
def deltas(tiny: Bundle) -> Any:
    return np.random.default_rng(0).standard_normal((len(SUBJECTS), tiny.manifest.shape.width)).astype(np.float32)


@pytest.mark.parametrize("method", METHODS)
def test_update_is_the_products_when_one_layer_is_written(
    tiny: Bundle, host: HostModel, statistics: Any, rows: Any, deltas: Any, method: Method
) -> None:
    keys = read_subjects(host, rows, [1]).mean_keys(1)
    update = joint_update(keys, statistics[1], deltas, method, WEIGHT)
    solved = [solve_key(key, statistics[1]) for key in keys]
    edits = [NewEdit(k, *s, d, method, "one batch") for k, s, d in zip(keys, solved, deltas, strict=True)]
    slots = EditSet(edits, len(edits), tiny.manifest.shape).slots
    # The product holds directions in float32.
    np.testing.assert_allclose(update, slots.deltas.T @ slots.directions, atol=1e-5 * float(np.abs(update).max()))


@pytest.mark.parametrize("method", METHODS)
def test_update_is_the_published_one_when_leverages_are_equal(statistics: Any, deltas: Any, method: Method) -> None:
    """Meng et al. 2023, eq. 14: R K^T (lambda C + K K^T)^-1 with lambda = weight g; EMMET is its limit lambda = 0."""
    inverse = statistics[1].astype(np.float64)
    drawn = np.random.default_rng(1).standard_normal((len(deltas), len(inverse)))
    keys = drawn / np.sqrt(np.einsum("nf,fg,ng->n", drawn, inverse, drawn))[:, None]  # leverages of 1
    weight = WEIGHT if method is Method.MEMIT else 1e-6  # the ridge of an equality
    published = deltas.T @ keys @ np.linalg.inv(weight * np.linalg.inv(inverse) + keys.T @ keys)
    update = joint_update(keys.astype(np.float32), statistics[1], deltas, method, WEIGHT)
    # float32 keys; and 1e-6 C + K K^T is near singular: its inverse keeps about four digits.
    np.testing.assert_allclose(update, published, atol=1e-3 * float(np.abs(published).max()))


@pytest.mark.parametrize("layers", LAYERS)
def test_hidden_states_are_the_targets_when_values_are_constrained(
    host: HostModel, statistics: Any, rows: Any, deltas: Any, layers: list[int]
) -> None:
    bare = [PromptRows(each.rewriting[:1], each.kept, each.target) for each in rows]  # k* is the bare prompt's key
    unedited = read_subjects(host, bare, [0, 1])
    targets = unedited.hidden + deltas
    spread = Spread(layers, Method.EMMET, WEIGHT)
    with written(host, bare, targets, statistics, spread, unedited):
        reached = read_subjects(host, bare, []).hidden
    # The equality's ridge is 1e-6 of each leverage; FP32 through two layers.
    np.testing.assert_allclose(reached, targets, atol=1e-3 * float(np.abs(targets).max()))


def test_first_layer_takes_its_share_when_there_are_two(
    host: HostModel, statistics: Any, rows: Any, deltas: Any
) -> None:
    unedited = read_subjects(host, rows, [0, 1])
    down = down_projections(host)[0]
    former = down.weight.detach().numpy().copy()
    half = joint_update(unedited.mean_keys(0), statistics[0], deltas / 2, Method.MEMIT, WEIGHT)
    spread = Spread([0, 1], Method.MEMIT, WEIGHT)
    with written(host, rows, unedited.hidden + deltas, statistics, spread, unedited):
        change = down.weight.detach().numpy() - former
    # The sum is rounded to float32, and so is its difference.
    np.testing.assert_allclose(change, half, atol=1e-6 * float(np.abs(former).max() + np.abs(half).max()))


@pytest.mark.parametrize("layers", LAYERS)
@pytest.mark.parametrize("fails", [False, True])
def test_weights_are_the_former_to_the_bit_when_a_batch_is_over(
    host: HostModel, statistics: Any, rows: Any, deltas: Any, layers: list[int], fails: bool
) -> None:
    unedited, before = read_subjects(host, rows, [0, 1]), fingerprint(host)
    within = ""

    def write() -> None:
        nonlocal within
        targets = unedited.hidden + deltas
        with written(host, rows, targets, statistics, Spread(layers, Method.MEMIT, WEIGHT), unedited):
            within = fingerprint(host)
            if fails:
                raise KeyboardInterrupt

    if fails:
        with pytest.raises(KeyboardInterrupt):
            write()
    else:
        write()
    assert within != before
    assert fingerprint(host) == before


@pytest.mark.parametrize("config", [BackpropConfig(steps=3), BackpropConfig(steps=3, clamp=0.5, stop_loss=6.0)])
def test_deltas_are_those_of_single_searches_when_facts_are_searched_together(
    tiny: Bundle, host: HostModel, config: BackpropConfig
) -> None:
    edit = EditConfig(method=Method.ROME)
    prompts = ("The book of {} was", "{} speaks", "Those who know {} better than others say that it is")
    requests = [
        EditRequest(p, s, t) for p, s, t in zip(prompts, SUBJECTS, ("old", "French and English", "here"), strict=True)
    ]
    tasks = [capture_task(tiny, request, edit) for request in requests]
    alone = [backprop(task, host, config, edit).delta for task in tasks]
    together = backprop_batch(tasks, host, config, edit.loss)
    assert len({task.problem.window.hidden.shape[1] for task in tasks}) > 1  # some are padded
    for one, other in zip(alone, together, strict=True):
        # Adam's first steps have the gradient's sign alone: rounding shows where a component is next to nothing.
        np.testing.assert_allclose(other, one, atol=1e-2)


def test_host_reads_as_the_bundle_does(tiny: Bundle, host: HostModel) -> None:
    rng, shape = np.random.default_rng(0), tiny.manifest.shape
    empty = Slots.empty(tiny.manifest.slots, shape)
    direction = 0.1 * rng.standard_normal(shape.mlp_width).astype(np.float32)
    edited = empty.with_edit(0, direction, rng.standard_normal(shape.width).astype(np.float32))
    for slots in (empty, edited):
        ours, theirs = (
            Reader(decoder, tiny.tokenizer, tiny.manifest, slots).log_probabilities("The mother tongue of Anna is")
            for decoder in (host_decoder(host), tiny.decoder)
        )
        # FP32 in torch against FP32 in ONNX Runtime through four layers: sums in another order.
        np.testing.assert_allclose(ours, theirs, atol=1e-4)


def test_script_writes_a_row_for_each_setting(
    fp32_bundle: Path, llama: Path, data: Path, tmp_path: Path, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, deltas = tmp_path / "out.json", tmp_path / "deltas.npz"
    given = [fp32_bundle, "--data", data, "--model", llama, "--depths", "1,2", "--weight", 0.1, "--json", out]
    given = [*given, "--deltas", deltas]
    run(main, [*given, "--at", "1,2"])
    rows = json.loads(out.read_text("utf-8"))["rows"]
    ways = [(row["method"], row["layers"], row["weight"]) for row in rows]
    written_ones = [(m, n, w) for n in ("1", "0 to 1") for m, w in (("memit", 0.1), ("emmet", None))]
    assert ways == [("unedited", None, None), ("gated", "1", None), *written_ones] * 2
    assert [row["edits"] for row in rows] == [1] * 6 + [2] * 6
    assert rows[0]["perplexity"] == rows[0]["argmax unchanged"] == 1
    assert all(row["missing"] < 1 for row in rows if row["method"] in METHODS)
    monkeypatch.setattr(
        "scripts.experiments.memit_layers.backprop_batch", None
    )  # all was searched for: it is not called
    run(main, [*given, "--at", "2"])
    assert json.loads(out.read_text("utf-8"))["rows"] == rows[6:]


def test_searches_have_other_names_when_what_they_depend_on_is_another(tiny: Bundle) -> None:
    request, manifest, loss = EditRequest("The book of {} was", "Anna", "old"), tiny.manifest, EditConfig().loss
    names = {
        _name(request, manifest, loss),
        _name(replace(request, target="new"), manifest, loss),
        _name(request, replace(manifest, edit_layer=manifest.edit_layer + 1), loss),
        _name(request, manifest, replace(loss, kl_factor=0.5)),
    }
    assert len(names) == 4
    assert _name(request, manifest, loss) in names


def test_known_deltas_are_refused_when_their_file_is_damaged(
    fp32_bundle: Path, llama: Path, data: Path, tmp_path: Path
) -> None:
    deltas = tmp_path / "deltas.npz"
    np.savez(deltas, one=np.zeros(3))
    deltas.write_bytes(deltas.read_bytes()[:-40])
    given = [fp32_bundle, "--data", data, "--model", llama, "--depths", 1, "--at", 1, "--deltas", deltas]
    done = CliRunner().invoke(main, [str(word) for word in (*given, "--json", tmp_path / "out.json")])
    assert done.exit_code == 2, done.output
    assert "is damaged, or no file of deltas: delete it" in done.output


@pytest.mark.parametrize("words", [["--depths", "3"], ["--at", "0"], ["--at", "ten"]])
def test_settings_are_refused_when_they_mean_nothing(
    fp32_bundle: Path, data: Path, tmp_path: Path, words: list[str]
) -> None:
    given = [str(fp32_bundle), "--data", str(data), "--json", str(tmp_path / "out.json"), *words]
    done = CliRunner().invoke(main, given)
    assert done.exit_code == 2, done.output
    assert "give" in done.output
