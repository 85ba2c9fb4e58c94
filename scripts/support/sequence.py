"""Edits taught one after the other, in memory, and what is left of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from mobiedit.runtime import Bundle, EditConfig, EditRequest, Method
from mobiedit.runtime.bundle_layout import KEY_STATISTICS
from mobiedit.runtime.costs import CostMeter
from mobiedit.runtime.edit_problem import at_subjects, split_rows, through_edit_layer
from mobiedit.runtime.edit_set import EditSet, NewEdit
from mobiedit.runtime.editor import Workbench, aim, fit_in, search_delta
from mobiedit.runtime.key_statistics import KeyStatistics


@dataclass(frozen=True)
class Variant:
    """A way to edit in sequence.

    Attributes
    ----------
    method
        As the product has it.
    clamp
        Largest norm of delta, relative to the value's; None is the search's own.
    forwards
        Forwards after which a search begins no further epoch; None is the search's own limit.
    anchored
        Scale v* back to the norm that the value had before its edit (a norm anchor).
    null_space
        Share of the text's key energy that updates must leave alone (AlphaEdit); None takes C^-1.
    bare_denominator
        Divide by the bare prompt's key where the numerator has the mean key: ROME as its authors' code has it. Gupta et
        al. 2024 (arXiv 2403.07175) trace its sudden collapse to that; one key in both places is the remedy.
    """

    method: Method
    clamp: float | None = None
    anchored: bool = False
    null_space: float | None = None
    forwards: int | None = None
    bare_denominator: bool = False

    def workbench(self, bundle: Bundle) -> Workbench:
        """Return what this variant's edits of a bundle are made with."""
        config = EditConfig(method=self.method)
        limits = {"clamp": self.clamp, "forwards": self.forwards}
        given = {name: limit for name, limit in limits.items() if limit is not None}
        config = replace(config, gauss_newton=replace(config.gauss_newton, **given))
        statistics = KeyStatistics.find(bundle.path / KEY_STATISTICS)
        if self.null_space is not None:
            statistics = statistics.null_space(self.null_space)
        manifest, search = bundle.manifest, bundle.search_for(config)
        prefixes, canaries = manifest.row_prefixes, manifest.canaries
        return Workbench(bundle.decoder, bundle.tokenizer, prefixes, canaries, statistics, config, search)

    def teach(self, bench: Workbench, request: EditRequest, base: EditSet) -> tuple[NewEdit, int]:
        """Return one more edit on top of others, unchecked, and the forwards of its search."""
        meter = CostMeter()
        bench = replace(bench, decoder=bench.decoder.metered(meter))
        rows = bench.rows_of(request)
        whole = through_edit_layer(bench.decoder, rows.ids_with_elsewhere(), base.slots)
        edited, elsewhere = split_rows(whole, rows)
        keys = at_subjects(edited.keys, rows)
        new, direction, gate = aim(bench, base, keys, elsewhere, rows)
        if self.bare_denominator:
            own = np.asarray(new.direction / (new.direction @ keys[0]), np.float32)
            new, direction = fit_in(base, new.key, own, new.leverage, self.method, keys)
        found, value = search_delta(bench, rows, edited, direction, gate, base.slots, meter, _ignore)
        return replace(new, delta=_anchored(value, found.delta) if self.anchored else found.delta), meter.forwards


def _anchored(value: NDArray[np.float32], delta: NDArray[np.float32]) -> NDArray[np.float32]:
    target = value + delta
    return np.asarray(target * (np.linalg.norm(value) / np.linalg.norm(target)) - value, np.float32)


def _ignore(progress: object) -> None:
    pass


def mean(values: Sequence[float | None]) -> float | None:
    """Return the mean of the values that there are."""
    told = [value for value in values if value is not None]
    return float(np.mean(told)) if told else None
