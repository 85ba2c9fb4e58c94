"""The forward-only Gauss-Newton search of delta.

A forward returns the whole hidden state at every read-out, so differences along n directions give n columns of a
Jacobian rather than n numbers, and the softmax above it is known in closed form. The directions come from the `Lens`.
The search has three parts: the lens's start, a few steps of the lens alone at one forward each, then epochs of
differences, a model that is minimised without forwards (`LinearisedLoss`), and a choice among step lengths.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from .configuration import GaussNewtonConfig
from .jacobian import Jacobian, orthonormal
from .lack import Lack
from .lens import Lens
from .linearised_loss import LinearisedLoss
from .row_groups import RowGroups
from .search import Look, Progress, SearchResult, SearchTask, within
from .top_logits import TopLogits, top_logits
from .trust import DAMPINGS, Trust

Floats = NDArray[np.float32]
_START_SCALES = (0.4, 0.6, 0.8, 1.0)  # lengths of the lens's start
_WORSE = 0.3  # nats that the lens's start may be worse than no delta
_FALL = 1e-3  # nats: less does not pay for an epoch
_REFINEMENT_FALL = 0.02  # nats: less does not pay for another step of the lens
_LIKELY = 0.95  # a token of this probability asks for no directions of its own
_LENGTHENED = 1.1
_LEAD = 0.1  # nats that a token leads by at the end: less is lost where the same texts are rounded in another order


@dataclass(frozen=True, eq=False)
class _Point:
    """A delta that was evaluated: its read-outs [R, t, D], those of `Jacobian.kept` [K, D], and its loss.

    ``objective`` is the loss with the penalty of length; ``safe`` tells whether every row of a whole prompt yields the
    target clearly and once, ``uneven`` whether any row lags behind the others.
    """

    delta: Floats
    readouts: Floats
    kept: Floats
    loss: float
    objective: float
    probability: float
    safe: bool
    uneven: bool


def gauss_newton(task: SearchTask, config: GaussNewtonConfig, lens: Lens) -> SearchResult:
    """Search for the delta that makes the target likely.

    The start costs a forward for each length that is tried, a step of the lens one; an epoch those of its differences
    and one a damping.
    """
    return _Search(task, config, lens).run()


class _Search:
    def __init__(self, task: SearchTask, config: GaussNewtonConfig, lens: Lens) -> None:
        self._task = task
        self._config = config
        self._lens = lens
        rows = task.problem.rows
        self._target = np.array(rows.target)
        self._whole = list(rows.whole)
        self._already = task.problem.meter.forwards
        self._steps = 0
        self._looks: list[Look] = []
        self._trust = Trust.full(config)
        before = task.loss.kept_log_probs
        self._jacobian = Jacobian(len(rows.rewriting), len(self._target), len(before), len(task.value))
        top = min(config.top_tokens, before.shape[1] - 1)
        likely = np.argpartition(-before, top)[:, :top]  # what the kept row's divergence is made of
        self._likely = np.union1d(likely, self._target[:1])
        self._subspace = itertools.cycle(lens.subspace.astype(np.float32))

    def run(self) -> SearchResult:
        targets = self._task.decoder.unembedding(self._target)
        first = self._scaled(self._lens.first_delta(targets, self._task.context))
        problem = self._task.problem
        (before,) = self._points(np.zeros((1, len(first)), np.float32), problem.initial_readouts, problem.initial_kept)
        self._look(before)
        best = before
        if not self._done(before):
            self._steps = 1  # the start is one: no step would say that there was nothing to teach
            starts = self._evaluate(np.stack([np.float32(scale) * first for scale in _START_SCALES]))
            # No delta is where a search is likely to stay: a start may be a little worse.
            handicapped = replace(before, objective=before.objective + _WORSE)
            start = self._best([handicapped, *starts])
            found = self._epochs(self._refine(before if start is handicapped else start))
            best = self._best([before, found])
            if best is before:
                self._look(before)
            elif self._done(best):
                best = self._lengthened(best)
        return SearchResult(best.delta, self._steps, self._done(best), tuple(self._looks))

    def _refine(self, best: _Point) -> _Point:
        """Take steps of the lens alone for as long as they help."""
        self._look(best)
        for _ in range(self._config.refinements):
            if self._done(best) or self._exhausted():
                break
            lack = self._lack(self._top(best.readouts))
            step = self._scaled(self._lens.images(lack.errors).sum(axis=0))
            (tried,) = self._evaluate(within(best.delta + step, self._limit)[None])
            self._steps += 1
            if tried.objective > best.objective - _REFINEMENT_FALL:
                break
            best = tried
            self._look(best)
        return best

    def _lengthened(self, point: _Point) -> _Point:
        """Return a point a little farther where that is better: other wordings feel less of delta than its rows do."""
        (tried,) = self._evaluate(np.float32(_LENGTHENED) * point.delta[None])
        if not self._done(tried) or tried.probability <= point.probability:
            return point
        self._look(tried)
        return tried

    @property
    def _forwards(self) -> int:
        """What the search has cost until now."""
        return self._task.problem.meter.forwards - self._already

    @property
    def _limit(self) -> float:
        """Largest norm of delta."""
        return self._trust.clamp * self._task.value_norm

    def _epochs(self, best: _Point) -> _Point:
        while not (self._done(best) or self._exhausted() or self._trust.lost):
            best = self._epoch(best) or best
            self._steps += 1
            self._look(best)
        return best

    def _epoch(self, point: _Point) -> _Point | None:
        """Measure new columns, minimise the model at several dampings, and return the best point if it is better."""
        top = self._top(point.readouts)
        self._measure(point, self._lack(top))
        model = self._model(point, top)
        steps, coefficients = [], np.zeros(len(self._jacobian.basis), np.float32)
        for factor in DAMPINGS:
            coefficients = model.minimise(self._trust.damping * factor, coefficients)
            steps.append(coefficients @ self._jacobian.basis)
        tried = self._evaluate(np.stack([within(point.delta + step, self._limit) for step in steps]))
        best = self._best(tried)
        if best.objective > point.objective - _FALL and not self._done(best):
            self._trust = self._trust.after_failure(float(np.linalg.norm(point.delta)) / self._task.value_norm)
            self._jacobian.forget(len(self._jacobian.basis) // 2)  # old columns are the first to mislead
            return None
        self._trust = self._trust.after_success(DAMPINGS[tried.index(best)])
        self._jacobian.correct(best.delta - point.delta, best.readouts - point.readouts, best.kept - point.kept)
        return best

    def _measure(self, point: _Point, lack: Lack) -> None:
        """Spend forwards on differences: to renew the columns along the known gradient, and for new directions."""
        jacobian, config, groups = self._jacobian, self._config, self._groups_for(point)
        known = jacobian.pulled_back(lack.by_row)
        nothing = np.zeros((0, known.shape[1]), np.float32)
        renewed = orthonormal((known.sum(axis=0), *known), config.directions // 4, nothing)
        free = (config.directions - len(renewed)) * groups.count
        new = jacobian.complement(self._promising(lack, point.delta), max(1, free - config.subspace_directions))
        subspace = itertools.islice(self._subspace, len(self._lens.subspace))
        others = orthonormal(subspace, free - len(new), np.concatenate([jacobian.basis, new]))
        new = np.concatenate([new, others])
        new = new[: len(new) - len(new) % groups.count]
        by_all = RowGroups(groups.rows, 1).deal(renewed)
        readouts, kept, alone = self._differences(point, np.concatenate([by_all, groups.deal(new)]), groups.left(new))
        for direction, change, kept_change in zip(renewed, readouts, kept, strict=False):
            jacobian.correct(direction, change, kept_change)
        readouts, kept = readouts[len(renewed) :], kept[len(renewed) :]
        jacobian.extend(new, *groups.columns(readouts, kept, alone), groups.guessed(len(kept)))
        jacobian.forget(config.columns)

    def _groups_for(self, point: _Point) -> RowGroups:
        """Return who measures what: rows are taken to be alike until it shows that they are not."""
        rows = len(point.readouts)
        alike = self._trust.alike and not point.uneven
        return RowGroups(rows, min(self._config.groups, rows) if alike else 1)

    def _differences(self, point: _Point, directions: Floats, of_kept: Floats) -> tuple[Floats, Floats, Floats]:
        """Return derivatives [k, R, t, D] and [k, K, D], of each row along its own direction [k, R + 1, D].

        And [m, K', D], of the kept row alone along m others [m, D].
        """
        length, problem = np.float32(self._trust.mu * self._task.value_norm), self._task.problem
        readouts, kept = problem.readouts(point.delta + length * directions)
        own = point.kept[: len(problem.rows.kept.readouts)]
        moved = np.empty((0, *own.shape), np.float32)
        if len(of_kept):
            moved = problem.kept_readouts(point.delta + length * of_kept)
        return (readouts - point.readouts) / length, (kept - point.kept) / length, (moved - own) / length

    def _promising(self, lack: Lack, delta: Floats) -> Iterator[Floats]:
        """Yield the lens's directions: for all errors together, for each, for the target against its competitors."""
        images = self._lens.images(lack.errors)
        yield images.sum(axis=0)
        open_positions = [int(j) for j in np.argsort(lack.probabilities) if lack.probabilities[j] < _LIKELY]
        for position in open_positions:
            yield images[position]
        unembedding = self._task.decoder.unembedding
        for position in open_positions:
            wanted = unembedding(self._target[position : position + 1])
            for row in wanted - unembedding(lack.competitors[position]):
                yield self._lens.image(row, position)
        yield delta

    def _model(self, point: _Point, top: TopLogits) -> LinearisedLoss:
        task = self._task
        kept = top_logits(task.decoder.run_head, point.kept, self._config.top_tokens, self._likely)
        return LinearisedLoss(
            top,
            kept,
            task.decoder.unembedding(top.ids),
            task.decoder.unembedding(kept.ids),
            self._jacobian,
            self._target,
            task.loss.kept_log_probs,
            point.delta,
            task.value_norm,
            self._config.norm_penalty,
            self._limit,
            task.loss.config,
            task.loss.behind,
        )

    def _top(self, readouts: Floats) -> TopLogits:
        flat = readouts.reshape(-1, readouts.shape[-1])
        return top_logits(self._task.decoder.run_head, flat, self._config.top_tokens, self._target)

    def _lack(self, top: TopLogits) -> Lack:
        unembedding, centre = self._task.decoder.unembedding, self._lens.centre.astype(np.float32)
        return Lack.of(top, self._target, unembedding, centre)

    def _evaluate(self, deltas: Floats) -> list[_Point]:
        return self._points(deltas, *self._task.problem.readouts(deltas))

    def _points(self, deltas: Floats, readouts: Floats, kept: Floats) -> list[_Point]:
        terms = self._task.loss(readouts, kept, deltas)
        probabilities = terms.target_probability
        enough = self._config.stop_probability
        clear = (terms.leads >= _LEAD) & (terms.row_probabilities >= enough / 2)
        lagging = (probabilities >= enough / 2) & (terms.row_probabilities.min(axis=1) < probabilities / 2)
        uneven = lagging | (probabilities >= enough) & ~clear.all(axis=1)
        safe = clear[:, self._whole].all(axis=1) & ~terms.echoing
        lengths = (deltas**2).sum(axis=-1) / self._task.value_norm**2
        objectives = terms.total + self._config.norm_penalty * lengths
        return [
            _Point(
                *parts,
                float(terms.total[i]),
                float(objectives[i]),
                float(probabilities[i]),
                bool(safe[i]),
                bool(uneven[i]),
            )
            for i, parts in enumerate(zip(deltas, readouts, kept, strict=True))
        ]

    def _best(self, points: list[_Point]) -> _Point:
        """Return the shortest delta that is good enough, or else the best one."""
        done = [point for point in points if self._done(point)]
        if done:
            return min(done, key=lambda point: float(np.linalg.norm(point.delta)))
        return min(points, key=lambda point: point.objective)

    def _scaled(self, relative: Floats) -> Floats:
        return within(np.asarray(relative * self._task.value_norm, np.float32), self._limit)

    def _done(self, point: _Point) -> bool:
        return point.safe and point.probability >= self._config.stop_probability

    def _exhausted(self) -> bool:
        return self._steps >= self._config.steps or self._forwards >= self._config.forwards

    def _look(self, point: _Point) -> None:
        self._looks.append(Look(self._forwards, point.loss, point.probability))
        self._task.report(Progress(self._steps, self._config.steps, point.loss, point.probability))
