"""Pictures a second with one, two and more workers on one machine, each with one thread of torch.

`python -m tests.benchmarks.workers --json OUT`. Real `stylus worker` processes on one embedded Postgres draw the pocket
world; the jobs are on the queue before the clock starts, which it does when every worker has its checkpoint.
`growth` is the throughput over that of one worker.
"""

import argparse
import json
import os
import subprocess
import time
from collections import defaultdict
from pathlib import Path

from stylus.ingest import ingest_pocket
from stylus.jobs import FINISHED, Jobs
from stylus.records import JobStatus, Request
from stylus.settings import Settings
from stylus.stylus import Stylus
from tests import COMMAND
from tests.benchmarks import data_folder

WORKER = [*COMMAND, "worker"]
PATIENCE = 900.0
_DOING = "select worker_id, args ->> 'id' from procrastinate_jobs where status = 'doing'"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="where to write the figures")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--jobs", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=3, help="the fastest counts")
    arguments = parser.parse_args()
    with data_folder() as folder, Stylus(Settings.model_validate({"data": folder, "device": "cpu"})) as stylus:
        ingest_pocket(stylus.catalog, stylus.embedder)
        rates = {
            count: max(_measure(stylus, count, arguments.jobs) for _ in range(arguments.rounds))
            for count in arguments.workers
        }
    result = {
        str(count): {"jobs_per_s": round(rate, 2), "growth": round(rate / rates[arguments.workers[0]], 2)}
        for count, rate in rates.items()
    }
    text = json.dumps(result, indent=2)
    print(text)
    if arguments.json:
        arguments.json.write_text(text + "\n")


def _measure(stylus: Stylus, count: int, jobs: int) -> float:
    """Jobs a second."""
    environment = {
        **os.environ,
        "STYLUS_DATA": str(stylus.settings.data),
        "STYLUS_DEVICE": "cpu",
        "OMP_NUM_THREADS": "1",
    }
    queue = Jobs(stylus.database, client_limit=jobs)
    composition = stylus.compose("a red star on a checkerboard background")
    request = stylus.request(composition, seed=1)
    processes = [subprocess.Popen(WORKER, env=environment, stdout=subprocess.DEVNULL) for _ in range(count)]
    try:
        _warm(stylus, queue, request, count)
        ids = [queue.submit(request).id for _ in range(jobs)]
        start = time.perf_counter()
        done = _done(queue, ids)
        took = time.perf_counter() - start
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait(60)
    if not all(done):
        raise RuntimeError(f"{done.count(False)} of {jobs} jobs were not done")
    return jobs / took


def _warm(stylus: Stylus, queue: Jobs, request: Request, count: int) -> None:
    """Draws until each worker has taken a second job: it imported torch and loaded the checkpoint for its first."""
    taken: defaultdict[int, set[str]] = defaultdict(set)
    submitted: list[str] = []
    while len(taken) < count or any(len(ids) < 2 for ids in taken.values()):
        if all(queue.get(id).status is not JobStatus.QUEUED for id in submitted[-count:]):
            submitted += [queue.submit(request).id for _ in range(count)]
        with stylus.database.connection() as connection:
            for worker, id in connection.execute(_DOING):
                taken[worker].add(id)
        time.sleep(0.02)
    _done(queue, submitted)


def _done(queue: Jobs, ids: list[str]) -> list[bool]:
    """Whether each job was done, when all have ended."""
    ended = [queue.wait(id, PATIENCE) for id in ids]
    if any(job.status not in FINISHED for job in ended):
        raise TimeoutError("The jobs did not end.")
    return [job.status is JobStatus.DONE for job in ended]


if __name__ == "__main__":
    main()
