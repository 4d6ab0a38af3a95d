"""The command line: each command is one call of the library, shown by rich for people or as JSON with --json."""

import atexit
import os
import sys
from importlib import metadata
from typing import Annotated, NoReturn

import typer
from pydantic import ValidationError
from rich.text import Text

from stylus.cli import evaluation, judging, library, pictures, report_cards, service, sources
from stylus.cli.output import INTERRUPTED, terminal
from stylus.errors import StylusError, flaws

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
evaluation.evaluate_app.command("adapters")(report_cards.adapters)
for part in (library, sources, pictures, evaluation, judging, service):
    app.add_typer(part.app)


def _show_version(asked: bool) -> None:
    if asked:
        typer.echo(metadata.version("stylus-adapters"))
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and end.")
    ] = False,
) -> None:
    """Finds, combines and applies the right LoRA adapters for a prompt."""


def main() -> None:
    """Entry point: errors made for people are printed as such, with exit code 1, and never as a traceback."""
    # it warns of image processors that would want torchvision; nothing here uses them
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    try:
        app()
    except SystemExit as end:
        if end.code == INTERRUPTED:
            _leave()
        raise
    except StylusError as error:
        _fail(str(error))
    except ValidationError as error:
        _fail(flaws(error))


def _leave() -> NoReturn:
    """Ends at once. Python's own way ends threads that are still at work inside torch so that the process aborts."""
    atexit._run_exitfuncs()
    sys.stdout.flush()
    os._exit(INTERRUPTED)


def _fail(message: str) -> NoReturn:
    terminal.print(Text.assemble(("Error: ", "red"), message), soft_wrap=True)
    sys.exit(1)
