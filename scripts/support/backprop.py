"""ROME's search of the value, by backpropagation: what forward-only searches are measured against."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import partial

import torch

from mobiedit.runtime import EditConfig, LossConfig, PrefixCache
from mobiedit.runtime.evaluation import ForeignSearch
from mobiedit.runtime.search import Look, Progress, SearchResult, SearchTask

from .host_model import HostModel
from .host_problem import HostProblem

ORACLE_LOSS = LossConfig(echo_factor=0)
"""The loss that every search here has, but for the echo, which ROME's has not."""


@dataclass(frozen=True)
class BackpropConfig:
    """Settings of the kind that ROME's public code has (Meng et al. 2022), under its names for them; 25 steps.

    Attributes
    ----------
    steps
        Steps of Adam at most (``v_num_grad_steps``).
    learning_rate
        ``v_lr``.
    clamp
        Largest norm of delta, relative to the value's (``clamp_norm_factor``).
    stop_loss
        The search ends once the loss is below this.
    """

    steps: int = 25
    learning_rate: float = 0.5
    clamp: float = 4.0
    stop_loss: float = 0.05


def backprop(task: SearchTask, host: HostModel, config: BackpropConfig, edit: EditConfig) -> SearchResult:
    """Search for delta with Adam on exact gradients.

    A look is a forward; a step is a backward pass. Under ``PrefixCache.OFF`` a forward runs the whole model over
    all rows, as ROME's code does; under ``EXACT`` only what depends on delta.
    """
    problem = HostProblem(task, host, edit.loss, whole=edit.prefix_cache is PrefixCache.OFF)
    delta = torch.zeros(len(task.value), requires_grad=True)
    adam = torch.optim.Adam([delta], lr=config.learning_rate)
    limit = config.clamp * task.value_norm
    looks: list[Look] = []
    while True:
        terms = problem.evaluate(delta)
        task.problem.meter.forwards += 1
        task.problem.meter.token_layers += problem.token_layers
        loss, step = float(terms.total.detach()), len(looks)
        looks.append(Look(step + 1, loss, terms.target_probability))
        task.report(Progress(step, config.steps, loss, terms.target_probability))
        done = loss < config.stop_loss
        if done or step == config.steps:
            return SearchResult(delta.detach().numpy().copy(), step, done, tuple(looks))
        adam.zero_grad()
        terms.total.backward()
        adam.step()
        with torch.no_grad():
            norm = float(delta.norm())
            if norm > limit:
                delta *= limit / norm


def backprop_search(host: HostModel, config: BackpropConfig, edit: EditConfig) -> ForeignSearch:
    """Return the search for a benchmark with the settings ``edit``."""
    counted = "one a step, through the layers above the edit layer; in wall_s, not in forwards or token_layers"
    return ForeignSearch(
        "backprop",
        {**asdict(config), "backward": counted, "torch": torch.__version__},
        partial(backprop, host=host, config=config, edit=edit),
    )
