"""Two servers and three workers on one Postgres and one image store, real processes all; one worker dies at work.

How much faster more workers are is for `tests.benchmarks.workers` to say.
"""

import asyncio
import contextlib
import itertools
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mcp import Client

from stylus.database import Database
from stylus.ingest import ingest_pocket
from stylus.jobs import Jobs
from stylus.records import JobStatus
from stylus.settings import Settings
from stylus.stylus import Stylus
from tests.benchmarks.workers import WORKER
from tests.server import world
from tests.server.conftest import http_server
from tests.server.test_tools import answer
from tests.test_jobs import until
from tests.test_stylus import pixels

PATIENCE = 300.0
"""Seconds: six processes import torch, on two cores that are busy with other things."""
ASKED = list(itertools.product(["a red star on a blue background", "a green heart", "a blue circle"], range(3)))
"""Prompts and seeds."""
STEPS = 50
"""So many that a look at the database finds a worker amid a picture, with ten of them to go."""

_RECORD = """
CREATE TABLE taken (job text, worker bigint);
CREATE FUNCTION take() RETURNS trigger LANGUAGE plpgsql AS
    $$ BEGIN INSERT INTO taken VALUES (new.args ->> 'id', new.worker_id); RETURN NULL; END $$;
CREATE TRIGGER taken AFTER UPDATE ON procrastinate_jobs
    FOR EACH ROW WHEN (old.status = 'todo' AND new.status = 'doing') EXECUTE FUNCTION take();
"""
"""Who took which job: the queue itself forgets what is done."""
_DRAWING = """
SELECT jobs.id FROM jobs JOIN procrastinate_jobs queued ON queued.args ->> 'id' = jobs.id
WHERE queued.status = 'doing' AND queued.worker_id = %s AND jobs.status = 'running'
    AND progress ->> 'stage' = 'generating' AND (progress ->> 'done')::int BETWEEN 1 AND %s
"""


@pytest.fixture
def one_thread() -> Iterator[None]:
    """As in the processes."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.timeout(3 * PATIENCE)
def test_every_job_is_done_once_though_one_of_the_team_dies(settings: Settings, tmp_path: Path) -> None:
    with Stylus(settings) as stylus, contextlib.ExitStack() as team:
        environment = world.environment(stylus.database.url, tmp_path, settings.data)
        queue = Jobs(stylus.database)
        with stylus.database.connection() as connection:
            connection.execute(_RECORD)

        def hire(number: int) -> "subprocess.Popen[bytes]":
            process = team.enter_context(subprocess.Popen(WORKER, env=environment))
            team.callback(process.kill)
            until(lambda: len(queue.counts().workers) == number, PATIENCE)
            return process

        victim = hire(1)
        [doomed] = queue.counts().workers
        for number in (2, 3):
            hire(number)
        workers = set(queue.counts().workers)  # each server brings one more
        ingest_pocket(stylus.catalog, stylus.embedder)
        servers = [team.enter_context(http_server(environment)) for _ in range(2)]
        ids, lost, alone = asyncio.run(_play(servers, stylus, victim, doomed))

        until(lambda: not _rows(stylus.database, "SELECT id FROM procrastinate_jobs"), PATIENCE)
        counts = queue.counts()
        assert (counts.jobs, counts.images) == ({JobStatus.DONE: len(ASKED)}, len(ASKED))
        assert len(list((settings.data / "images").iterdir())) == len(ASKED)
        taken = _rows(stylus.database, "SELECT job, worker FROM taken")
        assert {job for job, _ in taken} == set(ids)
        assert {worker for job, worker in taken if job == lost} > {doomed}
        assert len({worker for _, worker in taken} & workers) >= 2
        drawn = [pixels(image.location) for id in ids for image in queue.get(id).images]

    # in another process, sums of floats may be taken in another order: at most one level of 255
    assert all(np.abs(one - other).max() <= 1 for one, other in zip(drawn, alone, strict=True))
    assert all(np.abs(one - other).max() > 1 for one, other in itertools.combinations(drawn, 2))


async def _play(
    servers: list[str], stylus: Stylus, victim: "subprocess.Popen[bytes]", doomed: int
) -> tuple[list[str], str, list[np.ndarray]]:
    """The jobs in the order of ASKED, the one that the victim was at, and the pictures as they are without a team."""
    async with asyncio.timeout(2 * PATIENCE), asyncio.TaskGroup() as clients:
        asked = [
            clients.create_task(_ask(servers[n % 2], servers[1 - n % 2], prompt, seed))
            for n, (prompt, seed) in enumerate(ASKED)
        ]
        lost = await asyncio.to_thread(_kill_at_work, victim, doomed, stylus.database)
        alone = await asyncio.to_thread(_draw, stylus)  # meanwhile the silence of the victim is noticed
    return [task.result() for task in asked], lost, alone


async def _ask(server: str, other: str, prompt: str, seed: int) -> str:
    """The id of a job that is asked for at `server` and, once it is done, read at the `other` too."""
    ask = {"prompt": prompt, "seed": seed, "base_model": "pocket", "steps": STEPS}
    async with Client(f"{server}/mcp", cache=None) as here, Client(f"{other}/mcp", cache=None) as there:
        made = answer(await here.call_tool("generate_image", ask))
        while made["status"] == "running":
            made = answer(await here.call_tool("job", {"id": made["job_id"]}))
        assert answer(await there.call_tool("job", {"id": made["job_id"], "action": "status"})) == made
    return str(made["job_id"])


def _kill_at_work(victim: "subprocess.Popen[bytes]", doomed: int, database: Database) -> str:
    """SIGKILL amid a picture; the job that it was for. A process that is stopped first still is where it was seen."""
    while True:
        until(lambda: bool(_rows(database, _DRAWING, doomed, STEPS - 10)), PATIENCE)
        victim.send_signal(signal.SIGSTOP)
        if drawing := _rows(database, _DRAWING, doomed, STEPS - 10):
            victim.kill()
            return str(drawing[0][0])
        victim.send_signal(signal.SIGCONT)


def _draw(stylus: Stylus) -> list[np.ndarray]:
    requests = [stylus.request(prompt, seed=seed, steps=STEPS) for prompt, seed in ASKED]
    return [np.asarray(stylus.pictures.render(request)[0].image, dtype=np.int16) for request in requests]


def _rows(database: Database, query: str, *values: object) -> list[tuple[Any, ...]]:
    with database.connection() as connection:
        return connection.execute(query, values).fetchall()
