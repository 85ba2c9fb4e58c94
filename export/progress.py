"""Progress bars of an export: one line a stage."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tqdm import tqdm


class Stages:
    """Shows the stages of an export one after another on standard error."""

    def __init__(self, *, quiet: bool = False) -> None:
        self._quiet = quiet

    @contextmanager
    def stage(self, name: str, total: int = 1) -> Iterator[Callable[[int], None]]:
        """Show a stage of ``total`` units; yields the function that advances it."""
        with tqdm(
            total=total,
            desc=f"{name:<28}",
            disable=self._quiet,
            bar_format="{desc} {percentage:3.0f}%|{bar:30}| {elapsed}",
        ) as bar:
            yield bar.update
            bar.update(total - bar.n)
