"""A Python MCP client: searches, composes, draws, and saves the pictures.

    python -m examples.client "a red star on a blue background" --out pictures

It starts `stylus serve` itself and talks to it over stdio; with --url it talks to a server that runs already.
"""

import argparse
import asyncio
import base64
import json
from pathlib import Path
from typing import Any

from mcp import Client, StdioServerParameters
from mcp.types import BlobResourceContents

Server = StdioServerParameters | str


async def call(client: Client, tool: str, **arguments: Any) -> dict[str, Any]:
    """What the tool answers. Search and compose answer with an object, generate_image and job with JSON text."""

    async def told(progress: float, total: float | None, message: str | None) -> None:
        print(f"  {message}")

    result = await client.call_tool(tool, arguments, progress_callback=told)
    text = next((block.text for block in result.content if block.type == "text"), "")
    if result.is_error:
        raise RuntimeError(text)
    answer: dict[str, Any] = result.structured_content or json.loads(text)
    return answer


async def draw(server: Server, prompt: str, count: int, out: Path) -> list[Path]:
    """Draws `count` pictures of `prompt` and returns their files in `out`."""
    async with Client(server) as client:
        found = await call(client, "search_adapters", query=prompt, limit=5)
        for match in found["matches"]:
            print(f"{match['score']:.2f}  {match['id']}: {match['description']}")
        composition = await call(client, "compose_adapters", prompt=prompt)
        for task in composition["tasks"]:
            chosen = ", ".join(f"{adapter['id']} at {adapter['weight']}" for adapter in task["adapters"])
            print(f"{task['keyword']}: {chosen or 'the base model alone'}")
        made = await call(client, "generate_image", composition_id=composition["composition_id"], count=count)
        while made["status"] == "running":  # longer than a client may wait for one answer
            made = await call(client, "job", id=made["job_id"])
        return [await save(client, image["uri"], out) for image in made["images"]]


async def save(client: Client, uri: str, out: Path) -> Path:
    contents = (await client.read_resource(uri)).contents
    [blob] = [content.blob for content in contents if isinstance(content, BlobResourceContents)]
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"{uri.rpartition('/')[2]}.png"
    path.write_bytes(base64.b64decode(blob))
    return path


def main(arguments: list[str] | None = None, server: Server | None = None) -> list[Path]:
    parser = argparse.ArgumentParser(description="Draw pictures with the adapters that fit a prompt.")
    parser.add_argument("prompt")
    parser.add_argument("--count", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("pictures"))
    parser.add_argument("--url", help="of a server that runs already, as http://127.0.0.1:8765/mcp")
    options = parser.parse_args(arguments)
    stdio = StdioServerParameters(command="stylus", args=["serve"])
    paths = asyncio.run(draw(server or options.url or stdio, options.prompt, options.count, options.out))
    for path in paths:
        print(path)
    return paths


if __name__ == "__main__":
    main()
