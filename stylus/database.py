"""Postgres for everybody else: connections that are known to work, errors of our own tree, migrations done.

psycopg_pool was left aside: it connects in background threads with growing pauses, so that a dead server costs every
caller the pool's timeout and recovery lags behind the server. Here the caller that finds the server gone restarts it
(embedded) or hears it at once (given), and the next call after its return works.
"""

import contextlib
import threading
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any, Self, TypeVar

import psycopg

from stylus.embedded_postgres import EmbeddedPostgres
from stylus.errors import DatabaseUnavailable, InvalidInput, StorageError
from stylus.migrate import migrate
from stylus.settings import Settings

T = TypeVar("T")

_MOST_CONNECTIONS = 16
_KEPT_IDLE = 4
_WAIT_SECONDS = 30.0
_CONNECT_SECONDS = 5
_TRIES = 5
_VERSIONS = """
SELECT current_setting('server_version'), extversion, version_num
FROM pg_extension, alembic_version WHERE extname = 'vector'
"""


class Database:
    """A migrated Postgres and a small pool of connections to it. Safe to use from many threads."""

    def __init__(self, url: str, embedded: EmbeddedPostgres | None = None) -> None:
        self.url = url
        self.embedded = embedded
        self._idle: list[psycopg.Connection[Any]] = []
        self._lock = threading.Lock()
        self._free = threading.BoundedSemaphore(_MOST_CONNECTIONS)
        self._closed = False

    @classmethod
    def open(cls, settings: Settings) -> Self:
        """The configured database, or the embedded one under the data folder, at the newest revision.

        Raises DatabaseUnavailable and StorageError; the messages say what to do.
        """
        if settings.database_url is not None:
            database = cls(settings.database_url.get_secret_value())
        else:
            embedded = EmbeddedPostgres(settings.data / "postgres")
            database = cls(embedded.url, embedded)
        try:
            with database._translated():
                migrate(database.url)
        except BaseException:
            database.close()
            raise
        return database

    @contextlib.contextmanager
    def connection(self) -> Iterator[psycopg.Connection[Any]]:
        """One transaction: committed at the end of the block, rolled back if it raises.

        Raises DatabaseUnavailable when the server is gone (the next call tries again), StorageError when its disk is
        full, InvalidInput for values that Postgres can't hold, as text with NUL. Other psycopg errors are bugs of ours.
        """
        if not self._free.acquire(timeout=_WAIT_SECONDS):
            raise DatabaseUnavailable(
                f"All {_MOST_CONNECTIONS} database connections were in use for {_WAIT_SECONDS:.0f} s. Try again."
            )
        try:
            with self._translated():
                connection = self._checkout()
                try:
                    yield connection
                    connection.commit()
                except BaseException:
                    _roll_back(connection)
                    raise
                finally:
                    self._checkin(connection)
        finally:
            self._free.release()

    def transact(self, work: Callable[[psycopg.Connection[Any]], T]) -> T:
        """`work` in one transaction, from its start again where Postgres ended it so that another could go on: two that
        write the same rows may each wait for the other. Raises as `connection` does."""
        for _ in range(_TRIES - 1):
            try:
                with self.connection() as connection:
                    return work(connection)
            except DatabaseUnavailable as error:
                if not isinstance(error.__cause__, psycopg.errors.DeadlockDetected):
                    raise
        with self.connection() as connection:
            return work(connection)

    def status(self) -> dict[str, str]:
        """Where the server is (no password) and the versions of Postgres, pgvector and our tables."""
        with self.connection() as connection:
            row = connection.execute(_VERSIONS).fetchone()
            info = connection.info
            where = f"{info.host}:{info.port}/{info.dbname}" if self.embedded is None else str(self.embedded.home)
        return {"location": where, **dict(zip(("postgres", "pgvector", "revision"), row or (), strict=True))}

    def close(self) -> None:
        """Closes idle connections and leaves the embedded server. May be called twice."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()
        if self.embedded is not None:
            self.embedded.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _checkout(self) -> psycopg.Connection[Any]:
        while True:
            with self._lock:
                if self._closed:
                    raise DatabaseUnavailable("The database was closed by this process. Open it anew.")
                connection = self._idle.pop() if self._idle else None
            if connection is None:
                break
            try:
                connection.execute("")  # begins the transaction, and so proves that the server is there
                return connection
            except psycopg.OperationalError:
                connection.close()
        try:
            return self._connect()
        except psycopg.OperationalError:
            if self.embedded is None:
                raise
            self.embedded.ensure_running()
            return self._connect()

    def _connect(self) -> psycopg.Connection[Any]:
        return psycopg.connect(self.url, connect_timeout=_CONNECT_SECONDS, application_name="stylus")

    def _checkin(self, connection: psycopg.Connection[Any]) -> None:
        usable = not connection.closed and connection.info.transaction_status == psycopg.pq.TransactionStatus.IDLE
        with self._lock:
            if usable and not self._closed and len(self._idle) < _KEPT_IDLE:
                self._idle.append(connection)
                return
        connection.close()

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except (psycopg.errors.DiskFull, psycopg.errors.IoError) as error:
            raise StorageError(f"Postgres can't write: {_first_line(error)}. Free space on its disk.") from error
        except (psycopg.OperationalError, psycopg.InterfaceError) as error:
            raise DatabaseUnavailable(f"Postgres is not available: {_first_line(error)}. {self._remedy()}") from error
        except psycopg.DataError as error:
            raise InvalidInput(f"Postgres can't hold this value: {_first_line(error)}.") from error

    def _remedy(self) -> str:
        if self.embedded is not None:
            return "Try again: the embedded server is started anew by the next call."
        return "Try again once the server of STYLUS_DATABASE_URL is back; check the URL if it never was."


def until_available(call: Callable[[], T], *, stop: threading.Event | None = None, say: Callable[[str], None]) -> T:
    """What `call` gives once Postgres answers, however long that takes. `say` is told, once, that it is waited for, and
    that it came. Raises DatabaseUnavailable when `stop` is set meanwhile."""
    stop, waiting = stop or threading.Event(), False
    while True:
        try:
            given = call()
        except DatabaseUnavailable as error:
            if not waiting:
                say(f"Waiting for the database: {error}")
            waiting = True
            if stop.wait(1.0):
                raise
        else:
            if waiting:
                say("The database is there.")
            return given


def _first_line(error: psycopg.Error) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


def _roll_back(connection: psycopg.Connection[Any]) -> None:
    """A connection that can't even roll back is closed: the error that led here is the one to tell."""
    try:
        connection.rollback()
    except psycopg.Error:
        connection.close()
