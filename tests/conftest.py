"""What every test stands on: no network but loopback, no paid model, one thread of torch."""

import os
import secrets
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hypothesis
import psycopg
import pydantic_ai.models
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

from stylus.database import Database
from stylus.embedded_postgres import EmbeddedPostgres
from stylus.embedder import Embedder
from stylus.migrate import migrate
from stylus.settings import Settings

if TYPE_CHECKING:
    from playwright.sync_api import Browser

pydantic_ai.models.ALLOW_MODEL_REQUESTS = False
# A busy machine makes no property false.
hypothesis.settings.register_profile("stylus", deadline=None)
hypothesis.settings.load_profile("stylus")


def _is_loopback(address: Any) -> bool:
    return not isinstance(address, tuple) or address[0] in {"127.0.0.1", "::1", "localhost"}


@pytest.fixture(autouse=True, scope="session")
def only_loopback() -> Iterator[None]:
    """Refuses every socket that leaves this machine, so that no test depends on a hub or a provider."""
    with pytest.MonkeyPatch.context() as patch:
        for method in ("connect", "connect_ex"):
            original = getattr(socket.socket, method)

            def guarded(self: socket.socket, address: Any, original: Any = original) -> Any:
                if not _is_loopback(address):
                    raise RuntimeError(f"a test tried to reach {address}: only loopback is allowed")
                return original(self, address)

            patch.setattr(socket.socket, method, guarded)
        yield


def _folder_for_postgres() -> Path:
    """Short, so that its socket's path is; open, so that Postgres can enter it when we are root; in memory where there
    is room, since making and deleting a cluster's thousand files takes seconds on a slow disk."""
    memory = Path("/dev/shm")  # noqa: S108
    roomy = memory.is_dir() and os.access(memory, os.W_OK) and shutil.disk_usage(memory).free > 2**31
    folder = Path(tempfile.mkdtemp(prefix="stylus-test-", dir=memory if roomy else None))
    folder.chmod(0o755)
    return folder


@pytest.fixture(scope="session")
def postgres() -> Iterator[EmbeddedPostgres]:
    """One embedded server for the whole run."""
    folder = _folder_for_postgres()
    server = EmbeddedPostgres(folder / "postgres")
    with psycopg.connect(server.url, autocommit=True) as connection:
        for setting in ("fsync = off", "full_page_writes = off", "synchronous_commit = off"):
            connection.execute(f"alter system set {setting}")
        connection.execute("select pg_reload_conf()")
    yield server
    server.close()
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def template(postgres: EmbeddedPostgres) -> str:
    """The name of a migrated database, which each test clones: migrating takes a second, cloning milliseconds."""
    with psycopg.connect(postgres.url, autocommit=True) as connection:
        connection.execute("create database template_stylus")
    migrate(make_conninfo(postgres.url, dbname="template_stylus"))
    return "template_stylus"


@pytest.fixture
def database_url(postgres: EmbeddedPostgres, template: str) -> Iterator[str]:
    """A migrated, empty database of this test's own. Every connection to it is closed at the end."""
    with _cloned(postgres, template) as url:
        yield url


@contextmanager
def _cloned(postgres: EmbeddedPostgres, template: str) -> Iterator[str]:
    name = f"test_{secrets.token_hex(6)}"
    with psycopg.connect(postgres.url, autocommit=True) as connection:
        connection.execute(
            sql.SQL("create database {} template {}").format(sql.Identifier(name), sql.Identifier(template))
        )
        yield make_conninfo(postgres.url, dbname=name)
        connection.execute(sql.SQL("drop database {} with (force)").format(sql.Identifier(name)))


@pytest.fixture
def settings(database_url: str, tmp_path: Path) -> Settings:
    """Settings with this test's database and a data folder of its own; the environment is left out."""
    return Settings.model_validate({"database_url": database_url, "data": tmp_path / "data"})


@pytest.fixture
def database(settings: Settings) -> Iterator[Database]:
    with Database.open(settings) as database:
        yield database


@pytest.fixture
def second_database(postgres: EmbeddedPostgres, template: str, tmp_path: Path) -> Iterator[Database]:
    """Another empty database, as on another machine."""
    with _cloned(postgres, template) as url:
        settings = Settings.model_validate({"database_url": url, "data": tmp_path / "other"})
        with Database.open(settings) as database:
            yield database


@pytest.fixture(scope="session")
def stopped_cluster() -> Iterator[Path]:
    """The home of an embedded server that was made and stopped: copying it spares a test the seconds of initdb."""
    folder = _folder_for_postgres()
    EmbeddedPostgres(folder / "postgres").close()
    yield folder / "postgres"
    shutil.rmtree(folder)


@pytest.fixture
def home(stopped_cluster: Path, reachable: Path) -> Path:
    """The home of an embedded server that can be started."""
    subprocess.run(["cp", "-a", stopped_cluster, reachable / "postgres"], check=True)
    return reachable / "postgres"


@pytest.fixture
def reachable() -> Iterator[Path]:
    """An empty folder like tmp_path that other users can enter, for tests that start their own Postgres as root."""
    folder = _folder_for_postgres()
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def embedder() -> Embedder:
    """The default embedder, loaded once for all tests."""
    return Embedder.open(Settings.model_validate({}))


@pytest.fixture(scope="module")
def chromium() -> "Iterator[Browser]":
    """A real Chromium that reaches loopback only: the installed one, since playwright's own is a large download. As
    long as it is there, an event loop runs in this thread, and no test can start its own: so only for a module."""
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("no Chromium here: install it (Debian and Ubuntu: apt-get install chromium) to test the pages")
    from playwright.sync_api import sync_playwright

    loopback = "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost"
    flags = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, headless=True, args=[*flags, loopback])
        yield browser
        browser.close()
