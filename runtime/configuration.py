"""What a user may set for an edit. Every step size is relative to the norm of the value that is edited."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from enum import StrEnum
from typing import Any

from .closed_form import Method
from .contrast import CONTRASTS, Contrast
from .errors import RequestError
from .qnn_options import QnnOptions
from .soc import Soc, find_soc


class PrefixCache(StrEnum):
    """What a forward of the search reuses.

    ``EXACT`` keeps all that does not depend on the edit. ``STALE`` is the published policy: the first tokens of every
    row, subject included, kept until the loss stalls. ``OFF`` computes everything again.
    """

    EXACT = "exact"
    STALE = "stale"
    OFF = "off"


class Optimizer(StrEnum):
    """How delta is searched for: ``GN`` forward-only Gauss-Newton, ``ZO`` zeroth order."""

    GN = "gn"
    ZO = "zo"


@dataclass(frozen=True)
class LossConfig:
    """Weights of the terms beside the target's negative log-likelihood (Meng et al. 2022, ROME, eq. 4).

    ROME's code has a KL factor of 0.0625 and reads the subject's last token alone. Here "<subject> is a" is read at
    every token from there on. None of ROME's is ``echo_factor``, for an answer that begins once more behind itself:
    those of more than ``echo_tokens`` tokens end like any other.
    """

    kl_factor: float = 0.08
    weight_decay: float = 0.5
    echo_factor: float = 1.0
    echo_tokens: int = 2

    def __post_init__(self) -> None:
        """Refuse weights that reward what they should punish."""
        if not all(math.isfinite(x) and x >= 0 for x in (self.kl_factor, self.weight_decay, self.echo_factor)):
            raise RequestError("KL factor, weight decay and echo factor must be 0 or more: give finite numbers")


@dataclass(frozen=True)
class ZerothOrderConfig:
    """The forward-only search.

    Attributes
    ----------
    steps
        Upper limit of optimiser steps.
    directions
        Random orthonormal directions a step; each costs two forwards.
    mu
        Length of a perturbation, relative to the norm of the value at the subject.
    learning_rate
        Length of the first step, relative to the same norm.
    final_rate
        Fraction of ``learning_rate`` left at the last step; the decay is a half cosine.
    momentum, second_moment
        Decay rates of Adam's averages; the second moment is shared by all components.
    clamp
        Largest norm of delta, relative to the value's.
    check_every
        Steps between two looks at the stopping rule (M in the MobiEdit paper).
    stop_probability
        The target's mean probability on the rewriting rows at which the search ends, once each yields it greedily.
    stale_window, stale_drop
        The drop of the loss over a window of steps below which a stale cache is computed again.
    seed
        Seed of the directions.
    """

    steps: int = 100
    directions: int = 8
    mu: float = 0.1
    learning_rate: float = 0.8
    final_rate: float = 0.1
    momentum: float = 0.9
    second_moment: float = 0.99
    clamp: float = 4.0
    check_every: int = 20
    stop_probability: float = 0.8
    stale_window: int = 3
    stale_drop: float = 1e-3
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse values that cannot be searched with."""
        if min(self.steps, self.directions, self.check_every) < 1:
            raise RequestError("steps, directions and check_every must be 1 or more: give positive numbers")
        if not all(math.isfinite(x) and x > 0 for x in (self.mu, self.learning_rate, self.clamp)):
            raise RequestError("mu, learning rate and clamp must be above 0: give positive numbers")
        if not all(0 <= x < 1 for x in (self.momentum, self.second_moment)):
            raise RequestError("momentum and second moment must lie in 0 to 1, 1 left out: give for example 0.9")
        if self.seed < 0:
            raise RequestError("the seed must be 0 or more: give a whole number")
        if not 0 < self.stop_probability < 1:
            raise RequestError("the stop probability must lie between 0 and 1: give for example 0.8")


@dataclass(frozen=True)
class GaussNewtonConfig:
    """The forward-only Gauss-Newton search.

    Attributes
    ----------
    steps
        Upper limit of steps: those of the lens, and epochs.
    forwards
        Forwards after which no further epoch begins.
    refinements
        Steps of the lens alone before the first epoch.
    directions
        Forwards an epoch that measure differences, each along a direction for every group of rows.
    groups
        How many groups of rows measure directions of their own (`RowGroups`).
    columns
        Directions that the Jacobian keeps; the oldest are dropped.
    subspace_directions
        How many of an epoch's new ones are of the gradient subspace. The lens has what is left, and one at least.
    mu
        Length of a perturbation, relative to the norm of the value at the subject; see `perturbation.LEAST`. After an
        epoch without a better delta it is halved.
    top_tokens
        Tokens of each read-out that the inner model keeps.
    damping
        Penalty of the first epoch's step, times its squared relative length.
    norm_penalty
        Nats for a delta as long as the value, growing with the square: a longer one disturbs more of the model.
    clamp
        Largest norm of delta, relative to the value's: twice that in a search that is stuck, a tenth more at its end.
    stop_probability
        Mean probability of the target over the rewriting rows at which the search ends, once each of a whole prompt has
        at least half of it and every token leads clearly: what leads by a hair is lost to the next rounding.
    """

    steps: int = 150
    forwards: int = 2000
    refinements: int = 6
    directions: int = 16
    groups: int = 3
    columns: int = 256
    subspace_directions: int = 42
    mu: float = 0.05
    top_tokens: int = 64
    damping: float = 1.0
    norm_penalty: float = 0.02
    clamp: float = 4.0
    stop_probability: float = 0.7

    def __post_init__(self) -> None:
        """Refuse values that cannot be searched with."""
        counts = ("steps", "forwards", "directions", "groups", "columns", "top_tokens")
        if min(getattr(self, name) for name in counts) < 1:
            raise RequestError(f"{', '.join(counts)} must be 1 or more: give positive numbers")
        if min(self.refinements, self.subspace_directions) < 0:
            raise RequestError("refinements and subspace_directions must be 0 or more: give whole numbers")
        if not (math.isfinite(self.norm_penalty) and self.norm_penalty >= 0):
            raise RequestError("the norm penalty must be 0 or more: give a number")
        if not all(math.isfinite(x) and x > 0 for x in (self.mu, self.damping, self.clamp)):
            raise RequestError("mu, damping and clamp must be above 0: give positive numbers")
        if not 0 < self.stop_probability < 1:
            raise RequestError("the stop probability must lie between 0 and 1: give for example 0.8")


