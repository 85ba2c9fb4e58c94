"""Many edits at once: each delta is searched on its own, their directions are solved jointly, one check for all."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from .batch_result import BatchProgress, SolvedBatch
from .closed_form import Method, levels_of_same_keys
from .configuration import PrefixCache
from .costs import CostMeter, total_cost
from .decoder import EditLayerOutput
from .edit_check import CanaryCheck, CanaryChecker, CheckReading, EditCheck, EditChecker
from .edit_problem import at_elsewhere, at_subjects, split_rows
from .edit_result import SolvedEdit
from .edit_set import EditSet, NewEdit
from .editor import Workbench, search_delta
from .errors import RequestError
from .facts import FactKey, without
from .gate import strength
from .prompt_rows import EditRequest, PromptRows
from .search import Progress, SearchResult

Floats = NDArray[np.float32]


@dataclass(eq=False)
class _Item:
    """One request on its way through the phases."""

    place: int
    request: EditRequest
    rows: PromptRows
    bench: Workbench
    meter: CostMeter
    checker: EditChecker = field(init=False)
    residual: Floats = field(init=False)
    new: NewEdit = field(init=False)
    plain: NewEdit = field(init=False)  # the same as its search sees it, see `Workbench.keys_of`
    edited: EditLayerOutput = field(init=False)  # its keys as coordinates along the batch's directions, then plain's
    unedited: tuple[Floats, ...] = field(init=False)
    before: CheckReading = field(init=False)
    found: SearchResult = field(init=False)
    value: Floats = field(init=False)
    check: EditCheck = field(init=False)
    left_out: tuple[str, ...] = ()
    seconds: float = 0.0

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Count the time that is spent on this request alone."""
        start = time.perf_counter()
        yield
        self.seconds += time.perf_counter() - start

    def solved(self, replaces: str | None, compaction_error: float) -> SolvedEdit:
        """Return the edit as it came out."""
        cost = replace(self.meter.cost(), wall_s=round(self.seconds, 3))
        edit = SolvedEdit.of(self.new, self.value, self.found, self.check, cost, compaction_error)
        return replace(edit, replaces=replaces, left_out=self.left_out)


