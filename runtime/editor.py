"""One edit: rows, search, rank-one update, check. It decides nothing about the journal."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .closed_form import Method
from .configuration import EditConfig, Optimizer
from .costs import Cost, CostMeter
from .decoder import Decoder, EditLayerOutput, Slots
from .edit_check import EditCheck, EditChecker
from .edit_problem import EditProblem, at_subjects, prefill_suffix, through_edit_layer
from .edit_set import EditSet, NewEdit
from .facts import of_subject
from .gate import Gate
from .prompt_rows import EditRequest, PromptRows, build_rows
from .rank_one import InverseCovariance, solve_key, subject_key
from .readout_loss import ReadoutLoss, log_softmax
from .search import Progress, Search, SearchResult, SearchTask
from .tokenizer import Tokenizer

Floats = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class SolvedEdit:
    """An edit that was searched for and checked, not yet committed.

    Attributes
    ----------
    key
        [F] k*.
    value
        [D] v*, the value that the update gives to the bare prompt's subject, delta included.
    direction
        [F] the right factor of the rank-one update; the left one is the search's delta.
    leverage
        ``k*^T C^-1 k*``.
    method, batch
        How it is fitted in among the others, and what its batch's edits have in common.
    compaction_error
        What the slots change of the effect of an edit in force at its own key, at most; relative to its delta.
    replaces
        The edit of the same fact that was in force.
    left_out
        Why a batch goes without it, although it took.
    gate
        As in `EditRecord`.
    """

    key: Floats
    value: Floats
    direction: Floats
    leverage: float
    search: SearchResult
    check: EditCheck
    cost: Cost
    method: Method = Method.GATED
    batch: str | None = None
    compaction_error: float = 0.0
    replaces: str | None = None
    left_out: tuple[str, ...] = ()
    gate: float | None = None

    @property
    def failures(self) -> tuple[str, ...]:
        """Why the edit should not be committed, one line each."""
        known = () if self.search.steps else ("the model gives this answer already: there is nothing to teach",)
        return (*known, *self.left_out, *self.check.failures)

    def result(self, edit_id: str | None, optimizer: Optimizer) -> EditResult:
        """Return what became of the request: committed as ``edit_id``, or not."""
        steps, early = self.search.steps, self.search.stopped_early
        return EditResult(
            edit_id,
            optimizer.value,
            self.method.value,
            steps,
            early,
            self.failures,
            self.check,
            self.cost,
            self.replaces if edit_id else None,
            self.compaction_error,
        )


@dataclass(frozen=True)
class EditResult:
    """What became of a request.

    Attributes
    ----------
    edit_id
        The journal's name for it, or None when it was not committed.
    failures
        What the check found wrong, one line each.
    replaces
        The edit of the same fact that was in force before; None when this one was not committed.
    compaction_error
        As in `SolvedEdit`.
    """

    edit_id: str | None
    optimizer: str
    method: str
    steps: int
    stopped_early: bool
    failures: tuple[str, ...]
    check: EditCheck
    cost: Cost
    replaces: str | None
    compaction_error: float

    @property
    def committed(self) -> bool:
        """Whether the edit is in the journal."""
        return self.edit_id is not None

    def to_dict(self) -> dict[str, Any]:
        """Return the result as plain data, for ``--json`` and the journal."""
        return {
            "edit_id": self.edit_id,
            "committed": self.committed,
            "replaces": self.replaces,
            "optimizer": self.optimizer,
            "method": self.method,
            "steps": self.steps,
            "stopped_early": self.stopped_early,
            "success_before": asdict(self.check.success_before),
            "success": asdict(self.check.success),
            "paraphrases": [asdict(p) for p in self.check.paraphrases],
            "locality": self.check.locality(),
            "failures": list(self.failures),
            "compaction_error": self.compaction_error,
            "cost": self.cost.to_dict(),
        }


@dataclass(frozen=True)
class Workbench:
    """What every edit of a bundle is made with.

    Attributes
    ----------
    prefixes
        Templates of the rewriting rows; the first is ``{}`` alone.
    canaries
        Prompts that must stay.
    inverse_covariance
        C^-1 of the edit layer's keys.
    search
        How delta is searched for.
    taught
        The facts in force: those of a request's subject may share its key, and shall stay.
    """

    decoder: Decoder
    tokenizer: Tokenizer
    prefixes: Sequence[str]
    canaries: Sequence[str]
    inverse_covariance: InverseCovariance
    config: EditConfig
    search: Search
    taught: Sequence[EditRequest] = ()

    def rows_of(self, request: EditRequest, former: Sequence[EditRequest] = ()) -> PromptRows:
        """Return the rows of a request; RequestError if one of its texts cannot be read.

        Parameters
        ----------
        former
            Those of its batch that come before it.
        """
        for prompt in (*request.paraphrases, *request.keep):
            self.tokenizer.encode(request.fill(prompt))  # refused now rather than after the search
        last = next(reversed(of_subject((*self.taught, *former), request.fact)), None)
        return build_rows(request, self.prefixes, self.tokenizer, self.config.max_target_tokens, last)

    def taught_prompts(self, request: EditRequest) -> tuple[str, ...]:
        """Return the prompts of other facts in force of a request's subject, whose answers must stay."""
        return tuple(fact.text for fact in of_subject(self.taught, request.fact))


