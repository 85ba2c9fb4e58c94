"""One edit as a search problem: deltas in, hidden states at the read-outs out, with everything else computed once.

The update adds ``strength(direction . key) delta`` to every value. At the subject's last token that is about delta; the
search adds just this, there and at the tokens behind it, so that what it finds is what the update will do. The layers
up to the edit layer, and above it the tokens before the subject's last one, do not depend on delta: keeping them is
exact.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from .configuration import PrefixCache
from .costs import CostMeter
from .decoder import Decoder, EditLayerOutput, LayerCache, Slots
from .gate import Gate, gate_parameters, strength
from .prompt_rows import PromptRows
from .rank_one import subject_key
from .window import Window

Floats = NDArray[np.float32]
Integers = NDArray[np.int64]

_CACHE_BYTES = 64 * 2**20  # of the rows' K and V that one run of the suffix is given
_RUN_TOKENS = 16  # that are computed in about the time that a run takes to read its weights


@dataclass(frozen=True)
class _Run:
    """Some rows of a forward that the suffix runs together, their window, and its cache for each of several deltas."""

    rows: slice
    window: Window
    cache: LayerCache


@dataclass(frozen=True)
class Prefill:
    """All rows run once without delta.

    Attributes
    ----------
    edited
        What the edit layer returned.
    suffix_new
        K and V of every token in the suffix.
    final
        [B, T, D] normalised last hidden states.
    """

    edited: EditLayerOutput
    suffix_new: tuple[Floats, ...]
    final: Floats

    def subject_key(self, rows: PromptRows) -> Floats:
        """[F] k*, as `rank_one.subject_key` weighs the rows."""
        return subject_key(at_subjects(self.edited.keys, rows))

    def subject_hidden(self, rows: PromptRows) -> Floats:
        """[R, D] residual stream behind the edit layer at the subject's last token of each rewriting row."""
        return at_subjects(self.edited.hidden, rows)

    def subject_value(self, rows: PromptRows) -> Floats:
        """[D] value at the subject's last token of the bare prompt."""
        return np.asarray(self.edited.values[0, rows.subjects[0]])


def at_subjects(tokens: Floats, rows: PromptRows) -> Floats:
    """Return [R, X] of [B, T, X]: what is at the subject's last token of each rewriting row."""
    return np.asarray(tokens[np.arange(len(rows.rewriting)), rows.subjects[:-1]])


def at_elsewhere(tokens: Floats, rows: PromptRows) -> Floats:
    """Return [E + S, X] of [B + E, T, X]: what is where the edit shall act less, or not at all.

    At the subject's last token of each contrast row, and at the bare prompt's tokens that shall be silent.
    """
    subjects = [each.row.subject_index for each in rows.elsewhere]
    contrasts = tokens[len(rows.all) + np.arange(len(subjects)), np.array(subjects, np.int64)]
    return np.concatenate([contrasts, tokens[0, : rows.silent]])


def split_rows(edited: EditLayerOutput, rows: PromptRows) -> tuple[EditLayerOutput, Floats]:
    """Return of B + E rows what is behind the edit layer of the first B, and the keys [E + S, F] `at_elsewhere`."""
    own = slice(len(rows.all))
    return EditLayerOutput(edited.hidden[own], edited.keys[own], edited.values[own]), at_elsewhere(edited.keys, rows)


def prefill(decoder: Decoder, rows: PromptRows, slots: Slots) -> Prefill:
    """Run all rows through the decoder once."""
    return prefill_suffix(decoder, through_edit_layer(decoder, rows.padded_ids(), slots))


def prefill_suffix(decoder: Decoder, edited: EditLayerOutput) -> Prefill:
    """Run rows on from the edit layer to the end."""
    final, new = decoder.run_suffix(edited.hidden, decoder.sink_caches(len(edited.hidden))[1])
    return Prefill(edited, new, final)


def through_edit_layer(decoder: Decoder, ids: Integers, slots: Slots) -> EditLayerOutput:
    """Run whole rows [B, T] from the embeddings to the end of the edit layer."""
    residual, _ = decoder.run_prefix(ids, decoder.sink_caches(len(ids))[0])
    return decoder.run_edit(residual, slots)


