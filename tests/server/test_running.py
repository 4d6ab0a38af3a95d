"""A generation that takes longer than a call may wait, over both transports and in both protocol eras."""

import asyncio
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mcp import Client
from mcp.types import CallToolResult

from stylus.jobs import CLIENT_LIMIT
from tests.fakes import Answer, ChatServer
from tests.server import world
from tests.server.conftest import Session, _until_it_answers, free_port
from tests.server.test_stdio import SLOW, STAR
from tests.server.test_tools import answer, text

WAIT = "0.5"
"""Seconds that a call waits here."""


@pytest.fixture(params=["stdio-auto", "stdio-legacy", "http-auto", "http-legacy"])
def impatient(request: pytest.FixtureRequest, database_url: str, tmp_path: Path) -> Iterator[Session]:
    transport, mode = request.param.split("-")
    environment = world.environment(database_url, tmp_path, tmp_path / "data")
    if transport == "stdio":
        session = Session(world.stdio(environment, [*SLOW, WAIT]), mode)
        yield session
        session.close()
        return
    port = free_port()
    with subprocess.Popen([sys.executable, *SLOW, WAIT, str(port)], env=environment) as process:
        try:
            _until_it_answers(process, f"http://127.0.0.1:{port}")
            session = Session(f"http://127.0.0.1:{port}/mcp", mode)
            yield session
            session.close()
        finally:
            process.terminate()
            process.wait(20)


def test_a_long_generation_is_handed_out_and_waited_for_or_cancelled(impatient: Session) -> None:
    running = answer(impatient.call("generate_image", **STAR, steps=200))
    assert running["status"] == "running"
    assert "do not start it again" in running["note"]
    assert answer(impatient.call("job", id=running["job_id"], action="status"))["status"] == "running"
    again = answer(impatient.call("job", id=running["job_id"]))
    assert (again["status"], again["job_id"]) == ("running", running["job_id"])
    cancelled = answer(impatient.call("job", id=running["job_id"], action="cancel"))
    if cancelled["status"] == "running":  # its step is not over yet
        assert cancelled["note"].startswith("Cancellation accepted")
        cancelled = answer(impatient.call("job", id=running["job_id"]))
    assert cancelled["status"] == "cancelled"

    made = answer(impatient.call("generate_image", **STAR, steps=20))
    while made["status"] == "running":
        made = answer(impatient.call("job", id=made["job_id"]))
    assert made["status"] == "done"
    assert len(made["images"]) == 1
    # and with the result at hand, status brings it too
    assert answer(impatient.call("job", id=made["job_id"], action="status")) == made


def test_a_caller_with_a_long_queue_is_told_how_many_are_ahead(impatient: Session) -> None:
    async def ask(client: Client, number: int) -> CallToolResult:
        return await client.call_tool("generate_image", {**STAR, "steps": 200, "seed": number})

    async def crowd(client: Client) -> list[CallToolResult]:
        return await asyncio.gather(*(ask(client, number) for number in range(CLIENT_LIMIT + 1)))

    *_, refused = sorted(impatient.run(crowd), key=lambda result: result.is_error)
    assert refused.is_error
    assert f"busy, {CLIENT_LIMIT} of your own ahead" in text(refused)


@pytest.fixture
def thinking() -> Iterator[tuple[ChatServer, threading.Event]]:
    """A language model that answers nobody before the event is set."""
    answers = threading.Event()

    def answer(_: Any) -> Answer:
        answers.wait(30)
        return Answer(arguments={"tasks": []})

    with ChatServer(answer) as model:
        yield model, answers
        answers.set()


@pytest.fixture
def composing(thinking: tuple[ChatServer, threading.Event], database_url: str, tmp_path: Path) -> Iterator[Session]:
    model = {"STYLUS_COMPOSER": "openai-chat:m", "OPENAI_BASE_URL": thinking[0].url, "OPENAI_API_KEY": "none"}
    session = Session(
        world.stdio(world.environment(database_url, tmp_path, tmp_path / "data") | model, [*SLOW, WAIT]), "auto"
    )
    yield session
    session.close()


def test_what_nobody_knows_the_price_of_is_a_valid_answer(
    composing: Session, thinking: tuple[ChatServer, threading.Event]
) -> None:
    thinking[1].set()
    for from_cache in (False, True):
        # the client holds it to the tool's output schema
        result = composing.call("compose_adapters", prompt="a star").structured_content
        assert (result["usage"]["cost"], result["usage"]["from_cache"]) == (None, from_cache)