class BatchEditor:
    """Solves a batch of requests on top of the edits in force. It decides nothing about the journal.

    Graphs are opened once a phase: prefix; edit layer; head and suffix for all searches; and for each round of checks
    the edit layer and the suffix.

    Parameters
    ----------
    bench
        What the edits are made with.
    base
        Returns the edits in force without those of some facts: a fact that is taught anew is searched, and checked,
        with its old edit out of force.
    replaces
        Returns the edit in force that teaches a fact.
    """

    def __init__(
        self,
        bench: Workbench,
        base: Callable[[Sequence[FactKey]], EditSet],
        replaces: Callable[[FactKey], str | None],
    ) -> None:
        self._bench = bench
        self._base = base
        self._replaces = replaces
        self._method = bench.config.method
        self._force = bench.config.force

    def solve(
        self, requests: Sequence[EditRequest], batch: str, report: Callable[[BatchProgress], None]
    ) -> SolvedBatch:
        """Solve requests jointly.

        Parameters
        ----------
        batch
            The identifier of the batch; edits of one key are solved one upon the other, in batches of their own
            (``batch-2`` and so on).

        Raises
        ------
        RequestError
            When a request is not well formed, two teach the same fact, or the slots cannot hold them all.
        """
        total = CostMeter()
        items = self._validated(requests)
        base = self._base([item.request.fact for item in items])
        base.require_room()
        shared = replace(self._bench, decoder=self._bench.decoder.metered(total))
        canaries = CanaryChecker(shared.decoder, shared.tokenizer, shared.canaries)
        for item in items:
            with item.at_work():
                decoder, ids = item.bench.decoder, item.rows.ids_with_elsewhere()
                item.residual, _ = decoder.run_prefix(ids, decoder.sink_caches(len(ids))[0])
                stay = item.bench.taught_prompts(item.request)
                item.checker = EditChecker(decoder, shared.tokenizer, item.request, item.rows.target, stay)
        items = self._in_order(items, base, batch)
        directions = base.extended([item.new for item in items]).directions[-len(items) :]
        plain = directions
        if any(item.rows.elsewhere for item in items):
            plain = base.extended([item.plain for item in items]).directions[-len(items) :]
        for place, item in enumerate(items):
            with item.at_work():
                item.unedited = item.checker.edit_layer(base.slots)
                edited, _ = split_rows(item.bench.decoder.run_edit(item.residual, base.slots), item.rows)
                along = np.vstack([directions, plain[place]])
                item.edited = EditLayerOutput(edited.hidden, edited.keys @ along.T, edited.values)
                own = at_subjects(item.edited.keys, item.rows)
                item.new = item.new.opened(own[:, place], base.config.gates)
                item.plain = item.plain.opened(own[:, -1], base.config.gates)
        unedited = canaries.edit_layer(base.slots)
        before = canaries.read(unedited)
        self._search(items, base, report)
        kept, error = self._check(items, canaries, before)
        solved = [(item.place, item.solved(self._replaces(item.request.fact), error)) for item in items]
        edits = tuple(edit for _, edit in sorted(solved, key=lambda each: each[0]))
        cost = total_cost(total, [item.meter for item in items])
        return SolvedBatch(batch, self._method, tuple(requests), edits, tuple(i.place for i in kept), cost, error)

    def _validated(self, requests: Sequence[EditRequest]) -> list[_Item]:
        """Return the items of requests; what is wrong with one is known before any work is done."""
        if not requests:
            raise RequestError("the batch is empty: give at least one fact")
        lines: dict[FactKey, int] = {}
        items = []
        others = replace(self._bench, taught=without(self._bench.taught, [request.fact for request in requests]))
        for place, request in enumerate(requests):
            line = place + 1
            if (first := lines.setdefault(request.fact, line)) != line:
                raise RequestError(f"lines {first} and {line} teach the same fact: keep one of them")
            meter = CostMeter()
            try:
                rows = others.rows_of(request, requests[:place])
            except RequestError as error:
                raise RequestError(f"line {line}: {error}") from error
            bench = replace(others, decoder=others.decoder.metered(meter))
            items.append(_Item(place, request, rows, bench, meter))
        return items

    def _in_order(self, items: Sequence[_Item], base: EditSet, batch: str) -> list[_Item]:
        """Find each item's key, and the direction of its own; return them in the order in which they are solved."""
        nothing = np.zeros(base.slots.deltas.shape[1], np.float32)
        for item in items:
            with item.at_work():
                residual, others = at_subjects(item.residual, item.rows), at_elsewhere(item.residual, item.rows)
                places = np.concatenate([residual, others])[:, None]
                keys = item.bench.decoder.run_edit(places, base.slots).keys[:, 0]
                own, elsewhere = np.split(keys, [len(residual)])
                written, plain = item.bench.keys_of(own, elsewhere, item.rows)
                item.new = NewEdit(*written, nothing, self._method, batch)
                item.plain = NewEdit(*plain, nothing, self._method, batch)
        if self._method is Method.ROME:
            return list(items)
        gram = base.extended([item.new for item in items]).gram[-len(items) :, -len(items) :]
        levels = levels_of_same_keys(gram, base.config.same_key)
        for item, level in zip(items, levels, strict=True):
            if level:
                part = f"{batch}-{level + 1}"
                item.new, item.plain = replace(item.new, batch=part), replace(item.plain, batch=part)
        return [items[place] for place in sorted(range(len(items)), key=levels.__getitem__)]

    def _search(self, items: Sequence[_Item], base: EditSet, report: Callable[[BatchProgress], None]) -> None:
        """Search each delta with those in force that come before its own sub-batch; with ROME, all before it."""
        deltas = np.zeros((len(items), base.slots.deltas.shape[1]), np.float32)
        for place, item in enumerate(items):

            def show(progress: Progress, place: int = place) -> None:
                report(BatchProgress(place, len(items), progress))

            former = [self._method is Method.ROME or other.new.batch != item.new.batch for other in items[:place]]
            count = sum(former)  # a sub-batch follows another: these are the first ones
            with item.at_work():
                item.before = item.checker.read(item.unedited)
                # What former edits add is known without another run of the edit layer.
                gates = base.gates_of([other.new for other in items[:count]])
                added = strength(item.edited.keys[..., :count], gates) @ deltas[:count]
                edited = EditLayerOutput(item.edited.hidden + added, item.edited.keys, item.edited.values + added)
                slots = base.slots
                if count and item.bench.config.prefix_cache is PrefixCache.OFF:  # which runs it at every step
                    slots = base.extended([other.new for other in items[:count]]).slots
                along = np.eye(len(items) + 1, dtype=np.float32)[-1]
                item.found, item.value = search_delta(
                    item.bench, item.rows, edited, along, base.gate_of(item.plain), slots, item.meter, show
                )
                deltas[place] = item.found.delta
                item.new = replace(item.new, delta=item.found.delta)
        report(BatchProgress(len(items), len(items), None))

    def _check(
        self, items: Sequence[_Item], canaries: CanaryChecker, before: Sequence[Floats]
    ) -> tuple[list[_Item], float]:
        """Check the edits with all of them in force; leave out those that fail, until the rest holds.

        Returns
        -------
        tuple
            The edits that are left, and the error of the slots that hold them.
        """
        kept = list(items)
        while kept:
            after = self._base([item.request.fact for item in kept]).extended([item.new for item in kept])
            after.require_room()
            edited = []
            for item in kept:
                with item.at_work():
                    edited.append(item.checker.edit_layer(after.slots))
            shared = canaries.edit_layer(after.slots)
            reach = canaries.reach(after.directions[-len(kept) :], after.gates[:, -len(kept) :], after.slots)
            for item, hidden in zip(kept, edited, strict=True):
                with item.at_work():
                    item.check = item.checker.compare(item.before, item.checker.read(hidden))
            others = canaries.compare(before, canaries.read(shared))
            if self._force or not (failed := self._failed(kept, others, reach)):
                for item in kept:
                    item.check = replace(item.check, canaries=(*others, *item.check.canaries))
                return kept, after.compaction_error
            kept = [item for item in kept if item not in failed]
        return [], self._base([]).compaction_error

    @staticmethod
    def _failed(items: Sequence[_Item], canaries: Sequence[CanaryCheck], reach: Floats) -> list[_Item]:
        """Return the items whose own check failed; where none did, the one that reaches a changed canary most.

        Parameters
        ----------
        reach
            [canaries, items], as `CanaryChecker.reach` returns it.
        """
        failed = [item for item in items if item.check.failures or not item.found.steps]
        changed = [place for place, canary in enumerate(canaries) if not canary.kept]
        if failed or not changed:
            return failed
        moved = reach[changed] * [float(np.linalg.norm(item.new.delta)) for item in items]
        canary, farthest = divmod(int(moved.argmax()), len(items))
        other, item = canaries[changed[canary]], items[farthest]
        line = f"{other.prompt!r} changed from {other.before!r} to {other.after!r}"
        item.left_out = (f"{line}, and of its batch this edit reaches it most",)
        return [item]
