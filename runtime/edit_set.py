"""The edits in force as a whole: solved jointly, and held in the slots that there are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from reprlib import repr as short
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from .closed_form import Batch, Method, coefficients, joint_directions, scaled_gram
from .compaction import Compacted, CompactionConfig, compact
from .decoder import Slots
from .errors import JournalError, RequestError
from .gate import Gate, GateConfig, gate_parameters
from .manifest import ModelShape

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class EditSetConfig:
    """How edits are solved together; readers of one journal must agree on it.

    Attributes
    ----------
    ridge
        Relative to the leverages: of MEMIT's least squares, and of keeping earlier keys as they were.
    gates
        How wide the gates of gated edits are.
    same_key
        Squared cosine under C^-1 above which two keys of a batch count as one: their edits come one upon the other.
    """

    ridge: float = 0.01
    gates: GateConfig = field(default_factory=GateConfig)
    same_key: float = 0.9
    compaction: CompactionConfig = field(default_factory=CompactionConfig)

    def __post_init__(self) -> None:
        """Refuse values that nothing can be solved with."""
        if not 0 < self.ridge < 1 or not 0 < self.same_key < 1:
            raise RequestError("ridge and same_key must lie between 0 and 1: give for example 0.01 and 0.9")


class Edit(Protocol):
    """What the joint solution needs of an edit; as in `EditRecord`."""

    @property
    def key(self) -> Floats:
        """[F] k*."""

    @property
    def direction(self) -> Floats:
        """[F] ``C^-1 k* / leverage``."""

    @property
    def leverage(self) -> float:
        """``k*^T C^-1 k*``."""

    @property
    def delta(self) -> Floats:
        """[D] what it adds to the value at k*."""

    @property
    def method(self) -> str:
        """How it is fitted in."""

    @property
    def gate(self) -> float | None:
        """The activation from which on it acts in full; None for one that acts in proportion."""

    @property
    def batch(self) -> str | None:
        """What its batch's edits have in common."""


@dataclass(frozen=True, eq=False)
class NewEdit:
    """An edit that is in no journal yet; one whose delta is not known adds nothing. See `Edit`."""

    key: Floats
    direction: Floats
    leverage: float
    delta: Floats
    method: str
    batch: str | None
    gate: float | None = None

    def opened(self, activations: Floats, config: GateConfig) -> NewEdit:
        """Return the edit with the gate that its method asks for; activations as of `GateConfig.opening_for`."""
        return replace(self, gate=config.opening_for(activations)) if self.method == Method.GATED else self


