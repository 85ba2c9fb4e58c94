"""The options that scripts share with ``mobiedit bench``."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click

from mobiedit.runtime import Bundle, EditConfig, ExecutionConfig, Method, open_bundle
from mobiedit.runtime.evaluation import BenchConfig, DataFile, Format, read_records
from mobiedit.runtime.evaluation.commands import bench

model_option = click.option(
    "--model", default="smollm2-135m", help="The checkpoint that BUNDLE was exported from, as mobiedit-export takes it."
)


@dataclass(frozen=True)
class BenchOptions:
    """What the command line said."""

    bundle: Path
    data: Path
    record_format: str | None
    limit: int | None
    skip: int
    method: str
    seed: int
    out: Path
    resume: bool
    fluency_tokens: int
    threads: int

    def open(self) -> Bundle:
        """Open the bundle."""
        return open_bundle(self.bundle, ExecutionConfig(self.threads))

    def read(self) -> DataFile:
        """Read the records."""
        return read_records(self.data, Format(self.record_format) if self.record_format else None)

    def config(self, edit: EditConfig) -> BenchConfig:
        """Return the benchmark's settings for edits with the settings ``edit``."""
        edit = replace(edit, method=Method(self.method))
        return BenchConfig(edit, self.seed, self.skip, self.limit, self.fluency_tokens)


def bench_parameters(*without: str) -> list[Any]:
    """Return the parameters of ``mobiedit bench`` that `BenchOptions` holds, but those named."""
    wanted = BenchOptions.__dataclass_fields__.keys() - set(without)
    return [parameter for parameter in bench.params if parameter.name in wanted]
