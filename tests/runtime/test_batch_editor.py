"""Batches of facts on the tiny real model."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from mobiedit.runtime import Bundle, open_bundle
from mobiedit.runtime import staging as staging_module
from mobiedit.runtime.batch_editor import BatchEditor
from mobiedit.runtime.batch_result import BatchProgress, BatchResult
from mobiedit.runtime.closed_form import Method
from mobiedit.runtime.configuration import EditConfig, ExecutionConfig, GaussNewtonConfig, PrefixCache, Staging
from mobiedit.runtime.edit_check import CanaryCheck, EditCheck, Success
from mobiedit.runtime.errors import RequestError
from mobiedit.runtime.journal_records import EditRecord
from mobiedit.runtime.prompt_rows import EditRequest
from tests.runtime.gauss_newton_case import REACHABLE

# Random weights have canaries without certainty, so most batches here are forced into the journal.
FORCED = EditConfig(method=Method.EMMET, gauss_newton=GaussNewtonConfig(steps=4, directions=4), force=True)
FACTS = (
    EditRequest("The mother tongue of {} is", "Danielle Darrieux", "old"),
    EditRequest("The capital of {} is", "France", "the"),
    EditRequest("The book of {} was", "Anna Miller", "her"),
)
# A random model hardly reads the place of the subject from others, and what it learns of one wording ends there.
ENDING = (
    EditRequest("The mother tongue of {}", "Danielle Darrieux", "old"),
    EditRequest("The capital of {}", "France", "the"),
    EditRequest("The book of {}", "Anna Miller", "her"),
)
# Two facts whose subject opens the prompt: the tokens up to its last one, and so the keys, are the same.
SAME_KEY = (EditRequest("{} speaks", "Anna", "old"), EditRequest("{} lives in", "Anna", "her"))


def require_searched_upon(first: EditRecord, second: EditRecord) -> None:
    """Require that the second edit of a key was searched for with the first in force, which adds its delta there.

    Not exactly once: k* is a mean over rows, the value that of the bare prompt, whose key is a little off.
    """
    added = (second.value - second.delta) - (first.value - first.delta)
    times = float(added @ first.delta / (first.delta @ first.delta))
    assert 0.5 < times < 2
    np.testing.assert_allclose(added, times * first.delta, atol=1e-3)


@pytest.mark.parametrize("method", Method)
def test_facts_are_learned_and_all_forgotten_when_taught_as_a_batch(bundle: Bundle, method: Method) -> None:
    texts = [fact.text for fact in ENDING]
    before = [bundle.log_probabilities(text) for text in texts]
    result = bundle.edit_batch(ENDING, EditConfig(method=method, gauss_newton=replace(REACHABLE, steps=12), force=True))
    assert result.committed == 3
    for fact, edit, was in zip(ENDING, result.edits, before, strict=True):
        now = bundle.score(fact.text, fact.target)[0]
        # What the check found is what is in force: the same graphs on the same text, in other shapes.
        assert now == pytest.approx(-edit.check.success.nll, abs=1e-3)
        assert now > -edit.check.success_before.nll + 0.1
        assert np.abs(bundle.log_probabilities(fact.text) - was).max() > 0.1
    assert [edit.edit_id for edit in bundle.edits()] == [edit.edit_id for edit in result.edits]
    assert {edit.batch for edit in bundle.edits()} == {result.batch}
    assert {edit.method for edit in bundle.edits()} == {method.value}
    for _ in ENDING:
        bundle.undo()
    for text, was in zip(texts, before, strict=True):
        assert np.array_equal(bundle.log_probabilities(text), was)


def test_batch_of_one_is_a_single_edit_when_committed(bundle: Bundle, fp32_bundle: Path, tmp_path: Path) -> None:
    other = open_bundle(Path(shutil.copytree(fp32_bundle, tmp_path / "other")))
    bundle.edit_batch(FACTS[:1], FORCED)
    single = other.edit(FACTS[0].prompt, FACTS[0].subject, FACTS[0].target, config=FORCED)
    (one,), (two,) = bundle.edits(), other.edits()
    # The key is computed at the subjects' tokens alone, and gains rounding there, which the search lets grow.
    for name in ("key", "direction", "value", "delta"):
        wanted = getattr(two, name)
        np.testing.assert_allclose(getattr(one, name), wanted, atol=1e-2 * np.abs(wanted).max())
    assert one.report["cost"]["forwards"] == single.cost.forwards


def test_joint_directions_leave_the_batchs_other_keys_alone(bundle: Bundle) -> None:
    bundle.edit_batch(FACTS, FORCED)
    directions = bundle._in_force.solved().directions
    keys = np.stack([edit.key for edit in bundle.edits()])
    np.testing.assert_allclose(directions @ keys.T, np.eye(3), atol=1e-3)


def test_facts_of_one_key_add_when_they_are_in_one_batch(bundle: Bundle) -> None:
    result = bundle.edit_batch(SAME_KEY, FORCED)
    first, second = bundle.edits()
    np.testing.assert_allclose(first.key, second.key, atol=1e-4)
    assert (first.batch, second.batch) == (result.batch, f"{result.batch}-2")
    require_searched_upon(first, second)
    solved = bundle._in_force.solved()
    arrived = (solved.slots.directions @ first.key) @ solved.slots.deltas
    np.testing.assert_allclose(arrived, first.delta + second.delta, atol=1e-2)


@pytest.mark.parametrize("cache", [PrefixCache.EXACT, PrefixCache.OFF])
def test_each_edit_is_searched_on_top_of_the_former_when_the_method_is_rome(bundle: Bundle, cache: PrefixCache) -> None:
    config = replace(FORCED, method=Method.ROME, prefix_cache=cache)
    bundle.edit_batch(SAME_KEY, config)
    require_searched_upon(*bundle.edits())


def test_batch_is_the_same_when_it_is_staged(fp32_bundle: Path, tmp_path: Path) -> None:
    opened: list[int] = []
    found = []

    class Counted(staging_module.GraphStages):
        def close(self) -> None:
            super().close()
            opened.append(self.opened)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mobiedit.runtime.staged_edit.GraphStages", Counted)
        for staging in (Staging.ON, Staging.OFF):
            folder = Path(shutil.copytree(fp32_bundle, tmp_path / staging))
            copy = open_bundle(folder, ExecutionConfig(staging=staging))
            copy.edit_batch((*FACTS[:2], *SAME_KEY), FORCED)
            found.append([edit.delta for edit in copy.edits()])
    np.testing.assert_array_equal(found[0], found[1])
    assert opened[-1] == 5  # prefix, edit layer, suffix, and the last two again for the check, whatever the facts


def test_costs_are_told_for_each_edit_and_all_when_taught_as_a_batch(bundle: Bundle) -> None:
    progress: list[BatchProgress] = []
    result = bundle.edit_batch(FACTS, FORCED, progress.append)
    assert result.cost.forwards == sum(edit.cost.forwards for edit in result.edits) > 0
    assert result.cost.token_layers > sum(edit.cost.token_layers for edit in result.edits)  # the canaries' as well
    assert result.cost.wall_s >= sum(edit.cost.wall_s for edit in result.edits) - 0.01  # rounding
    assert [each.done for each in progress] == sorted(each.done for each in progress)
    assert progress[-1] == BatchProgress(3, 3, None)
    told = result.to_dict()
    assert (told["committed"], told["left_out"], told["method"]) == (3, 0, "emmet")
    assert [edit["prompt"] for edit in told["edits"]] == [fact.prompt for fact in FACTS]
    assert all({"success_before", "replaces", "compaction_error"} <= set(edit) for edit in told["edits"])


def test_canaries_are_run_once_before_and_once_after_when_there_are_many_facts(bundle: Bundle) -> None:
    shared = []
    for facts in (FACTS[:1], FACTS):
        result = bundle.edit_batch(facts, FORCED)
        shared.append(result.cost.dispatches - sum(edit.cost.dispatches for edit in result.edits))
    assert shared[0] == shared[1]


def test_fact_is_replaced_when_a_batch_teaches_it_again(bundle: Bundle) -> None:
    old = bundle.edit(FACTS[0].prompt, FACTS[0].subject, "old", config=FORCED)
    answer = bundle.log_probabilities(FACTS[0].text)
    again = EditRequest("The  mother tongue of {} is", "danielle darrieux", "her")
    result = bundle.edit_batch((FACTS[1], again), FORCED)
    assert [edit.replaces for edit in result.edits] == [None, old.edit_id]
    assert [edit.target for edit in bundle.edits()] == ["the", "her"]
    bundle.undo(result.edits[1].edit_id)
    assert [edit.edit_id for edit in bundle.edits()] == [old.edit_id, result.edits[0].edit_id]
    bundle.undo(result.edits[0].edit_id)
    assert np.array_equal(bundle.log_probabilities(FACTS[0].text), answer)


def test_nothing_is_committed_when_no_edit_holds(bundle: Bundle) -> None:
    config = EditConfig(gauss_newton=GaussNewtonConfig(steps=1, directions=1, clamp=0.01))
    result = bundle.edit_batch(FACTS[:2], config)
    assert result.committed == 0
    assert all(edit.failures and edit.edit_id is None for edit in result.edits)
    assert not (bundle.path / "edits" / "journal").exists()


@pytest.mark.parametrize(
    ("requests", "message"),
    [
        ((), "the batch is empty"),
        ((FACTS[0], FACTS[1], EditRequest("the CAPITAL of {} is", "france", "x")), "lines 2 and 3 teach the same fact"),
        ((FACTS[0], EditRequest("{} is", "x", "very " * 200)), "line 2: the target has .* tokens"),
        ((EditRequest("{} is", "x", "y", keep=("\ud800",)),), "line 1: .*not valid Unicode"),
    ],
)
def test_batch_is_refused_before_any_search_when_a_request_is_wrong(
    bundle: Bundle, requests: tuple[EditRequest, ...], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mobiedit.runtime.bundle.gauss_newton", lambda *_, **__: pytest.fail("searched"))
    with pytest.raises(RequestError, match=message):
        bundle.edit_batch(requests, FORCED)
    assert bundle.edits() == ()


def test_batch_is_refused_when_the_slots_cannot_hold_it(bundle: Bundle) -> None:
    facts = [EditRequest("The capital of {} is", name, "old") for name in ("France", "Spain", "Italy", "Japan", "Peru")]
    facts = [replace(fact, target=target) for fact, target in zip(facts, ("old", "her", "the", "a", "is"), strict=True)]
    with pytest.raises(RequestError, match="5 edits in 3 slots would change one another"):
        bundle.edit_batch(facts, FORCED)
    assert bundle.edits() == ()


class _Fake:
    """An item, as far as the choice of those that are left out looks at it."""

    def __init__(self, size: float, greedy: bool = True, steps: int = 1) -> None:
        success = Success(greedy, 0.5, 0.7)
        self.check = EditCheck(success, (), (), success)
        self.found = SimpleNamespace(steps=steps)
        self.new = SimpleNamespace(delta=np.array([0.0, size]))
        self.left_out: tuple[str, ...] = ()


def _failed(items: list[Any], canaries: list[CanaryCheck], reach: list[list[float]]) -> list[int]:
    failed = BatchEditor._failed(items, canaries, np.array(reach, np.float32))
    return [items.index(item) for item in failed]


STAYED, MOVED = (CanaryCheck("c", "left", "right", 0.5, kept) for kept in (True, False))


def test_edits_are_left_out_when_their_own_check_fails_before_any_canary_counts() -> None:
    assert _failed([_Fake(1), _Fake(1, greedy=False), _Fake(1, steps=0)], [MOVED], [[9, 1, 1]]) == [1, 2]
    assert _failed([_Fake(1), _Fake(1)], [STAYED], [[9, 1]]) == []


def test_edit_that_reaches_a_changed_canary_most_is_left_out() -> None:
    items = [_Fake(1), _Fake(10), _Fake(2)]
    assert _failed(items, [STAYED, MOVED], [[99, 0, 0], [0.1, 0.2, 0.9]]) == [1]  # 0.1, 2 and 1.8
    assert items[1].left_out == ("'c' changed from 'left' to 'right', and of its batch this edit reaches it most",)


def test_rest_is_checked_again_and_committed_when_an_edit_is_left_out(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The canaries of random weights change with any edit: here they count as kept once the second edit is gone."""
    old = bundle.edit(FACTS[1].prompt, FACTS[1].subject, "old", config=FORCED)
    real = BatchEditor._failed
    rounds: list[int] = []

    def second_first(items: Any, canaries: Any, reach: Any) -> Any:
        rounds.append(len(items))
        real(items, canaries, reach)
        return [item for item in items if item.request is FACTS[1]]

    monkeypatch.setattr(BatchEditor, "_failed", staticmethod(second_first))
    result: BatchResult = bundle.edit_batch(FACTS, replace(FORCED, force=False))
    assert rounds == [3, 2]
    assert [edit.committed for edit in result.edits] == [True, False, True]
    assert result.edits[1].replaces is None
    # The fact that was not replaced is in force as before, below the two that are new.
    assert [edit.edit_id for edit in bundle.edits()] == [old.edit_id, result.edits[0].edit_id, result.edits[2].edit_id]
    assert len(result.edits[0].check.canaries) == len(bundle.manifest.canaries)


