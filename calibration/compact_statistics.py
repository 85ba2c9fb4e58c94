"""Key statistics small enough for a device: the leading eigenpairs of C, and one number for all the others.

    C ~ S (rho (I - U^T U) + U^T Lambda U) S

S is diagonal: each neuron's deviation given all the others, diag(C^-1)^(-1/2), factor analysis's estimate of what is a
variable's own (Guttman 1956). Scaled by it, what is cut is nearly round, so that one rho does for it: with 13 % of the
directions or more, an update moves held-out keys' values less than with S = I or S = diag(C)^(1/2)
(docs/benchmarks.md). The eigenpairs are then those of the scaled inverse, P = S C^-1 S, whose diagonal is 1, so that C
itself need not be kept.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mobiedit.runtime.errors import RequestError
from mobiedit.runtime.key_statistics import DIRECTIONS, SCALE, WEIGHTS

_HALF, _FP32 = 2, 4
_HEADER = 512  # of the safetensors file: its three entries take about 240
_ROUNDS, _EXTRA, _PROBES = 6, 16, 32
_JITTER = 1e-5  # keeps the FP32 Cholesky factor of P; the float16 directions err by more
_COLUMNS = 256  # solved at once


@dataclass(frozen=True)
class CompactStatistics:
    """What a bundle holds of the key statistics; `mobiedit.runtime.key_statistics.KeyStatistics` reads it.

    Attributes
    ----------
    directions
        U [r, F] float16, the strongest direction first.
    weights
        [r] float32, ``1 - rho / Lambda``.
    scale
        [F] float32, the diagonal of S^-1 / sqrt(rho).
    """

    directions: NDArray[np.float16]
    weights: NDArray[np.float32]
    scale: NDArray[np.float32]

    @property
    def tensors(self) -> dict[str, NDArray[np.generic]]:
        """The tensors of the bundle's file, by name."""
        return {DIRECTIONS: self.directions, WEIGHTS: self.weights, SCALE: self.scale}


def compact_bytes(width: int, rank: int) -> int:
    """Return an upper bound, and within a kilobyte the size, of the file of ``rank`` directions [F = ``width``]."""
    return _HEADER + _HALF * rank * width + _FP32 * (rank + width)


def affordable_rank(width: int, limit: int) -> int:
    """Return how many directions fit into ``limit`` bytes; F - 1 are exact, since rho is then the last eigenvalue.

    Raises
    ------
    RequestError
        When not even one fits.
    """
    rank = (limit - compact_bytes(width, 0)) // (_HALF * width + _FP32)
    if rank < 1:
        least = compact_bytes(width, 1) / 1e6
        raise RequestError(
            f"--key-statistics-mb {limit / 1e6:g} is too small for an MLP of width {width}: give {least:.2g} or more"
        )
    return max(1, min(width - 1, rank))


@torch.no_grad()
def compact_statistics(inverse_covariance: NDArray[np.float32], rank: int) -> CompactStatistics:
    """Return the compact form of C^-1.

    Memory beside the inverse: a few F x F arrays in float64 where many of the eigenpairs are wanted; otherwise one in
    float32 and three F x r.

    Parameters
    ----------
    inverse_covariance
        [F, F] C^-1, symmetric and positive definite; left as it is.
    rank
        Directions kept, 1 to F - 1; with F - 1 the form is exact up to the rounding of the directions.
    """
    inverse = torch.from_numpy(inverse_covariance)
    deviations = inverse.diagonal().double().rsqrt()
    eigenpairs = _all_eigenpairs if 2 * rank >= len(inverse) else _leading_eigenpairs
    directions, values, rho = eigenpairs(inverse, deviations, rank)
    weights = (1 - rho / values).clamp(0, 1)
    rounded = directions.half()
    # Rounded directions are not quite orthonormal: what they add up to must not suppress more than 1, or C^-1 would
    # have a negative eigenvalue.
    spread = rounded.float() * weights.sqrt().float()[:, None]
    strongest = torch.linalg.eigvalsh(spread @ spread.T)[-1].double()
    weights *= (weights[0] / strongest).clamp(max=1)
    scale = 1 / (deviations * rho.sqrt())
    return CompactStatistics(rounded.numpy(), weights.float().numpy(), scale.float().numpy())


def _all_eigenpairs(inverse: Tensor, deviations: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return U [r, F], Lambda [r] and rho, the mean of the other eigenvalues of P^-1."""
    values, vectors = torch.linalg.eigh(inverse.double().mul_(deviations[:, None]).mul_(deviations))
    values = 1 / values.clamp(min=torch.finfo(torch.float32).eps)  # those of P ascend: these descend
    return vectors[:, :rank].T, values[:rank], values[rank:].mean()


def _leading_eigenpairs(inverse: Tensor, deviations: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return what `_all_eigenpairs` does, by subspace iteration with P^-1.

    The last directions have not converged, and need not have: their eigenvalues are close to each other, so any
    directions among them serve alike.
    """
    random = torch.Generator().manual_seed(0)
    narrow = deviations.float()
    factor = (inverse * narrow).mul_(narrow[:, None]).mT  # in LAPACK's order of axes: it works in place
    factor.diagonal().add_(_JITTER)
    torch.linalg.cholesky(factor, out=factor)

    def solve(columns: Tensor) -> Tensor:  # P^-1 @ columns, in their place; `cholesky_solve` would copy the factor
        for part in columns.split(_COLUMNS, dim=1):
            half = torch.linalg.solve_triangular(factor, part, upper=False)
            part.copy_(torch.linalg.solve_triangular(factor.mT, half, upper=True))
        return columns

    basis = torch.randn(len(inverse), min(rank + _EXTRA, len(inverse)), generator=random)
    for _ in range(_ROUNDS):
        basis = torch.linalg.qr(solve(basis)).Q
    values, turn = torch.linalg.eigh((basis.T @ solve(basis.clone())).double())
    values, turn = values.flip(0)[:rank], turn.flip(1)[:, :rank].float()
    directions = (basis @ turn).T
    probes = torch.randn(len(inverse), _PROBES, generator=random)
    probes -= directions.T @ (directions @ probes)
    rho = (probes * solve(probes.clone())).sum().double() / probes.square().sum()
    return directions, values, rho.clamp(max=values[-1])