def solve_edit(
    bench: Workbench,
    request: EditRequest,
    base: EditSet,
    report: Callable[[Progress], None] = lambda progress: None,
) -> tuple[SolvedEdit, EditSet]:
    """Search for delta with forward passes, and turn it into a rank-one update on top of others.

    Each graph's runs come together, so that staged sessions are swapped four times: prefix; edit layer; suffix; and for
    the check, which is made with the update in force, the edit layer and the suffix again.

    Parameters
    ----------
    base
        The edits in force; the search starts from them.

    Returns
    -------
    tuple
        The edit, and the edits in force with it.

    Raises
    ------
    RequestError
        When a text cannot be read, or the slots cannot hold one more edit.
    """
    base.require_room()
    meter = CostMeter()
    bench = replace(bench, decoder=bench.decoder.metered(meter))
    decoder, slots = bench.decoder, base.slots
    rows = bench.rows_of(request)
    stay = (*bench.canaries, *bench.taught_prompts(request))
    checker = EditChecker(decoder, bench.tokenizer, request, rows.target, stay)
    edited, unedited = through_edit_layer(decoder, rows.padded_ids(), slots), checker.edit_layer(slots)
    before = checker.read(unedited)
    keys = at_subjects(edited.keys, rows)
    key = subject_key(keys)
    lone, leverage = solve_key(key, bench.inverse_covariance)
    new, direction = fit_in(base, key, lone, leverage, bench.config.method, keys)
    found, value = search_delta(bench, rows, edited, direction, base.gate_of(new), slots, meter, report)
    after = base.extended([replace(new, delta=found.delta)])
    after.require_room()
    check = checker.compare(before, checker.read(checker.edit_layer(after.slots)))
    cost, error, method = meter.cost(), after.compaction_error, bench.config.method
    solved = SolvedEdit(
        key, value + found.delta, lone, leverage, found, check, cost, method, compaction_error=error, gate=new.gate
    )
    return solved, after


def fit_in(
    base: EditSet, key: Floats, lone: Floats, leverage: float, method: Method, keys: Floats
) -> tuple[NewEdit, Floats]:
    """Return an edit without its delta on top of others, and its direction [F] among them.

    Parameters
    ----------
    key, lone, leverage
        As in `SolvedEdit`; ``lone`` is its direction where no other edit is.
    keys
        [R, F] of the rewriting rows at the subject's last token: what its gate opens for.
    """
    new = NewEdit(key, lone, leverage, np.zeros(base.slots.deltas.shape[1], np.float32), method, None)
    direction = base.extended([new]).directions[-1]
    return new.opened(keys @ direction, base.config.gates), direction


def search_delta(
    bench: Workbench,
    rows: PromptRows,
    edited: EditLayerOutput,
    direction: Floats,
    gate: Gate | None,
    slots: Slots,
    meter: CostMeter,
    report: Callable[[Progress], None],
) -> tuple[SearchResult, Floats]:
    """Search for delta behind the edit layer; the search's caches are gone on return.

    Parameters
    ----------
    edited
        The rows behind the edit layer, with the edits in force.
    direction
        [F] what delta is spread by over keys; see `EditProblem`.
    gate
        Of the edit.
    slots
        The edits in force.

    Returns
    -------
    tuple
        What was found, and the value [D] at the bare prompt's subject without it.
    """
    decoder, config = bench.decoder, bench.config
    filled = prefill_suffix(decoder, edited)
    value = filled.subject_value(rows)
    policy, stale = config.prefix_cache, config.stale_tokens
    problem = EditProblem(decoder, rows, filled, direction, slots, meter, policy, stale, gate)
    kept_log_probs = log_softmax(decoder.run_head(problem.initial_kept[0]))
    loss = ReadoutLoss(decoder.run_head, rows.target, kept_log_probs, float(np.linalg.norm(value)), config.loss)
    return bench.search(SearchTask(problem, loss, value, filled.subject_hidden(rows), decoder, report)), value
