"""A server process and its surroundings: the wire, signals, a database that goes away."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psycopg

from stylus.embedded_postgres import EmbeddedPostgres
from stylus.embedder import Embedder
from stylus.records import Card
from tests.server import world
from tests.server.conftest import Session
from tests.server.test_tools import FEW, MANY, answer, text

QUICK = """
from server.app import run
from stylus.settings import Settings
run(Settings.read(), wait=0.5)
"""
NOISY = """
import os
from stylus.stylus import Stylus
search = Stylus.search
def noisy(*arguments, **options):
    print("a library prints")
    os.write(1, b"native code prints\\n")
    return search(*arguments, **options)
Stylus.search = noisy
from server.app import run
from stylus.settings import Settings
run(Settings.read())
"""


def message(id: int, method: str, **params: Any) -> bytes:
    return json.dumps({"jsonrpc": "2.0", "id": id, "method": method, "params": params}).encode() + b"\n"


HELLO = message(
    1, "initialize", protocolVersion="2025-06-18", capabilities={}, clientInfo={"name": "test", "version": "1"}
)
READY = b'{"jsonrpc": "2.0", "method": "notifications/initialized"}\n'


def test_nothing_but_the_protocol_comes_out_of_stdout(environment: dict[str, str]) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", NOISY], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdin
        assert process.stdout
        process.stdin.write(HELLO)
        process.stdin.flush()
        lines = [process.stdout.readline()]
        process.stdin.write(READY + b"this is not JSON\n")
        process.stdin.write(message(2, "tools/call", name="search_adapters", arguments={"query": "a star"}))
        process.stdin.flush()
        while json.loads(lines[-1]).get("id") != 2:
            lines.append(process.stdout.readline())
        process.stdin.close()
        lines += process.stdout.readlines()
        assert process.wait(15) == 0
    messages = [json.loads(line) for line in lines]
    assert all(message["jsonrpc"] == "2.0" for message in messages)
    found = next(message for message in messages if message.get("id") == 2)
    assert found["result"]["structuredContent"]["matches"][0]["id"] == "test:star"


def test_initialize_is_answered_before_anything_heavy_is_loaded(environment: dict[str, str]) -> None:
    # a database that does not answer at all, and still the protocol does
    environment["STYLUS_DATABASE_URL"] = "postgresql://nobody@127.0.0.1:1/none"
    start = time.monotonic()
    session = Session(world.stdio(environment), "legacy")
    # about 1.5 s on a quiet machine; far from what importing torch takes on a busy one
    assert time.monotonic() - start < 15
    result = session.call("search_adapters", query="a star")
    assert result.is_error
    assert "try again" in text(result).lower()
    session.close()


def test_a_long_generation_is_handed_out_and_waited_for_or_cancelled(environment: dict[str, str]) -> None:
    session = Session(world.stdio(environment, QUICK), "auto")
    running = answer(session.call("generate_image", prompt="a star", **MANY))
    assert running["status"] == "running"
    assert "do not start it again" in running["note"]
    assert answer(session.call("job", id=running["job_id"], action="status"))["status"] == "running"
    cancelled = answer(session.call("job", id=running["job_id"], action="cancel"))
    while cancelled["status"] == "running":
        cancelled = answer(session.call("job", id=running["job_id"]))
    assert cancelled["status"] == "cancelled"

    made = answer(session.call("generate_image", prompt="a star", **FEW))
    while made["status"] == "running":
        made = answer(session.call("job", id=made["job_id"]))
    assert made["status"] == "done"
    assert len(made["images"]) == 1
    # and with the result at hand, status brings it too
    assert answer(session.call("job", id=made["job_id"], action="status")) == made
    session.close()


def test_a_server_that_is_told_to_end_puts_its_job_back(environment: dict[str, str], url: str) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", QUICK], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdin
        assert process.stdout
        process.stdin.write(HELLO + READY)
        process.stdin.write(message(2, "tools/call", name="generate_image", arguments={"prompt": "a star", **MANY}))
        process.stdin.flush()
        while json.loads(process.stdout.readline()).get("id") != 2:
            pass
        with psycopg.connect(url, autocommit=True) as connection:
            state = connection.execute("select status, progress ->> 'stage' from jobs").fetchone()
            while state != ("running", "generating"):
                time.sleep(0.1)
                state = connection.execute("select status, progress ->> 'stage' from jobs").fetchone()
            process.send_signal(signal.SIGTERM)
            assert process.wait(10) == 128 + signal.SIGTERM
            assert connection.execute("select status from jobs").fetchone() == ("queued",)


def test_a_database_that_goes_away_is_told_and_its_return_needs_nothing(
    cards: list[Card], folder: Path, embedder: Embedder, reachable: Path, tmp_path: Path
) -> None:
    postgres = EmbeddedPostgres(reachable / "postgres")
    world.fill(postgres.url, cards, embedder)
    session = Session(world.stdio(world.environment(postgres.url, folder, tmp_path / "data")), "auto")
    assert session.call("search_adapters", query="a star").structured_content["matches"][0]["id"] == "test:star"

    postgres.close()  # its last user: this stops it
    for tool, arguments in (("search_adapters", {"query": "a star"}), ("generate_image", {"prompt": "a star"})):
        result = session.call(tool, **arguments)
        assert result.is_error
        assert "Postgres is not available" in text(result)
        assert "Try again" in text(result)

    again = EmbeddedPostgres(reachable / "postgres")
    assert session.call("search_adapters", query="a star").structured_content["matches"][0]["id"] == "test:star"
    assert answer(session.call("generate_image", prompt="a star", **FEW))["status"] == "done"
    session.close()
    again.close()


def test_a_job_survives_kill_9_of_its_server(environment: dict[str, str], url: str) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", QUICK], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdin
        process.stdin.write(HELLO + READY)
        arguments = {"prompt": "a star", "request_id": "mine", "size": "64x64", "steps": 60, "count": 2}
        process.stdin.write(message(2, "tools/call", name="generate_image", arguments=arguments))
        process.stdin.flush()
        with psycopg.connect(url, autocommit=True) as connection:
            while connection.execute("select 1 from jobs where progress ->> 'stage' = 'generating'").fetchone() is None:
                time.sleep(0.05)
            os.kill(process.pid, signal.SIGKILL)
            # do not wait out its last sign of life
            connection.execute("update procrastinate_workers set last_heartbeat = now() - interval '1 hour'")
    session = Session(world.stdio(environment), "auto")
    made = answer(session.call("generate_image", **arguments))
    assert made["status"] == "done"
    assert len(made["images"]) == 2
    session.close()
