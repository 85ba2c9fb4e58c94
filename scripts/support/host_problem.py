"""One edit's loss in torch: the runtime's own terms, on the runtime's own rows, differentiable in delta."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mobiedit.calibration.differentiable_rows import DifferentiableRows
from mobiedit.runtime.configuration import LossConfig
from mobiedit.runtime.readout_loss import MOST_CERTAIN
from mobiedit.runtime.search import SearchTask

from .host_model import HostModel


@dataclass(frozen=True)
class HostTerms:
    """The loss of one delta: the total, a scalar that can be differentiated, and the target's probability."""

    total: Tensor
    target_probability: float


class HostProblem:
    """An edit's loss as a function of delta.

    Parameters
    ----------
    task
        Whose window of tokens is computed: all of them under ``PrefixCache.OFF``.
    loss
        The weights that the task's own loss has.
    whole
        Compute the layers up to the edit layer again for every delta, as an implementation without a cache does.
        Otherwise the window's hidden states are taken from the runtime.
    """

    def __init__(self, task: SearchTask, host: HostModel, loss: LossConfig, *, whole: bool) -> None:
        problem, window = task.problem, task.problem.window
        self._host = host
        self._loss = loss
        self._whole_ids = problem.rows.padded_ids() if whole else None
        assert not whole or window.hidden.shape[:2] == self._whole_ids.shape
        columns = [
            [t - start for t in places] for places, start in zip(problem.rows.places, window.starts, strict=True)
        ]
        self._rows = DifferentiableRows.prepare(
            host.suffix, host.decoder, window.hidden, window.scales, window.cache, columns
        )
        self._target = torch.tensor(problem.rows.target)
        self._value_norm = task.value_norm
        with torch.no_grad():
            kept = problem.initial_kept[0, : len(problem.rows.kept.readouts)]
            self._kept = self._log_probs(torch.from_numpy(kept))
        self._behind = len(problem.rows.behind)
        batch, tokens = window.hidden.shape[:2]
        layers = host.decoder.suffix_layers + (host.decoder.prefix_layers if whole else 0)
        self.token_layers = batch * tokens * layers
        """Tokens times layers that one evaluation runs forward."""

    def evaluate(self, delta: Tensor) -> HostTerms:
        """Return the loss (Meng et al. 2022, ROME, eq. 4, with the terms of `ReadoutLoss`) of delta [D]."""
        rows = self._rows
        if self._whole_ids is not None:
            rows = replace(rows, hidden=self._host.hidden(self._whole_ids))
        return self.terms(rows.readouts(delta.expand(len(rows.hidden), -1)), delta)

    def terms(self, readouts: Tensor, delta: Tensor) -> HostTerms:
        """Return the loss of delta [D] from its rows' normalised hidden states at the read-outs [M, D]."""
        tokens, kept = len(self._target), len(self._kept)
        bare, behind, others = readouts[:tokens], readouts[tokens:][: self._behind], readouts[tokens + self._behind :]
        target = self._target.repeat((tokens + len(others) - kept) // tokens)
        rewriting = torch.cat([bare, others[: len(others) - kept]])
        wanted = self._log_probs(rewriting).gather(1, target[:, None]).view(-1, tokens)
        kl = (self._kept.exp() * (self._kept - self._log_probs(others[len(others) - kept :]))).sum()
        again = self._log_probs(behind)[:, self._target[0]].exp().clamp(max=MOST_CERTAIN)
        decay = delta.norm() / self._value_norm**2
        total = -wanted.mean() + self._loss.kl_factor * kl + self._loss.weight_decay * decay
        total = total - self._loss.echo_factor * torch.log1p(-again).sum() / tokens
        return HostTerms(total, float(wanted.detach().mean(dim=1).exp().mean()))

    def gradient(self, delta: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the loss's gradient [D] at delta [D]."""
        at = torch.from_numpy(delta.copy()).requires_grad_()
        self.evaluate(at).total.backward()
        assert at.grad is not None
        return at.grad.numpy()

    def _log_probs(self, hidden: Tensor) -> Tensor:
        """[M, V] of normalised hidden states [M, D]."""
        return torch.log_softmax(self._host.head(hidden), dim=-1)
