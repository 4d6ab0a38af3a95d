"""The examples, run as their readers run them, but for the server's command and the paid model."""

import asyncio
import json
import re
import tomllib
from pathlib import Path
from typing import Any

from mcp import Client
from PIL import Image
from pydantic_ai.models.test import TestModel

from examples.client import main
from examples.mcpb.build import collect
from stylus.settings import Settings
from tests.server import world

ROOT = Path(__file__).parents[2]
CLIENTS = ROOT / "examples" / "clients"
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_every_client_configuration_starts_stylus_serve() -> None:
    files = sorted(CLIENTS.glob("*.json"))
    assert [file.name for file in files] == [
        "claude-code.mcp.json",
        "claude-desktop.json",
        "cursor.json",
        "vscode.json",
    ]
    for file in [*files, ROOT / ".mcp.json"]:
        [servers] = json.loads(file.read_text()).values()
        assert Path(servers["stylus"]["command"]).name == "stylus"
        assert servers["stylus"]["args"] == ["serve"]


def tools_of(environment: dict[str, str], *arguments: str) -> list[str]:
    async def ask() -> list[str]:
        async with Client(world.stdio(environment, arguments)) as client:
            return [tool.name for tool in (await client.list_tools()).tools]

    return asyncio.run(ask())


def test_the_bundle_serves_the_tools_that_it_names(tmp_path: Path) -> None:
    """Started from the files that it holds, as uv does after it has installed what pyproject.toml names."""
    bundle = tmp_path / "bundle"
    collect(bundle)
    manifest = json.loads((bundle / "manifest.json").read_text())
    assert manifest["version"] == PROJECT["version"]
    assert (bundle / manifest["server"]["entry_point"]).is_file()
    assert manifest["compatibility"]["runtimes"]["python"] == PROJECT["requires-python"]
    launch = manifest["server"]["mcp_config"]
    chosen = {f"${{user_config.{name}}}": entry["default"] for name, entry in manifest["user_config"].items()}
    settings = {name: chosen[value] for name, value in launch["env"].items()}
    run = launch["args"].index("python")
    environment = world.environment("postgresql://127.0.0.1:1/none", tmp_path, tmp_path) | settings
    environment["PYTHONPATH"] = str(bundle)
    assert tools_of(environment, *launch["args"][run + 1 :]) == [tool["name"] for tool in manifest["tools"]]


def test_the_registry_entry_says_what_the_project_says() -> None:
    """The rules of the registry's schema that this entry touches, and that of its index of packages."""
    entry = json.loads((ROOT / "server.json").read_text())
    assert re.fullmatch(r"[a-zA-Z0-9.-]+/[a-zA-Z0-9._-]+", entry["name"])
    assert len(entry["description"]) <= 100
    assert entry["version"] == PROJECT["version"]
    [package] = entry["packages"]
    assert (package["registryType"], package["identifier"]) == ("pypi", PROJECT["name"])
    assert package["version"] == PROJECT["version"]
    assert package["identifier"] in PROJECT["scripts"]  # package runners start the command of this name
    assert [argument["value"] for argument in package["packageArguments"]] == ["serve"]
    assert known({variable["name"] for variable in package["environmentVariables"]})
    assert f"mcp-name: {entry['name']}" in (ROOT / "README.md").read_text()


def known(variables: set[str]) -> bool:
    ours = {variable for variable in variables if variable.startswith("STYLUS_")}
    return ours <= {f"STYLUS_{field.upper()}" for field in Settings.model_fields}


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
