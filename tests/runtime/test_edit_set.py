"""The edits in force as one update, in slots and solved again when the journal changes."""

from __future__ import annotations

import logging
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mobiedit.runtime.closed_form import Method
from mobiedit.runtime.compaction import CompactionConfig
from mobiedit.runtime.edit_set import EditSet, EditSetConfig, NewEdit
from mobiedit.runtime.edits_in_force import EditsInForce
from mobiedit.runtime.errors import JournalError, RequestError
from mobiedit.runtime.gate import GateConfig, gate_parameters
from mobiedit.runtime.journal import Journal
from mobiedit.runtime.journal_records import EditRecord
from mobiedit.runtime.manifest import Manifest

SLOTS = 3
# Joint directions are float32, their sums have a hundred terms.
TOLERANCE = 1e-4


class Maker:
    """Makes edits of a model with some C^-1."""

    def __init__(self, manifest: Manifest) -> None:
        self.manifest = manifest
        self.shape = manifest.shape
        self._rng = np.random.default_rng(0)
        sample = self._rng.standard_normal((2 * self.shape.mlp_width, self.shape.mlp_width))
        self._inverse = np.linalg.inv(sample.T @ sample / len(sample) + 0.1 * np.eye(self.shape.mlp_width))
        self.plane = self._rng.standard_normal((2, self.shape.width))  # where deltas of low rank lie

    def new(self, method: str = Method.EMMET, batch: str | None = None, *, flat: bool = False) -> NewEdit:
        key = self._rng.standard_normal(self.shape.mlp_width)
        solved = self._inverse @ key
        delta = self._rng.standard_normal(2) @ self.plane if flat else self._rng.standard_normal(self.shape.width)
        leverage = float(key @ solved)
        vectors = [each.astype(np.float32) for each in (key, solved / leverage)]
        return NewEdit(*vectors, leverage, delta.astype(np.float32), method, batch)

    def record(self, edit_id: str, *, flat: bool = False, **changes: object) -> EditRecord:
        new = self.new(flat=flat)
        content = {
            "edit_id": edit_id,
            "created": "2026-01-02T03:04:05+00:00",
            "prompt": "{} is",
            "subject": edit_id,
            "target": "t",
            "paraphrases": (),
            "keep": (),
            "base_sha256": self.manifest.edit_base,
            "tool_version": "1",
            "optimizer": "gn",
            "report": {},
            "value": new.delta,
            **vars(new),
            **changes,
        }
        return EditRecord(**content)

    def set_of(self, *edits: NewEdit | EditRecord, slots: int = SLOTS) -> EditSet:
        return EditSet(edits, slots, self.shape)

    def update_at(self, edits: EditSet, key: np.ndarray) -> np.ndarray:  # type: ignore[type-arg]
        """What the slots add to the value at a key."""
        return np.asarray((edits.slots.directions @ key) @ edits.slots.deltas)


@pytest.fixture
def make(manifest: Manifest) -> Maker:
    return Maker(manifest)


def test_slots_are_empty_when_there_is_no_edit(make: Maker) -> None:
    empty = make.set_of()
    assert not empty.slots.directions.any()
    assert empty.directions.shape == (0, make.shape.mlp_width)
    assert empty.compaction_error == 0


@pytest.mark.parametrize("method", ["rome", "emmet"])
def test_slot_holds_the_edit_to_the_bit_when_it_is_the_only_one(make: Maker, method: str) -> None:
    edit = make.new(method)
    slots = make.set_of(edit).slots
    assert np.array_equal(slots.directions[0], edit.direction)
    assert np.array_equal(slots.deltas[0], edit.delta)
    assert not slots.directions[1:].any()


def test_delta_arrives_at_each_key_when_edits_are_a_batch(make: Maker) -> None:
    edits = [make.new(batch="b") for _ in range(3)]
    solved = make.set_of(*edits)
    for edit in edits:
        np.testing.assert_allclose(make.update_at(solved, edit.key), edit.delta, atol=TOLERANCE * 10)


