"""The command line: each command is one call of the library, shown by rich for people or as JSON with --json."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as ProgressBar
from rich.table import Table
from rich.text import Text

from stylus.errors import InvalidInput, StylusError
from stylus.records import BaseModelFamily, Category, Composition, Filters, MaskMode, OnProgress, Pick, Progress, Rating
from stylus.settings import Settings

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    help="Finds, combines and applies the right LoRA adapters for a prompt.",
)
ingest_app = typer.Typer(no_args_is_help=True, help="Put adapters into the catalog.")
db_app = typer.Typer(no_args_is_help=True, help="The catalog's database.")
app.add_typer(ingest_app, name="ingest")
app.add_typer(db_app, name="db")

AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
BaseModelOption = Annotated[
    BaseModelFamily | None, typer.Option(help="Base model family; default: the configured one.")
]
AdapterOption = Annotated[
    list[str] | None,
    typer.Option("--adapter", "-a", help="ID or ID=WEIGHT; repeat it. You are the composer then."),
]

# Rich must not write to stdout: --json output and the stdio protocol own it.
terminal = Console(stderr=True)


@contextmanager
def _progress_bar() -> Iterator[OnProgress]:
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


def _print_json(value: Any) -> None:
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False))


def _add_row(table: Table, *cells: str | Text) -> None:
    """Cells as Text: cards and paths hold [brackets] that rich would read as markup."""
    table.add_row(*(Text(cell) if isinstance(cell, str) else cell for cell in cells))


def _picks(adapters: list[str] | None) -> list[Pick] | None:
    if not adapters:
        return None
    pairs = [text.partition("=") for text in adapters]
    # pydantic reads the number, so that "=heavy" is refused like any other bad value
    return [Pick.model_validate({"id": id, "weight": weight or None}) for id, _, weight in pairs]


@ingest_app.command("folder")
def ingest_folder(
    path: Annotated[Path, typer.Argument(exists=True, file_okay=False, help="Folder of .safetensors files.")],
    as_json: AsJson = False,
) -> None:
    """Read a folder of adapters: safetensors headers and the cards beside them."""
    from stylus.ingest import ingest
    from stylus.sources.folder import cards
    from stylus.stylus import Stylus

    problems: list[dict[str, str]] = []

    def note(file: Path, reason: str) -> None:
        problems.append({"file": str(file), "reason": reason})

    with Stylus() as stylus, _progress_bar() as on_progress:
        report = ingest(cards(path, on_problem=note), stylus.catalog, stylus.embedder, on_progress)
    _show_report(report.model_dump(mode="json"), problems, as_json)


@ingest_app.command("pocket")
def ingest_the_pocket(as_json: AsJson = False) -> None:
    """Read the pocket adapters that come with Stylus."""
    from stylus.ingest import ingest_pocket
    from stylus.stylus import Stylus

    with Stylus() as stylus, _progress_bar() as on_progress:
        report = ingest_pocket(stylus.catalog, stylus.embedder, on_progress)
    _show_report(report.model_dump(mode="json"), [], as_json)


def _show_report(report: dict[str, Any], problems: list[dict[str, str]], as_json: bool) -> None:
    if as_json:
        _print_json({**report, "problems": problems})
    else:
        terminal.print(", ".join(f"{count} {what}" for what, count in report.items()))
        for problem in problems:
            terminal.print(Text.assemble((problem["file"], "yellow"), f": {problem['reason']}"), soft_wrap=True)
    if problems:
        raise typer.Exit(3)


@app.command()
def search(
    query: str,
    base_model: BaseModelOption = None,
    category: Annotated[Category | None, typer.Option(help="Only adapters of this category.")] = None,
    limit: Annotated[int, typer.Option(help="How many, 1 to 150.")] = 10,
    mature: Annotated[bool, typer.Option("--mature", help="Also adapters flagged mature.")] = False,
    as_json: AsJson = False,
) -> None:
    """Find the adapters nearest to a description."""
    from stylus.stylus import Stylus

    ratings = frozenset(Rating) if mature else frozenset({Rating.GENERAL})
    with Stylus() as stylus:
        matches = stylus.search(
            query, filters=Filters(base_model=base_model, category=category, ratings=ratings), limit=limit
        )
    if as_json:
        _print_json([match.model_dump(mode="json") for match in matches])
        return
    table = Table("score", "id", "name", "category", "weight", "why")
    for match in matches:
        a = match.adapter
        _add_row(table, f"{match.score:.2f}", a.id, a.name, a.category, f"{a.weight:g}", match.why)
    Console().print(table if matches else "Nothing found. `stylus ingest` fills the catalog.")


@app.command()
def compose(
    prompt: str,
    base_model: BaseModelOption = None,
    max_adapters: Annotated[int | None, typer.Option(help="At most this many in all, 0 to 20.")] = None,
    temperature: Annotated[float, typer.Option(help="Diversity of an LLM composer, 0 to 2.")] = 0.0,
    adapter: AdapterOption = None,
    as_json: AsJson = False,
) -> None:
    """Choose adapters for a prompt and say why."""
    from stylus.stylus import Stylus

    with Stylus() as stylus:
        composition = stylus.compose(
            prompt,
            base_model=base_model,
            max_adapters=max_adapters,
            temperature=temperature,
            picks=_picks(adapter),
        )
    if as_json:
        _print_json(composition.model_dump(mode="json"))
    else:
        _show_composition(composition)


def _show_composition(composition: Composition) -> None:
    table = Table("task", "adapter", "weight", "trigger words", "why", title=f"composition {composition.id}")
    for task in composition.tasks:
        if not task.choices:
            _add_row(table, task.keyword, Text("the base model alone", "dim"))
        for c in task.choices:
            _add_row(table, task.keyword, c.adapter_id, f"{c.weight:g}", ", ".join(c.trigger_words), c.reason)
    Console().print(table)
    for note in composition.notes:
        terminal.print(Text(note, "yellow"))


@app.command()
def generate(
    prompt: Annotated[str | None, typer.Argument(help="What the pictures should show.")] = None,
    composition_id: Annotated[str | None, typer.Option("--composition", help="Instead of a prompt: its id.")] = None,
    base_model: BaseModelOption = None,
    adapter: AdapterOption = None,
    count: Annotated[int, typer.Option(help="How many images, 1 to 64.")] = 1,
    seed: Annotated[int | None, typer.Option(help="Image i uses seed + i; default: drawn.")] = None,
    masks: Annotated[MaskMode, typer.Option(help="all adapters, the paper's sampled masks, or none.")] = MaskMode.ALL,
    negative_prompt: Annotated[str, typer.Option(help="What the picture should not show.")] = "",
    steps: Annotated[int | None, typer.Option(help="Denoising steps, 1 to 200.")] = None,
    guidance_scale: Annotated[float | None, typer.Option(help="Classifier-free guidance, 0 to 30.")] = None,
    width: Annotated[int | None, typer.Option(help="Pixels, a multiple of 8.")] = None,
    height: Annotated[int | None, typer.Option(help="Pixels, a multiple of 8.")] = None,
    as_json: AsJson = False,
) -> None:
    """Compose and render pictures, here and now."""
    from stylus.stylus import Stylus

    if (prompt is None) == (composition_id is None):
        raise InvalidInput("Pass either a prompt or --composition ID.")
    with Stylus() as stylus, _progress_bar() as on_progress:
        if composition_id is not None:
            composition = stylus.history.composition(composition_id)
        else:
            composition = stylus.compose(prompt or "", base_model=base_model, picks=_picks(adapter))
        images = stylus.generate(
            composition,
            on_progress=on_progress,
            count=count,
            seed=seed,
            masks=masks,
            negative_prompt=negative_prompt,
            steps=steps,
            guidance_scale=guidance_scale,
            width=width,
            height=height,
        )
    if as_json:
        _print_json([image.model_dump(mode="json") for image in images])
        return
    _show_composition(composition)
    for image in images:
        typer.echo(image.location)


@app.command()
def serve(
    http: Annotated[bool, typer.Option("--http", help="Streamable HTTP at /mcp; default: stdio.")] = False,
    host: Annotated[str, typer.Option(help="Address to bind; others than loopback need STYLUS_TOKENS.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535)] = 8765,
) -> None:
    """Serve the tools to MCP clients, with one generation worker inside."""
    from server.app import run

    run(Settings.read(), http=http, host=host, port=port)


@app.command()
def worker() -> None:
    """Work on queued generations: run it on each GPU machine, with the same database and image store."""
    from stylus.jobs import Jobs
    from stylus.stylus import Stylus

    with Stylus() as stylus:
        terminal.print("Working on queued generations. Stop with Ctrl-C.")
        Jobs(stylus).run_worker()


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Check every setting: its value, where it comes from, and what works with it."""
    from stylus.doctor import examine

    checks = examine(Settings.read())
    if as_json:
        _print_json([check.model_dump(mode="json") for check in checks])
    else:
        table = Table("", "what", "value", "from", "finding")
        colour = {"ok": "green", "warning": "yellow", "failed": "red"}
        for check in checks:
            status = Text(check.status, colour[check.status])
            _add_row(table, status, check.name, check.value, check.origin, check.finding)
        Console().print(table)
    if any(check.status == "failed" for check in checks):
        raise typer.Exit(1)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for the pictures.")] = Path("demo"),
    as_json: AsJson = False,
) -> None:
    """Act as an MCP client of a real server: search, compose, generate, and judge the pictures."""
    from stylus.demo import run_demo

    result = run_demo(out, terminal)
    if as_json:
        _print_json(result)


@db_app.command()
def migrate(as_json: AsJson = False) -> None:
    """Bring the tables up to date (every command does so by itself)."""
    from stylus.database import Database

    with Database.open(Settings.read()) as database:
        _show_database(database.status(), as_json)


@db_app.command()
def status(as_json: AsJson = False) -> None:
    """Where the database is, its versions, and what it holds."""
    migrate(as_json)


def _show_database(status: dict[str, Any], as_json: bool) -> None:
    if as_json:
        _print_json(status)
    else:
        for name, value in status.items():
            typer.echo(f"{name}: {value}")


def main() -> None:
    """Entry point: errors made for people are printed as such, with exit code 1, and never as a traceback."""
    try:
        app()
    except StylusError as error:
        _fail(str(error))
    except ValidationError as error:
        _fail("; ".join(f"{'.'.join(map(str, e['loc']))} {e['input']!r}: {e['msg']}" for e in error.errors()))


def _fail(message: str) -> NoReturn:
    terminal.print(Text.assemble(("Error: ", "red"), message), soft_wrap=True)
    sys.exit(1)
