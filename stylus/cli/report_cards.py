"""The command on report cards: what the adapters really do."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from stylus.cli.output import (
    AsJson,
    BaseModelOption,
    add_row,
    id_column,
    interruptible,
    print_json,
    progress_bar,
    terminal,
)
from stylus.errors import InvalidInput
from stylus.records import BaseModelFamily

if TYPE_CHECKING:
    from stylus.evaluation.card_shelf import ReportCard
    from stylus.evaluation.effects import Verdict

NUMBERS = ("strength", "consistency", "strangeness", "broken", "kept")


def adapters(
    only: Annotated[list[str] | None, typer.Option("--only", help="Id of an adapter; repeat it.")] = None,
    base_model: BaseModelOption = None,
    checkpoint: Annotated[str | None, typer.Option(help="One of several checkpoints of the base model.")] = None,
    clip: Annotated[str | None, typer.Option(help="CLIP or SigLIP of transformers: a folder or a hub id.")] = None,
    flag: Annotated[
        bool | None, typer.Option("--flag/--unflag", help="Leave adapters in trouble out from now on, or no longer.")
    ] = None,
    show: Annotated[str | None, typer.Option(help="One adapter's card, with a sheet of its pictures.")] = None,
    out: Annotated[Path, typer.Option(help="Where --show writes the sheet.")] = Path("report-card.png"),
    as_json: AsJson = False,
) -> None:
    """Measure what adapters do: the same prompts and seeds with and without each, seen by a CLIP model. What was
    measured is not measured again, and a run that was stopped goes on. `stylus doctor --library` tells the findings."""
    from stylus.evaluation.card_shelf import Shelf, judge
    from stylus.evaluation.features import open_text_features
    from stylus.evaluation.report_cards import Measuring, sheet
    from stylus.stylus import Stylus

    with Stylus() as stylus, progress_bar() as bar, interruptible(bar) as on_progress:
        family = base_model or stylus.settings.default_family
        if clip is None and family is not BaseModelFamily.POCKET:
            raise InvalidInput(
                f"Pass --clip: a folder or hub id of a CLIP or SigLIP that sees the pictures of {family}."
            )
        measuring = Measuring(stylus, open_text_features(clip), family, checkpoint)
        wanted = [show] if show is not None else only or []
        report = measuring.run(wanted, on_progress)
        shelf = Shelf(stylus.database)
        verdicts = judge(shelf.all())
        if flag is True:
            shelf.flag(verdicts)
        elif flag is False:
            shelf.unflag()
        cards = shelf.get(wanted or list(verdicts))
        if show is not None and show in cards:
            [adapter] = stylus.catalog.require([show])
            sheet(measuring.exposures(adapter, on_progress), adapter, cards[show], verdicts[show]).save(out)
    rows = [_row(card, verdicts[id]) for id, card in cards.items() if id in verdicts]
    if as_json:
        print_json(report.model_dump(mode="json") | {"cards": rows})
    else:
        _show(rows, wanted=bool(wanted))
        counts = (
            f"{report.measured} measured now, {report.unchanged} unchanged, {report.without_file} without weights here"
        )
        terminal.print(counts + (f"; pictures in {out}" if show is not None else ""))
        for problem in report.failed:
            terminal.print(Text.assemble((problem.id, "red"), f": {problem.reason}"), soft_wrap=True)
    if report.failed:
        raise typer.Exit(3)


def _row(card: "ReportCard", verdict: "Verdict") -> dict[str, Any]:
    numbers = {name: round(getattr(card.effect, name), 4) for name in NUMBERS}
    return {
        "id": card.measured.adapter,
        "weight": card.measured.weight,
        **numbers,
        "agreement": verdict.agreement,
        "trouble": verdict.trouble,
    }


def _show(rows: list[dict[str, Any]], wanted: bool) -> None:
    """All that were asked for, or those in trouble."""
    table = Table(id_column("id"), "weight", *NUMBERS, "agreement", "trouble")
    for row in rows:
        if wanted or row["trouble"]:
            agreement = "-" if row["agreement"] is None else f"{row['agreement']:.2f}"
            numbers = [f"{row[name]:.2f}" for name in NUMBERS]
            add_row(table, row["id"], f"{row['weight']:g}", *numbers, agreement, row["trouble"] or "")
    Console().print(table if table.row_count else "No adapter is in trouble.")
