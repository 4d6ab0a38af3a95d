"""The queue against real Postgres and real workers in threads; the renderer is a small one that takes its time."""

import contextlib
import itertools
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime

import psycopg
import pytest

from stylus.database import Database
from stylus.errors import Busy, Cancelled, DatabaseUnavailable, GenerationError, NotFound
from stylus.history import History
from stylus.jobs import Jobs
from stylus.records import (
    BaseModelFamily,
    Composition,
    ImageRecord,
    JobRecord,
    JobStatus,
    OnProgress,
    Progress,
    Request,
)
from stylus.retention import Retention
from stylus.settings import Settings
from stylus.worker import IN_A_ROW, Worker


class Painter:
    """Renders `steps` steps of 20 ms and keeps its images in the history, as Stylus does."""

    def __init__(
        self, database: Database, checkpoints: Mapping[str, str] = {"sd15": "folder", "sdxl": "folder"}
    ) -> None:
        self.settings = Settings.model_validate({"checkpoints": dict(checkpoints)})
        self.database = database
        self.retention = Retention(database, self.settings)
        self.steps = 5
        self.started: list[str] = []
        self.failure: Callable[[], None] = lambda: None

    def generate(self, what: Request, *, on_progress: OnProgress, job_id: str) -> list[ImageRecord]:
        self.started.append(job_id)
        for step in range(self.steps):
            time.sleep(0.02)
            on_progress(Progress(stage="generating", done=step + 1, total=self.steps))
        self.failure()
        images = [
            ImageRecord(
                id=f"{job_id}-{index}", uri=f"stylus://images/{job_id}-{index}", location="nowhere.png", index=index,
                seed=what.seed + index, prompt=what.composition.prompt, width=64, height=64, adapters={}, job_id=job_id,
                created_at=datetime.now(UTC),
            )
            for index in range(what.count)
        ]  # fmt: skip
        return list(History(self.database).save_images(images))


@pytest.fixture
def painter(database: Database) -> Painter:
    return Painter(database)


@pytest.fixture
def jobs(database: Database) -> Jobs:
    return Jobs(database)


def worker_of(painter: Painter, stalled: float = 1.0) -> Worker:
    return Worker(painter, heartbeat=0.2, stalled=stalled)


@contextlib.contextmanager
def worker(painter: Painter, stalled: float = 1.0) -> Iterator[threading.Event]:
    stop = threading.Event()
    thread = threading.Thread(target=worker_of(painter, stalled).run, args=(stop,), daemon=True)
    thread.start()
    yield stop
    stop.set()
    thread.join(10)
    assert not thread.is_alive()


def request(count: int = 1, family: BaseModelFamily = BaseModelFamily.POCKET) -> Request:
    composition = Composition(id="c", prompt="a star", base_model=family, tasks=(), composer="caller")
    return Request(composition=composition, count=count, seed=7)


def test_a_worker_leaves_what_it_has_no_checkpoint_for(jobs: Jobs, database: Database) -> None:
    named = request(family=BaseModelFamily.SD15).model_copy(update={"checkpoint": "anime"})
    first = [jobs.submit(request(family=BaseModelFamily.SD15)), jobs.submit(named), jobs.submit(request())]
    lacking, having = Painter(database, {"sd15": "folder"}), Painter(database, {"sd15:anime": "folder"})
    with worker(lacking):
        until(lambda: jobs.get(first[2].id).status is JobStatus.DONE)
        time.sleep(0.5)
    assert sorted(lacking.started) == sorted([first[0].id, first[2].id])
    assert jobs.get(first[1].id).status is JobStatus.QUEUED
    with worker(having):
        until(lambda: jobs.get(first[1].id).status is JobStatus.DONE)


