"""Rotate a model's residual stream by an orthogonal matrix that is folded into its weights.

QuaRot (Ashkboos et al. 2024, arXiv 2404.00456, section 4, stage 1a): root-mean-square normalisation commutes with a
rotation once its weights are folded into the projections behind it, so the model computes the same logits, while the
outliers of a few channels are spread over all of them, which 8-bit activations bear better. The rotations inside the
heads and of the MLP's key, which cost operations on the device, are left out.
"""

from __future__ import annotations

from functools import cache
from itertools import chain

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

Matrix = NDArray[np.float64]
_SEED = ", seed "  # in a rotation's name, behind its kind


@torch.no_grad()
def rotate_model(model: nn.Module, seed: int = 0) -> str:
    """Rotate a transformers decoder of the supported families in place; its logits stay the same.

    The weights of the norms become ones, and the head gets weights of its own where it was tied to the embedding.
    Norms of each head's query and key are not of the residual stream and stay.

    Returns
    -------
    str
        What the rotation is, with its seed: two models with the same weights before and the same name are the same.
    """
    decoder, head = model.model, model.lm_head
    matrix, kind = rotation(decoder.embed_tokens.weight.shape[1], seed)
    turn = torch.from_numpy(matrix)
    head.weight = nn.Parameter(head.weight.clone(), requires_grad=False)  # before the embedding it may share is turned
    model.config.tie_word_embeddings = False
    decoder.embed_tokens.weight.copy_(decoder.embed_tokens.weight.double() @ turn)
    for layer in decoder.layers:
        attention, mlp = layer.self_attn, layer.mlp
        _turn_readers(layer.input_layernorm, (attention.q_proj, attention.k_proj, attention.v_proj), turn)
        _turn_readers(layer.post_attention_layernorm, (mlp.gate_proj, mlp.up_proj), turn)
        for writer in (attention.o_proj, mlp.down_proj):
            writer.weight.copy_(turn.T @ writer.weight.double())
            if writer.bias is not None:
                writer.bias.copy_(turn.T @ writer.bias.double())
    _turn_readers(decoder.norm, (head,), turn)
    return f"{kind}{_SEED}{seed}"


def named_rotation(name: str, width: int) -> Matrix | None:
    """Return the matrix [width, width] of a rotation that `rotate_model` has named, or None where it has no such one.

    What writes into the residual stream is ``matrix.T @ weight`` there, and a vector of the stream ``vector @ matrix``.
    """
    kind, found, seed = name.rpartition(_SEED)
    if not found or not seed.isdecimal():
        return None
    matrix, built = rotation(width, int(seed))
    return matrix if built == kind else None


def rotation(width: int, seed: int) -> tuple[Matrix, str]:
    """Return an orthogonal matrix [width, width] and what it is called.

    A Hadamard matrix with random signs of its rows where one of this order is built here, else the orthogonal factor
    of a random matrix.
    """
    rng = np.random.default_rng(seed)
    hadamard = hadamard_matrix(width)
    if hadamard is not None:
        signs = rng.choice([-1.0, 1.0], (width, 1))
        return signs * hadamard / np.sqrt(width), "randomised Hadamard"
    factor, triangle = np.linalg.qr(rng.standard_normal((width, width)))
    # With the signs of the diagonal the factor is uniform over all rotations (Mezzadri 2007, arXiv math-ph/0609050).
    return factor * np.sign(np.diag(triangle)), "random orthogonal"


@cache
def hadamard_matrix(order: int) -> Matrix | None:
    """Return a matrix [order, order] of 1 and -1 with orthogonal rows, or None where no construction is known here.

    Paley's two constructions for primes (Paley 1933), and Kronecker products (Sylvester 1867).
    """
    if order in (1, 2):
        return np.array([[1.0]]) if order == 1 else np.array([[1.0, 1.0], [1.0, -1.0]])
    if order % 4:
        return None
    if _is_prime(order - 1):  # order - 1 is 3 modulo 4
        return _paley(order - 1)
    half = order // 2 - 1
    if half % 4 == 1 and _is_prime(half):
        conference = _paley_core(half)
        pairs = np.array([[1.0, 1.0], [1.0, -1.0]]), np.array([[1.0, -1.0], [-1.0, -1.0]])
        return np.asarray(np.kron(conference, pairs[0]) + np.kron(np.eye(half + 1), pairs[1]), np.float64)
    for divisor in (each for each in range(2, int(order**0.5) + 1) if order % each == 0):
        left, right = hadamard_matrix(divisor), hadamard_matrix(order // divisor)
        if left is not None and right is not None:
            return np.kron(left, right).astype(np.float64)
    return None


def _turn_readers(norm: nn.Module, readers: tuple[nn.Module, ...], turn: Tensor) -> None:
    """Fold a norm's weights into the projections that read what it gives, and turn their input."""
    for reader in readers:
        reader.weight.copy_((reader.weight.double() * norm.weight.double()) @ turn)
    norm.weight.fill_(1.0)


def _paley(prime: int) -> Matrix:
    """Return Paley's first construction, for a prime that is 3 modulo 4: I + S, S skew-symmetric."""
    core = _paley_core(prime)
    core[1:, 0] *= -1
    return np.eye(prime + 1) + core


def _paley_core(prime: int) -> Matrix:
    """Return [prime + 1, prime + 1]: 0, then ones around the matrix of the quadratic character of i - j."""
    squares = {i * i % prime for i in range(1, prime)}
    character = np.array([0, *(1 if i in squares else -1 for i in range(1, prime))], np.float64)
    core = np.ones((prime + 1, prime + 1))
    core[0, 0] = 0
    index = np.arange(prime)
    core[1:, 1:] = character[(index[:, None] - index) % prime]
    return core


def _is_prime(number: int) -> bool:
    return number > 1 and all(number % each for each in chain((2,), range(3, int(number**0.5) + 1, 2)) if each < number)
