"""The queue of generations: rows of `jobs` say what was asked and how far it is; procrastinate (same Postgres) says who
works on it.

Why two tables: procrastinate's `finish_job` matches the id only, so a worker that was taken for dead can't tell that
another one has its job. Here every change of a job names the attempt that makes it; an outdated attempt changes nothing
and stops at its next step. Both rows are written in one transaction, so neither exists without the other.

Why waiting polls (every 0.05 to 0.25 s, one indexed read) instead of LISTEN: it needs no connection of its own per
waiter, it loses nothing while Postgres restarts, and its delay is small beside any picture. New jobs do reach the
worker by NOTIFY, which procrastinate listens to.
"""

import asyncio
import logging
import secrets
import signal
import threading
import time
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

import procrastinate
import psycopg
from procrastinate.exceptions import ConnectorException
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb

from stylus.database import Database
from stylus.errors import Cancelled, DatabaseUnavailable, NotFound, StylusError
from stylus.records import ImageRecord, JobRecord, JobStatus, OnProgress, Progress, Request

logger = logging.getLogger(__name__)
T = TypeVar("T")

QUEUE = "generate"
TASK = "generate"
HEARTBEAT = 3.0
"""Seconds between the signs of life of a worker."""
STALLED = 20.0
"""Seconds without one after which a worker's job goes to another. Long enough for an import of torch on a busy machine,
which holds the interpreter lock; too short only costs work that is done twice and kept once."""
DEATHS = 5
"""A job that was running when so many workers ended is what ends them."""
FINISHED = frozenset({JobStatus.DONE, JobStatus.FAILED, JobStatus.CANCELLED})

_BY_ID = "SELECT id, status, request, progress, error, created_at FROM jobs WHERE id = %s"
_BY_REQUEST_ID = "SELECT id, status, request, progress, error, created_at FROM jobs WHERE request_id = %s"
_IMAGES = "SELECT record FROM images WHERE job_id = %s ORDER BY index"
_SUBMIT = """
INSERT INTO jobs (id, request_id, request, progress) VALUES (%(id)s, %(request_id)s, %(request)s, %(progress)s)
ON CONFLICT (request_id) DO NOTHING RETURNING id
"""
_START = """
UPDATE jobs SET status = 'running', attempt = attempt + 1, deaths = deaths + (status = 'running')::int,
    progress = %(progress)s, started_at = now()
WHERE id = %(id)s AND status IN ('queued', 'running')
RETURNING attempt, deaths, request
"""
_REPORT = """
UPDATE jobs SET progress = %(progress)s WHERE id = %(id)s AND attempt = %(attempt)s AND status = 'running'
RETURNING cancel_requested
"""
_FINISH = """
UPDATE jobs SET status = %(status)s, error = %(error)s, finished_at = now()
WHERE id = %(id)s AND attempt = %(attempt)s AND status = 'running'
"""
_HAND_BACK = """
UPDATE jobs SET status = 'queued', progress = %(progress)s
WHERE id = %(id)s AND attempt = %(attempt)s AND status = 'running'
"""
_CANCEL = """
UPDATE jobs SET cancel_requested = true,
    status = CASE status WHEN 'queued' THEN 'cancelled' ELSE status END,
    finished_at = CASE status WHEN 'queued' THEN now() END
WHERE id = %(id)s AND status IN ('queued', 'running')
"""
# One statement, so that two workers that look at once don't both give the job back. NOT EXISTS instead of a join:
# Postgres evaluates it again for a row that changed while the lock was waited for.
_RETRY_STALLED = """
WITH stalled AS (
    SELECT job.id FROM procrastinate_jobs job
    WHERE job.status = 'doing' AND job.queue_name = %(queue)s AND NOT EXISTS (
        SELECT 1 FROM procrastinate_workers worker
        WHERE worker.id = job.worker_id AND worker.last_heartbeat > now() - make_interval(secs => %(seconds)s))
    FOR UPDATE OF job SKIP LOCKED
)
SELECT id, procrastinate_retry_job_v2(id, now(), NULL, NULL, NULL) FROM stalled
"""

_QUEUED = Progress(stage="queued")


class Renderer(Protocol):
    """What a worker needs of Stylus."""

    database: Database

    def generate(self, what: Request, *, on_progress: OnProgress, job_id: str) -> list[ImageRecord]: ...


class _HandedBack(Cancelled):
    """The worker is stopping: the job goes back to the queue."""