def test_batches_are_told_apart_when_edits_stand_next_to_one_another(make: Maker) -> None:
    a, b, c = make.new(batch="x"), make.new(batch="x"), make.new(batch="y")
    joint, lone = make.set_of(a, b, c).directions, make.set_of(replace(a, batch=None), replace(b, batch=None), c)
    assert abs(float(joint[0] @ b.key)) < TOLERANCE  # of one batch: neither reaches the other
    assert abs(float(lone.directions[0] @ b.key)) > 0.01  # one after the other: the first knew nothing of the second
    mixed = make.set_of(a, replace(b, method="memit"), c).directions
    assert np.array_equal(mixed[0], a.direction)  # of another method: another batch


def test_directions_of_those_before_stay_when_an_edit_is_added(make: Maker) -> None:
    first, second, third = (make.new() for _ in range(3))
    whole = make.set_of(first, second).extended([third]).directions
    np.testing.assert_allclose(whole[:2], make.set_of(first, second).directions, atol=TOLERANCE)
    assert abs(float(whole[2] @ first.key)) < 0.05  # up to the ridge


def test_update_stays_when_more_edits_than_slots_lie_in_few_dimensions(make: Maker) -> None:
    edits = [make.new(flat=True) for _ in range(SLOTS + 4)]
    cut, wide = make.set_of(*edits), make.set_of(*edits, slots=len(edits))
    assert cut.holds
    assert 0 < cut.compaction_error < 1e-6
    assert wide.compaction_error == 0
    for edit in edits:
        size = float(np.linalg.norm(edit.delta))
        np.testing.assert_allclose(
            make.update_at(cut, edit.key), make.update_at(wide, edit.key), atol=TOLERANCE * 10 * size
        )


def test_room_is_refused_when_the_slots_would_change_the_edits(make: Maker) -> None:
    edits = [make.new() for _ in range(SLOTS + 4)]
    with pytest.raises(RequestError, match=r"7 edits in 3 slots would .* undo an edit, or export .* more --slots"):
        make.set_of(*edits).require_room()
    generous = EditSetConfig(compaction=CompactionConfig(tolerance=2.0))
    EditSet(edits, SLOTS, make.shape, generous).require_room()
    make.set_of(*edits[:SLOTS]).require_room()


def test_edits_are_refused_when_they_are_of_another_model(make: Maker) -> None:
    edit = make.record("short", delta=np.ones(2, np.float32), value=np.ones(2, np.float32))
    with pytest.raises(JournalError, match="edit short has another model's shape: undo it"):
        make.set_of(edit)
    with pytest.raises(JournalError, match="by 'magic', which this version does not know"):
        _ = make.set_of(make.new("magic"), make.new()).slots


@pytest.mark.parametrize("leverage", [1e-300, 1e-9])
def test_edits_are_refused_when_keys_and_directions_contradict_one_another(make: Maker, leverage: float) -> None:
    edits = [make.new(), replace(make.new(), leverage=leverage)]
    with pytest.raises(JournalError, match="cannot be of one model"):
        _ = make.set_of(*edits).slots


@pytest.mark.parametrize("values", [{"ridge": 0.0}, {"ridge": float("nan")}, {"same_key": 1.0}])
def test_settings_are_refused_when_nothing_can_be_solved(values: dict[str, float]) -> None:
    with pytest.raises(RequestError, match="between 0 and 1"):
        EditSetConfig(**values)


@pytest.fixture
def journal(make: Maker, tmp_path: Path) -> Journal:
    journal = Journal(tmp_path, make.manifest.edit_base)
    journal.append_edits([make.record("a"), make.record("b")])
    return journal


