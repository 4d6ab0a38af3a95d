"""The worker that empties the queue (`jobs`): it survives Postgres, and others survive it.

procrastinate does not retry the jobs of dead workers by itself, and its worker ends after some seconds without
Postgres. Here a supervisor starts the next worker, and each worker gives the jobs of silent ones back to the queue.
"""

import asyncio
import logging
import signal
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any, Protocol, TypeVar

import procrastinate
import psycopg
from procrastinate.exceptions import ConnectorException
from procrastinate.jobs import Job
from procrastinate.manager import JobManager

from stylus.checkpoint_names import queues_of
from stylus.database import Database
from stylus.errors import Cancelled, DatabaseUnavailable, StylusError
from stylus.jobs import FAIR, LOCK, QUEUED, TASK, as_json
from stylus.records import ImageRecord, JobStatus, OnProgress, Progress, Request
from stylus.retention import Retention
from stylus.settings import Settings
from stylus.telemetry import stage

logger = logging.getLogger(__name__)
T = TypeVar("T")

HEARTBEAT = 3.0
"""Seconds between the signs of life of a worker."""
STALLED = 20.0
"""Seconds without one after which a worker's job goes to another. Long enough for an import of torch on a busy machine,
which holds the interpreter lock; too short only costs work that is done twice and kept once."""
DEATHS = 5
"""A job that was running when so many workers ended is what ends them."""
PRUNE, PRUNE_AT = "prune", "*/10 * * * *"
"""The task that deletes old pictures, and when."""
IN_A_ROW = 8
"""Jobs that a worker takes from its own queue while others may wait in front of them."""

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
# Nobody waits for a job that was cancelled: it ends here, and counts as unfinished no longer.
_HAND_BACK = """
UPDATE jobs SET progress = %(progress)s,
    status = CASE WHEN cancel_requested THEN 'cancelled' ELSE 'queued' END,
    error = CASE WHEN cancel_requested THEN 'Cancelled by its owner.' END,
    finished_at = CASE WHEN cancel_requested THEN now() END
WHERE id = %(id)s AND attempt = %(attempt)s AND status = 'running'
"""
# One statement, so that two workers that look at once don't both give the job back. NOT EXISTS instead of a join:
# Postgres evaluates it again for a row that changed while the lock was waited for.
_RETRY_STALLED = """
WITH stalled AS (
    SELECT job.id FROM procrastinate_jobs job
    WHERE job.status = 'doing' AND NOT EXISTS (
        SELECT 1 FROM procrastinate_workers worker
        WHERE worker.id = job.worker_id AND worker.last_heartbeat > now() - make_interval(secs => %(seconds)s))
    FOR UPDATE OF job SKIP LOCKED
)
SELECT id, procrastinate_retry_job_v2(id, now(), NULL, NULL, NULL) FROM stalled
"""
_HELD = "SELECT FROM procrastinate_jobs WHERE id = %(id)s AND worker_id = %(worker_id)s"


class Renderer(Protocol):
    """What a worker needs of Stylus."""

    settings: Settings
    database: Database
    retention: Retention

    def generate(self, what: Request, *, on_progress: OnProgress, job_id: str) -> list[ImageRecord]: ...


class _HandedBack(Cancelled):
    """The worker is stopping: the job goes back to the queue."""


class OwnFirst(JobManager):  # type: ignore[misc]  # procrastinate is read as untyped
    """Takes a job for the checkpoint of the last one, if there is any, since that one is in memory; now and then
    whatever is first, so that nobody waits for ever. Ends and gives back its own jobs only."""

    def __init__(self, connector: Any) -> None:
        super().__init__(connector)
        self._own: str | None = None
        self._taken = 0

    async def fetch_job(self, queues: Iterable[str] | None, worker_id: int) -> Job | None:
        if self._own is not None and self._taken < IN_A_ROW:
            job = await super().fetch_job([self._own], worker_id)
            if job is not None:
                self._taken += 1
                return job
        job = await super().fetch_job(queues, worker_id)
        if job is not None and job.task_name == TASK:
            self._own, self._taken = job.queue, 0
        return job

    # Theirs match the id only: a worker that was taken for dead and goes on would take the job off the queue while
    # another one works on it, and if that one ended too, nobody would ever do it.
    async def finish_job(self, job: Job, *args: Any, **kwargs: Any) -> None:
        if await self._holds(job):
            await super().finish_job(job, *args, **kwargs)

    async def retry_job(self, job: Job, *args: Any, **kwargs: Any) -> None:
        if await self._holds(job):
            await super().retry_job(job, *args, **kwargs)

    async def _holds(self, job: Job) -> bool:
        return bool(await self.connector.execute_query_all_async(_HELD, id=job.id, worker_id=job.worker_id))


