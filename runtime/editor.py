"""One edit: rows, search, rank-one update, check. It decides nothing about the journal."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from .closed_form import SILENT, Method
from .configuration import EditConfig
from .contrast import contrast_rows, contrasted_key
from .costs import CostMeter
from .decoder import Decoder, EditLayerOutput, Slots
from .edit_check import EditChecker
from .edit_problem import EditProblem, at_subjects, prefill_suffix, split_rows, through_edit_layer
from .edit_result import SolvedEdit
from .edit_set import EditSet, NewEdit
from .facts import of_subject
from .gate import Gate
from .prompt_rows import EditRequest, PromptRows, build_rows
from .rank_one import InverseCovariance, subject_key
from .readout_loss import ReadoutLoss, log_softmax
from .search import Progress, Search, SearchResult, SearchTask
from .tokenizer import Tokenizer
from .wordings import wordings_of

Floats = NDArray[np.float32]


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
        wordings = wordings_of(request, len(self.prefixes) // 2)
        limit, loss = self.config.max_target_tokens, self.config.loss
        echo_tokens = loss.echo_tokens if loss.echo_factor > 0 else 0
        rows = build_rows(request, self.prefixes, self.tokenizer, limit, last, wordings, echo_tokens=echo_tokens)
        if self.config.method is not Method.GATED:
            return rows
        # A search adds delta from the subject's last token on: what stands before it must not open the gate.
        contrasts = contrast_rows(request, self.config.contrasts, self.tokenizer)
        return replace(rows, elsewhere=contrasts, silent=rows.rewriting[0].subject_index)

    def keys_of(
        self, keys: Floats, elsewhere: Floats, rows: PromptRows
    ) -> tuple[tuple[Floats, Floats, float], tuple[Floats, Floats, float]]:
        """Return key [F], direction [F] and leverage of an edit as it is written, and as it is searched for.

        A delta is searched as if its edit were told from no other context of the subject, but silent in front of its
        key. Else its kept row, which is one of them, would feel less of it, and a delta be found that spoils more
        wherever the edit does act. Without such contexts both are the same object. See `contrasted_key`.

        Parameters
        ----------
        keys
            [R, F] of the rewriting rows at the subject's last token.
        elsewhere
            [E + S, F] as `at_elsewhere` returns them.
        """
        key, contexts = subject_key(keys), [each.activation for each in rows.elsewhere]
        silent = [SILENT] * rows.silent
        written = contrasted_key(key, elsewhere, contexts + silent, self.inverse_covariance)
        if not contexts:
            return written, written
        return written, contrasted_key(key, elsewhere[len(contexts) :], silent, self.inverse_covariance)

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
    whole, unedited = through_edit_layer(decoder, rows.ids_with_elsewhere(), slots), checker.edit_layer(slots)
    edited, elsewhere = split_rows(whole, rows)
    before = checker.read(unedited)
    keys = at_subjects(edited.keys, rows)
    new, direction, gate = aim(bench, base, keys, elsewhere, rows)
    found, value = search_delta(bench, rows, edited, direction, gate, slots, meter, report)
    new = replace(new, delta=found.delta)
    after = base.extended([new])
    after.require_room()
    check = checker.compare(before, checker.read(checker.edit_layer(after.slots)))
    return SolvedEdit.of(new, value, found, check, meter.cost(), after.compaction_error), after


def aim(
    bench: Workbench, base: EditSet, keys: Floats, elsewhere: Floats, rows: PromptRows
) -> tuple[NewEdit, Floats, Gate | None]:
    """Return an edit without its delta on top of others, and the direction [F] and gate that delta is searched with.

    Parameters
    ----------
    keys, elsewhere
        As `Workbench.keys_of` takes them.
    """
    method = bench.config.method
    written, plain = bench.keys_of(keys, elsewhere, rows)
    new, direction = fit_in(base, *written, method, keys)
    if plain is written:
        return new, direction, base.gate_of(new)
    searched, direction = fit_in(base, *plain, method, keys)
    return new, direction, base.gate_of(searched)


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
    norm, behind = float(np.linalg.norm(value)), len(rows.behind)
    loss = ReadoutLoss(decoder.run_head, rows.target, kept_log_probs, norm, config.loss, behind)
    return bench.search(SearchTask(problem, loss, value, filled.subject_hidden(rows), decoder, report)), value
