"""Commands that fill the catalog from elsewhere (Civitai, a hub, StylusDocs, lists of cards), and the way out."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated

import typer

from stylus.cli.library import ingest_app, show_report
from stylus.cli.output import AsJson, BaseModelOption, print_json, progress_bar, terminal
from stylus.errors import InvalidInput, StylusError
from stylus.records import Card, OnProgress

app = typer.Typer()


class _Problems(list[dict[str, str]]):
    """What was left out; `problems(where, why)` notes one."""

    def __call__(self, where: str, reason: str) -> None:
        self.append({"file": where, "reason": reason})


@ingest_app.command("civitai")
def ingest_civitai(
    what: Annotated[str, typer.Argument(help="Words to search for, a model's id or URL, or `by-hash`.")],
    folder: Annotated[Path | None, typer.Argument(help="With `by-hash`: a folder of .safetensors files.")] = None,
    base_model: BaseModelOption = None,
    most: Annotated[int | None, typer.Option(min=1, help="At most so many models of a search.")] = None,
    mature: Annotated[bool, typer.Option("--mature", help="Also models flagged mature.")] = False,
    as_json: AsJson = False,
) -> None:
    """Read cards of Civitai, without their weights: those are fetched when a picture first needs them.

    `by-hash FOLDER` reads the cards of files that you have. A search that was stopped goes on where it was.
    """
    from stylus.settings import Settings
    from stylus.sources.civitai import Civitai

    if (what == "by-hash") != (folder is not None):
        raise InvalidInput("Write `by-hash FOLDER`, or one search: quote a search of several words.")
    problems = _Problems()
    with Civitai.open(Settings.read()) as civitai:

        def pages(on_progress: OnProgress) -> Iterable[list[Card]]:
            if folder is not None:
                return civitai.by_hash(folder, on_problem=problems, on_progress=on_progress)
            return civitai.pages(what, family=base_model, mature=mature, most=most, on_problem=problems)

        _ingest_pages(pages, problems, as_json)


@ingest_app.command("hub")
def ingest_hub(
    repositories: Annotated[list[str], typer.Argument(metavar="OWNER/NAME...", help="Repositories of the hub.")],
    as_json: AsJson = False,
) -> None:
    """Read the cards of hub repositories, without their weights: those are fetched when a picture first needs them."""
    from stylus.sources import hub

    problems = _Problems()

    def pages(_: OnProgress) -> Iterable[list[Card]]:
        with hub.open_web() as web:
            for name in repositories:
                try:
                    yield list(hub.cards(name, web))
                except StylusError as error:
                    if len(repositories) == 1:
                        raise
                    problems(name, str(error))

    _ingest_pages(pages, problems, as_json)


def _ingest_pages(pages: Callable[[OnProgress], Iterable[list[Card]]], problems: _Problems, as_json: bool) -> None:
    from stylus.gathering import ingest_pages
    from stylus.stylus import Stylus

    with Stylus() as stylus, progress_bar() as on_progress:
        report = ingest_pages(pages(on_progress), stylus.catalog, stylus.embedder, on_progress)
    show_report(report.model_dump(mode="json"), problems, as_json)


@ingest_app.command("stylusdocs")
def ingest_the_stylusdocs(
    path: Annotated[Path, typer.Argument(exists=True, help="Folder with sd_adapters.pkl, or that file.")],
    made_with: Annotated[str | None, typer.Option(help="Embedding model of its sd_embeddings.npy.")] = None,
    as_json: AsJson = False,
) -> None:
    """Read the catalog that the paper's authors published; its embeddings too if STYLUS_EMBEDDER is their model."""
    from stylus.gathering import ingest_stylusdocs
    from stylus.sources.stylusdocs import EMBEDDER
    from stylus.stylus import Stylus

    problems = _Problems()
    with Stylus() as stylus, progress_bar() as on_progress:
        report = ingest_stylusdocs(
            path, stylus.catalog, stylus.embedder, problems, on_progress, made_with=made_with or EMBEDDER
        )
    show_report(report.model_dump(mode="json"), problems, as_json)


@ingest_app.command("cards")
def ingest_cards(
    file: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="JSON lines, as `stylus export` writes.")],
    as_json: AsJson = False,
) -> None:
    """Read a list of cards, or an export of another catalog."""
    from stylus.fetching import Fetcher
    from stylus.ingest import ingest
    from stylus.sources.cards import cards
    from stylus.stylus import Stylus

    problems = _Problems()
    with Stylus() as stylus, progress_bar() as on_progress:
        may_fetch: Callable[[Card], bool] = Fetcher(stylus.settings, stylus.catalog).may_fetch
        found = cards(file, problems, may_fetch=may_fetch)
        report = ingest(found, stylus.catalog, stylus.embedder, on_progress)
    show_report(report.model_dump(mode="json"), problems, as_json)


@app.command()
def export(
    file: Annotated[Path, typer.Argument(dir_okay=False, help="Where to write: FILE.jsonl.")], as_json: AsJson = False
) -> None:
    """Write the whole catalog, with all that was refined, as JSON lines that `ingest cards` reads back."""
    from stylus.gathering import export
    from stylus.stylus import Stylus

    with Stylus() as stylus:
        count = export(stylus.catalog, file)
    if as_json:
        print_json({"file": str(file), "adapters": count})
    else:
        terminal.print(f"{count} adapters written to {file}")