def test_edits_are_solved_once_when_the_journal_stays(journal: Journal, make: Maker) -> None:
    held = EditsInForce(journal, make.manifest)
    assert held.solved() is held.solved()
    assert held.without([("other", "fact")]) is held.solved()


def test_change_is_seen_at_once_when_the_journal_is_another(journal: Journal, make: Maker) -> None:
    held = EditsInForce(journal, make.manifest)
    before = held.solved()
    journal.append_edits([make.record("c")])
    assert len(held.solved().edits) == 3
    journal.append_undo("c")
    assert np.array_equal(held.solved().slots.directions, before.slots.directions)  # to the bit
    assert np.array_equal(held.solved().slots.deltas, before.slots.deltas)
    content = journal.path.read_bytes()
    journal.path.unlink()
    assert held.solved().edits == ()
    journal.path.write_bytes(content[:-1] + b"\0")  # damaged, of the same length
    os.utime(journal.path, ns=(0, 0))
    assert len(held.solved().edits) == 3  # the undo is torn


def test_replaced_edit_is_out_of_force_until_the_new_one_is_undone(journal: Journal, make: Maker) -> None:
    held = EditsInForce(journal, make.manifest)
    before = held.solved().slots
    assert held.teaching(("{} is", "a")) == "a"
    assert len(held.without([("{} is", "a")]).edits) == 1
    journal.append_edits([make.record("new", subject="A")])
    assert held.teaching(("{} is", "a")) == "new"
    assert len(held.solved().edits) == 2
    journal.append_undo("new")
    assert np.array_equal(held.solved().slots.directions, before.directions)
    assert held.teaching(("{} is", "c")) is None


def test_reading_warns_but_works_when_slots_hold_a_merged_journal_badly(
    journal: Journal, make: Maker, caplog: pytest.LogCaptureFixture
) -> None:
    held = EditsInForce(journal, replace(make.manifest, slots=1))
    with caplog.at_level(logging.WARNING):
        assert held.solved().slots.directions.any()
        held.solved()
    (record,) = caplog.records
    assert "2 edits in 1 slots" in record.message


def test_gated_edits_keep_their_slots_when_the_others_are_cut(make: Maker) -> None:
    gated = replace(make.new("gated"), gate=0.9)
    solved = make.set_of(make.new(flat=True), make.new(flat=True), gated, make.new(flat=True))
    slots = solved.slots
    assert solved.holds  # two slots are left for three deltas of a plane
    np.testing.assert_array_equal(slots.deltas[0], gated.delta)
    np.testing.assert_array_equal(slots.directions[0], solved.directions[2])
    np.testing.assert_array_equal(slots.gates[:, 0], gate_parameters(solved.gate_of(gated)))
    np.testing.assert_array_equal(slots.gates[:, 1:], np.tile(gate_parameters(None)[:, None], 2))


def test_room_is_refused_when_gated_edits_are_more_than_slots(make: Maker) -> None:
    edits = [replace(make.new("gated"), gate=0.9) for _ in range(SLOTS + 1)]
    solved = make.set_of(*edits)
    with pytest.raises(RequestError, match="4 gated edits need a slot each, the bundle has 3: undo an edit, or export"):
        solved.require_room()
    np.testing.assert_array_equal(solved.slots.deltas, [edit.delta for edit in edits[1:]])  # reading goes on


def test_gate_opens_where_the_edits_own_rows_are() -> None:
    config = GateConfig()
    new = NewEdit(*[np.ones(2, np.float32)] * 2, 1.0, np.ones(2, np.float32), "gated", None)
    assert new.opened(np.float32([1.1, 0.9, 0.95]), config).gate == config.opening
    assert new.opened(np.float32([0.5, 1.4, 1.6]), config).gate == pytest.approx(0.5)
    assert new.opened(np.float32([-0.2, 2.2, 2.2]), config).gate == pytest.approx(0.1)
    assert replace(new, method="emmet").opened(np.float32([0.5, 1.5]), config).gate is None
