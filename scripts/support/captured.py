"""What an edit's search works on, taken out of the edit, so that it can be looked at from outside."""

from __future__ import annotations

import numpy as np

from mobiedit.runtime import Bundle, EditConfig
from mobiedit.runtime.prompt_rows import EditRequest
from mobiedit.runtime.search import SearchResult, SearchTask


def capture_task(bundle: Bundle, request: EditRequest, config: EditConfig) -> SearchTask:
    """Return the task of an edit's search; nothing is committed, and each call has caches and a meter of its own."""
    tasks: list[SearchTask] = []

    def keep(task: SearchTask) -> SearchResult:
        tasks.append(task)
        return SearchResult(np.zeros_like(task.value), 0, False, ())

    bundle.trial(request, config, search=keep)
    return tasks[0]
