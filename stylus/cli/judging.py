"""Commands that judge the pictures of an evaluation: by a vision model, and by people."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from stylus.cli.evaluation import evaluate_app
from stylus.cli.output import AsJson, add_row, print_json, progress_bar, terminal
from stylus.errors import InvalidInput
from stylus.settings import Settings

if TYPE_CHECKING:
    from stylus.evaluation.judge import JudgeReport
    from stylus.evaluation.metrics import Interval
    from stylus.evaluation.poll import Standings

app = typer.Typer()

Evaluation = Annotated[str, typer.Argument(help="Folder or id of an evaluation.")]


@evaluate_app.command("judge")
def judge(
    evaluation: Evaluation,
    arms: Annotated[str, typer.Option(help="The two to compare, separated by a comma.")] = "stylus,base",
    model: Annotated[str | None, typer.Option(help="Vision model; default: STYLUS_VISION.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="At most so many prompts, spread evenly.")] = None,
    concurrency: Annotated[int, typer.Option(min=1, help="Prompts at once.")] = 4,
    max_cost: Annotated[float | None, typer.Option(help="US dollars after which no prompt is begun.")] = None,
    as_json: AsJson = False,
) -> None:
    """Let a vision model say which of two arms' pictures are better, not knowing which is which. Each is asked in
    both orders; where they disagree, it is a tie. Run it again to go on: no reply is paid for twice."""
    from stylus.database import Database
    from stylus.evaluation.judge import Options, judge
    from stylus.evaluation.judgements import Judgements
    from stylus.evaluation.ledger import Ledger
    from stylus.evaluation.pairs import pairs_of
    from stylus.evaluation.protocol import spread
    from stylus.refiner import open_vision

    settings = Settings.read()
    name = model or settings.vision
    vision = open_vision(settings.model_copy(update={"vision": name}))
    names = _names(arms)
    if len(names) != 2:
        raise InvalidInput(f"--arms is {arms!r}: a model compares two, as stylus,base.")
    options = Options(concurrency, max_cost)
    with Database.open(settings) as database, progress_bar() as on_progress:
        ledger = Ledger.named(database, evaluation)
        pairs = pairs_of(ledger, names)
        chosen = [pairs[place] for place in spread(len(pairs), limit or len(pairs))]
        with ledger.alone():
            report = judge(Judgements(database), vision, chosen, options, on_progress, name=name)
    if as_json:
        print_json(report.model_dump(mode="json"))
    else:
        _show_judged(report)
    if report.failed:
        raise typer.Exit(3)


def _show_judged(report: "JudgeReport") -> None:
    one, other = report.arms
    table = Table("aspect", f"{one} wins", "ties", f"{other} wins", f"{one}, of decided", "orders agree", "first shown")
    for aspect, found in report.aspects.items():
        shares = (found.win, found.tie, found.lose, found.preferred, found.agreed, found.first)
        add_row(table, aspect, *(shown(share) for share in shares))
    if report.aspects:
        Console().print(table)
    usage = report.usage
    cost = "cost unknown" if usage.cost is None and usage.requests else f"{usage.cost or 0:.4f} US dollars"
    terminal.print(
        f"{len(report.judged)} prompts judged by {report.model}, {report.identical} of them with the same pictures in "
        f"both arms, {len(report.failed)} failed; {report.kept} replies were there; {usage.requests} requests, "
        f"{usage.input_tokens:,} tokens in, {usage.output_tokens:,} out, {cost}",
        markup=False,
    )
    if report.stopped is not None:
        terminal.print(Text(f"Stopped: {report.stopped}. Run it again to go on.", "yellow"), soft_wrap=True)
    for failure in report.failed:
        terminal.print(Text.assemble((failure.prompt, "red"), f": {failure.reason}"), soft_wrap=True)


@app.command()
def vote(
    evaluation: Evaluation,
    arms: Annotated[str, typer.Option(help="Two to compare, or several: then all pairs of them.")] = "stylus,base",
    host: Annotated[str, typer.Option(help="Address to bind; others than loopback: by a link.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535)] = 8766,
    export: Annotated[Path | None, typer.Option(help="Write the votes so far as CSV, and serve nothing.")] = None,
    results: Annotated[bool, typer.Option("--results", help="Show what came of them, and serve nothing.")] = False,
    as_json: AsJson = False,
) -> None:
    """Let people say which of two pictures is better: a blind page, for as many as you like. Stop it with Ctrl-C; votes
    stay, and everybody goes on where they were."""
    from stylus.database import Database
    from stylus.evaluation.ledger import Ledger
    from stylus.evaluation.pairs import pairs_of
    from stylus.evaluation.poll import Poll, as_csv
    from stylus.evaluation.votes import Votes

    with Database.open(Settings.read()) as database:
        votes, ledger = Votes(database), Ledger.named(database, evaluation)
        with progress_bar() as on_progress:
            poll = Poll.of(pairs_of(ledger, _names(arms)), votes.seed(ledger.id), on_progress)
        if export is not None:
            _write(export, as_csv(votes.on(poll.by_id.keys())))
        if results or as_json:
            found = poll.standings(votes.on(poll.by_id.keys()))
            print_json(found.model_dump(mode="json")) if as_json else _show_standings(found)
        if export is None and not results and not as_json:
            from server.voting import run

            run(poll, votes, host=host, port=port)


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8", newline="")
    except OSError as error:
        raise InvalidInput(f"{path} can't be written: {error.strerror}. Name another file.") from error


def _show_standings(found: "Standings") -> None:
    table = Table("arms", "preferred, of pairs decided", "pairs won, tied, lost", "votes won, tied, lost")
    for standing in found.standings:
        pairs, votes = (f"{tally.wins}, {tally.ties}, {tally.losses}" for tally in (standing.pairs, standing.votes))
        add_row(table, " over ".join(standing.arms), shown(standing.preferred), pairs, votes)
    Console().print(table)
    agreement = "not known yet" if found.agreement is None else f"{found.agreement:.2f}"
    same = "" if found.same is None else f", the same vote in {100 * found.same:.0f}%"
    voters = ", ".join(f"{name} {count}" for name, count in found.voters) or "nobody"
    for line in (
        f"agreement (Krippendorff's alpha): {agreement}{same}",
        f"left picture preferred: {shown(found.left)}",
        f"votes: {voters}; {found.skipped} skipped",
    ):
        terminal.print(Text(line), soft_wrap=True)


def shown(interval: "Interval | None") -> str:
    """A share with its interval, in per cent."""
    if interval is None:
        return "-"
    return f"{100 * interval.value:.1f}% ({100 * interval.low:.1f} to {100 * interval.high:.1f})"


def _names(arms: str) -> list[str]:
    return [name.strip() for name in arms.split(",") if name.strip()]
