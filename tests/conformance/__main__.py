"""`make conformance`: the official suites and the inspector's CLI, in both protocol eras.

Against the real `stylus serve --http` all of a suite runs as well; what calls the suite's own tools fails there and is
listed under expected/. Whatever else fails, or passes again, ends the run with exit code 1. Against the fixtures on the
same stack (`tests.conformance.app`) only what the SDK does not offer fails.
"""

import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests import COMMAND

HERE = Path(__file__).parent
MODULES = HERE / "node_modules"
STABLE = MODULES / "@modelcontextprotocol/conformance/dist/index.js"
ALPHA = MODULES / "conformance-alpha/dist/index.js"
INSPECTOR = MODULES / "@modelcontextprotocol/inspector/clients/launcher/build/index.js"
PATIENCE = 180.0
"""Seconds for a server to answer, and for one suite to end."""
BOTH_ERAS = ("2025-11-25", "2026-07-28")


class Failed(Exception):
    """What a person has to look at; the message holds all of it."""


def main() -> None:
    node = _node()
    failures = []
    # an embedded Postgres may take a moment longer to end than the servers that use it
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        # Postgres, which is not root where we are, has to get in
        Path(folder).chmod(0o755)
        environment = {**os.environ, "STYLUS_DATA": folder, "STYLUS_DEVICE": "cpu", "OMP_NUM_THREADS": "1"}
        subprocess.run([*COMMAND, "ingest", "pocket"], env=environment, check=True, stdout=subprocess.DEVNULL)
        with (
            _served([sys.executable, "-m", "tests.conformance.app"], dict(os.environ)) as fixtures,
            _served([*COMMAND, "serve", "--http", "--port"], environment) as stylus,
        ):
            runs: list[tuple[str, str, Path, list[str], str | None]] = [
                ("fixtures", fixtures, STABLE, ["--suite", "all"], None),
                ("fixtures", fixtures, ALPHA, ["--suite", "all", "--spec-version", BOTH_ERAS[0]], None),
                ("fixtures", fixtures, ALPHA, ["--suite", "all"], "fixtures"),
                *(
                    ("stylus", stylus, ALPHA, ["--suite", "all", "--spec-version", era], f"stylus-{era}")
                    for era in BOTH_ERAS
                ),
            ]
            for name, url, suite, options, expected in runs:
                try:
                    line = _suite([node, str(suite), "server", "--url", url, *options], expected)
                except Failed as failure:
                    failures.append(str(failure))
                    line = "FAILED"
                version = json.loads((suite.parents[1] / "package.json").read_text())["version"]
                print(f"conformance {version}, {name}, {' '.join(options)}: {line}", flush=True)
            for where in (["--transport", "http", stylus], [*COMMAND, "serve"]):
                for era in ("legacy", "modern"):
                    try:
                        print(f"inspector, {'http' if stylus in where else 'stdio'}, {era}: ", end="", flush=True)
                        print(_inspect([node, str(INSPECTOR), "--cli", "--protocol-era", era], where, environment))
                    except Failed as failure:
                        failures.append(str(failure))
                        print("FAILED")
    if failures:
        sys.exit("\n\n".join(failures))


def _node() -> str:
    """The suites need node 22: the one beside them, or else the machine's."""
    node = MODULES / ".bin/node"
    found = str(node) if node.exists() else shutil.which("node")
    version = subprocess.run([found, "--version"], capture_output=True, text=True, check=True).stdout if found else ""
    if found is None or not version or int(version[1:].partition(".")[0]) < 22:
        sys.exit(f"The suites need node 22 or newer; found {version.strip() or 'none'}. Run `npm ci` in {HERE}.")
    return found


@contextlib.contextmanager
def _served(command: list[str], environment: dict[str, str]) -> Iterator[str]:
    """The URL of the MCP server that `command PORT` starts."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with (
        tempfile.TemporaryFile("w+") as log,
        subprocess.Popen([*command, str(port)], env=environment, stderr=log, cwd=HERE.parents[1]) as process,
    ):
        end = time.monotonic() + PATIENCE
        try:
            while not _answers(port):
                if process.poll() is not None or time.monotonic() > end:
                    log.seek(0)
                    sys.exit(f"{' '.join(command)} does not answer:\n{log.read()}")
                time.sleep(0.2)
            yield f"http://127.0.0.1:{port}/mcp"
        finally:
            process.terminate()


def _answers(port: int) -> bool:
    try:
        urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=10)
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
    return True


def _suite(command: list[str], expected: str | None) -> str:
    """The counts that a suite ends with. Raises Failed with its output."""
    with tempfile.TemporaryDirectory() as results:
        listed = ["--expected-failures", str(HERE / f"expected/{expected}.yml")] if expected else []
        command = [*command, *listed, "--output-dir", results]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    counts = re.search(r"^Total: (.*)$", ended.stdout, re.MULTILINE)
    if ended.returncode != 0 or counts is None:
        raise Failed(f"{' '.join(command)}\n{ended.stdout[ended.stdout.rfind('=== SUMMARY') :]}\n{ended.stderr}")
    known = f", all expected (expected/{expected}.yml)" if expected else ""
    return counts[1] + known


def _inspect(command: list[str], where: list[str], environment: dict[str, str]) -> str:
    """Lists the tools strictly and calls all four of them; over stdio, where each call starts a server, search alone.
    Raises Failed."""

    def ask(method: str, *options: str) -> Any:
        asked = [*command, "--format", "json", "--connect-timeout", "120000", "--method", method, *options, *where]
        if "http" not in where:  # options of the inspector stand before the command of the server
            settings = [f"{name}={environment[name]}" for name in ("STYLUS_DATA", "STYLUS_DEVICE", "OMP_NUM_THREADS")]
            asked[3:3] = [part for setting in settings for part in ("-e", setting)]
        ended = subprocess.run(asked, capture_output=True, text=True, timeout=PATIENCE, check=False, env=environment)
        if ended.returncode != 0:
            raise Failed(f"{' '.join(asked)}\nexit code {ended.returncode}\n{ended.stdout}\n{ended.stderr}")
        return json.loads(ended.stdout)["result"]

    def call(tool: str, **arguments: Any) -> Any:
        result = ask("tools/call", "--tool-name", tool, "--tool-args-json", json.dumps(arguments))
        return result.get("structuredContent") or json.loads(result["content"][0]["text"])

    tools = [tool["name"] for tool in ask("tools/list", "--strict")["tools"]]
    found = call("search_adapters", query="a red star", limit=3)["matches"]
    if not found or len(tools) < 4:
        raise Failed(f"{where}: tools {tools}, {len(found)} matches")
    said = f"{len(tools)} tools listed with --strict, searched"
    if "http" not in where:
        return said
    composed = call("compose_adapters", prompt="a red star")["composition_id"]
    job = call("generate_image", composition_id=composed, seed=1)
    while job["status"] == "running":
        job = call("job", id=job["job_id"], action="wait")
    if job["status"] != "done":
        raise Failed(f"{where}: {job}")
    return f"{said}, composed, drew {len(job['images'])} image"


if __name__ == "__main__":
    main()