class EditSet:
    """Edits in the order of the journal, as one update of the down projection.

    Parameters
    ----------
    edits
        Those in force; edits next to one another that name the same batch are solved jointly.
    slots
        How many rank-one terms the edit graph takes.
    shape
        The model's.

    Raises
    ------
    JournalError
        When an edit is of another shape.
    """

    def __init__(
        self, edits: Sequence[Edit], slots: int, shape: ModelShape, config: EditSetConfig | None = None
    ) -> None:
        self.edits = tuple(edits)
        self.config = config or EditSetConfig()
        self._count = slots
        self._shape = shape
        for edit in self.edits:
            if edit.direction.shape != (shape.mlp_width,) or edit.delta.shape != (shape.width,):
                name = getattr(edit, "edit_id", "that is new")
                raise JournalError(f"edit {name} has another model's shape: undo it")

    def extended(self, new: Sequence[Edit]) -> EditSet:
        """Return the set with more edits behind its own."""
        return EditSet((*self.edits, *new), self._count, self._shape, self.config)

    @cached_property
    def directions(self) -> Floats:
        """[N, F] the direction of each edit in the joint update.

        Raises
        ------
        JournalError
            When the keys and directions of the edits cannot be of one model.
        """
        own = self._own_directions
        if not self.edits:
            return own
        with np.errstate(over="ignore", invalid="ignore"):
            joint = joint_directions(self._coefficients, own)
        if not np.isfinite(joint).all():
            raise JournalError(_INCONSISTENT)
        return joint

    @cached_property
    def slots(self) -> Slots:
        """The update in the edit graph's slots: one for each edit, or as near as they come where edits are more.

        Raises
        ------
        JournalError
            As `directions`.
        """
        whole = slice(None) if self._compacted is None else self._gated[-self._count :]
        terms = [(self.directions[whole], self._deltas[whole], self.gates[:, whole])]
        if (cut := self._compacted) is not None:
            mixed = cut.mix.astype(np.float32) @ self._own_directions
            terms.append((mixed, cut.deltas.astype(np.float32), np.tile(gate_parameters(None)[:, None], len(mixed))))
        slots, used = Slots.empty(self._count, self._shape), sum(len(deltas) for _, deltas, _ in terms)
        directions, deltas, gates = zip(*terms, strict=True)
        slots.directions[:used], slots.deltas[:used] = np.concatenate(directions), np.concatenate(deltas)
        slots.gates[:, :used] = np.concatenate(gates, axis=1)
        return slots

    @property
    def compaction_error(self) -> float:
        """What the slots change of an edit's effect at its own key, relative to its delta, at most; 0 while they do."""
        if len(self._gated) > self._count:
            return 1.0  # a gate needs a slot of its own: the first ones have none
        return self._compacted.error if self._compacted else 0.0

    def gate_of(self, edit: Edit) -> Gate | None:
        """Return the gate of an edit that has one."""
        return None if edit.gate is None else self.config.gates.gate(edit.gate)

    @property
    def holds(self) -> bool:
        """Whether the slots hold the edits to the tolerance."""
        return self.compaction_error <= self.config.compaction.tolerance

    def require_room(self) -> None:
        """Refuse a set that the slots cannot hold.

        Raises
        ------
        RequestError
            When gated edits are more than slots, or the compaction's error is above its tolerance.
        """
        if (gated := len(self._gated)) > self._count:
            raise RequestError(
                f"{gated} gated edits need a slot each, the bundle has {self._count}: undo an edit, "
                "or export the bundle with more --slots"
            )
        if not self.holds:
            raise RequestError(
                f"{len(self.edits)} edits in {self._count} slots would change one another by "
                f"{self.compaction_error:.1%}, at most {self.config.compaction.tolerance:.1%} is borne: "
                "undo an edit, or export the bundle with more --slots"
            )

    @cached_property
    def _own_directions(self) -> Floats:
        return _stacked([edit.direction for edit in self.edits], self._shape.mlp_width)

    @cached_property
    def _deltas(self) -> Floats:
        return _stacked([edit.delta for edit in self.edits], self._shape.width)

    @cached_property
    def gates(self) -> Floats:
        """[4, N] the edits' gates, as `gate_parameters` has them."""
        return self.gates_of(self.edits)

    def gates_of(self, edits: Sequence[Edit]) -> Floats:
        """Return [4, N] the gates of edits that need not be of the set."""
        return _stacked([gate_parameters(self.gate_of(edit)) for edit in edits], 4).T

    @cached_property
    def _gated(self) -> NDArray[np.int64]:
        return np.array([place for place, edit in enumerate(self.edits) if edit.gate is not None], np.int64)

    @cached_property
    def _leverages(self) -> NDArray[np.float64]:
        return np.array([edit.leverage for edit in self.edits], np.float64)

    @cached_property
    def gram(self) -> NDArray[np.float64]:
        """[N, N] the cosines of the keys under C^-1."""
        keys = _stacked([edit.key for edit in self.edits], self._shape.mlp_width)
        with np.errstate(over="ignore", invalid="ignore"):
            return scaled_gram(keys, self._own_directions, self._leverages)

    @cached_property
    def _coefficients(self) -> NDArray[np.float64]:
        try:
            return coefficients(self.gram, self._leverages, _batches(self.edits), self.config.ridge)
        except np.linalg.LinAlgError as error:
            raise JournalError(_INCONSISTENT) from error

    @cached_property
    def _compacted(self) -> Compacted | None:
        """The edits without gates, cut to the slots that the others leave, where there are more edits than slots."""
        if len(self.edits) <= self._count:
            return None
        linear, weight = self._deltas.copy(), self.config.compaction.text_weight
        linear[self._gated] = 0
        rank = max(0, self._count - len(self._gated))
        return compact(linear, self._coefficients, self.gram, self._leverages, rank, weight)


_INCONSISTENT = (
    "the journal's edits have keys and directions that cannot be of one model: undo those that another program made"
)


def _stacked(vectors: Sequence[Floats], width: int) -> Floats:
    return np.stack(vectors) if vectors else np.zeros((0, width), np.float32)


def _batches(edits: Sequence[Edit]) -> list[Batch]:
    batches: list[Batch] = []
    for index, edit in enumerate(edits):
        try:
            method = Method(edit.method)
        except ValueError as error:
            raise JournalError(
                f"the journal has an edit by {short(edit.method)}, which this version does not know: update mobiedit"
            ) from error
        former = edits[index - 1] if index else None
        if former and edit.batch is not None and (former.batch, former.method) == (edit.batch, edit.method):
            batches[-1] = Batch(batches[-1].start, index + 1, method)
        else:
            batches.append(Batch(index, index + 1, method))
    return batches
