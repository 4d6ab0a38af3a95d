"""The queue of generations: rows of `jobs` say what was asked and how far it is; procrastinate (same Postgres) says who
works on it.

Why two tables: procrastinate's `finish_job` matches the id only, so a worker that was taken for dead can't tell that
another one has its job. Here every change of a job names the attempt that makes it; an outdated attempt changes nothing
and stops at its next step. Both rows are written in one transaction, so neither exists without the other.

Why waiting polls (every 0.05 to 0.25 s, one indexed read) instead of LISTEN: it needs no connection of its own per
waiter, it loses nothing while Postgres restarts, and its delay is small beside any picture. New jobs do reach the
worker by NOTIFY, which procrastinate listens to.

Fair share: a job's priority is minus the number of unfinished jobs of its owner before it, so owners take turns,
however much one of them asks for. Each checkpoint has a queue of its own: a worker takes what it has a checkpoint for,
and prefers the one that it has in memory (`worker.OwnFirst`).
"""

import secrets
import time
from typing import Any

import procrastinate
import psycopg
from procrastinate.exceptions import ConnectorException
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb

from stylus import telemetry
from stylus.checkpoint_names import queue_of
from stylus.database import Database
from stylus.errors import Busy, NotFound
from stylus.records import JobRecord, JobStatus, OnProgress, Progress, QueueCounts, Request

TASK = "generate"
LIMIT = 200
"""Unfinished jobs: what comes on top is refused, since it would wait for hours and its client would not."""
CLIENT_LIMIT = 64
"""Unfinished jobs of one owner."""
FINISHED = frozenset({JobStatus.DONE, JobStatus.FAILED, JobStatus.CANCELLED})

LOCK = "SELECT pg_advisory_xact_lock(5820431)"
"""Submissions one by one, and apart from `FAIR`: counting and then adding would let two through a limit of one."""
_JOB = """
SELECT id, status, request, progress, error, created_at, asked, cancel_requested, CASE status WHEN 'queued' THEN
    (SELECT count(*) FROM jobs other WHERE other.status = 'running')
    + (SELECT count(*) FROM procrastinate_jobs mine JOIN procrastinate_jobs other
       ON other.status = 'todo' AND (other.priority, -other.id) > (mine.priority, -mine.id)
       WHERE mine.status = 'todo' AND mine.args ->> 'id' = jobs.id)
    ELSE 0 END AS ahead
FROM jobs WHERE (%(owner)s::text IS NULL OR owner = %(owner)s) AND
"""
_BY_ID = _JOB + "id = %(value)s"
_ENDED = "(status IN ('failed', 'cancelled') OR (cancel_requested AND status <> 'done'))"
"""Without pictures, or told to end so: a retry of its client means a new attempt."""
_BY_REQUEST_ID = _JOB + f"request_id = %(value)s AND NOT {_ENDED}"
_RELEASE = f"UPDATE jobs SET request_id = NULL WHERE owner = %(owner)s AND request_id = %(value)s AND {_ENDED}"  # noqa: S608
_IMAGES = "SELECT record FROM images WHERE job_id = %s AND deleted_at IS NULL ORDER BY index"
_UNFINISHED = """
SELECT count(*), count(*) FILTER (WHERE owner = %(owner)s) FROM jobs WHERE status IN ('queued', 'running')
"""
_SUBMIT = """
INSERT INTO jobs (id, owner, request_id, asked, request, progress)
VALUES (%(id)s, %(owner)s, %(request_id)s, %(asked)s, %(request)s, %(progress)s)
"""
_CANCEL = """
UPDATE jobs SET cancel_requested = true,
    status = CASE status WHEN 'queued' THEN 'cancelled' ELSE status END,
    finished_at = CASE status WHEN 'queued' THEN now() END
WHERE id = %(id)s AND status IN ('queued', 'running')
"""
_DROP = """
SELECT procrastinate_cancel_job_v1(id, false, true) FROM procrastinate_jobs
WHERE status = 'todo' AND args ->> 'id' = (SELECT id FROM jobs WHERE id = %(id)s AND status = 'cancelled')
"""
FAIR = """
UPDATE procrastinate_jobs job SET priority = ranked.priority
FROM (SELECT id, 1 - row_number() OVER (PARTITION BY owner ORDER BY status = 'queued', created_at, id) AS priority
      FROM jobs WHERE status IN ('queued', 'running')) ranked
WHERE job.args ->> 'id' = ranked.id AND job.status = 'todo' AND job.priority <> ranked.priority
"""
"""The priorities anew. What runs counts too, so that the owner whose turn it was comes after those who wait for one."""

QUEUED = Progress(stage="queued")


