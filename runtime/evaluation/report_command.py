"""``mobiedit report``: results of benchmarks as one HTML page."""

from __future__ import annotations

from pathlib import Path

import click

from ..cli_support import echo_json
from ..errors import RequestError
from ..files import write_atomic
from .report_data import read_results


@click.command()
@click.argument("results", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), default=Path("report.html"), help="The page; it is replaced.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def report(results: tuple[Path, ...], out: Path, as_json: bool) -> None:
    """Show RESULTS of `mobiedit bench` side by side on one HTML page, with plots."""
    try:
        # A device has no matplotlib: it is looked for when a report is asked for, and not before.
        from .report import render
    except ModuleNotFoundError as error:
        if str(error.name).startswith("mobiedit"):
            raise
        raise RequestError(
            f"a report needs {error.name}, which is not installed: "
            'run `pip install ".[report]"` in a clone of the repository'
        ) from error
    read = read_results(results)
    if out.exists() and any(out.samefile(path) for path in results):
        raise RequestError(f"{out} is one of the results, which the page would replace: give --out another name")
    page = render(read).encode("utf-8", "replace")
    try:
        write_atomic(out, page, mode=None)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
        raise RequestError(f"cannot write {out}: {error.strerror}; name a file in a folder that exists") from error
    told = {"report": str(out), "results": len(read), "records": sum(len(result.records) for result in read)}
    if as_json:
        echo_json(told)
    else:
        click.echo("{report}: {results} results, {records} records".format(**told))
