"""Contrast: an edit acts less where its subject is spoken of without the relation that is taught.

The subject's last token sees the words before it. Where these name the relation ("Which university did X attend"), its
key differs from those of the same subject in other contexts ("X", "The name of X"), but less than two subjects' keys
do, and C^-1 does not tell them apart: a rank-one edit reaches all that is asked about X. So its direction is the least
one under C that has the activation 1 at k* and no more than a given one at the keys of such contexts. These are keys
to preserve, as MEMIT has them (Meng et al. 2023, section 4.2), in the equality constraints of EMMET (Gupta et al. 2024,
arXiv 2403.14236).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .closed_form import Method
from .errors import RequestError
from .prompt_rows import ContrastRow, EditRequest, Row
from .rank_one import InverseCovariance, require_length, solve_key
from .separation import separated
from .tokenizer import Tokenizer

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Contrast:
    """A context of the subject.

    Attributes
    ----------
    template
        A text with ``{}``, which ends at the subject.
    activation
        The most that an edit's activation may be there, 1 being that at its own key.
    """

    template: str
    activation: float

    def __post_init__(self) -> None:
        """Refuse a context that none could be told from."""
        if not self.template.endswith("{}") or not 0 <= self.activation < 1:
            raise RequestError(
                f"a contrast needs a text that ends with {{}} and an activation below 1, not {self.template!r} and "
                f"{self.activation}: give for example 'The name of {{}}' and 0"
            )


CONTRASTS = (Contrast("{}", 0.55),)
"""What is left is half of a gate: a subject that opens a text may yet be followed by the relation."""


def contrasts_of(method: Method, *, wanted: bool | None) -> tuple[Contrast, ...]:
    """Return what a command's edits are told from, None being the method's default; RequestError where it has none."""
    if wanted and method is not Method.GATED:
        raise RequestError(f"--contrast is for gated edits, not for {method}: leave out one of the two")
    return () if wanted is False or method is not Method.GATED else CONTRASTS


def contrast_rows(request: EditRequest, contrasts: Sequence[Contrast], tokenizer: Tokenizer) -> tuple[ContrastRow, ...]:
    """Return the contexts that an edit shall tell from its own: none where the subject opens the prompt.

    One that a paraphrase, or the prompt itself, begins with is left out: there the edit shall act.
    """
    if not request.prompt[: request.prompt.index("{}")].strip():
        return ()
    wordings = [request.fill(wording).lstrip() for wording in (request.prompt, *request.paraphrases)]
    rows = []
    for contrast in contrasts:
        text = contrast.template.replace("{}", request.subject)
        if any(wording.startswith(text) for wording in wordings):
            continue
        encoding = tokenizer.encode(text)
        last = encoding.last_token_before(len(text))
        rows.append(ContrastRow(Row(encoding.ids[: last + 1], last, ()), contrast.activation))
    return tuple(rows)


def contrasted_key(
    key: Floats, elsewhere: Floats, activations: Sequence[float], inverse_covariance: InverseCovariance
) -> tuple[Floats, Floats, float]:
    """Return a key with the subject's other contexts taken out of it, as far as they must be.

    Parameters
    ----------
    key
        [F] k*.
    elsewhere
        [E, F] the subject's keys in other contexts, and any others that shall be told from it.
    activations
        [E] the most that the direction's product with each of them may be.

    Returns
    -------
    tuple
        A key k [F], a mixture of all of them; its direction [F], ``C^-1 k / leverage``, whose product with k* and with
        k is 1; its leverage ``k^T C^-1 k``. Without contexts, or where none has more than its activation, k is k*.

    Raises
    ------
    NumericsError
        As `solve_key`.
    """
    if not len(elsewhere):
        return key, *solve_key(key, inverse_covariance)
    keys = np.vstack([key, elsewhere])
    solved = np.asarray(inverse_covariance @ np.ascontiguousarray(keys.T), np.float32).T
    gram = keys.astype(np.float64) @ solved.T
    lone = float(gram[0, 0]) if np.isfinite(gram).all() else np.nan  # one key without numbers spoils the mixture
    require_length(lone)
    gram = (gram + gram.T) / (2 * lone)
    weights = separated(gram, 0, np.array([1.0, *activations]))
    growth = weights @ gram @ weights
    # u = C^-1 mixed is the direction; in units of its mean square u^T C u the mixture is a key whose direction is u.
    direction = np.asarray(weights @ solved / lone, np.float32)
    return np.asarray(weights @ keys / growth, np.float32), direction, float(lone / growth)
