"""Real servers: one on stdio for each protocol era and one on HTTP for both, each with a database of its own."""

import asyncio
import contextlib
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import httpx
import psycopg
import pytest
from mcp import Client, StdioServerParameters
from psycopg import sql
from psycopg.conninfo import make_conninfo

from stylus.embedded_postgres import EmbeddedPostgres
from stylus.embedder import Embedder
from stylus.records import Card
from stylus.settings import Settings
from tests.server import world

T = TypeVar("T")
PATIENCE = 120.0
"""Seconds: a server that draws for the first time imports torch, on a machine that is busy with other things."""


class Session:
    """A connected client on a thread of its own, so that one connection can serve many synchronous tests."""

    def __init__(self, server: StdioServerParameters | str, mode: str) -> None:
        self._loop = asyncio.new_event_loop()
        self._client = Client(server, mode=mode, cache=None)
        self._ready, self._end = threading.Event(), asyncio.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._live(),), daemon=True)
        self._thread.start()
        assert self._ready.wait(PATIENCE)
        if self._failure:
            raise self._failure

    async def _live(self) -> None:
        try:
            async with self._client:
                self._ready.set()
                await self._end.wait()
        except BaseException as error:
            self._failure = error
            self._ready.set()
            raise

    def run(self, work: Callable[[Client], Awaitable[T]], timeout: float = PATIENCE) -> T:
        async def on_loop() -> T:
            return await work(self._client)

        return asyncio.run_coroutine_threadsafe(on_loop(), self._loop).result(timeout)

    def call(self, tool: str, **arguments: Any) -> Any:
        return self.run(lambda client: client.call_tool(tool, arguments))

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join(15)
        assert not self._thread.is_alive()
        self._loop.close()


@pytest.fixture(scope="session")
def embedder() -> Embedder:
    return Embedder.open(Settings.model_validate({}))


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("world")


@pytest.fixture(scope="session")
def cards(folder: Path) -> list[Card]:
    return world.write(folder)


@contextlib.contextmanager
def filled_database(postgres: EmbeddedPostgres, template: str, cards: list[Card], embedder: Embedder) -> Iterator[str]:
    name = f"server_{secrets.token_hex(6)}"
    with psycopg.connect(postgres.url, autocommit=True) as connection:
        connection.execute(
            sql.SQL("create database {} template {}").format(sql.Identifier(name), sql.Identifier(template))
        )
        url = make_conninfo(postgres.url, dbname=name)
        world.fill(url, cards, embedder)
        yield url
        connection.execute(sql.SQL("drop database {} with (force)").format(sql.Identifier(name)))


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@contextlib.contextmanager
def http_server(environment: dict[str, str], *options: str) -> Iterator[str]:
    """A server on a free port of loopback; gives its origin, as http://127.0.0.1:1234."""
    port = free_port()
    command = [sys.executable, "-m", "server", "--http", "--port", str(port), *options]
    with subprocess.Popen(command, env=environment) as process:
        origin = f"http://127.0.0.1:{port}"
        try:
            _until_it_answers(process, origin)
            yield origin
        finally:
            process.terminate()
            assert process.wait(20) == 128 + signal.SIGTERM


def _until_it_answers(process: subprocess.Popen[bytes], origin: str) -> None:
    end = time.monotonic() + PATIENCE
    while True:
        assert process.poll() is None, "the server ended"
        assert time.monotonic() < end
        try:
            if httpx.get(f"{origin}/health", timeout=30).status_code in (200, 503):
                return
        except httpx.ConnectError:
            pass
        time.sleep(0.1)


@pytest.fixture(scope="session")
def origin(
    postgres: EmbeddedPostgres,
    template: str,
    cards: list[Card],
    folder: Path,
    embedder: Embedder,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[str]:
    with (
        filled_database(postgres, template, cards, embedder) as url,
        http_server(world.environment(url, folder, tmp_path_factory.mktemp("data"))) as origin,
    ):
        yield origin


@pytest.fixture(scope="session", params=["stdio-auto", "stdio-legacy", "http-auto", "http-legacy"])
def session(
    request: pytest.FixtureRequest,
    postgres: EmbeddedPostgres,
    template: str,
    cards: list[Card],
    folder: Path,
    embedder: Embedder,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Session]:
    transport, mode = request.param.split("-")
    if transport == "http":
        opened = Session(request.getfixturevalue("origin") + "/mcp", mode)
        yield opened
        opened.close()
        return
    with filled_database(postgres, template, cards, embedder) as url:
        opened = Session(world.stdio(world.environment(url, folder, tmp_path_factory.mktemp("data"))), mode)
        yield opened
        opened.close()
