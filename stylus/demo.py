"""`stylus demo`: an MCP client that drives a real server over stdio on the pocket world and judges what comes back.

Nothing here reaches into the server: what the demo shows is what any client gets.
"""

import asyncio
import base64
import io
import json
import os
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mcp import Client, MCPError, StdioServerParameters
from mcp_types import BlobResourceContents
from PIL import Image
from rich.console import Console

from stylus.contact_sheet import Row, contact_sheet
from stylus.errors import StorageError, StylusError
from stylus.ingest import ingest_pocket
from stylus.pocket import PocketPrompt, prompts
from stylus.pocket.judge import Judge
from stylus.stylus import Stylus

COUNT = 4
"""Images per prompt, with and without adapters."""
SEED = 2024


@dataclass(frozen=True)
class Scene:
    """One prompt of the demo, done."""

    prompt: PocketPrompt
    composition: dict[str, Any]
    pictures: dict[str, list[Image.Image]]
    """`base` and `stylus`, same seeds."""
    shown: dict[str, int]
    """How many of the requested concepts the judge sees, summed over the pictures."""
    seconds: dict[str, float]


def run_demo(out: Path, terminal: Console, scripted: Sequence[PocketPrompt] | None = None) -> dict[str, Any]:
    """Plays the `scripted` prompts (those marked for the demo, if none are given) through a server of its own.

    Writes `out`/contact-sheet.png and the single PNG files; returns the share of requested concepts that the judge sees
    with and without adapters, the mean seconds of each stage, and the paths of the pictures. Raises StylusError.
    """
    scripted = scripted or [prompt for prompt in prompts() if prompt.demo]
    with _writing(out):
        out.mkdir(parents=True, exist_ok=True)
    with Stylus() as stylus:
        report = ingest_pocket(stylus.catalog, stylus.embedder)
    terminal.print(f"Catalog: {', '.join(f'{count} {what}' for what, count in report.model_dump().items())}")
    try:
        scenes = asyncio.run(_drive_server(scripted, terminal))
    except BaseExceptionGroup as errors:
        raise _told(errors) from errors
    wanted = sum(len(scene.prompt.concepts) * COUNT for scene in scenes)
    rates = {who: sum(scene.shown[who] for scene in scenes) / wanted for who in ("base", "stylus")}
    seconds = {stage: sum(scene.seconds[stage] for scene in scenes) / len(scenes) for stage in scenes[0].seconds}
    sheet = out / "contact-sheet.png"
    with _writing(out):
        images = [str(path) for i, scene in enumerate(scenes) for path in _save_pictures(scene, out, i)]
        contact_sheet(["base model alone", "Stylus, same seeds"], [_row(scene) for scene in scenes]).save(sheet)
    terminal.print(f"Concepts shown, by the judge: base {rates['base']:.0%}, Stylus {rates['stylus']:.0%}. See {sheet}")
    return {
        "concept_rate": {who: round(rate, 4) for who, rate in rates.items()},
        "seconds": {stage: round(value, 4) for stage, value in seconds.items()},
        "images": [str(sheet), *images],
    }


@contextmanager
def _writing(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageError(f"the pictures can't be kept in {out} ({error.strerror}): name another folder.") from error


def _told(error: BaseException) -> BaseException:
    """What went wrong inside the client's task groups, in words if it is of ours or of the protocol."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if isinstance(error, MCPError):
        return StylusError(f"the server of the demo broke off ({error}): see what it said, and `stylus doctor`.")
    return error


async def _drive_server(scripted: Sequence[PocketPrompt], terminal: Console) -> list[Scene]:
    # the SDK hands a subprocess only a few variables: pass all, so that STYLUS_* settings hold there too
    server = StdioServerParameters(command=sys.executable, args=["-m", "server"], env=dict(os.environ))
    judge = Judge.load()
    async with Client(server) as client:
        scenes = []
        for prompt in scripted:
            scene = await _play(client, prompt, judge)
            _print_scene(scene, terminal)
            scenes.append(scene)
        return scenes


async def _play(client: Client, prompt: PocketPrompt, judge: Judge) -> Scene:
    seconds: dict[str, float] = defaultdict(float)
    start = time.perf_counter()
    await _call(client, "search_adapters", query=prompt.text, base_model="pocket", limit=5)
    seconds["search"] = time.perf_counter() - start
    start = time.perf_counter()
    composition = await _call(client, "compose_adapters", prompt=prompt.text, base_model="pocket")
    seconds["compose"] = time.perf_counter() - start
    pictures, shown = {}, {}
    for who, masks in (("base", "none"), ("stylus", "all")):
        result = await _generate(client, composition["composition_id"], masks)
        pictures[who] = [await _read_picture(client, image["uri"]) for image in result["images"]]
        seen = judge.concepts(pictures[who])
        shown[who] = sum(concept in concepts for concepts in seen for concept in prompt.concepts)
        if who == "stylus":
            seconds |= {stage: result["seconds"][stage] for stage in ("load", "generate")}
    return Scene(prompt, composition, pictures, shown, seconds)


async def _generate(client: Client, composition_id: str, masks: str) -> dict[str, Any]:
    result = await _call(client, "generate_image", composition_id=composition_id, count=COUNT, seed=SEED, masks=masks)
    while result["status"] == "running":
        result = await _call(client, "job", id=result["job_id"], action="wait")
    return result


async def _call(client: Client, tool: str, **arguments: Any) -> dict[str, Any]:
    result = await client.call_tool(tool, arguments)
    text = next((block.text for block in result.content if block.type == "text"), "")
    if result.is_error:
        raise StylusError(f"{tool}: {text}")
    parsed: dict[str, Any] = result.structured_content or json.loads(text)
    return parsed


async def _read_picture(client: Client, uri: str) -> Image.Image:
    (content,) = (await client.read_resource(uri)).contents
    if not isinstance(content, BlobResourceContents):
        raise StylusError(f"{uri} came as text: the server should send a PNG file.")
    return Image.open(io.BytesIO(base64.b64decode(content.blob)))


def _describe(scene: Scene) -> list[str]:
    lines = []
    for task in scene.composition["tasks"]:
        for c in task["adapters"]:
            lines.append(f"{task['keyword']}: {c['id']} at {c['weight']:g} - {c['reason']}")
    alone = [task["keyword"] for task in scene.composition["tasks"] if not task["adapters"]]
    if alone:
        lines.append(f"base model alone: {', '.join(alone)}")
    wanted = len(scene.prompt.concepts) * COUNT
    lines.append(
        f"judge: {', '.join(scene.prompt.concepts)}: base {scene.shown['base']}/{wanted}, "
        f"Stylus {scene.shown['stylus']}/{wanted}"
    )
    return lines


def _print_scene(scene: Scene, terminal: Console) -> None:
    terminal.print(f"\n[bold]{scene.prompt.text}[/]")
    for line in _describe(scene):
        terminal.print(f"  {line}", highlight=False)
    terminal.print("  " + ", ".join(f"{stage} {value:.2f} s" for stage, value in scene.seconds.items()))


def _row(scene: Scene) -> Row:
    return Row(scene.prompt.text, _describe(scene), [scene.pictures["base"], scene.pictures["stylus"]])


def _save_pictures(scene: Scene, out: Path, number: int) -> list[Path]:
    paths = []
    for who, pictures in scene.pictures.items():
        for i, picture in enumerate(pictures):
            path = out / f"{number + 1}-{who}-{i + 1}.png"
            picture.save(path)
            paths.append(path)
    return paths
