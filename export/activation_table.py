"""The table of the MatMul activations at 8 bits: a line a role."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from statistics import median
from typing import Any

from .matmul_groups import HEAD, ROLES


def activation_lines(evidence: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines that say what has 8 bits, and how sensitive each role is, where that was measured.

    Parameters
    ----------
    evidence
        The manifest's ``statistics.activations``.
    """
    counted = f"{evidence['eight_bit_operands']} of {evidence['operands']}"
    yield f"  MatMul activations at 8 bits: {counted} ({evidence['share']:.0%})"
    if "alone" not in evidence:
        return
    joint = evidence["joint"]
    yield f"  on calibration text: KL {joint['kl']:.4f}, NLL {joint['nll_change']:+.4f}, budget {evidence['budget']}"
    yield f"    {'role':<18}{'groups':>8}{'8 bits':>8}{'median KL':>12}{'largest KL':>12}"
    for role in (*ROLES, HEAD):
        names = [name for name in evidence["alone"] if name.rpartition(".")[2] == role]
        if names:
            yield _line(role, names, evidence)


def _line(role: str, names: Sequence[str], evidence: Mapping[str, Any]) -> str:
    divergences = [evidence["alone"][name]["kl"] for name in names]
    chosen = len(set(names) & set(evidence["eight_bits"]))
    return f"    {role:<18}{len(names):>8}{chosen:>8}{median(divergences):>12.5f}{max(divergences):>12.5f}"
