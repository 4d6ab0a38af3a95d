"""The examples, run as their readers run them, but for the server's command and the paid model."""

import asyncio
import json
import sys
from pathlib import Path

from PIL import Image

from tests.server import world

CLIENTS = Path(__file__).parents[2] / "examples" / "clients"


def test_every_client_configuration_starts_stylus_serve() -> None:
    files = sorted(CLIENTS.glob("*.json"))
    assert [file.name for file in files] == [
        "claude-code.mcp.json",
        "claude-desktop.json",
        "cursor.json",
        "vscode.json",
    ]
    for file in files:
        [servers] = json.loads(file.read_text()).values()
        assert servers["stylus"]["command"] == "stylus"
        assert servers["stylus"]["args"] == ["serve"]


def test_the_client_script_draws(environment: dict[str, str], tmp_path: Path) -> None:
    from examples.client import main

    [path] = main(["a star", "--out", str(tmp_path / "pictures")], server=world.stdio(environment))
    assert Image.open(path).format == "PNG"


def test_the_agent_uses_the_tools(environment: dict[str, str]) -> None:
    from fastmcp.client.transports import StdioTransport
    from pydantic_ai.models.test import TestModel

    from examples.agent import ask

    transport = StdioTransport(sys.executable, ["-m", "server"], env=environment)
    model = TestModel(call_tools=["search_adapters"])
    said = json.loads(asyncio.run(ask(model, "What adapters are there?", transport)))
    assert said["search_adapters"]["matches"]
