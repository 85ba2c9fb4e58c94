"""Read the fields of a manifest strictly: each value is exactly of its kind, or the place that is wrong is named."""

from __future__ import annotations

import math
import re
from contextlib import suppress
from dataclasses import fields
from reprlib import repr as short
from typing import Any, TypeVar

from .errors import BundleError
from .files import EXPORT_AGAIN

MANIFEST_NAME = "manifest.json"

_KINDS = {dict: "a JSON object", list: "a list", str: "a text", int: "an integer", bool: "true or false"}
_SHA256 = re.compile(r"[0-9a-f]{64}")
T = TypeVar("T")


def bad(where: str, wanted: str) -> BundleError:
    """Return the error of a value that is not what it should be."""
    return BundleError(f"{MANIFEST_NAME}: {where} is not {wanted}; {EXPORT_AGAIN}")


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return the pairs of a JSON object.

    Raises
    ------
    ValueError
        If a key is there twice.
    """
    result = dict(pairs)
    if len(result) < len(pairs):
        raise ValueError("a key is there twice")
    return result


def finite(literal: str) -> float:
    """Return a JSON number.

    Raises
    ------
    ValueError
        If it is NaN or infinite.
    """
    if not math.isfinite(number := float(literal)):
        raise ValueError(f"{short(literal)} is not a finite number")
    return number


def typed(value: object, kind: type[T], where: str) -> T:
    """Return a value that is of a kind."""
    # Not isinstance: a bool is an int in Python, not in JSON.
    if type(value) is not kind:
        raise bad(where, _KINDS[kind])
    return value


def exact(value: object, where: str, of: type[Any]) -> dict[str, Any]:
    """Return a JSON object that has exactly the fields of a dataclass."""
    found, wanted = typed(value, dict, where), {field.name for field in fields(of)}
    if found.keys() != wanted:
        missing, unknown = sorted(wanted - found.keys()), sorted(found.keys() - wanted)
        raise bad(where, f"complete and exact (missing: {short(missing)}, unknown: {short(unknown)})")
    return found


def texts(value: object, where: str) -> tuple[str, ...]:
    """Return a list of texts."""
    return tuple(typed(text, str, where) for text in typed(value, list, where))


def sha256(value: object, where: str) -> str:
    """Return a hash."""
    if not _SHA256.fullmatch(text := typed(value, str, where)):
        raise bad(where, "a SHA-256 of 64 lowercase hexadecimal digits")
    return text


def integer(value: object, where: str, low: int, high: int | None = None) -> int:
    """Return an integer from ``low`` to ``high``."""
    number = typed(value, int, where)
    if number < low or (high is not None and number > high):
        raise bad(where, f"at least {low}" + ("" if high is None else f" and at most {high}"))
    return number


def number(value: object, where: str) -> float:
    """Return a number that a float can hold."""
    with suppress(OverflowError):
        if type(value) is int or isinstance(value, float):
            return float(value)
    raise bad(where, "a finite number")