class EditProblem:
    """The rows of an edit with their caches.

    Parameters
    ----------
    filled
        The rows run once.
    direction
        [F] of the rank-one update that is searched for.
    slots
        The edits in force.
    prefix_cache
        What a forward reuses.
    stale_tokens
        Tokens of each row that the stale policy keeps.
    gate
        Of the edit that is searched for.

    Attributes
    ----------
    rows
        The prompt rows.
    meter
        Where forwards are counted, also by a search that runs them elsewhere.
    window
        The tokens that a forward computes.
    initial_readouts, initial_kept
        The read-outs without delta, as `readouts` returns them for one delta.
    """

    def __init__(
        self,
        decoder: Decoder,
        rows: PromptRows,
        filled: Prefill,
        direction: Floats,
        slots: Slots,
        meter: CostMeter,
        prefix_cache: PrefixCache = PrefixCache.EXACT,
        stale_tokens: int = 10,
        gate: Gate | None = None,
    ) -> None:
        self._decoder = decoder
        self.rows = rows
        self._slots = slots
        self.meter = meter
        self._policy = prefix_cache
        self._hidden = filled.edited.hidden
        behind_subject = np.arange(self._hidden.shape[1]) >= rows.subjects[:, None]
        strengths = strength(filled.edited.keys @ direction, gate_parameters(gate))
        self._scales = np.where(behind_subject, strengths, 0).astype(np.float32)
        first_readout = np.array([row.readouts[0] for row in rows.all])
        self._stale_starts = np.minimum(stale_tokens, first_readout)
        self.initial_readouts, self.initial_kept = self._read(filled.final[:, None], np.zeros_like(rows.lengths))
        self._open(filled.suffix_new)

    def readouts(self, deltas: Floats) -> tuple[Floats, Floats]:
        """Run one forward for each delta [N, D], or [N, B, D] where every row has its own.

        Returns
        -------
        tuple
            Normalised hidden states at the read-outs of the rewriting rows [N, R, t, D]; and [N, K, D] those of the
            kept row, then behind the bare row's target.
        """
        self.meter.forwards += len(deltas)
        read = [self._readouts(part) for part in _portions(deltas, self.window)]
        return np.concatenate([readouts for readouts, _ in read]), np.concatenate([kept for _, kept in read])

    def kept_readouts(self, deltas: Floats) -> Floats:
        """Run the kept row alone for each delta [N, D], and return its normalised hidden states [N, K', D].

        Those behind the bare row's target are not among them. As many deltas as fill a forward count as one.
        """
        own = len(self.rows.kept.readouts)
        if self._policy is PrefixCache.OFF:
            return self.readouts(deltas)[1][:, :own]
        alone = self._alone
        whole = len(self.rows.all) * alone.tokens if self._decoder.parts.fixed_shapes else self.window.sizes.sum()
        self.meter.forwards += -(-len(deltas) * alone.tokens // int(whole))
        places = np.array(self.rows.kept.readouts) - alone.starts
        portions = _portions(deltas, alone)
        finals = (self._finals(alone, alone.repeated_cache(len(part)), part[:, None]) for part in portions)
        return np.concatenate([final[:, 0, places] for final in finals])

    def _readouts(self, deltas: Floats) -> tuple[Floats, Floats]:
        """Return what `readouts` does, each of the runs for all deltas at once."""
        n, rows = len(deltas), len(self.rows.all)
        of_rows = np.broadcast_to(deltas if deltas.ndim == 3 else deltas[:, None], (n, rows, deltas.shape[-1]))
        finals: list[Floats] = []
        for run in self._runs(n):
            finals.extend(np.moveaxis(self._finals(run.window, run.cache, of_rows[:, run.rows]), 1, 0))
        return self._read(finals, self.window.starts)

    def _finals(self, window: Window, cache: LayerCache, of_rows: Floats) -> Floats:
        """Return the window's normalised last hidden states [N, B, T, D] for N deltas of each row [N, B, D]."""
        hidden = self._base_hidden(window, len(of_rows)) + window.scales[:, :, None] * of_rows[:, :, None]
        final, _ = self._decoder.run_suffix(hidden.reshape(-1, *hidden.shape[2:]), cache)
        return final.reshape(hidden.shape)

    def refresh(self, delta: Floats) -> None:
        """Compute the stale policy's cache again with ``delta`` [D] in place; the others have nothing to do."""
        if self._policy is not PrefixCache.STALE:
            return
        hidden = self._hidden + self._scales[:, :, None] * delta
        _, new = self._decoder.run_suffix(hidden, self._sink(len(hidden)))
        self._open(new)

    def _open(self, new: tuple[Floats, ...]) -> None:
        """Open the policy's window, and those of its parts where they may run by themselves."""
        self.window = self._open_window(new)
        self._repeated: tuple[int, tuple[_Run, ...]] | None = None
        kept = len(self.rows.rewriting)
        last = slice(kept, kept + 1)
        self._alone = self.window.of(last)
        self._divisions: list[tuple[tuple[slice, Window], ...]] = [((slice(kept + 1), self.window),)]
        if self._policy is not PrefixCache.OFF and not self._decoder.parts.fixed_shapes:
            # The kept row is short, and the bare one goes on behind the target.
            for bounds in ((0, kept), (0, 1, kept)):
                parts = [slice(*part) for part in pairwise(bounds) if part[0] < part[1]]
                self._divisions.append((*((part, self.window.of(part)) for part in parts), (last, self._alone)))

    def _runs(self, n: int) -> tuple[_Run, ...]:
        """Return the runs that compute the window for n deltas."""
        # Steps come with the same number of deltas again and again: the repeated caches are worth keeping.
        if self._repeated is None or self._repeated[0] != n:
            runs = (_Run(rows, window, window.repeated_cache(n)) for rows, window in self._parts(n))
            self._repeated = (n, tuple(runs))
        return self._repeated[1]

    def _parts(self, n: int) -> tuple[tuple[slice, Window], ...]:
        """Return the rows that run together for n deltas: in more runs where these have so much less padding."""

        def cost(parts: tuple[tuple[slice, Window], ...]) -> int:
            return sum(n * window.tokens + _RUN_TOKENS for _, window in parts)

        return min(self._divisions, key=cost)

    def _open_window(self, new: tuple[Floats, ...]) -> Window:
        """Return the window of the policy, from the suffix's K and V of all tokens."""
        batch = len(self.rows.all)
        if self._policy is PrefixCache.OFF:
            starts = np.zeros(batch, np.int64)
            return Window(starts, self.rows.lengths, self._hidden, self._scales, self._sink(batch))
        starts = self.rows.subjects if self._policy is PrefixCache.EXACT else self._stale_starts
        return Window.open(starts, self.rows.lengths, self._hidden, self._scales, self._sink(batch), new)

    def _base_hidden(self, window: Window, n: int) -> Floats:
        """[1 or N, B, T, D] a window; without a cache, of all rows, computed for each delta from the embeddings."""
        if self._policy is not PrefixCache.OFF:
            return window.hidden[None]
        ids = np.tile(self.rows.padded_ids(), (n, 1))
        hidden = through_edit_layer(self._decoder, ids, self._slots).hidden
        return hidden.reshape(n, -1, *hidden.shape[1:])

    def _sink(self, batch: int) -> LayerCache:
        return self._decoder.sink_caches(batch)[1]

    def _read(self, finals: Sequence[Floats] | Floats, starts: Integers) -> tuple[Floats, Floats]:
        """Pick the read-outs out of each row's hidden states [N, T, D], whose first token is at ``starts``."""
        rows = zip(finals, self.rows.all, starts, strict=True)
        *read, kept = (final[:, np.array(row.readouts) - start] for final, row, start in rows)
        behind = finals[0][:, np.array(self.rows.behind, np.int64) - starts[0]]
        return np.stack(read, axis=1), np.concatenate([kept, behind], axis=1)


def _portions(deltas: Floats, window: Window) -> list[Floats]:
    """Return deltas in parts for which the window's cache is repeated: beyond that it takes more than it saves."""
    at_once = max(1, _CACHE_BYTES // sum(tensor.nbytes for tensor in window.cache.tensors))
    return np.array_split(deltas, max(1, -(-len(deltas) // at_once)))