@dataclass(frozen=True)
class EditConfig:
    """One edit's settings.

    Attributes
    ----------
    method
        How it is fitted in among the edits in force.
    contrasts
        What gated edits are told from; see `CONTRASTS`.
    prefix_cache
        What a forward reuses.
    stale_tokens
        Tokens of each row that the stale policy keeps, whatever they are.
    max_target_tokens
        Longest answer that one value vector is asked to carry.
    force
        Commit even when the check fails.
    """

    optimizer: Optimizer = Optimizer.GN
    method: Method = Method.GATED
    contrasts: tuple[Contrast, ...] = CONTRASTS
    loss: LossConfig = field(default_factory=LossConfig)
    gauss_newton: GaussNewtonConfig = field(default_factory=GaussNewtonConfig)
    zeroth_order: ZerothOrderConfig = field(default_factory=ZerothOrderConfig)
    prefix_cache: PrefixCache = PrefixCache.EXACT
    stale_tokens: int = 10
    max_target_tokens: int = 32
    force: bool = False

    def __post_init__(self) -> None:
        """Refuse a combination that would find nothing."""
        if self.optimizer is Optimizer.GN and self.prefix_cache is PrefixCache.STALE:
            raise RequestError("the stale prefix cache is the zeroth-order search's: add --optimizer zo")

    @property
    def of_optimizer(self) -> GaussNewtonConfig | ZerothOrderConfig:
        """The optimiser's own settings."""
        return self.gauss_newton if self.optimizer is Optimizer.GN else self.zeroth_order


def edit_config(optimizer: Optimizer, given: Mapping[str, Any], seed: int | None = None) -> EditConfig:
    """Return the settings of an edit with some of the optimiser's own given; None stands for its default.

    ``seed`` goes to an optimiser that draws at random, and means nothing to another.

    Raises
    ------
    RequestError
        When the optimiser has no such setting, or not such a value.
    """
    config = EditConfig(optimizer=optimizer)
    own = config.of_optimizer
    chosen = {name: value for name, value in given.items() if value is not None}
    if isinstance(own, ZerothOrderConfig) and seed is not None:
        chosen["seed"] = seed
    unknown = sorted(chosen.keys() - {field.name for field in fields(own)})
    if unknown:
        option = unknown[0].replace("_", "-")
        raise RequestError(
            f"--{option} means nothing to the optimizer {optimizer}: leave it out, or choose another one"
        )
    if isinstance(own, GaussNewtonConfig):
        return replace(config, gauss_newton=replace(own, **chosen))
    return replace(config, zeroth_order=replace(own, **chosen))


class Staging(StrEnum):
    """Whether an edit holds its graphs in memory in turn: prefix, edit layer, suffix with head.

    ``AUTO`` does when they are large (`stages_edits`) and not open already. ``ON`` always does, ``OFF`` never.
    """

    AUTO = "auto"
    ON = "on"
    OFF = "off"


class ExecutionProvider(StrEnum):
    """What runs the graphs: ``CPU`` ONNX Runtime's own kernels, ``QNN`` Qualcomm's NPU or its simulator."""

    CPU = "cpu"
    QNN = "qnn"


@dataclass(frozen=True)
class ExecutionConfig:
    """How graphs are run.

    Attributes
    ----------
    threads
        Of a graph on the CPU, and of numpy in an edit; 0 leaves the choice to them.
    provider
        What runs them, all of them and each as a whole.
    soc
        The SoC that QNN compiles for, and QNN's options; both mean nothing to the CPU. None is the simulator's default.
    staging
        Of an edit on the CPU.
    """

    threads: int = 0
    provider: ExecutionProvider = ExecutionProvider.CPU
    soc: str | None = None
    qnn: QnnOptions = field(default_factory=QnnOptions)
    staging: Staging = Staging.AUTO

    def __post_init__(self) -> None:
        """Refuse an unknown SoC, and settings of another provider."""
        if self.provider is ExecutionProvider.QNN:
            find_soc(self.soc)
            if self.staging is Staging.ON:
                raise RequestError("--staging on is for the CPU: leave it out, or use --ep cpu")
        elif self.soc is not None or self.qnn != QnnOptions():
            raise RequestError("a SoC and QNN's options mean nothing on the CPU: add --ep qnn, or leave them out")

    @property
    def target(self) -> Soc | None:
        """The SoC that graphs are compiled for; None on the CPU."""
        return find_soc(self.soc) if self.provider is ExecutionProvider.QNN else None
