"""Commands on the catalog: fill it and search it."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from stylus.cli.output import AsJson, BaseModelOption, add_row, id_column, print_json, progress_bar, terminal
from stylus.errors import InvalidInput
from stylus.records import Category, Filters, Kind, Rating

if TYPE_CHECKING:
    from stylus.refining import RefineReport

app = typer.Typer()
ingest_app = typer.Typer(no_args_is_help=True, help="Put adapters into the catalog.")
app.add_typer(ingest_app, name="ingest")


@ingest_app.command("folder")
def ingest_folder(
    path: Annotated[Path, typer.Argument(help="Folder of .safetensors files.")],
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
def refine(
    limit: Annotated[int | None, typer.Option(min=1, help="At most so many cards.")] = None,
    only: Annotated[list[str] | None, typer.Option("--only", help="Id of an adapter; repeat it.")] = None,
    again: Annotated[bool, typer.Option("--again", help="Also what this model has refined before.")] = False,
    concurrency: Annotated[int | None, typer.Option(min=1, help="Cards at once; 4, or 100 with --batch.")] = None,
    max_cost: Annotated[float | None, typer.Option(help="US dollars after which no card is begun.")] = None,
    batch: Annotated[bool, typer.Option("--batch", help="The provider's batch mode: cheaper, up to a day.")] = False,
    as_json: AsJson = False,
) -> None:
    """Let the vision model STYLUS_VISION look at cards and their pictures, and write what the adapters really do."""
    from stylus.refinements import Refinements
    from stylus.refiner import open_vision
    from stylus.refining import Options, open_pictures, refine
    from stylus.stylus import Stylus

    options = Options(tuple(only) if only else None, again, limit, concurrency, max_cost, batch)
    with Stylus() as stylus, progress_bar() as on_progress:
        stylus.catalog.require(only or [])
        report = refine(
            Refinements(stylus.database),
            stylus.embedder,
            open_vision(stylus.settings),
            open_pictures(stylus.settings),
            options,
            on_progress,
            name=stylus.settings.vision,
        )
    if as_json:
        print_json(report.model_dump(mode="json"))
    else:
        _show_refined(report)
    if report.failed:
        raise typer.Exit(3)


def _show_refined(report: "RefineReport") -> None:
    counts = {name: getattr(report, name) for name in ("refined", "kept", "unchanged", "elsewhere")}
    cost = "cost unknown" if report.cost is None else f"{report.cost:.4f} US dollars"
    terminal.print(
        f"{', '.join(f'{count} {what}' for what, count in counts.items())}, {len(report.failed)} failed; "
        f"{report.requests} requests, {report.input_tokens:,} tokens in, {report.output_tokens:,} out, {cost}"
    )
    if report.stopped is not None:
        terminal.print(Text(f"Stopped: {report.stopped}. Run it again to go on.", "yellow"), soft_wrap=True)
    for mended in report.mended:
        terminal.print(Text.assemble((mended.id, "yellow"), f": mended: {' '.join(mended.what)}"), soft_wrap=True)
    for failure in report.failed:
        terminal.print(Text.assemble((failure.id, "red"), f": {failure.reason}"), soft_wrap=True)


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
    table = Table("score", id_column("id"), "name", "category", "weight", "why")
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


@app.command(context_settings={"ignore_unknown_options": True})  # -0.5 is a weight
def weight(
    id: Annotated[str | None, typer.Argument(help="An adapter; none: show the weights that were set.")] = None,
    value: Annotated[float | None, typer.Argument(help="-4 to 4; 1 is as trained, 0 is off.")] = None,
    forget: Annotated[bool, typer.Option("--forget", help="Back to the recommended weight.")] = False,
    as_json: AsJson = False,
) -> None:
    """Remember a weight of your own for an adapter: compositions use it instead of the recommended one."""
    from stylus.stylus import Stylus

    if id is not None and id.startswith("-"):
        raise typer.BadParameter(f"No such option: {id}")
    if forget and (id is None or value is not None):
        raise InvalidInput("Pass --forget with an adapter and no weight; `stylus weight` shows those that were set.")
    with Stylus() as stylus:
        if id is not None and forget:
            stylus.preferences.forget_weight(id)
        elif id is not None:
            stylus.catalog.require([id])
            if value is not None:
                stylus.preferences.set_weight(id, value)
        weights = stylus.preferences.weights(None if id is None else [id])
    if as_json:
        print_json(weights)
        return
    table = Table(id_column("id"), "your weight")
    for adapter, own in weights.items():
        add_row(table, adapter, f"{own:g}")
    Console().print(table if weights else "No weight of your own: the recommended one is used.")


@app.command()
def pair(
    first: Annotated[str | None, typer.Argument(help="An adapter; none: show all flagged pairs.")] = None,
    second: Annotated[str | None, typer.Argument(help="The adapter that must not be used with it.")] = None,
    reason: Annotated[str, typer.Option(help="Why, for whoever wonders later.")] = "flagged by hand",
    forget: Annotated[bool, typer.Option("--forget", help="Let them be used together again.")] = False,
    as_json: AsJson = False,
) -> None:
    """Remember that two adapters must not be used together: compositions leave one of them out, and say so."""
    from stylus.stylus import Stylus

    if (first is None) != (second is None):
        raise InvalidInput("Pass both adapters of a pair, or none to see the pairs there are.")
    if first is None and forget:
        raise InvalidInput("Pass the two adapters that may meet again; `stylus pair` shows the pairs there are.")
    with Stylus() as stylus:
        if first is not None and second is not None:
            if forget:
                stylus.preferences.forget_pair(first, second)
            else:
                stylus.catalog.require([first, second])
                stylus.preferences.flag_pair(first, second, reason)
        pairs = stylus.preferences.pairs()
    if as_json:
        print_json([{"adapters": both, "reason": why} for both, why in pairs.items()])
        return
    table = Table(id_column("adapter"), id_column("must not meet"), "because")
    for (one, other), why in pairs.items():
        add_row(table, one, other, why)
    Console().print(table if pairs else "No pair is flagged.")


@app.command()
def hide(
    id: Annotated[str | None, typer.Argument(help="An adapter; none: show what is hidden.")] = None,
    forget: Annotated[bool, typer.Option("--forget", help="Let it be found again.")] = False,
    as_json: AsJson = False,
) -> None:
    """Leave an adapter out of searches and compositions from now on, as one whose file can't be had."""
    from stylus.stylus import Stylus

    if id is None and forget:
        raise InvalidInput("Pass the adapter that is to be found again; `stylus hide` shows what is hidden.")
    with Stylus() as stylus:
        if id is not None:
            stylus.catalog.require([id])
            stylus.preferences.hide(id, hidden=not forget)
        hidden = stylus.preferences.hidden(None if id is None else [id])
    if as_json:
        print_json(hidden)
        return
    table = Table(id_column("hidden"), "name")
    for adapter, name in hidden.items():
        add_row(table, adapter, name)
    Console().print(table if hidden else "Nothing is hidden." if id is None else "It is not hidden.")
