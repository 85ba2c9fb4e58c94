"""The bundle's operations on a tiny real model, in FP32 and quantised."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from mobiedit.runtime import (
    Bundle,
    EditConfig,
    EditRequest,
    ExecutionConfig,
    PrefixCache,
    ZerothOrderConfig,
    open_bundle,
)
from mobiedit.runtime.closed_form import SILENT, Method
from mobiedit.runtime.compaction import CompactionConfig
from mobiedit.runtime.configuration import Optimizer
from mobiedit.runtime.edit_set import EditSetConfig
from mobiedit.runtime.errors import BundleError, JournalError, RequestError

PROMPT, SUBJECT, TARGET = "The mother tongue of {} is", "Danielle Darrieux", "old"
TEXT = PROMPT.replace("{}", SUBJECT)
# Random weights have canaries without certainty, so edits are forced into the journal.
FORCED = EditConfig(Optimizer.ZO, Method.ROME, force=True)
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


GENEROUS = EditSetConfig(compaction=CompactionConfig(tolerance=10.0))


def teach(bundle: Bundle, count: int, method: Method = Method.EMMET) -> list[str | None]:
    """Teach facts of different subjects, and return their identifiers."""
    made = []
    for seed, name in enumerate(("France", "Spain", "Italy", "Japan", "Peru", "Chad")[:count], 1):
        # Searches of one seed look in the same few directions, and three slots would hold what they find.
        config = replace(QUICK, method=method, zeroth_order=replace(QUICK.zeroth_order, seed=seed))
        made.append(bundle.edit("The capital of {} is", name, "Rome", config=config).edit_id)
    return made


def test_edit_is_refused_when_the_slots_cannot_hold_one_more(bundle: Bundle) -> None:
    with pytest.raises(RequestError, match=r"[4-6] edits in 3 slots would change one another by .*%.*undo an edit, or"):
        teach(bundle, 6)
    assert 3 <= len(bundle.edits()) < 6
    assert bundle.info()["slots"] == {"used": 3, "total": 3}


def test_gated_edit_is_refused_when_no_slot_is_left(bundle: Bundle) -> None:
    with pytest.raises(RequestError, match="4 gated edits need a slot each, the bundle has 3: undo an edit, or export"):
        teach(bundle, 4, Method.GATED)
    assert len(bundle.edits()) == 3


def test_edit_is_taken_when_there_are_more_than_slots_but_the_error_is_borne(bundle: Bundle) -> None:
    bundle = open_bundle(bundle.path, edits=GENEROUS)
    last = teach(bundle, 6)[-1]
    told = bundle.info()
    assert (told["edits"], told["slots"]) == (6, {"used": 3, "total": 3})
    assert told["compaction_error"] == bundle.edits()[-1].report["compaction_error"] > 0
    # Any reader can ask and undo, whatever it would bear: a journal may come from elsewhere.
    strict = open_bundle(bundle.path)
    assert strict.ask(TEXT, 2)
    with pytest.raises(RequestError, match="6 edits in 3 slots"):
        strict.edit(PROMPT, SUBJECT, TARGET, config=QUICK)
    assert strict.undo().edit_id == last
    assert len(strict.edits()) == 5


def test_edit_of_a_taught_fact_replaces_it_until_it_is_undone(bundle: Bundle) -> None:
    first = bundle.edit(PROMPT, SUBJECT, TARGET, config=QUICK)
    answer = bundle.log_probabilities(TEXT)
    second = bundle.edit(PROMPT.replace(" ", "  "), SUBJECT.upper(), "her", config=QUICK)
    assert (first.replaces, second.replaces) == (None, first.edit_id)
    assert [edit.edit_id for edit in bundle.edits()] == [second.edit_id]
    other = open_bundle(bundle.path)
    other.undo()
    other.undo()
    # Searched for without the old one in force: the fact's probability before is that of the bare model.
    shouted = PROMPT.replace("{}", SUBJECT.upper()).replace(" ", "  ").replace("DANIELLE  ", "DANIELLE ")
    assert -other.score(shouted, "her")[0] == pytest.approx(second.check.success_before.nll, abs=1e-4)
    assert bundle.edits() == ()  # what another process undoes is seen at once
    again = bundle.edit(PROMPT, SUBJECT, TARGET, config=QUICK)
    assert again.replaces is None
    np.testing.assert_array_equal(bundle.log_probabilities(TEXT), answer)


def test_covered_edit_is_back_to_the_bit_when_the_new_one_is_undone(bundle: Bundle) -> None:
    bundle.edit("The capital of {} is", "France", "Rome", config=QUICK)
    first = bundle.edit(PROMPT, SUBJECT, TARGET, config=QUICK)
    answer = bundle.log_probabilities(TEXT)
    second = bundle.edit(PROMPT, SUBJECT, "her", config=QUICK)
    assert second.replaces == first.edit_id
    bundle.undo(second.edit_id)
    np.testing.assert_array_equal(bundle.log_probabilities(TEXT), answer)


def test_replaced_edit_stays_in_force_when_the_new_one_is_not_committed(bundle: Bundle) -> None:
    first = bundle.edit(PROMPT, SUBJECT, TARGET, config=QUICK)
    config = EditConfig(Optimizer.ZO, zeroth_order=ZerothOrderConfig(steps=1, directions=1))
    failed = bundle.edit(PROMPT, SUBJECT, "her", config=config)
    assert (failed.committed, failed.replaces) == (False, None)
    assert [edit.edit_id for edit in bundle.edits()] == [first.edit_id]


@pytest.mark.parametrize("method", Method)
def test_method_is_kept_in_the_journal_when_an_edit_is_made(bundle: Bundle, method: Method) -> None:
    bundle.edit("The capital of {} is", "France", "Rome", config=QUICK)
    result = bundle.edit(PROMPT, SUBJECT, TARGET, config=replace(QUICK, method=method))
    assert result.method == bundle.edits()[-1].method == method
    solved = bundle._in_force.solved()
    first, second = bundle.edits()
    own, other = float(solved.directions[1] @ second.key), abs(float(solved.directions[1] @ first.key))
    # ROME does nothing about the first key, nor does a gate that is closed there; the others leave a ridge's part.
    assert own == pytest.approx(1 / 1.01 if method is Method.MEMIT else 1, abs=2e-3)
    lone = abs(float(second.direction @ first.key))
    if method in (Method.ROME, Method.GATED):
        assert 0.1 < lone < SILENT
        assert other == pytest.approx(lone)
    else:
        assert other < 0.1 * lone


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


@pytest.mark.parametrize("batch", [False, True])
@pytest.mark.parametrize("threads", [0, 1])
def test_numpy_has_the_threads_of_a_graph_when_an_edit_is_solved(threads: int, batch: bool, bundle_path: Path) -> None:
    def numpys_threads() -> list[int]:
        return [pool["num_threads"] for pool in threadpool_info() if "numpy" in pool["filepath"]]

    bundle, seen = open_bundle(bundle_path, ExecutionConfig(threads)), []
    with threadpool_limits(2, user_api="blas"):
        if batch:
            bundle.edit_batch([EditRequest(PROMPT, SUBJECT, TARGET)], QUICK, lambda _: seen.append(numpys_threads()))
        else:
            bundle.edit(PROMPT, SUBJECT, TARGET, config=QUICK, report=lambda _: seen.append(numpys_threads()))
        assert numpys_threads() == [2]
    assert seen
    assert all(each == [threads or 2] for each in seen)


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
