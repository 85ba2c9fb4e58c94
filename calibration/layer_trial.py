"""Facts taught at one layer, by backpropagation on the source model, and what that did."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from numpy.typing import NDArray
from torch import Tensor, nn

from mobiedit.runtime.rank_one import rank_one_direction, subject_key

from .edited_rows import EditedRows, ReadRows
from .probe_rows import ProbeFact, ProbeRow


@dataclass(frozen=True)
class SearchConfig:
    """Adam on delta, as in ROME's published code (Meng et al. 2022, ``hparams/ROME``), without the KL term.

    Attributes
    ----------
    steps
        Steps at most.
    learning_rate
        In units of the residual stream.
    clamp
        Largest norm of delta, relative to the value's.
    weight_decay
        Weight of delta's norm over the value's squared.
    stop_loss
        A fact whose loss is below this is done.
    """

    steps: int = 25
    learning_rate: float = 0.5
    clamp: float = 4.0
    weight_decay: float = 0.5
    stop_loss: float = 0.05


@dataclass(frozen=True)
class LayerEvidence:
    """What edits at one layer did.

    Attributes
    ----------
    success
        Share of facts whose target is greedy on the bare prompt.
    paraphrase
        Teacher-forced accuracy of the target's tokens on another wording, mean over facts.
    locality
        Share of neighbours whose most probable next token stayed.
    suffix_layers
        Layers behind the edit layer: what a step of the device's search runs.
    """

    layer: int
    success: float
    paraphrase: float
    locality: float
    suffix_layers: int

    @property
    def score(self) -> float:
        """Mean of success, paraphrase and locality."""
        return (self.success + self.paraphrase + self.locality) / 3


class LayerTrial:
    """N facts taught at one layer, all at once and each on its own: every row has the update of its fact.

    Parameters
    ----------
    read
        The rows of each fact in turn.
    inverse_covariance
        [F, F] of the layer's keys.

    Attributes
    ----------
    directions
        [N, F] of the updates.
    value_norms
        [N] norm of the value at the subject of the bare prompt.
    """

    def __init__(
        self, read: ReadRows, facts: Sequence[ProbeFact], layer: int, inverse_covariance: NDArray[np.float32]
    ) -> None:
        self._read = read
        self._layer = layer
        self._facts = facts
        self._rows = torch.arange(len(facts) * len(facts[0].rows)).view(len(facts), -1)
        rewriting = self._rows[:, : len(facts[0].rewriting)]
        subjects = 1 + torch.tensor([[row.subject for row in fact.rewriting] for fact in facts])
        keys = read.keys[layer][rewriting, subjects]
        directions = [rank_one_direction(subject_key(rows), inverse_covariance) for rows in keys.numpy()]
        self.directions = torch.from_numpy(np.stack(directions))
        self.value_norms = read.values[layer][rewriting[:, 0], subjects[:, 0]].norm(dim=-1)

    def find_deltas(self, config: SearchConfig, *, half: bool = False) -> Tensor:
        """Search the deltas [N, D] on the rewriting rows.

        As in the device's search, the update acts at the subject's last token and behind it: what stands in front is
        computed once.

        Parameters
        ----------
        half
            Multiply in bfloat16.
        """
        places = range(len(self._facts[0].rewriting))
        answers = self._open(places, [1 + fact.rows[place].subject for place in places for fact in self._facts])
        wanted = torch.tensor([token for row in answers.rows for token in row.target])
        owners = answers.batch % len(self._facts)
        deltas = torch.zeros(len(self._facts), self._read.final.shape[-1], requires_grad=True)
        adam = torch.optim.Adam([deltas], lr=config.learning_rate)
        for _ in range(config.steps):
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
                logits = answers.logits(deltas)
            nll = F.cross_entropy(logits.float(), wanted, reduction="none")
            mean_nll = torch.zeros(len(deltas)).index_add(0, owners, nll) / owners.bincount()
            losses = mean_nll + config.weight_decay * deltas.norm(dim=-1) / self.value_norms**2
            done = losses.detach() < config.stop_loss
            if done.all():
                break
            adam.zero_grad()
            losses.sum().backward(inputs=[deltas])  # not the weights' gradients
            before = deltas.detach().clone()
            adam.step()
            with torch.no_grad():
                limits = config.clamp * self.value_norms / deltas.norm(dim=-1).clamp_min(1e-6)
                deltas *= limits.clamp(max=1)[:, None]
                deltas[done] = before[done]
        return deltas.detach()

    @torch.no_grad()
    def evidence(self, deltas: Tensor) -> LayerEvidence:
        """Look at the bare prompt, the paraphrase and the neighbour with the updates in force on every token.

        Parameters
        ----------
        deltas
            [N, D] of the updates.
        """
        answers = self._open((0, -2, -1), [1] * 3 * len(self._facts))
        found = answers.logits(deltas).argmax(dim=-1).split([len(row.readouts) for row in answers.rows])
        neighbours = torch.tensor([1 + fact.neighbour.readouts[0] for fact in self._facts])
        own = self._read.model.lm_head(self._read.final[self._rows[:, -1], neighbours]).argmax(dim=-1)
        wanted = [*(torch.tensor(row.target) for row in answers.rows[: 2 * len(own)]), *own]
        right = [(answer == token).float().mean() for answer, token in zip(found, wanted, strict=True)]
        bare, paraphrase, neighbour = torch.stack(right).view(3, -1)
        return LayerEvidence(
            self._layer,
            float((bare == 1).float().mean()),
            float(paraphrase.mean()),
            float(neighbour.mean()),
            len(self._read.past) - 1 - self._layer,
        )

    def _open(self, places: Sequence[int], starts: Sequence[int]) -> _Answers:
        """Open some of each fact's rows, one place after the other, from their tokens ``starts`` on."""
        rows = [fact.rows[place] for place in places for fact in self._facts]
        edited = EditedRows.open(
            self._read,
            self._layer,
            self._rows[:, list(places)].T.flatten(),
            torch.tensor(starts),
            self.directions.repeat(len(places), 1),
        )
        batch = torch.tensor([b for b, row in enumerate(rows) for _ in row.readouts])
        tokens = torch.tensor([1 + token for row in rows for token in row.readouts])
        return _Answers(self._read.model, edited, rows, batch, tokens - edited.starts[batch])


@dataclass(frozen=True)
class _Answers:
    """Rows with updates, and where their answers are read: row and token of each of the M read-outs."""

    model: nn.Module
    edited: EditedRows
    rows: Sequence[ProbeRow]
    batch: Tensor
    tokens: Tensor

    def logits(self, deltas: Tensor) -> Tensor:
        """Return logits [M, V] with ``deltas`` [N, D], the rows' facts being 0 to N - 1 again and again."""
        final = self.edited.final(deltas.repeat(len(self.rows) // len(deltas), 1))
        return self.model.lm_head(final[self.batch, self.tokens])
