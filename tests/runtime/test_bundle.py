"""The bundle's operations on a tiny real model, in FP32 and quantised."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from mobiedit.runtime import Bundle, EditConfig, PrefixCache, ZerothOrderConfig, open_bundle
from mobiedit.runtime.configuration import Optimizer
from mobiedit.runtime.errors import BundleError, JournalError, RequestError

PROMPT, SUBJECT, TARGET = "The mother tongue of {} is", "Danielle Darrieux", "old"
TEXT = PROMPT.replace("{}", SUBJECT)
# Random weights have canaries without certainty, so edits are forced into the journal.
FORCED = EditConfig(Optimizer.ZO, force=True)
QUICK = EditConfig(Optimizer.ZO, zeroth_order=ZerothOrderConfig(steps=2, directions=2, check_every=1), force=True)


@pytest.mark.parametrize("precision", ["fp32_bundle", "w8a16_bundle"])
def test_fact_is_learned_and_forgotten_when_edited_and_undone(
    precision: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    bundle = open_bundle(shutil.copytree(request.getfixturevalue(precision), tmp_path / "bundle"))
    before, score = bundle.ask(TEXT, 8), bundle.score(TEXT, TARGET)
    result = bundle.edit(PROMPT, SUBJECT, TARGET, config=FORCED)
    assert result.committed
    assert result.check.success.greedy_match
    assert bundle.ask(TEXT, 8).startswith(f" {TARGET}")
    assert bundle.score(TEXT, TARGET)[0] > score[0] + 1
    assert bundle.undo().edit_id == result.edit_id
    assert bundle.ask(TEXT, 8) == before
    assert bundle.score(TEXT, TARGET) == score


def test_edit_is_the_same_when_the_seed_is(bundle: Bundle) -> None:
    deltas = []
    for seed in (1, 1, 2):
        config = EditConfig(
            Optimizer.ZO, zeroth_order=ZerothOrderConfig(steps=24, directions=2, check_every=4, seed=seed), force=True
        )
        bundle.edit(PROMPT, SUBJECT, TARGET, config=config)
        deltas.append(bundle.undo().delta)
    np.testing.assert_array_equal(deltas[0], deltas[1])
    assert deltas[0].any()
    assert not np.allclose(deltas[0], deltas[2])


def test_search_is_the_same_when_nothing_is_cached(bundle: Bundle) -> None:
    found = []
    for cache in (PrefixCache.EXACT, PrefixCache.OFF):
        search = ZerothOrderConfig(steps=4, directions=4, check_every=2)
        result = bundle.edit(
            PROMPT,
            SUBJECT,
            TARGET,
            config=EditConfig(Optimizer.ZO, zeroth_order=search, prefix_cache=cache, force=True),
        )
        found.append((bundle.undo().delta, result.cost))
    (exact, exact_cost), (off, off_cost) = found
    # The caches are exact to 1e-5; four steps of Adam, which divides by the gradient's norm, let that grow.
    np.testing.assert_allclose(exact, off, atol=1e-3 * float(np.linalg.norm(off)))
    assert exact_cost.forwards == off_cost.forwards
    assert exact_cost.token_layers < off_cost.token_layers / 2


def test_edit_is_not_committed_when_it_did_not_take(bundle: Bundle) -> None:
    config = EditConfig(Optimizer.ZO, zeroth_order=ZerothOrderConfig(steps=1, directions=1))
    result = bundle.edit(PROMPT, SUBJECT, TARGET, config=config)
    assert not result.committed
    assert result.edit_id is None
    assert "the prompt does not lead to the target" in result.failures
    assert bundle.edits() == ()


def test_edit_reports_canaries_that_the_user_asked_to_keep(bundle: Bundle) -> None:
    result = bundle.edit(PROMPT, SUBJECT, TARGET, keep=(TEXT,), config=FORCED)
    assert any(change["prompt"] == TEXT for change in result.to_dict()["locality"]["changed"])
    assert any(TEXT in failure for failure in result.failures)


def test_edits_are_all_in_force_when_the_bundle_is_opened_again(bundle: Bundle) -> None:
    first = bundle.edit(PROMPT, SUBJECT, TARGET, config=QUICK)
    second = bundle.edit("The capital of {} is", "France", "Rome", config=QUICK)
    again = open_bundle(bundle.path)
    assert [edit.edit_id for edit in again.edits()] == [first.edit_id, second.edit_id]
    assert again.score(TEXT, TARGET) == bundle.score(TEXT, TARGET)


def test_undo_takes_the_named_edit_when_there_are_several(bundle: Bundle) -> None:
    first = bundle.edit(PROMPT, SUBJECT, TARGET, config=QUICK)
    second = bundle.edit("The capital of {} is", "France", "Rome", config=QUICK)
    assert first.edit_id is not None
    bundle.undo(first.edit_id)
    assert [edit.edit_id for edit in bundle.edits()] == [second.edit_id]


def test_undo_is_refused_when_there_is_nothing_to_undo(bundle: Bundle) -> None:
    with pytest.raises(JournalError, match="nothing to undo"):
        bundle.undo()


def test_edit_is_refused_when_all_slots_are_taken(bundle: Bundle) -> None:
    for _ in range(bundle.manifest.slots):
        bundle.edit(PROMPT, SUBJECT, TARGET, config=QUICK)
    with pytest.raises(RequestError, match="all 3 slots are taken"):
        bundle.edit(PROMPT, SUBJECT, TARGET, config=QUICK)


def test_journal_is_refused_when_it_is_of_another_edit_layer(bundle: Bundle) -> None:
    bundle.edit(PROMPT, SUBJECT, TARGET, config=QUICK)
    manifest = bundle.path / "manifest.json"
    manifest.write_text(manifest.read_text("utf-8").replace('"edit_layer": 1', '"edit_layer": 2'), "utf-8")
    with pytest.raises(JournalError, match="another model"):
        open_bundle(bundle.path).edits()


def test_nothing_is_committed_when_the_search_is_interrupted(bundle: Bundle) -> None:
    def interrupt(_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        bundle.edit(PROMPT, SUBJECT, TARGET, config=QUICK, report=interrupt)
    assert bundle.edits() == ()
    assert bundle.edit(PROMPT, SUBJECT, TARGET, config=QUICK).committed  # the lock is free again


def test_stream_yields_the_answer_in_pieces(bundle: Bundle) -> None:
    assert "".join(bundle.stream(TEXT, 12)) == bundle.ask(TEXT, 12)


def test_changed_byte_goes_unseen_only_when_hashes_are_not_asked_for(bundle_path: Path) -> None:
    weights = bundle_path / "head.onnx.data"
    data = bytearray(weights.read_bytes())
    data[100] ^= 1
    weights.write_bytes(data)
    open_bundle(bundle_path, verify=False)
    with pytest.raises(BundleError, match=r"head\.onnx\.data"):
        open_bundle(bundle_path)


def test_info_names_the_provider_and_makes_no_session_when_the_cpu_runs_the_graphs(bundle: Bundle) -> None:
    told = bundle.info()
    assert told["execution_provider"] == "cpu"
    assert not {"soc", "nodes"} & set(told)
    assert "decoder" not in vars(bundle)