def test_other_facts_of_a_subject_are_what_stays_when_one_is_taught(bundle: Bundle) -> None:
    first, second = SAME_KEY
    bundle.edit(first.prompt, first.subject, first.target, config=FORCED)
    alone = bundle.trial(FACTS[1], FORCED)[0].check.canaries
    solved, _ = bundle.trial(EditRequest(second.prompt, "ANNA", second.target), FORCED)
    assert [canary.prompt for canary in solved.check.canaries] == [*(each.prompt for each in alone), first.text]
    bench = bundle._workbench(bundle.decoder, FORCED)
    kept = bundle.tokenizer.encode(f"{first.text} {first.target}").ids
    assert bench.rows_of(second).kept.ids == kept
    assert bench.rows_of(second).kept.subject_index == bench.rows_of(second).rewriting[0].subject_index
    again = EditRequest(first.prompt, first.subject, "her")  # the fact itself shall not stay
    assert bench.rows_of(again).kept.ids == bundle.tokenizer.encode("Anna is a").ids
    batch = replace(bench, taught=())
    assert batch.rows_of(second, [first]).kept.ids == kept
    assert batch.rows_of(FACTS[1], [first]).kept.ids == bundle.tokenizer.encode("France is a").ids


def test_paraphrase_is_searched_with_when_it_names_the_subject(bundle: Bundle) -> None:
    request = replace(FACTS[1], paraphrases=("Of France, the capital is",))
    rows = bundle._workbench(bundle.decoder, FORCED).rows_of(request)
    prefix = bundle.manifest.row_prefixes[1]
    text = bundle.tokenizer.decode((*rows.rewriting[1].ids, rows.target[-1]))
    assert text == f"{prefix.replace('{}', request.paraphrases[0])} the"