def until(condition: Callable[[], bool], seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_a_job_ends_with_its_images_in_order_and_tells_its_progress(jobs: Jobs, painter: Painter) -> None:
    told: list[Progress] = []
    submitted = jobs.submit(request(count=3))
    assert submitted.status is JobStatus.QUEUED
    with worker(painter):
        job = jobs.wait(submitted.id, timeout=10, on_progress=told.append)
    assert job.status is JobStatus.DONE
    assert [image.index for image in job.images] == [0, 1, 2]
    assert [image.seed for image in job.images] == [7, 8, 9]
    assert told[0].stage == "queued"
    assert told[-1] == Progress(stage="generating", done=5, total=5)


def test_wait_returns_an_unfinished_job_when_its_time_is_over(jobs: Jobs) -> None:
    submitted = jobs.submit(request())
    start = time.monotonic()
    assert jobs.wait(submitted.id, timeout=0.2).status is JobStatus.QUEUED
    assert 0.2 <= time.monotonic() - start < 2


def test_the_same_request_id_is_the_same_job(jobs: Jobs) -> None:
    first = jobs.submit(request(), request_id="mine", asked="a star")
    again = jobs.submit(request(), request_id="mine", asked="a moon")
    assert (again.id, again.asked) == (first.id, "a star")
    assert jobs.submit(request(), request_id="other").id != first.id
    assert jobs.find("mine") == first
    assert jobs.find("nobody's") is None


def test_a_retry_after_a_failure_or_a_cancellation_is_a_new_job(jobs: Jobs, painter: Painter) -> None:
    def fail() -> None:
        painter.failure = lambda: None
        raise GenerationError("Download the file again.")

    painter.failure = fail
    cancelled = jobs.submit(request(), "mine")
    jobs.cancel(cancelled.id)
    assert jobs.find("mine") is None
    failed = jobs.submit(request(), "mine", asked="a star")
    with worker(painter):
        assert jobs.wait(failed.id, timeout=10).status is JobStatus.FAILED
        again = jobs.submit(request(), "mine", asked="a moon")
        assert jobs.wait(again.id, timeout=10).status is JobStatus.DONE
        painter.steps = 10_000
        running = jobs.submit(request(), "other")
        until(lambda: running.id in painter.started)
        jobs.cancel(running.id)  # it may run for a step yet
        assert jobs.submit(request(), "other").id != running.id
    assert len({cancelled.id, failed.id, again.id}) == 3
    assert jobs.submit(request(), "mine").id == again.id
    assert jobs.get(failed.id).error == "Download the file again."


def test_one_row_on_the_queue_for_each_job(jobs: Jobs, database: Database) -> None:
    for _ in range(2):
        jobs.submit(request(), request_id="mine")
    with database.connection() as connection:
        assert connection.execute("select count(*) from procrastinate_jobs").fetchone() == (1,)


def test_an_unknown_id_says_where_ids_come_from(jobs: Jobs) -> None:
    with pytest.raises(NotFound, match=r"'nope'.*generate_image"):
        jobs.get("nope")
    with pytest.raises(NotFound):
        jobs.cancel("nope")


def test_a_queued_job_is_cancelled_at_once_and_never_rendered(jobs: Jobs, painter: Painter) -> None:
    cancelled = jobs.submit(request())
    assert jobs.cancel(cancelled.id).status is JobStatus.CANCELLED
    with worker(painter):
        assert jobs.wait(jobs.submit(request()).id, timeout=10).status is JobStatus.DONE
    assert cancelled.id not in painter.started


def test_a_running_job_is_cancelled_within_a_step(jobs: Jobs, painter: Painter) -> None:
    painter.steps = 10_000
    job = jobs.submit(request())
    with worker(painter):
        until(lambda: jobs.get(job.id).progress.done > 2)
        start = time.monotonic()
        told = jobs.cancel(job.id)
        assert told.cancel_requested
        assert told.status in (JobStatus.RUNNING, JobStatus.CANCELLED)
        assert jobs.wait(job.id, timeout=5).status is JobStatus.CANCELLED
        assert time.monotonic() - start < 1


def test_a_finished_job_is_not_cancelled_any_more(jobs: Jobs, painter: Painter) -> None:
    job = jobs.submit(request())
    with worker(painter):
        jobs.wait(job.id, timeout=10)
    assert jobs.cancel(job.id).status is JobStatus.DONE


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (GenerationError("The picture holds NaN. Lower the weights."), "The picture holds NaN. Lower the weights."),
        (ZeroDivisionError("secret"), "Rendering failed unexpectedly (ZeroDivisionError)"),
    ],
)
def test_a_failed_job_says_why_and_the_next_one_is_done(
    jobs: Jobs, painter: Painter, error: Exception, said: str
) -> None:
    def fail() -> None:
        painter.failure = lambda: None
        raise error

    painter.failure = fail
    with worker(painter):
        failed = jobs.wait(jobs.submit(request()).id, timeout=10)
        assert jobs.wait(jobs.submit(request()).id, timeout=10).status is JobStatus.DONE
    assert failed.status is JobStatus.FAILED
    assert failed.error is not None
    assert failed.error.startswith(said)
    assert "secret" not in failed.error


