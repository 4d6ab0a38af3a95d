"""What all commands print with: a progress bar, JSON, tables that read cells as plain text, and shared options."""

import json
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as ProgressBar
from rich.table import Column, Table
from rich.text import Text

from stylus.errors import Cancelled
from stylus.records import BaseModelFamily, OnProgress, Progress

AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
BaseModelOption = Annotated[
    BaseModelFamily | None, typer.Option(help="Base model family; default: the configured one.")
]
INTERRUPTED = 130
"""Exit code after Ctrl-C, as of a shell."""
# Rich must not write to stdout: --json output and the stdio protocol own it.
terminal = Console(stderr=True)


@contextmanager
def progress_bar() -> Iterator[OnProgress]:
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with ProgressBar(*columns, console=terminal, transient=True) as bar:
        stages: dict[str, Any] = {}

        def show(progress: Progress) -> None:
            if progress.stage not in stages:
                stages[progress.stage] = bar.add_task(progress.stage, total=None)
            stage = stages[progress.stage]
            bar.update(stage, completed=progress.done, total=progress.total or None)
            if progress.preview:
                bar.update(stage, description=f"{progress.stage} ({progress.preview})")

        yield show


@contextmanager
def interruptible(on_progress: OnProgress) -> Iterator[OnProgress]:
    """Once there is progress, the first Ctrl-C ends the work at its next step, with everything put away. A second one,
    and one before that, while torch is imported for seconds, ends it at once."""
    begun, pressed = threading.Event(), threading.Event()

    def on_signal(_number: int, _frame: object) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if not begun.is_set():
            raise KeyboardInterrupt
        pressed.set()
        os.write(2, b"\nEnding at the next step. Ctrl-C again ends at once.\n")  # print isn't fit for a signal handler

    def report(progress: Progress) -> None:
        if pressed.is_set():
            raise Cancelled("Cancelled.")
        begun.set()
        on_progress(progress)

    before = signal.signal(signal.SIGINT, on_signal)
    try:
        yield report
    except Cancelled as error:
        terminal.print(str(error))
        raise typer.Exit(INTERRUPTED) from error
    finally:
        signal.signal(signal.SIGINT, before)


def print_json(value: Any) -> None:
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False))


def id_column(header: str) -> Column:
    """For ids of adapters, which other commands take: a long one goes on in the next line, and none is cut off."""
    return Column(header, overflow="fold")


def add_row(table: Table, *cells: str | Text) -> None:
    """Cells as Text: cards and paths hold [brackets] that rich would read as markup."""
    table.add_row(*(Text(cell) if isinstance(cell, str) else cell for cell in cells))
