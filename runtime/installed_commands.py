"""Commands of ``mobiedit`` that live in packages which the runtime does not import, found by their entry points."""

from __future__ import annotations

from importlib.metadata import entry_points

import click

from .cli_support import ErrorGroup

ENTRY_POINTS = "mobiedit.commands"
"""The group of entry points, each a click command."""


class OpenGroup(ErrorGroup):
    """A group of commands that installed packages add to; one of them is imported when it is called or described.

    Importing it must not need more than the runtime does: what a command needs beyond that it looks for when it runs.
    """

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of the group's own commands and of the installed ones."""
        return sorted({*super().list_commands(ctx), *entry_points(group=ENTRY_POINTS).names})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return a command by name; the group's own come first."""
        if own := super().get_command(ctx, cmd_name):
            return own
        for entry in entry_points(group=ENTRY_POINTS, name=cmd_name):
            command = entry.load()
            assert isinstance(command, click.Command)
            return command
        return None