def test_a_stopping_worker_hands_its_job_back_and_the_next_worker_does_it(jobs: Jobs, painter: Painter) -> None:
    painter.steps = 10_000
    job = jobs.submit(request())
    with worker(painter):
        until(lambda: bool(painter.started))  # "running" is said a little before
    assert jobs.get(job.id).status is JobStatus.QUEUED
    painter.steps = 2
    with worker(painter):
        assert jobs.wait(job.id, timeout=10).status is JobStatus.DONE
    assert painter.started == [job.id, job.id]


def test_a_stopping_worker_ends_a_job_that_was_cancelled(jobs: Jobs, painter: Painter, database: Database) -> None:
    job = jobs.submit(request())
    with worker(painter) as stop:

        def leave() -> None:
            jobs.cancel(job.id)
            stop.set()
            raise DatabaseUnavailable("away")  # hands back, as the next step would

        painter.failure = leave
        until(stop.is_set)
    ended = jobs.get(job.id)
    assert (ended.status, ended.error) == (JobStatus.CANCELLED, "Cancelled by its owner.")
    with database.connection() as connection:
        assert connection.execute("select finished_at is null from jobs").fetchone() == (False,)


def test_the_job_of_a_dead_worker_goes_to_another_one(jobs: Jobs, database: Database, painter: Painter) -> None:
    job = jobs.submit(request())
    with database.connection() as connection:  # a worker took the job and was killed some time ago
        [dead] = connection.execute(
            "insert into procrastinate_workers (last_heartbeat) values (now() - interval '1 hour') returning id"
        ).fetchone() or [None]
        connection.execute("select procrastinate_fetch_job_v2(null, %s)", [dead])
    assert worker_of(painter).retry_stalled() == 1
    assert worker_of(painter).retry_stalled() == 0
    with worker(painter):
        assert jobs.wait(job.id, timeout=10).status is JobStatus.DONE


def test_the_job_of_a_live_worker_stays(jobs: Jobs, painter: Painter) -> None:
    painter.steps = 100  # two seconds: longer than a worker may be silent
    job = jobs.submit(request())
    with worker(painter):
        assert jobs.wait(job.id, timeout=10).status is JobStatus.DONE
    assert painter.started == [job.id]


def test_an_outdated_attempt_stops_and_changes_nothing(jobs: Jobs, painter: Painter, database: Database) -> None:
    painter.steps = 10_000
    job = jobs.submit(request())
    with worker(painter):
        until(lambda: jobs.get(job.id).progress.done > 0)
        with database.connection() as connection:  # another worker begins the same job
            connection.execute('update jobs set attempt = attempt + 1, progress = \'{"stage": "theirs"}\'')
            connection.execute(
                "with other as (insert into procrastinate_workers (last_heartbeat) "
                "values (now() + interval '1 hour') returning id) "
                "update procrastinate_jobs set worker_id = other.id from other"
            )
        time.sleep(0.5)
        stands = jobs.get(job.id)
        with database.connection() as connection:
            on_queue = connection.execute("select status from procrastinate_jobs").fetchall()
    assert on_queue == [("doing",)]  # if the other one ends, a third one finds it
    assert (stands.status, stands.progress.stage) == (JobStatus.RUNNING, "theirs")


def test_a_job_that_ends_its_workers_is_given_up(jobs: Jobs, painter: Painter, database: Database) -> None:
    job = jobs.submit(request())
    with database.connection() as connection:
        connection.execute("update jobs set status = 'running', deaths = 4")
    with worker(painter):
        ended = jobs.wait(job.id, timeout=10)
    assert ended.status is JobStatus.FAILED
    assert ended.error is not None
    assert "5 workers ended" in ended.error
    assert painter.started == []


def test_every_job_ends_once_though_all_connections_are_cut_again_and_again(
    jobs: Jobs, database: Database, painter: Painter
) -> None:
    submitted = [jobs.submit(request(count=2)) for _ in range(8)]
    with worker(painter):
        for _ in range(6):
            time.sleep(0.3)
            with psycopg.connect(database.url, autocommit=True) as connection:
                connection.execute(
                    "select pg_terminate_backend(pid) from pg_stat_activity "
                    "where datname = current_database() and pid <> pg_backend_pid()"
                )
        ended = [jobs.wait(job.id, timeout=30) for job in submitted]
    assert [job.status for job in ended] == [JobStatus.DONE] * 8
    assert [len(job.images) for job in ended] == [2] * 8
    with database.connection() as connection:
        assert connection.execute("select count(*) from images").fetchone() == (16,)


