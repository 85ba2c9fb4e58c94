"""A command line: its lists of numbers, and what was given, for the record of what it did."""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import click
from click.core import ParameterSource

from mobiedit.runtime.errors import RequestError

Number = TypeVar("Number", int, float)


def arguments_of(context: click.Context) -> str:
    """Return the command line as given, without the folders in front of names: they are of one machine."""
    words = []
    for parameter in context.command.params:
        value = context.params.get(parameter.name)
        if parameter.name == "out" or context.get_parameter_source(parameter.name) is ParameterSource.DEFAULT:
            continue
        values = value if isinstance(value, tuple) else (value,)
        for each in values:
            if isinstance(parameter, click.Option):
                words.append(parameter.opts[0])
            if not getattr(parameter, "is_flag", False):
                words.append(without_folders(each) if isinstance(each, str | Path) else str(each))
    return shlex.join(words)


def without_folders(name: str | Path) -> str:
    """Return the last part of a path; other names, such as a Hub's, as they are."""
    return Path(name).name if isinstance(name, Path) or Path(name).exists() else name


def numbers_above_0(text: str, kind: Callable[[str], Number]) -> list[Number]:
    """Return the numbers of a list with commas, each once; RequestError where one is none, or not above 0."""
    try:
        numbers = [kind(word) for word in text.split(",")]
    except ValueError:
        numbers = []
    if not numbers or not all(0 < number < math.inf for number in numbers):
        raise RequestError(f"{text!r} is no list of numbers above 0: give for example 1,3,10")
    return list(dict.fromkeys(numbers))
