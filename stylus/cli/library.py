"""Commands on the catalog: fill it and search it."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from stylus.cli.output import AsJson, BaseModelOption, add_row, print_json, progress_bar, terminal
from stylus.records import Category, Filters, Rating

app = typer.Typer()
ingest_app = typer.Typer(no_args_is_help=True, help="Put adapters into the catalog.")
app.add_typer(ingest_app, name="ingest")


@ingest_app.command("folder")
def ingest_folder(
    path: Annotated[Path, typer.Argument(exists=True, file_okay=False, help="Folder of .safetensors files.")],
    as_json: AsJson = False,
) -> None:
    """Read a folder of adapters: safetensors headers and the cards beside them."""
    from stylus.files import Files
    from stylus.ingest import ingest_folder
    from stylus.stylus import Stylus

    problems: list[dict[str, str]] = []

    def note(file: Path, reason: str) -> None:
        problems.append({"file": str(file), "reason": reason})

    with Stylus() as stylus, progress_bar() as on_progress:
        files = Files(stylus.database)
        report = ingest_folder(path, stylus.catalog, files, stylus.embedder, note, on_progress)
    _show_report(report.model_dump(mode="json"), problems, as_json)


@ingest_app.command("pocket")
def ingest_the_pocket(as_json: AsJson = False) -> None:
    """Read the pocket adapters that come with Stylus."""
    from stylus.ingest import ingest_pocket
    from stylus.stylus import Stylus

    with Stylus() as stylus, progress_bar() as on_progress:
        report = ingest_pocket(stylus.catalog, stylus.embedder, on_progress)
    _show_report(report.model_dump(mode="json"), [], as_json)


def _show_report(report: dict[str, Any], problems: list[dict[str, str]], as_json: bool) -> None:
    if as_json:
        print_json({**report, "problems": problems})
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
        print_json([match.model_dump(mode="json") for match in matches])
        return
    table = Table("score", "id", "name", "category", "weight", "why")
    for match in matches:
        a = match.adapter
        add_row(table, f"{match.score:.2f}", a.id, a.name, a.category, f"{a.weight:g}", match.why)
    Console().print(table if matches else "Nothing found. `stylus ingest` fills the catalog.")
