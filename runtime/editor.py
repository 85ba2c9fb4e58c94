"""One edit: rows, search, rank-one update, check. It decides nothing about the journal."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .configuration import EditConfig, Optimizer
from .costs import Cost, CostMeter
from .decoder import Decoder, Slots
from .edit_check import EditCheck, EditChecker
from .edit_problem import EditProblem, prefill_suffix, through_edit_layer
from .prompt_rows import EditRequest, build_rows
from .rank_one import InverseCovariance, solve_key
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
    """

    key: Floats
    value: Floats
    direction: Floats
    leverage: float
    search: SearchResult
    check: EditCheck
    cost: Cost

    @property
    def failures(self) -> tuple[str, ...]:
        """Why the edit should not be committed, one line each."""
        known = () if self.search.steps else ("the model gives this answer already: there is nothing to teach",)
        return (*known, *self.check.failures)

    def result(self, edit_id: str | None, optimizer: Optimizer) -> EditResult:
        """Return what became of the request: committed as ``edit_id``, or not."""
        steps, early = self.search.steps, self.search.stopped_early
        return EditResult(edit_id, optimizer.value, steps, early, self.failures, self.check, self.cost)


@dataclass(frozen=True)
class EditResult:
    """What became of a request.

    Attributes
    ----------
    edit_id
        The journal's name for it, or None when it was not committed.
    failures
        What the check found wrong, one line each.
    """

    edit_id: str | None
    optimizer: str
    steps: int
    stopped_early: bool
    failures: tuple[str, ...]
    check: EditCheck
    cost: Cost

    @property
    def committed(self) -> bool:
        """Whether the edit is in the journal."""
        return self.edit_id is not None

    def to_dict(self) -> dict[str, Any]:
        """Return the result as plain data, for ``--json`` and the journal."""
        return {
            "edit_id": self.edit_id,
            "committed": self.committed,
            "optimizer": self.optimizer,
            "steps": self.steps,
            "stopped_early": self.stopped_early,
            "success": asdict(self.check.success),
            "paraphrases": [asdict(p) for p in self.check.paraphrases],
            "locality": self.check.locality(),
            "failures": list(self.failures),
            "cost": self.cost.to_dict(),
        }


def solve_edit(
    decoder: Decoder,
    tokenizer: Tokenizer,
    request: EditRequest,
    prefixes: Sequence[str],
    canaries: Sequence[str],
    inverse_covariance: InverseCovariance,
    slots: Slots,
    slot: int,
    config: EditConfig,
    search: Search,
    report: Callable[[Progress], None] = lambda progress: None,
) -> SolvedEdit:
    """Search for delta with forward passes, and turn it into a rank-one update.

    Each graph's runs come together, so that staged sessions are swapped four times: prefix; edit layer; suffix; and for
    the check, which is made with the update in force, the edit layer and the suffix again.

    Parameters
    ----------
    prefixes
        Templates of the rewriting rows; the first is ``{}`` alone.
    canaries
        Prompts that must stay.
    inverse_covariance
        [F, F] C^-1 of the edit layer's keys.
    slots
        The edits in force; the search starts from them.
    slot
        The free slot that the edit will take.
    search
        How delta is searched for.
    """
    for prompt in (*request.paraphrases, *request.keep):
        tokenizer.encode(request.fill(prompt))  # refused now rather than after the search
    meter = CostMeter()
    decoder = decoder.metered(meter)
    rows = build_rows(request, prefixes, tokenizer, config.max_target_tokens)
    checker = EditChecker(decoder, tokenizer, request, rows.target, canaries)
    edited, unedited = through_edit_layer(decoder, rows.padded_ids(), slots), checker.edit_layer(slots)
    filled, before = prefill_suffix(decoder, edited), checker.distributions(unedited)
    key, value = filled.subject_key(rows), filled.subject_value(rows)
    direction, leverage = solve_key(key, inverse_covariance)

    def searched() -> SearchResult:  # its caches are gone before the check opens the graphs again
        problem = EditProblem(decoder, rows, filled, direction, slots, meter, config.prefix_cache, config.stale_tokens)
        kept_log_probs = log_softmax(decoder.run_head(problem.initial_kept[0]))
        loss = ReadoutLoss(decoder.run_head, rows.target, kept_log_probs, float(np.linalg.norm(value)), config.loss)
        return search(SearchTask(problem, loss, value, filled.subject_hidden(rows), decoder, report))

    found = searched()
    check = checker.compare(before, checker.edit_layer(slots.with_edit(slot, direction, found.delta)))
    return SolvedEdit(key, value + found.delta, direction, leverage, found, check, meter.cost())
