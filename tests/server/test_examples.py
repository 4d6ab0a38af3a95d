"""The examples, run as their readers run them, but for the server's command and the paid model."""

import asyncio
import json
from pathlib import Path

from PIL import Image
from pydantic_ai.models.test import TestModel

from examples.client import main

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


def test_the_client_script_draws(origin: str, tmp_path: Path) -> None:
    [path] = main(["a star", "--url", f"{origin}/mcp", "--out", str(tmp_path / "pictures")])
    with Image.open(path) as picture:
        assert picture.format == "PNG"


def test_the_agent_uses_the_tools(origin: str) -> None:
    # imported here: the client library under it is needed by this example only
    from examples.agent import ask

    model = TestModel(call_tools=["search_adapters"])
    said = json.loads(asyncio.run(ask(model, "What adapters are there?", f"{origin}/mcp")))
    assert said["search_adapters"]["matches"]
