"""Search calls to a server over HTTP: how many a second and how long each takes, idle and while it draws.

`python -m tests.benchmarks.server --json OUT`. The real server on the pocket world; 1, 16 and 64 clients ask one search
after the other (protocol 2026-07-28, one POST each) for --seconds, with a generation always under way in half of the
rounds. Rounds are repeated and the one with the smallest p99 counts, since other work on the machine only adds.
`mcp_over_in_process` is the p50 of one client over that of the same search in a process of its own, while idle.
"""

import argparse
import asyncio
import json
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from itertools import count, cycle, islice
from pathlib import Path
from typing import Any

import httpx

from stylus.ingest import ingest_pocket
from stylus.pocket import prompts
from stylus.records import BaseModelFamily, Filters
from stylus.settings import Settings
from stylus.stylus import Stylus
from tests.benchmarks import data_folder

CLIENTS = (1, 16, 64)
ERA = "2026-07-28"
Figures = dict[str, float]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="where to write the figures")
    parser.add_argument("--seconds", type=float, default=8.0, help="of each round")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    with data_folder() as folder, Stylus(Settings(data=folder)) as stylus:
        ingest_pocket(stylus.catalog, stylus.embedder)
        queries = _queries()
        alone = min(_in_process(stylus, queries) for _ in range(arguments.rounds))
        result = asyncio.run(_served(folder, arguments.seconds, arguments.rounds))
    result["mcp_over_in_process"] = round(result["idle"]["1"]["p50_ms"] / alone, 2)
    text = json.dumps(result, indent=2)
    print(text)
    if arguments.json:
        arguments.json.write_text(text + "\n")


def _queries() -> Iterator[str]:
    """Without end, each once: the server keeps what it embedded. Their words repeat, as people's do."""
    return (f"{prompt.text} {number}" for number, prompt in enumerate(cycle(prompts())))


def _in_process(stylus: Stylus, queries: Iterator[str]) -> float:
    """Milliseconds of a search, the median."""
    times = []
    for query in islice(queries, len(prompts())):
        start = time.perf_counter()
        stylus.search(query, filters=Filters(base_model=BaseModelFamily.POCKET), limit=10)
        times.append(time.perf_counter() - start)
    return statistics.median(times) * 1000


async def _served(folder: Path, seconds: float, rounds: int) -> dict[str, Any]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    environment = {**os.environ, "STYLUS_DATA": str(folder), "STYLUS_DEVICE": "cpu"}
    command = [sys.executable, "-m", "server", "--http", "--port", str(port)]
    queries = _queries()
    with subprocess.Popen(command, env=environment) as process:
        try:
            async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=300, limits=_NO_LIMITS) as http:
                while not await _healthy(http):
                    await asyncio.sleep(0.2)
                await _load(http, queries, 4, 2.0)
                measured: dict[str, dict[str, list[Figures]]] = {"idle": {}, "generating": {}}
                for _ in range(rounds):
                    for clients in CLIENTS:
                        measured["idle"].setdefault(str(clients), []).append(
                            await _load(http, queries, clients, seconds)
                        )
                    async with _generating(http):
                        for clients in CLIENTS:
                            found = await _load(http, queries, clients, seconds)
                            measured["generating"].setdefault(str(clients), []).append(found)
        finally:
            process.terminate()
    return {
        state: {clients: min(runs, key=lambda run: run["p99_ms"]) for clients, runs in by_clients.items()}
        for state, by_clients in measured.items()
    }


_NO_LIMITS = httpx.Limits(max_connections=None, max_keepalive_connections=None)


async def _healthy(http: httpx.AsyncClient) -> bool:
    try:
        return (await http.get("/health")).status_code == 200
    except httpx.ConnectError:
        return False


async def _load(http: httpx.AsyncClient, queries: Iterator[str], clients: int, seconds: float) -> Figures:
    times = []
    end = time.perf_counter() + seconds

    async def client(name: int) -> None:
        while time.perf_counter() < end:
            query = next(queries)
            start = time.perf_counter()
            answer = await _call(http, f"client-{name}", "search_adapters", {"query": query, "base_model": "pocket"})
            times.append(time.perf_counter() - start)
            if not answer["structuredContent"]["matches"]:
                raise RuntimeError(f"nothing found for {query!r}")

    begun = time.perf_counter()
    await asyncio.gather(*(client(name) for name in range(clients)))
    took = time.perf_counter() - begun
    times.sort()
    p50, p99 = (times[int(len(times) * share)] * 1000 for share in (0.5, 0.99))
    return {"p50_ms": round(p50, 1), "p99_ms": round(p99, 1), "per_s": round(len(times) / took, 1)}


async def _call(http: httpx.AsyncClient, who: str, tool: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """`who`: the server limits the rate of each caller, and tells them apart by this header."""
    meta = {
        "io.modelcontextprotocol/protocolVersion": ERA,
        "io.modelcontextprotocol/clientCapabilities": {},
        "io.modelcontextprotocol/clientInfo": {"name": "benchmark", "version": "1"},
    }
    body = {
        "jsonrpc": "2.0",
        "id": 1,
        "method": "tools/call",
        "params": {"name": tool, "arguments": arguments, "_meta": meta},
    }
    headers = {
        "Accept": "application/json, text/event-stream",
        "MCP-Protocol-Version": ERA,
        "Mcp-Method": "tools/call",
        "Mcp-Name": tool,
        "Authorization": f"Bearer {who}",
    }
    answer = await http.post("/mcp", json=body, headers=headers)
    answer.raise_for_status()
    text = answer.text
    if answer.headers["content-type"].startswith("text/event-stream"):
        text = [line for line in text.splitlines() if line.startswith("data:")][-1].removeprefix("data:")
    parsed: dict[str, Any] = json.loads(text)
    result: dict[str, Any] = parsed["result"]
    if result.get("isError"):
        raise RuntimeError(result["content"][0]["text"])
    return result


@asynccontextmanager
async def _generating(http: httpx.AsyncClient) -> AsyncIterator[None]:
    """A generation is under way all the time: the next job is on the queue before one ends."""

    async def draw(seed: int) -> None:
        for number in count():
            drawing = {"prompt": "a red star", "count": 8, "steps": 50, "seed": seed + number}
            made = json.loads((await _call(http, "painter", "generate_image", drawing))["content"][0]["text"])
            while made["status"] == "running":
                waiting = await _call(http, "painter", "job", {"id": made["job_id"]})
                made = json.loads(waiting["content"][0]["text"])

    first = {"prompt": "a red star", "seed": 1}
    await _call(http, "painter", "generate_image", first)  # the first one imports torch and loads the checkpoint
    painters = [asyncio.create_task(draw(seed)) for seed in (1_000, 1_000_000)]
    await asyncio.sleep(1.0)
    try:
        yield
    finally:
        for painter in painters:
            painter.cancel()
        await asyncio.gather(*painters, return_exceptions=True)
        await asyncio.sleep(1.0)


if __name__ == "__main__":
    main()
