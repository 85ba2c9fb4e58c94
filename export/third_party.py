"""Contain the side effects of the libraries that write graphs."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path

from mobiedit.runtime.files import library_storage_errors


@contextlib.contextmanager
def contained(folder: Path) -> Iterator[None]:
    """Run a library that writes a graph into ``folder``.

    Its notes are silenced (one of them sets up the root logger on import), and the working folder is ``folder``
    meanwhile: onnx looks there, instead of beside the graph, for a data file that it would overwrite.
    """
    root = logging.getLogger()
    disabled, level, handlers = root.manager.disable, root.level, list(root.handlers)
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.chdir(folder), library_storage_errors():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
        root.setLevel(level)
        root.handlers[:] = handlers