def test_a_callback_may_end_the_wait(jobs: Jobs) -> None:
    def refuse(_: Progress) -> None:
        raise Cancelled("enough")

    job = jobs.submit(request())
    with pytest.raises(Cancelled, match="enough"):
        jobs.wait(job.id, timeout=5, on_progress=refuse)


def test_records_survive_the_way_through_the_database(jobs: Jobs) -> None:
    asked = request(count=2)
    job = jobs.submit(asked)
    assert job.request == asked
    assert JobRecord.model_validate_json(job.model_dump_json()) == job


def test_a_full_queue_says_how_many_are_ahead_and_takes_nothing(database: Database, painter: Painter) -> None:
    jobs = Jobs(database, limit=3, client_limit=2)
    first = jobs.submit(request(), "again", owner="greedy")
    jobs.submit(request(), owner="greedy")
    with pytest.raises(Busy, match="busy, 2 of your own ahead"):
        jobs.submit(request(), owner="greedy")
    jobs.submit(request(), owner="modest")
    with pytest.raises(Busy, match="busy, 3 ahead"):
        jobs.submit(request(), owner="late")
    # what is there already is no new job
    assert jobs.submit(request(), "again", owner="greedy").id == first.id
    with database.connection() as connection:
        assert connection.execute("select count(*) from procrastinate_jobs").fetchone() == (3,)
    with worker(painter):
        until(lambda: jobs.get(first.id).status is JobStatus.DONE)
    jobs.submit(request(), owner="greedy")


def test_owners_take_turns_however_much_one_of_them_asks_for(jobs: Jobs, painter: Painter) -> None:
    many = [jobs.submit(request(), owner="greedy").id for _ in range(4)]
    few = [jobs.submit(request(), owner="modest").id for _ in range(2)]
    assert [jobs.get(id).ahead for id in (*many, *few)] == [0, 2, 4, 5, 1, 3]
    with worker(painter, stalled=20.0):  # nothing is begun twice
        until(lambda: all(jobs.get(id).status is JobStatus.DONE for id in (*many, *few)), 30)
    names = {id: name for name, id in zip(("g0", "g1", "g2", "g3", "m0", "m1"), (*many, *few), strict=True)}
    assert [names[id] for id in painter.started] == ["g0", "m0", "g1", "m1", "g2", "g3"]


def test_a_backlog_moves_up_so_that_newcomers_do_not_hold_it_back_for_ever(jobs: Jobs, painter: Painter) -> None:
    old = [jobs.submit(request(), owner="greedy").id for _ in range(3)]
    for id in old[:2]:
        jobs.cancel(id)
    worker_of(painter).rank()
    new = jobs.submit(request(), owner="modest").id
    assert (jobs.get(old[2]).ahead, jobs.get(new).ahead) == (0, 1)


def test_a_job_of_another_owner_is_not_there(jobs: Jobs) -> None:
    job = jobs.submit(request(), "mine", owner="anna")
    assert jobs.get(job.id, "anna") == jobs.get(job.id)
    for call in (jobs.get, jobs.cancel):
        with pytest.raises(NotFound):
            call(job.id, "bert")
    assert jobs.get(job.id).status is JobStatus.QUEUED
    assert jobs.find("mine", "bert") is None
    assert jobs.submit(request(), "mine", owner="bert").id != job.id


def test_a_worker_stays_with_its_checkpoint_but_not_for_ever(jobs: Jobs, painter: Painter) -> None:
    painter.steps = 1
    families = [BaseModelFamily.POCKET, BaseModelFamily.SD15]
    mixed = [jobs.submit(request(family=families[index % 2])) for index in range(2 * IN_A_ROW + 4)]
    with worker(painter, stalled=20.0):  # nothing is begun twice
        until(lambda: len(painter.started) == len(mixed) and jobs.get(painter.started[-1]).status is JobStatus.DONE, 30)
    by_id = {job.id: job.request.composition.base_model for job in mixed}
    drawn = [by_id[id] for id in painter.started]
    assert drawn[: IN_A_ROW + 1] == [BaseModelFamily.POCKET] * (IN_A_ROW + 1)
    changes = sum(before is not after for before, after in itertools.pairwise(drawn))
    assert 1 <= changes <= 3  # in turns it would be 19
