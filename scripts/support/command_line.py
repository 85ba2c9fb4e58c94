"""A command line as it was given, for the record of what it did."""

from __future__ import annotations

import shlex
from pathlib import Path

import click
from click.core import ParameterSource


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
