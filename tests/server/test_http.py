"""Who the HTTP server talks to, and where it may be bound at all."""

import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from server.app import bound
from server.auth import security
from tests.server import world
from tests.server.conftest import PATIENCE, http_server

PING = {
    "jsonrpc": "2.0",
    "id": 1,
    "method": "initialize",
    "params": {
        "protocolVersion": "2025-06-18",
        "capabilities": {},
        "clientInfo": {"name": "test", "version": "1"},
    },
}
ACCEPT = {"Accept": "application/json, text/event-stream"}


def post(origin: str, **headers: str) -> httpx.Response:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return httpx.post(f"{origin}/mcp", json=PING, headers=ACCEPT | named, timeout=30)


def test_its_own_names_are_let_in(origin: str) -> None:
    port = origin.rpartition(":")[2]
    assert post(origin).status_code == 200
    assert post(origin, Origin=origin).status_code == 200
    assert post(origin, Host=f"localhost:{port}", Origin=f"http://localhost:{port}").status_code == 200


@pytest.mark.parametrize(
    ("header", "value", "status"),
    [
        ("Origin", "http://evil.example", 403),
        ("Origin", "http://localhost:3000", 403),
        ("Origin", "null", 403),
        ("Host", "evil.example", 421),
        ("Host", "127.0.0.1:1", 421),
        ("Content_Type", "text/plain", 400),
    ],
)
def test_other_pages_and_names_are_refused(origin: str, header: str, value: str, status: int) -> None:
    assert post(origin, **{header: value}).status_code == status


def test_large_requests_are_refused(origin: str) -> None:
    sent = httpx.post(f"{origin}/mcp", content=b"x" * (30 * 1024 * 1024), headers={"Content-Type": "application/json"})
    assert sent.status_code == 413


def test_health_says_only_whether_it_works(origin: str) -> None:
    answer = httpx.get(f"{origin}/health")
    assert (answer.status_code, answer.json()) == (200, {"status": "ok"})


def test_only_exact_hosts_and_origins() -> None:
    narrow = security("127.0.0.1", 8765)
    assert "127.0.0.1:8765" in narrow.allowed_hosts
    assert not any("*" in value for value in narrow.allowed_hosts + narrow.allowed_origins)
    assert security("10.0.0.7", 80).allowed_hosts == ["10.0.0.7:80"]
    assert security("0.0.0.0", 80).allowed_hosts  # noqa: S104
    assert "0.0.0.0:80" not in security("0.0.0.0", 80).allowed_hosts  # noqa: S104


def serve(environment: dict[str, str], *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "server", "--http", *options]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PATIENCE, check=False)


def test_the_body_of_an_answer_does_not_wait_for_its_headers_to_be_acknowledged() -> None:
    with (
        bound("127.0.0.1", 0) as listener,
        socket.create_connection(listener.getsockname()),
        listener.accept()[0] as connection,
    ):
        assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_without_tokens_only_loopback_is_bound(database_url: str, tmp_path: Path) -> None:
    ended = serve(world.environment(database_url, tmp_path, tmp_path), "--host", "0.0.0.0")  # noqa: S104
    assert ended.returncode != 0
    assert "STYLUS_TOKENS" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_taken_port_is_told(origin: str, tmp_path: Path) -> None:
    port = origin.rpartition(":")[2]
    ended = serve(world.environment("postgresql://127.0.0.1:1/none", tmp_path, tmp_path), "--port", port)
    assert ended.returncode != 0
    assert f"port {port}" in ended.stderr
    assert "--port" in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[str]:
    environment = world.environment("postgresql://127.0.0.1:1/none", tmp_path, tmp_path)
    with http_server(environment | {"STYLUS_TOKENS": "first-token, second-token"}) as origin:
        yield origin


def test_with_tokens_each_caller_needs_one(guarded: str) -> None:
    assert post(guarded, Authorization="Bearer first-token").status_code == 200
    assert post(guarded, Authorization="Bearer second-token").status_code == 200
    for wrong in ("Bearer nope", "Bearer", "Bearer first-token, second-token", "Basic first-token"):
        assert post(guarded, Authorization=wrong).status_code == 401
    unnamed = post(guarded)
    assert unnamed.status_code == 401
    assert "WWW-Authenticate" in unnamed.headers
    health = httpx.get(f"{guarded}/health")
    assert (health.status_code, health.json()) == (503, {"status": "database unavailable"})
