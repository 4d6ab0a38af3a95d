"""Jobs that survive: real processes, killed at random, and each accepted job still ends once with the right pixels.

`python -m tests.benchmarks.chaos --json OUT`. A server, a worker and the embedded Postgres share one data folder; every
few seconds one of them gets a SIGKILL (times and victims are a function of --seed), and `Supervisor` starts it again.
A client submits jobs over HTTP, repeats a call that failed under the same request_id, and logs each job id that it was
given. At the end: `done` ended with the pixels of an undisturbed run, `lost` did not, `doubled` are jobs and images
beyond one each. `--quick` draws squares instead of pocket pictures, which spares each new process the import of torch.
"""

import argparse
import asyncio
import json
import os
import random
import socket
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]
import psycopg
from mcp import Client, MCPError
from mcp.types import CallToolResult, TextContent
from PIL import Image

from stylus.embedded_postgres import EmbeddedPostgres
from stylus.errors import StylusError
from stylus.ingest import ingest_pocket
from stylus.settings import Settings
from stylus.stylus import Stylus
from tests.benchmarks import data_folder
from tests.benchmarks.workers import WORKER

PATIENCE = 900.0
"""Seconds for all jobs of a run to end."""
REFUSALS = 300
"""Calls in a row, 0.3 s apart and more, after which it is no kill that they fail of."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="where to write the figures")
    parser.add_argument("--jobs", type=int, default=50)
    parser.add_argument("--kills", type=int, default=15)
    parser.add_argument("--every", type=float, default=4.0, help="seconds between kills, on average")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="squares instead of pocket pictures")
    arguments = parser.parse_args()
    with data_folder() as folder:
        result = chaos(
            folder,
            jobs=arguments.jobs,
            kills=arguments.kills,
            every=arguments.every,
            seed=arguments.seed,
            quick=arguments.quick,
        )
    text = json.dumps(result, indent=2)
    print(text)
    if arguments.json:
        arguments.json.write_text(text + "\n")


def chaos(folder: Path, *, jobs: int, kills: int, every: float, seed: int, quick: bool) -> dict[str, int]:
    """The same jobs undisturbed and disturbed, each in a data folder of its own under `folder`."""
    calm = Run(folder / "calm", jobs, quick)
    calm.go(kills=0, every=every, seed=seed)
    wild = Run(folder / "wild", jobs, quick)
    wild.go(kills=kills, every=every, seed=seed)
    done = sum(wild.pixels.get(n) is not None and wild.pixels[n] == calm.pixels.get(n) for n in range(jobs))
    return {"jobs": jobs, "done": done, "lost": jobs - done, "doubled": wild.doubled, "kills": wild.kills}


class Supervisor:
    """Starts server, worker and Postgres, starts them again when they end, and kills them on demand."""

    def __init__(self, data: Path, commands: dict[str, list[str]], environment: dict[str, str]) -> None:
        self._commands, self._environment = commands, environment
        self.postgres = EmbeddedPostgres(data / "postgres")
        self._processes = {name: self._start(name) for name in commands}
        self._end = threading.Event()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()

    def _start(self, name: str) -> "subprocess.Popen[bytes]":
        return subprocess.Popen(self._commands[name], env=self._environment, stderr=subprocess.DEVNULL)

    def _watch(self) -> None:
        while not self._end.wait(0.3):
            with self._lock:
                for name, process in self._processes.items():
                    if process.poll() is not None:
                        self._processes[name] = self._start(name)
            # it may be busy recovering: the next look will find it up
            with suppress(StylusError):
                self.postgres.ensure_running()

    def kill(self, name: str) -> bool:
        """SIGKILL. False if the process was not there to be killed."""
        if name == "postgres":
            try:
                with psycopg.connect(self.postgres.url, connect_timeout=2) as connection:
                    psutil.Process(psutil.Process(connection.info.backend_pid).ppid()).kill()
            except (psycopg.Error, psutil.Error):
                return False
            return True
        with self._lock:
            alive = self._processes[name].poll() is None
            self._processes[name].kill()
        return alive

    def close(self) -> None:
        self._end.set()
        self._thread.join()
        for process in self._processes.values():
            process.terminate()
        for process in self._processes.values():
            process.wait(30)
        self.postgres.ensure_running()
        self.postgres.close()


class Run:
    """All jobs once, on a data folder of their own."""

    def __init__(self, data: Path, jobs: int, quick: bool) -> None:
        data.mkdir()
        data.chmod(0o755)  # Postgres, which is not root where we are, has to get in
        data.parent.chmod(0o755)
        self._data, self._jobs, self._quick = data, jobs, quick
        self._environment = {**os.environ, "STYLUS_DATA": str(data), "STYLUS_DEVICE": "cpu", "OMP_NUM_THREADS": "1"}
        self._log = data / "accepted.log"
        self.accepted: dict[int, set[str]] = {}
        self.pixels: dict[int, bytes] = {}
        self.doubled = self.kills = 0

    def go(self, *, kills: int, every: float, seed: int) -> None:
        self._picks: list[dict[str, Any]] = []
        settings = Settings.model_validate({"data": self._data})
        with Stylus(settings) as stylus:
            if not self._quick:
                ingest_pocket(stylus.catalog, stylus.embedder)
                self._picks = [{"id": one.adapter_id} for one in stylus.compose("a red star, starry sky").choices]
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
        self._url = f"http://127.0.0.1:{port}/mcp"
        quick = [sys.executable, "-m", "tests.server.slow", "2"]
        commands = {
            "server": [*quick, str(port)]
            if self._quick
            else [sys.executable, "-m", "server", "--http", f"--port={port}"],
            "worker": [*quick, "worker"] if self._quick else WORKER,
        }
        supervisor = Supervisor(self._data, commands, self._environment)
        try:
            ended = threading.Event()
            killer = threading.Thread(target=self._kill, args=(supervisor, kills, every, seed, ended))
            killer.start()
            try:
                asyncio.run(asyncio.wait_for(self._submit_all(), PATIENCE))
            finally:
                ended.set()
                killer.join()
            self._collect(supervisor.postgres.url)
        finally:
            supervisor.close()

    def _kill(self, supervisor: Supervisor, kills: int, every: float, seed: int, ended: threading.Event) -> None:
        chance = random.Random(seed)
        while self.kills < kills and not ended.wait(chance.uniform(0.5, 1.5) * every):
            self.kills += supervisor.kill(chance.choice(["server", "worker", "postgres"]))

    async def _submit_all(self) -> None:
        at_once = asyncio.Semaphore(6)

        async def one(n: int) -> None:
            async with at_once:
                await self._follow(n)

        await asyncio.gather(*(one(n) for n in range(self._jobs)))

    async def _follow(self, n: int) -> None:
        """Submits job `n` until it is accepted, then waits until it has ended."""
        steps = {"size": "64x64", "steps": 20}
        ask = {"prompt": f"picture {n}", "adapters": self._picks, "seed": n, "request_id": f"job-{n}", **steps}
        answer = await self._call("generate_image", ask)
        with self._log.open("a") as log:
            log.write(f"{n} {answer['job_id']}\n")
        self.accepted.setdefault(n, set()).add(answer["job_id"])
        while answer["status"] == "running":
            answer = await self._call("job", {"id": answer["job_id"]})

    async def _call(self, tool: str, arguments: dict[str, Any]) -> dict[str, Any]:
        """The answer of a tool, asked again while the server or its database is away."""
        for _ in range(REFUSALS):
            text = "no connection"
            # the client library wraps what a broken connection raises in groups
            with suppress(OSError, MCPError, TimeoutError, ExceptionGroup):
                async with asyncio.timeout(30), Client(self._url, cache=None) as client:
                    result = await client.call_tool(tool, arguments)
                    text = _text(result)
                    if not result.is_error:
                        parsed: dict[str, Any] = json.loads(text)
                        return parsed
                    if " failed: " in text:
                        return {"status": "failed", "job_id": arguments.get("id", "")}
            await asyncio.sleep(0.3)
        raise RuntimeError(f"{tool} was refused {REFUSALS} times: {text}")

    def _collect(self, url: str) -> None:
        with psycopg.connect(url) as connection:
            rows = connection.execute("select request_id, id from jobs").fetchall()
            images = connection.execute("select job_id, record ->> 'location' from images").fetchall()
        for n in range(self._jobs):
            ids = {id for request_id, id in rows if request_id == f"job-{n}"} | self.accepted.get(n, set())
            locations = [location for job_id, location in images if job_id in ids]
            self.doubled += max(0, len(ids) - 1) + max(0, len(locations) - 1)
            if len(locations) == 1:
                with Image.open(locations[0]) as picture:
                    self.pixels[n] = picture.tobytes()


def _text(result: CallToolResult) -> str:
    block = result.content[0]
    return block.text if isinstance(block, TextContent) else ""


if __name__ == "__main__":
    main()
