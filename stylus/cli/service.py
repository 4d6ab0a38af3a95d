"""Commands that run and look after the service: server, worker, database, doctor."""

from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from stylus.cli.output import AsJson, add_row, print_json, progress_bar, terminal
from stylus.settings import Settings

app = typer.Typer()
db_app = typer.Typer(no_args_is_help=True, help="The catalog's database.")
app.add_typer(db_app, name="db")
token_app = typer.Typer(no_args_is_help=True, help="Bearer tokens of the HTTP server.")
app.add_typer(token_app, name="token")


@app.command()
def serve(
    http: Annotated[bool, typer.Option("--http", help="Streamable HTTP at /mcp; default: stdio.")] = False,
    host: Annotated[str, typer.Option(help="Address to bind; others than loopback need tokens.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535)] = 8765,
    image_responses: Annotated[
        Literal["omit", "thumbnail", "full"],
        typer.Option(help="Pictures inside answers: none, one small one of all, or each in full."),
    ] = "thumbnail",
    worker: Annotated[
        bool, typer.Option("--worker/--no-worker", help="Draw in this process too, or leave it to `stylus worker`.")
    ] = True,
) -> None:
    """Serve the tools to MCP clients, with one generation worker inside."""
    from server.app import run
    from server.results import ImageResponses

    run(Settings.read(), http=http, host=host, port=port, shown=ImageResponses(image_responses), works=worker)


@app.command()
def worker(
    metrics_port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Serve this worker's times to Prometheus, without a token.")
    ] = None,
    metrics_host: Annotated[str, typer.Option(help="Address for that.")] = "127.0.0.1",
) -> None:
    """Work on queued generations: run it on each GPU machine, with the same database and image store."""
    from stylus.database import until_available
    from stylus.stylus import Stylus
    from stylus.telemetry import exported, served
    from stylus.worker import Worker

    settings = Settings.read()
    with (
        exported(settings),
        served(metrics_host, metrics_port),
        until_available(lambda: Stylus(settings), say=terminal.print) as stylus,
    ):
        terminal.print("Working on queued generations. Stop with Ctrl-C.")
        Worker(stylus).run()


@app.command()
def prune(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be deleted.")] = False,
    as_json: AsJson = False,
) -> None:
    """Delete the pictures that STYLUS_KEEP_DAYS and STYLUS_KEEP_GB don't let stay; workers do so every ten minutes."""
    from stylus.database import Database
    from stylus.retention import Retention

    settings = Settings.read()
    with Database.open(settings) as database:
        retention = Retention(database, settings)
        gone = retention.overdue() if dry_run else retention.apply()
    if as_json:
        print_json([one.model_dump(mode="json") for one in gone])
        return
    if not retention.on:
        typer.echo("All pictures are kept: neither STYLUS_KEEP_DAYS nor STYLUS_KEEP_GB is set.")
        return
    size = sum(one.bytes for one in gone) / 1e6
    typer.echo(f"{'Would delete' if dry_run else 'Deleted'} {len(gone):,} pictures, {size:,.1f} MB.")


@app.command()
def doctor(
    library: Annotated[
        bool, typer.Option("--library", help="Check the adapters instead, with what mends them.")
    ] = False,
    deep: Annotated[bool, typer.Option("--deep", help="With --library: read the tensors of every file.")] = False,
    as_json: AsJson = False,
) -> None:
    """Check every setting: its value, where it comes from, and what works with it."""
    from stylus.doctor import examine

    if library or deep:
        _examine_library(deep, as_json)
        return
    checks = examine(Settings.read())
    if as_json:
        print_json([check.model_dump(mode="json") for check in checks])
    else:
        table = Table("", "what", "value", "from", "finding")
        colour = {"ok": "green", "warning": "yellow", "failed": "red"}
        for check in checks:
            status = Text(check.status, colour[check.status])
            add_row(table, status, check.name, check.value, check.origin, check.finding)
        Console().print(table)
    if any(check.status == "failed" for check in checks):
        raise typer.Exit(1)


def _examine_library(deep: bool, as_json: bool) -> None:
    from stylus.database import Database
    from stylus.library import check_files, examine_library

    with Database.open(Settings.read()) as database:
        if deep:
            with progress_bar() as on_progress:
                check_files(database, on_progress)
        findings = examine_library(database)
    if as_json:
        print_json([finding.model_dump(mode="json") for finding in findings])
        return
    table = Table("adapters", "what", "for example", "what mends it")
    for finding in findings:
        if finding.count:
            add_row(table, f"{finding.count:,}", finding.what, "\n".join(finding.names[:3]), finding.mend)
    Console().print(table if table.row_count else "Nothing is wrong with the adapters of the catalog.")


@db_app.command()
def migrate(as_json: AsJson = False) -> None:
    """Bring the tables up to date (every command does so by itself)."""
    from stylus.database import Database

    with Database.open(Settings.read()) as database:
        _show_database(database.status(), as_json)


@db_app.command()
def status(as_json: AsJson = False) -> None:
    """Where the database is and its versions; `stylus doctor` says what it holds."""
    migrate(as_json)


def _show_database(status: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(status)
    else:
        for name, value in status.items():
            typer.echo(f"{name}: {value}")


@token_app.command("add")
def add_token(
    name: Annotated[str, typer.Argument(help="Who gets it: owns the jobs and images made with it.")],
    read_only: Annotated[bool, typer.Option("--read-only", help="May search and compose, and not draw.")] = False,
    metrics: Annotated[bool, typer.Option("--metrics", help="May read /metrics and nothing else.")] = False,
    as_json: AsJson = False,
) -> None:
    """Make a token and print it, this once: only its hash is kept. A running server asks for it from its next start."""
    from stylus.database import Database
    from stylus.tokens import Scope, Tokens

    with Database.open(Settings.read()) as database:
        scopes: list[Scope] = ["metrics"] if metrics else ["read"] if read_only else ["read", "generate"]
        token = Tokens(database).add(name, scopes)
    if as_json:
        print_json({"name": name, "scopes": scopes, "token": token})
    else:
        typer.echo(token)


@token_app.command("list")
def list_tokens(as_json: AsJson = False) -> None:
    """Names, scopes and dates; the tokens themselves nobody knows."""
    from stylus.database import Database
    from stylus.tokens import Tokens

    with Database.open(Settings.read()) as database:
        tokens = Tokens(database).list()
    if as_json:
        print_json([token.model_dump(mode="json") for token in tokens])
        return
    for token in tokens:
        state = f"revoked {token.revoked_at:%Y-%m-%d}" if token.revoked_at else "in use"
        typer.echo(f"{token.name}  {'+'.join(token.scopes)}  made {token.created_at:%Y-%m-%d}  {state}")


@token_app.command("revoke")
def revoke_token(name: str, as_json: AsJson = False) -> None:
    """End a token: from the next request on it is refused."""
    from stylus.database import Database
    from stylus.tokens import Tokens

    with Database.open(Settings.read()) as database:
        Tokens(database).revoke(name)
    if as_json:
        print_json({"revoked": name})
