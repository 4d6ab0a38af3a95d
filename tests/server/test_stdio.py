"""A server process and its surroundings: the wire, signals, a database that goes away."""

import base64
import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import psycopg
import pytest
from mcp.types import ImageContent, ResourceLink
from PIL import Image

from stylus.database import Database
from stylus.embedded_postgres import EmbeddedPostgres
from stylus.jobs import Jobs
from stylus.migrate import migrate
from tests.server import world
from tests.server.conftest import Session
from tests.server.test_tools import answer, text
from tests.test_jobs import request, until

NOISY = """
import os
from server.backend import Backend
from stylus.stylus import Stylus
def noisy(self, query, **options):
    print("a library prints")
    os.write(1, b"native code prints\\n")
    return []
Stylus.search = noisy
Backend.open_soon = lambda self: None
from server.app import run
from stylus.settings import Settings
run(Settings.read())
"""
SLOW = ["-m", "tests.server.slow"]
STAR = {"prompt": "a star", "adapters": []}
"""Composed by the caller: needs no embedding model."""


@pytest.fixture
def environment(database_url: str, tmp_path: Path) -> dict[str, str]:
    return world.environment(database_url, tmp_path, tmp_path / "data")


def message(id: int, method: str, **params: Any) -> bytes:
    return json.dumps({"jsonrpc": "2.0", "id": id, "method": method, "params": params}).encode() + b"\n"


HELLO = message(
    1, "initialize", protocolVersion="2025-06-18", capabilities={}, clientInfo={"name": "test", "version": "1"}
)
READY = b'{"jsonrpc": "2.0", "method": "notifications/initialized"}\n'


