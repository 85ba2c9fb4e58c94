"""What the tests of the scripts share: the tiny model with its checkpoint, an edit's task, and a file of records."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from mobiedit.runtime import Bundle, EditConfig, open_bundle
from mobiedit.runtime.prompt_rows import EditRequest
from mobiedit.runtime.search import SearchTask
from scripts.support.captured import capture_task
from scripts.support.host_model import HostModel

REQUEST = EditRequest("The mother tongue of {} is", "Danielle Darrieux", "English now")
RECORD: dict[str, Any] = {
    "case_id": 7,
    "prompt": "The mother tongue of Danielle Darrieux is",
    "subject": "Danielle Darrieux",
    "target_new": "English",
    "ground_truth": "French",
    "rephrase_prompt": "Danielle Darrieux, a native speaker of",
    "locality_prompt": "The mother tongue of Victor Hugo is",
    "locality_ground_truth": "French",
}


@pytest.fixture(scope="session")
def tiny(fp32_bundle: Path) -> Bundle:
    """The tiny model; nothing is committed to it."""
    return open_bundle(fp32_bundle, verify=False)


@pytest.fixture(scope="session")
def host(tiny: Bundle, llama: Path) -> HostModel:
    """The tiny model's checkpoint in torch."""
    return HostModel.load(tiny, str(llama))


@pytest.fixture
def task(tiny: Bundle) -> Callable[[EditConfig], SearchTask]:
    """Return a function that gives the task of an edit with some settings."""
    return lambda config: capture_task(tiny, REQUEST, config)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A file of two records."""
    path = tmp_path / "data.json"
    path.write_text(json.dumps([RECORD, {**RECORD, "case_id": 8, "subject": "mother tongue"}]), "utf-8")
    return path


@pytest.fixture
def run() -> Callable[[click.Command, Sequence[str]], Result]:
    """Return a function that runs a script's command, which must succeed."""

    def invoke(command: click.Command, arguments: Sequence[str]) -> Result:
        result = CliRunner().invoke(command, [str(a) for a in arguments], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return result

    return invoke
