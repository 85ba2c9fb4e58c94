"""What EasyEdit (Wang et al. 2024, arXiv 2308.07269) would report of an edit, under its own names.

Defined after ``easyeditor/evaluate/evaluate.py`` and ``evaluate_utils.py`` (its metric ``token_em``),
``editors/editor.py`` and ``editors/utils.py``. A list has a figure a prompt, as there:

- ``rewrite_acc``, ``rephrase_acc``, ``portability.<name>_acc``: share of the answer's tokens that are the most probable
  ones, teacher-forced behind ``prompt + " " + answer``. Of several acceptable answers the first is taken, where our
  `metrics.portability` takes the best.
- ``locality.<name>_acc``: share of the answer's places whose most probable token is that of before; in the summary
  after the edit alone.
- ``fluency.ngram_entropy``: entropy of the words' bigrams (2/3) and trigrams (4/3) in bits, of prompt and sampled text,
  100 tokens together, drawn from the 5 most probable. Our `fluency` counts tokens, behind the prompt alone.

What differs: an answer starts where the prompt's characters end, not after as many tokens as the prompt has alone; an
unrelated prompt without an answer is read with the model's own before the edit; a token that ends a text is never
sampled; words are split by a regular expression, where EasyEdit takes nltk's tokenizer, which also splits contractions.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from . import metrics
from .cached_reader import CachedReader
from .fluency import n_gram_entropy
from .records import EvaluationRecord

UNNAMED = "neighborhood"
"""What its own scripts call the locality of a record that has one kind."""

_WORDS = re.compile(r"\w+|[^\w\s]")
_LENGTH = 100  # tokens of prompt and sampled text together


def easyedit_metrics(
    record: EvaluationRecord, now: CachedReader, before: CachedReader, sampled: Sequence[int]
) -> dict[str, Any]:
    """Return one record's metrics in EasyEdit's own form; what a record has no prompts for is left out.

    Parameters
    ----------
    now, before
        The model, and the same model before the edit.
    sampled
        Tokens that ``now`` has sampled behind the prompt; without any, fluency is left out.
    """
    found: dict[str, Any] = {"rewrite_acc": [_accuracy(now, record.prompt, record.target)]}
    if record.paraphrases:
        found["rephrase_acc"] = [_accuracy(now, prompt, record.target) for prompt in record.paraphrases]
    locality: dict[str, list[float]] = {}
    for question in record.neighbours:
        figures = locality.setdefault(f"{question.kind or UNNAMED}_acc", [])
        figures.append(float(metrics.stayed(question, now, before).mean()))
    found["locality"] = locality
    found["portability"] = {
        f"{kind}_acc": [_accuracy(now, question.prompt, question.answers[0]) for question in questions]
        for kind, questions in record.portability.items()
    }
    if sampled:
        found["fluency"] = {"ngram_entropy": _entropy(record, now, sampled)}
    return found


def easyedit_summary(records: Iterable[Mapping[str, Mapping[str, Any]]]) -> dict[str, dict[str, Any]]:
    """Return the means over records, each of a record's mean over its prompts, as EasyEdit's ``summary_metrics``.

    Parameters
    ----------
    records
        By "pre" and "post", what `easyedit_metrics` returned.
    """
    listed = list(records)
    means = {moment: _means([record[moment] for record in listed if moment in record]) for moment in ("pre", "post")}
    means["pre"].pop("locality", None)
    return means


def _means(measured: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the mean of each figure over those that have it, nested as they are."""
    means: dict[str, Any] = {}
    for name in dict.fromkeys(name for each in measured for name in each):
        held = [each[name] for each in measured if name in each]
        if isinstance(held[0], Mapping):
            means[name] = _means(held)
        else:
            means[name] = _mean([_mean(each) if isinstance(each, list | tuple) else each for each in held])
    return means


def _mean(values: Sequence[float]) -> float:
    return float(sum(values) / len(values))


def _accuracy(now: CachedReader, prompt: str, answer: str) -> float:
    return now.read(prompt, answer).token_accuracy


def _entropy(record: EvaluationRecord, now: CachedReader, sampled: Sequence[int]) -> float:
    room = max(0, _LENGTH - now.reader.length(record.prompt))
    text = record.prompt + now.reader.decode(sampled[:room])
    return n_gram_entropy(_WORDS.findall(unicodedata.normalize("NFKD", text)))