class Wire:
    """A server process of which every byte is seen."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdin
        assert process.stdout
        self.process, self._in, self._out = process, process.stdin, process.stdout
        self.seen: list[bytes] = []

    def send(self, *messages: bytes) -> None:
        self._in.write(b"".join(messages))
        self._in.flush()

    def until(self, id: int) -> dict[str, Any]:
        """Reads up to the answer to `id`."""
        while True:
            self.seen.append(self._out.readline())
            read: dict[str, Any] = json.loads(self.seen[-1])
            if read.get("id") == id:
                return read

    def end(self) -> int:
        self._in.close()
        self.seen += self._out.readlines()
        return self.process.wait(15)


@contextlib.contextmanager
def wire(environment: dict[str, str], *arguments: str, stderr: IO[bytes] | None = None) -> Iterator[Wire]:
    command, pipe = [sys.executable, *arguments], subprocess.PIPE
    with subprocess.Popen(command, env=environment, stdin=pipe, stdout=pipe, stderr=stderr) as process:
        yield Wire(process)
        process.kill()


def test_nothing_but_the_protocol_comes_out_of_stdout(environment: dict[str, str]) -> None:
    with wire(environment, "-c", NOISY) as server:
        server.send(HELLO)
        server.until(1)
        server.send(READY, b"this is not JSON\n")
        server.send(message(2, "tools/call", name="search_adapters", arguments={"query": "a star"}))
        assert server.until(2)["result"]["structuredContent"]["matches"] == []
        assert server.end() == 0
        assert all(json.loads(line)["jsonrpc"] == "2.0" for line in server.seen)


def test_initialize_is_answered_before_anything_heavy_is_loaded(environment: dict[str, str]) -> None:
    # a database that does not answer at all, and still the protocol does
    environment["STYLUS_DATABASE_URL"] = "postgresql://nobody@127.0.0.1:1/none"
    start = time.monotonic()
    session = Session(world.stdio(environment), "legacy")
    # about 1.7 s on a quiet machine; far from what importing torch takes on a busy one
    assert time.monotonic() - start < 15
    result = session.call("search_adapters", query="a star")
    assert result.is_error
    assert "try again" in text(result).lower()
    session.close()


def start_a_job(server: Wire, url: str) -> None:
    """Asks for a generation of ten seconds and returns when it is being drawn."""
    server.send(HELLO, READY)
    arguments = {**STAR, "steps": 200, "request_id": "mine"}
    server.send(message(2, "tools/call", name="generate_image", arguments=arguments))
    with psycopg.connect(url, autocommit=True) as connection:
        while connection.execute("select 1 from jobs where progress ->> 'stage' = 'generating'").fetchone() is None:
            time.sleep(0.05)


def test_a_server_that_is_told_to_end_puts_its_job_back(environment: dict[str, str], database_url: str) -> None:
    with wire(environment, *SLOW, "0.1") as server:
        start_a_job(server, database_url)
        server.until(2)  # the call itself is over: nobody cancels the job
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(10) == 128 + signal.SIGTERM
    with psycopg.connect(database_url) as connection:
        assert connection.execute("select status, deaths from jobs").fetchone() == ("queued", 0)


def test_a_client_that_leaves_during_its_call_ends_the_job(environment: dict[str, str], database_url: str) -> None:
    with wire(environment, *SLOW, "40") as server:
        start_a_job(server, database_url)
        assert server.end() == 0
    with psycopg.connect(database_url) as connection:
        assert connection.execute("select cancel_requested from jobs").fetchone() == (True,)


def test_a_job_survives_kill_9_of_its_server(environment: dict[str, str], database_url: str) -> None:
    with wire(environment, *SLOW, "0.1") as server:
        start_a_job(server, database_url)
        os.kill(server.process.pid, signal.SIGKILL)
        server.process.wait(10)
    with psycopg.connect(database_url, autocommit=True) as connection:
        # the test does not wait until the worker's last sign of life is old, nor for ten seconds of drawing
        connection.execute("update procrastinate_workers set last_heartbeat = now() - interval '1 hour'")
        connection.execute("update jobs set request = jsonb_set(request, '{steps}', '2')")
    session = Session(world.stdio(environment, [*SLOW, "40"]), "auto")
    made = answer(session.call("generate_image", **{**STAR, "steps": 200}, request_id="mine"))
    assert made["status"] == "done"
    assert len(made["images"]) == 1
    session.close()


def test_a_database_that_goes_away_is_told_and_its_return_needs_nothing(reachable: Path, tmp_path: Path) -> None:
    postgres = EmbeddedPostgres(reachable / "postgres")
    migrate(postgres.url)
    environment = world.environment(postgres.url, tmp_path, tmp_path / "data")
    session = Session(world.stdio(environment, [*SLOW, "40"]), "auto")
    assert answer(session.call("generate_image", **STAR))["status"] == "done"

    postgres.close()  # its last user: this stops it
    for tool, arguments in (("generate_image", STAR), ("job", {"id": "x", "action": "status"})):
        result = session.call(tool, **arguments)
        assert result.is_error
        assert "Postgres is not available" in text(result)
        assert "Try again" in text(result)

    again = EmbeddedPostgres(reachable / "postgres")
    assert again.url == postgres.url
    assert answer(session.call("generate_image", **STAR))["status"] == "done"
    session.close()
    again.close()


def test_a_server_that_starts_without_its_database_says_so_and_works_once_it_is_there(
    reachable: Path, tmp_path: Path
) -> None:
    postgres = EmbeddedPostgres(reachable / "postgres")
    migrate(postgres.url)
    with Database(postgres.url) as database:
        job = Jobs(database).submit(request())
    postgres.close()
    environment = world.environment(postgres.url, tmp_path, tmp_path / "data")
    with (tmp_path / "log").open("wb") as log, wire(environment, *SLOW, "40", "--warm", stderr=log) as server:
        server.send(HELLO, READY)
        assert "result" in server.until(1)
        until(lambda: b"Waiting for the database" in (tmp_path / "log").read_bytes(), 60)
        again = EmbeddedPostgres(reachable / "postgres")
        with Database(again.url) as database:  # nobody calls a tool, and what waits on the queue is drawn
            until(lambda: Jobs(database).get(job.id).status == "done", 60)
        assert b"The database is there" in (tmp_path / "log").read_bytes()
    again.close()


@pytest.mark.parametrize("mode", ["auto", "legacy"])
def test_answers_show_as_much_of_the_pictures_as_the_server_was_told(environment: dict[str, str], mode: str) -> None:
    shown: dict[str, list[str | None]] = {}
    for how in ("omit", "thumbnail", "full"):
        session = Session(world.stdio(environment, [*SLOW, "40", "--image-responses", how]), mode)
        result = session.call("generate_image", **STAR, count=2, request_id="the same job each time")
        assert len([block for block in result.content if isinstance(block, ResourceLink)]) == 2
        pictures = [base64.b64decode(block.data) for block in result.content if isinstance(block, ImageContent)]
        shown[how] = [Image.open(io.BytesIO(picture)).format for picture in pictures]
        for image, picture in zip(answer(result)["images"], pictures, strict=False):
            assert how != "full" or Path(image["path"]).read_bytes() == picture
        session.close()
    assert shown == {"omit": [], "thumbnail": ["JPEG"], "full": ["PNG", "PNG"]}


def test_a_damaged_and_a_missing_file_hide_no_other_picture(environment: dict[str, str]) -> None:
    session = Session(world.stdio(environment, [*SLOW, "40"]), "auto")
    made = answer(session.call("generate_image", **STAR, count=4))
    paths = [Path(image["path"]) for image in made["images"]]
    paths[1].write_bytes(paths[1].read_bytes()[:60])
    paths[2].unlink()
    *content, sheet = [
        block for block in session.call("job", id=made["job_id"]).content if block.type != "resource_link"
    ]
    told = json.loads(content[0].text)
    assert (told["images"], told["picture"]) == (made["images"], "all other images in order, row by row")
    assert f"{paths[1].stem} ({paths[1]}) is damaged. Repeat seed {made['seed'] + 1}" in told["note"]
    assert f"{paths[2].stem} can't be read" in told["note"]
    assert Image.open(io.BytesIO(base64.b64decode(sheet.data))).height < 512 / 2  # two tiles in a row
    for path in paths:
        path.write_text("no picture")
    bare = session.call("job", id=made["job_id"])
    assert answer(bare)["note"].count("is damaged") == 4
    assert not any(isinstance(block, ImageContent) for block in bare.content)
    session.close()