class Jobs:
    """The queue as its clients see it. `owner` is who asks: '' is whoever uses this machine without a token, and None,
    where it may be, is everybody."""

    def __init__(self, database: Database, *, limit: int = LIMIT, client_limit: int = CLIENT_LIMIT) -> None:
        """`limit`, `client_limit`: unfinished jobs, of all owners and of one."""
        self._database = database
        self._limit = limit
        self._client_limit = client_limit
        # Only for its job manager: its statements run on connections of our own pool, so it opens none.
        self._app = procrastinate.App(connector=procrastinate.SyncPsycopgConnector())

    def submit(
        self, request: Request, request_id: str | None = None, *, owner: str = "", asked: str | None = None
    ) -> JobRecord:
        """Queues a generation. The same `request_id` of an owner again gives the job that it made the first time; its
        `asked` is what was passed then. A job that failed or was cancelled gives its `request_id` to the new one.

        Raises Busy when the queue is full."""
        id = secrets.token_urlsafe(16)
        values = {"id": id, "owner": owner, "request_id": request_id, "asked": asked, "progress": as_json(QUEUED)}
        with self._database.connection() as connection:
            connection.execute(LOCK)
            known = {"owner": owner, "value": request_id}
            earlier = None
            if request_id is not None:
                connection.execute(_RELEASE, known)
                earlier = connection.execute(_BY_REQUEST_ID, known).fetchone()
            if earlier is not None:
                id = earlier[0]
            else:
                backlog = self._backlog(connection, owner)
                connection.execute(_SUBMIT, values | {"request": as_json(request)})
                queue = queue_of(request.composition.base_model, request.checkpoint)
                self._defer(connection, id, queue, priority=-backlog)
        return self.get(id)

    def counts(self) -> QueueCounts:
        """How many of everything, over all owners and workers."""
        with self._database.connection() as connection:
            jobs = connection.execute("SELECT status, count(*) FROM jobs GROUP BY status").fetchall()
            (images,) = connection.execute("SELECT count(*) FROM images").fetchone() or (0,)
            workers = connection.execute("SELECT id, last_heartbeat FROM procrastinate_workers").fetchall()
        return QueueCounts(jobs=dict(jobs), images=images, workers=dict(workers))

    def _backlog(self, connection: psycopg.Connection[Any], owner: str) -> int:
        """How many unfinished jobs the owner has. Raises Busy."""
        unfinished, own = connection.execute(_UNFINISHED, {"owner": owner}).fetchone() or (0, 0)
        remedy = "Nothing was queued: wait for some of them to end (job), or cancel some, then call again."
        if unfinished >= self._limit:
            raise Busy(f"busy, {unfinished} ahead: the queue takes no more than {self._limit} jobs. {remedy}")
        if own >= self._client_limit:
            raise Busy(f"busy, {own} of your own ahead: one client may have {self._client_limit} jobs. {remedy}")
        return int(own)

    def _defer(self, connection: psycopg.Connection[Any], id: str, queue: str, priority: int) -> None:
        try:
            self._app.configure_task(TASK, queue=queue, priority=priority, connection=connection).defer(
                id=id, trace=telemetry.context()
            )
        except ConnectorException as error:
            # procrastinate wraps what the connection raised; unwrapped, our pool translates it like everything else
            raise (error.__cause__ or error) from error

    def get(self, id: str, owner: str | None = None) -> JobRecord:
        """The job as it stands. Raises NotFound, for the job of another owner as for none at all."""
        record = self._select(_BY_ID, id, owner)
        if record is None:
            raise NotFound(f"No job {id[:100]!r}. Job ids come from generate_image; call it to start a new one.")
        return record

    def find(self, request_id: str, owner: str = "") -> JobRecord | None:
        """The job that a client's `request_id` started, if it did and it was neither cancelled nor failed."""
        return self._select(_BY_REQUEST_ID, request_id, owner)

    def _select(self, statement: str, value: str, owner: str | None) -> JobRecord | None:
        if "\0" in value:
            return None  # Postgres can't even compare with it
        with self._database.connection() as connection, connection.cursor(row_factory=dict_row) as cursor:
            row = cursor.execute(statement, {"value": value, "owner": owner}).fetchone()
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

    def cancel(self, id: str, owner: str | None = None) -> JobRecord:
        """A queued job ends at once, a running one at its next step, a finished one stays as it is."""
        self.get(id, owner)
        with self._database.connection() as connection:
            connection.execute(_CANCEL, {"id": id})
            connection.execute(_DROP, {"id": id})
        return self.get(id)


def as_json(record: Progress | Request) -> Jsonb:
    return Jsonb(record.model_dump(mode="json"))
