"""A generation that takes longer than a call may wait, over both transports and in both protocol eras."""

import asyncio
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from mcp import Client
from mcp.types import CallToolResult

from server.backend import COMPOSING
from stylus.jobs import CLIENT_LIMIT
from tests.fakes import Answer, ChatServer
from tests.server import world
from tests.server.conftest import Session, _until_it_answers, free_port
from tests.server.test_stdio import SLOW, STAR
from tests.server.test_tools import answer, text
from tests.test_jobs import until

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


def test_composing_tells_of_itself_and_is_part_of_the_wait(
    composing: Session, thinking: tuple[ChatServer, threading.Event]
) -> None:
    told: list[str | None] = []

    async def on_progress(progress: float, total: float | None, message: str | None) -> None:
        told.append(message)
        await asyncio.sleep(float(WAIT))
        thinking[1].set()

    arguments = {"prompt": "a star", "steps": 200}
    result = composing.run(lambda client: client.call_tool("generate_image", arguments, progress_callback=on_progress))
    assert told == ["composing"]
    assert answer(result)["status"] == "running"


@pytest.mark.parametrize("tool", ["compose_adapters", "generate_image"])
def test_a_client_that_cancels_its_call_ends_the_composing(
    composing: Session, thinking: tuple[ChatServer, threading.Event], tool: str, database_url: str
) -> None:
    model, answers = thinking

    async def cancel_midway(client: Client) -> None:
        call = asyncio.create_task(client.call_tool(tool, {"prompt": "a star"}))
        while not model.requests:
            await asyncio.sleep(0.02)
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)

    composing.run(cancel_midway)
    time.sleep(1)  # the server hears of it, and looks ten times a second
    answers.set()
    assert not composing.call("compose_adapters", prompt="a moon").is_error
    with psycopg.connect(database_url) as connection:
        assert connection.execute("select prompt from compositions").fetchall() == [("a moon",)]


def test_whoever_composes_leaves_threads_to_the_others(
    composing: Session, thinking: tuple[ChatServer, threading.Event]
) -> None:
    model, answers = thinking

    async def compose(client: Client) -> list[CallToolResult]:
        prompts = [f"a star and {number} moons" for number in range(COMPOSING + 20)]
        return await asyncio.gather(*(client.call_tool("compose_adapters", {"prompt": prompt}) for prompt in prompts))

    crowd = threading.Thread(target=composing.run, args=(compose,))
    crowd.start()
    until(lambda: len(model.requests) >= COMPOSING, 60)
    refused = composing.run(lambda client: client.call_tool("job", {"id": "none", "action": "status"}), timeout=10)
    assert "No job" in text(refused)
    answers.set()
    crowd.join(60)