class Jobs:
    """The queue as its clients see it (submit, get, wait, cancel), and the worker that empties it."""

    def __init__(self, stylus: Renderer, *, heartbeat: float = HEARTBEAT, stalled: float = STALLED) -> None:
        """`heartbeat`, `stalled`: seconds, see the constants."""
        self.stylus = stylus
        self._heartbeat = heartbeat
        self._stalled = stalled
        # Only for its job manager: its statements run on connections of our own pool, so it opens none.
        self._app = procrastinate.App(connector=procrastinate.SyncPsycopgConnector())

    def submit(self, request: Request, request_id: str | None = None) -> JobRecord:
        """Queues a generation. The same `request_id` again gives the job that it made the first time."""
        id = secrets.token_urlsafe(16)
        values = {"id": id, "request_id": request_id, "progress": _json(_QUEUED), "request": _json(request)}
        with self.stylus.database.connection() as connection:
            if connection.execute(_SUBMIT, values).fetchone():
                self._defer(connection, id)
        if request_id is not None and (earlier := self.find(request_id)) is not None:
            return earlier
        return self.get(id)

    def _defer(self, connection: psycopg.Connection[Any], id: str) -> None:
        try:
            self._app.configure_task(TASK, queue=QUEUE, connection=connection).defer(id=id)
        except ConnectorException as error:
            # procrastinate wraps what the connection raised; unwrapped, our pool translates it like everything else
            raise (error.__cause__ or error) from error

    def get(self, id: str) -> JobRecord:
        """The job as it stands. Raises NotFound."""
        record = self._select(_BY_ID, id)
        if record is None:
            raise NotFound(f"No job {id[:100]!r}. Job ids come from generate_image; call it to start a new one.")
        return record

    def find(self, request_id: str) -> JobRecord | None:
        """The job that a client's `request_id` started, if it did."""
        return self._select(_BY_REQUEST_ID, request_id)

    def _select(self, statement: str, value: str) -> JobRecord | None:
        if "\0" in value:
            return None  # Postgres can't even compare with it
        with self.stylus.database.connection() as connection, connection.cursor(row_factory=dict_row) as cursor:
            row = cursor.execute(statement, [value]).fetchone()
            if row is None or row["status"] != JobStatus.DONE:
                images = []
            else:
                images = [kept["record"] for kept in cursor.execute(_IMAGES, [row["id"]])]
        return None if row is None else JobRecord.model_validate(row | {"images": images})

    def wait(self, id: str, timeout: float, on_progress: OnProgress | None = None) -> JobRecord:
        """Blocks until the job is finished, at most `timeout` seconds; the record says which."""
        end = time.monotonic() + timeout
        pause, reported = 0.05, None
        while True:
            record = self.get(id)
            if on_progress and record.progress != reported:
                reported = record.progress
                on_progress(reported)
            if record.status in FINISHED or time.monotonic() >= end:
                return record
            time.sleep(min(pause, max(0.0, end - time.monotonic())))
            pause = min(0.25, pause * 1.2)

    def cancel(self, id: str) -> JobRecord:
        """A queued job ends at once, a running one at its next step, a finished one stays as it is."""
        self.get(id)
        with self.stylus.database.connection() as connection:
            connection.execute(_CANCEL, {"id": id})
        return self.get(id)

    # --- the worker

    def run_worker(self, stop: threading.Event | None = None) -> None:
        """Works on the queue until `stop` is set; without one, in the foreground until SIGINT or SIGTERM.

        A worker ends when Postgres is away for more than some seconds: this starts the next one, for ever.
        """
        if stop is None:
            stop = threading.Event()
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, _stopper(stop))
        while not stop.is_set():
            try:
                asyncio.run(self._work(stop))
            except (StylusError, ConnectorException, psycopg.Error) as error:
                logger.warning("The worker ended (%s); the next one starts in a second.", error)
            except Exception:
                # a supervisor that dies of what it did not expect leaves a server that accepts jobs and does none
                logger.exception("The worker ended unexpectedly; the next one starts in a second.")
            stop.wait(1.0)

    async def _work(self, stop: threading.Event) -> None:
        """One life of a worker."""
        url = await asyncio.to_thread(self._live_url)
        connector = procrastinate.PsycopgConnector(conninfo=url, min_size=1, max_size=4, timeout=10)
        app = procrastinate.App(connector=connector)
        app.task(name=TASK, queue=QUEUE, retry=_RETRY)(lambda id: self._perform(id, stop))
        async with app.open_async():
            worker = asyncio.create_task(
                app.run_worker_async(
                    name="stylus",
                    queues=[QUEUE],
                    concurrency=1,
                    install_signal_handlers=False,
                    delete_jobs="always",  # our row is the record
                    fetch_job_polling_interval=1.0,
                    update_heartbeat_interval=self._heartbeat,
                    stalled_worker_timeout=self._stalled,
                )
            )
            # A job whose end could not be written stays `doing` in the name of a worker that lives: let the worker end
            # then, so that the job counts as stalled.
            asyncio.get_running_loop().set_exception_handler(lambda _, context: _end(worker, context))
            keeper = asyncio.create_task(self._keep(stop))
            await asyncio.wait({worker, keeper}, return_when=asyncio.FIRST_COMPLETED)
            for task in (keeper, worker):
                task.cancel()
            outcomes = await asyncio.gather(worker, keeper, return_exceptions=True)
        for outcome in outcomes:
            if isinstance(outcome, Exception):
                raise outcome

    def _live_url(self) -> str:
        with self.stylus.database.connection() as connection:
            connection.execute("SELECT 1")
        return self.stylus.database.url

    async def _keep(self, stop: threading.Event) -> None:
        """Returns when `stop` is set; until then gives the jobs of dead workers back to the queue now and then."""
        due = 0.0
        while not stop.is_set():
            if time.monotonic() >= due:
                await asyncio.to_thread(self.retry_stalled)
                due = time.monotonic() + self._stalled / 4
            await asyncio.sleep(0.1)

    def retry_stalled(self) -> int:
        """Gives the jobs of workers without a heartbeat back to the queue; returns how many."""
        with self.stylus.database.connection() as connection:
            rows = connection.execute(_RETRY_STALLED, {"queue": QUEUE, "seconds": self._stalled}).fetchall()
        if rows:
            logger.warning("Gave %d job(s) of ended workers back to the queue.", len(rows))
        return len(rows)

    def _perform(self, id: str, stop: threading.Event) -> None:
        """The body of a job. Whatever happens to it, its row says so; only Postgres being away leaves it running."""
        starting = Progress(stage="starting")
        started = self._until_database(stop, lambda: self._execute(_START, id=id, progress=_json(starting)))
        if started is None:
            return  # cancelled while it was queued, or done by a worker that could not say so to the queue
        attempt, deaths, content = started

        def finish(status: JobStatus, error: str | None = None) -> None:
            end = {"id": id, "attempt": attempt, "status": status.value, "error": error}
            self._until_database(stop, lambda: self._execute(_FINISH, **end))

        if deaths >= DEATHS:
            finish(JobStatus.FAILED, f"{deaths} workers ended while they worked on this job: it is not tried again.")
            return

        def report(progress: Progress) -> None:
            if stop.is_set():
                raise _HandedBack("The worker is stopping.")
            try:
                row = self._execute(_REPORT, id=id, attempt=attempt, progress=_json(progress))
            except DatabaseUnavailable:
                return  # the picture does not need Postgres; saving it does, and waits
            if row is None:
                raise Cancelled("Another worker has taken this job.")
            if row[0]:
                raise Cancelled("Cancelled by its owner.")

        try:
            report(starting)
            self.stylus.generate(Request.model_validate(content), job_id=id, on_progress=report)
        except _HandedBack:
            self._execute(_HAND_BACK, id=id, attempt=attempt, progress=_json(_QUEUED))
            raise
        except Cancelled as error:
            finish(JobStatus.CANCELLED, str(error))
        except DatabaseUnavailable:
            # the queue runs the job again, but must itself be able to write that down
            self._until_database(stop, self._live_url)
            raise
        except StylusError as error:
            finish(JobStatus.FAILED, str(error))
        except Exception as error:
            logger.exception("Job %s failed unexpectedly", id)
            text = f"Rendering failed unexpectedly ({type(error).__name__}); the server's log says more."
            finish(JobStatus.FAILED, text)
        else:
            finish(JobStatus.DONE)

    def _execute(self, statement: str, **values: Any) -> tuple[Any, ...] | None:
        with self.stylus.database.connection() as connection:
            cursor = connection.execute(statement, values)
            return cursor.fetchone() if cursor.description else None

    def _until_database(self, stop: threading.Event, call: Callable[[], T]) -> T:
        """What `call` gives once Postgres answers; what is rendered should not be lost to a restart of it."""
        while True:
            try:
                return call()
            except DatabaseUnavailable:
                if stop.wait(0.5):
                    raise


def _json(record: Progress | Request) -> Jsonb:
    return Jsonb(record.model_dump(mode="json"))


def _stopper(stop: threading.Event) -> Callable[[int, Any], None]:
    """The first signal lets the running job go back to the queue at its next step; the second one ends at once."""

    def on_signal(number: int, _: Any) -> None:
        stop.set()
        signal.signal(number, signal.SIG_DFL)

    return on_signal


def _end(worker: "asyncio.Task[None]", context: dict[str, Any]) -> None:
    logger.warning("The worker ends: %s", context.get("exception") or context["message"])
    worker.cancel()


_RETRY = procrastinate.RetryStrategy(wait=1, retry_exceptions=(_HandedBack, DatabaseUnavailable))
