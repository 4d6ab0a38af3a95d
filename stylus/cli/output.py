"""What all commands print with: a progress bar, JSON, tables that read cells as plain text, and shared options."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as ProgressBar
from rich.table import Table
from rich.text import Text

from stylus.records import BaseModelFamily, OnProgress, Progress

AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
BaseModelOption = Annotated[
    BaseModelFamily | None, typer.Option(help="Base model family; default: the configured one.")
]
# Rich must not write to stdout: --json output and the stdio protocol own it.
terminal = Console(stderr=True)


@contextmanager
def progress_bar() -> Iterator[OnProgress]:
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with ProgressBar(*columns, console=terminal, transient=True) as bar:
        stages: dict[str, Any] = {}

        def show(progress: Progress) -> None:
            if progress.stage not in stages:
                stages[progress.stage] = bar.add_task(progress.stage, total=None)
            bar.update(stages[progress.stage], completed=progress.done, total=progress.total or None)

        yield show


def print_json(value: Any) -> None:
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False))


def add_row(table: Table, *cells: str | Text) -> None:
    """Cells as Text: cards and paths hold [brackets] that rich would read as markup."""
    table.add_row(*(Text(cell) if isinstance(cell, str) else cell for cell in cells))