class Worker:
    """Renders one job after the other."""

    def __init__(self, stylus: Renderer, *, heartbeat: float = HEARTBEAT, stalled: float = STALLED) -> None:
        """`heartbeat`, `stalled`: seconds, see the constants."""
        self._stylus = stylus
        self._database = stylus.database
        self._heartbeat = heartbeat
        self._stalled = stalled

    def run(self, stop: threading.Event | None = None) -> None:
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
        app.job_manager = OwnFirst(connector)
        app.task(name=TASK, retry=_RETRY)(lambda id, trace=None: self._perform(id, trace, stop))
        prune = app.task(name=PRUNE)(lambda timestamp: self._prune())
        if self._stylus.retention.on:
            app.periodic(cron=PRUNE_AT)(prune)  # of all workers that defer it at a time, procrastinate takes one
        async with app.open_async():
            worker = asyncio.create_task(
                app.run_worker_async(
                    name="stylus",
                    concurrency=1,
                    # what it has no checkpoint for is left to others; the task that prunes is in the queue "default"
                    queues=["default", *queues_of(self._stylus.settings.checkpoints)],
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
        with self._database.connection() as connection:
            connection.execute("SELECT 1")
        return self._database.url

    async def _keep(self, stop: threading.Event) -> None:
        """Returns when `stop` is set; until then looks after the queue now and then."""
        due = 0.0
        while not stop.is_set():
            if time.monotonic() >= due:
                await asyncio.to_thread(self.retry_stalled)
                await asyncio.to_thread(self.rank)
                due = time.monotonic() + self._stalled / 4
            await asyncio.sleep(0.1)

    def retry_stalled(self) -> int:
        """Gives the jobs of workers without a heartbeat back to the queue; returns how many."""
        with self._database.connection() as connection:
            rows = connection.execute(_RETRY_STALLED, {"seconds": self._stalled}).fetchall()
        if rows:
            logger.warning("Gave %d job(s) of ended workers back to the queue.", len(rows))
        return len(rows)

    def _prune(self) -> None:
        gone = self._stylus.retention.apply()
        if gone:
            logger.info("Deleted %d old pictures, %d bytes.", len(gone), sum(one.bytes for one in gone))

    def rank(self) -> None:
        """Lets the waiting jobs of each owner move up (`jobs.FAIR`)."""
        with self._database.connection() as connection:
            connection.execute(LOCK)
            connection.execute(FAIR)

    def _perform(self, id: str, trace: dict[str, str] | None, stop: threading.Event) -> None:
        """The body of a job, in the `trace` of the call that asked for it. Whatever happens to it, its row says so;
        only Postgres being away leaves it running."""
        starting = Progress(stage="starting")
        started = self._until_database(stop, lambda: self._execute(_START, id=id, progress=as_json(starting)))
        if started is None:
            return  # cancelled while it was queued, or done by a worker that could not say so to the queue
        attempt, deaths, content = started

        def finish(status: JobStatus, error: str | None = None) -> None:
            end = {"id": id, "attempt": attempt, "status": status.value, "error": error}
            self._until_database(stop, lambda: self._execute(_FINISH, **end))

        def hand_back() -> None:
            self._execute(_HAND_BACK, id=id, attempt=attempt, progress=as_json(QUEUED))

        if deaths >= DEATHS:
            finish(JobStatus.FAILED, f"{deaths} workers ended while they worked on this job: it is not tried again.")
            return

        def report(progress: Progress) -> None:
            if stop.is_set():
                raise _HandedBack("The worker is stopping.")
            try:
                row = self._execute(_REPORT, id=id, attempt=attempt, progress=as_json(progress))
            except DatabaseUnavailable:
                return  # the picture does not need Postgres; saving it does, and waits
            if row is None:
                raise Cancelled("Another worker has taken this job.")
            if row[0]:
                raise Cancelled("Cancelled by its owner.")

        try:
            self.rank()
            report(starting)
            with stage("job", trace, job_id=id, attempt=attempt):
                self._stylus.generate(Request.model_validate(content), job_id=id, on_progress=report)
        except _HandedBack:
            hand_back()
            raise
        except Cancelled as error:
            finish(JobStatus.CANCELLED, str(error))
        except DatabaseUnavailable:
            # no fault of the job's: the queue runs it again, and must itself be able to write that down
            self._until_database(stop, hand_back)
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
        with self._database.connection() as connection:
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
