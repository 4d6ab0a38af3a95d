"""Commands on the catalog: fill it and search it."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from stylus.cli.output import AsJson, BaseModelOption, add_row, print_json, progress_bar, terminal
from stylus.records import Category, Filters, Kind, Rating

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
    show_report(report.model_dump(mode="json"), problems, as_json)


@ingest_app.command("pocket")
def ingest_the_pocket(as_json: AsJson = False) -> None:
    """Read the pocket adapters that come with Stylus."""
    from stylus.ingest import ingest_pocket
    from stylus.stylus import Stylus

    with Stylus() as stylus, progress_bar() as on_progress:
        report = ingest_pocket(stylus.catalog, stylus.embedder, on_progress)
    show_report(report.model_dump(mode="json"), [], as_json)


def show_report(report: dict[str, Any], problems: list[dict[str, str]], as_json: bool) -> None:
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
    kind: Annotated[list[Kind] | None, typer.Option(help="Only this kind; may be repeated.")] = None,
    licence: Annotated[list[str] | None, typer.Option(help="Only this licence; may be repeated.")] = None,
    file: Annotated[bool | None, typer.Option("--file/--no-file", help="Only with, or without, weights here.")] = None,
    usable: Annotated[bool, typer.Option("--usable", help="Only with weights here or that can be fetched.")] = False,
    limit: Annotated[int, typer.Option("--limit", "-k", help="How many, 1 to 10,000.")] = 10,
    mature: Annotated[bool, typer.Option("--mature", help="Also adapters rated mature.")] = False,
    flagged: Annotated[bool, typer.Option("--flagged", help="Also adapters with a quality flag.")] = False,
    hidden: Annotated[bool, typer.Option("--hidden", help="Also hidden adapters.")] = False,
    as_json: AsJson = False,
) -> None:
    """Find adapters by meaning and by words, best first; near-duplicates count as one."""
    from stylus.stylus import Stylus

    filters = Filters(
        base_model=base_model,
        category=category,
        ratings=frozenset(Rating) if mature else frozenset({Rating.GENERAL}),
        kinds=frozenset(kind) if kind else None,
        licences=frozenset(licence) if licence else None,
        has_file=file,
        usable=usable or None,
        flagged=flagged,
        hidden=hidden,
    )
    with Stylus() as stylus:
        matches = stylus.search(query, filters=filters, limit=limit)
    if as_json:
        print_json([match.model_dump(mode="json") for match in matches])
        return
    table = Table("score", "id", "name", "category", "weight", "why")
    for match in matches:
        a = match.adapter
        more = f" (+{len(match.folded)} alike)" if match.folded else ""
        add_row(table, f"{match.score:.2f}", a.id, a.name + more, a.category, f"{a.weight:g}", match.why)
    Console().print(table if matches else "Nothing found. Drop a filter; `stylus ingest` fills the catalog.")


@app.command()
def embed(as_json: AsJson = False) -> None:
    """Embed what lacks vectors of the configured model, as after STYLUS_EMBEDDER was changed. Searches go on meanwhile
    with the vectors of before; several machines may share the work; `stylus serve` does it by itself."""
    from stylus.reembedding import embed_all
    from stylus.stylus import Stylus

    with Stylus() as stylus, progress_bar() as on_progress:
        done = embed_all(stylus.catalog, stylus.embedder, on_progress)
        total, covered = stylus.catalog.coverage()
    model = stylus.embedder.name
    if as_json:
        print_json({"model": model, "embedded": done, "covered": covered, "adapters": total})
    else:
        terminal.print(f"{done} embedded now; {covered.get(model, 0)} of {total} have vectors of {model}.")
