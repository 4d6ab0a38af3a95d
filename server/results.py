"""What the tools answer: objects that are enough by themselves for search and compose; content for pictures.

Claude Code forwards only the structured content where a result has it and drops text and images, so a result with a
picture has none; other clients drop resource links, so the text names every URI and path too.
"""

import io
import json
import math
from collections.abc import Callable, Sequence
from enum import StrEnum
from typing import Any, TypeVar

import fsspec
import mcp_types as types
from mcp.server.mcpserver import Image as Picture
from PIL import Image
from pydantic import BaseModel, Field

from stylus.errors import StorageError
from stylus.records import Composition, ImageRecord, JobRecord, JobStatus, Match, Usage
from stylus.trigger_words import with_trigger_words

T = TypeVar("T")

SHEET = 512
"""Pixels: the longest side of the picture inside a result."""
GAP = 4
ONE_LINE = 200
"""Characters of a card's text in a result: it was written by strangers, and the agent pays for each."""


class ImageResponses(StrEnum):
    """What an answer shows of its pictures: nothing but links, one small picture of all, or each in full."""

    OMIT = "omit"
    THUMBNAIL = "thumbnail"
    FULL = "full"


class Found(BaseModel):
    id: str
    name: str
    category: str
    base_model: str | None
    description: str
    trigger_words: list[str]
    weight: float = Field(description="recommended")
    usable: bool = Field(description="false: a card without weights, which nothing can be drawn with")
    score: float
    why: str


class SearchResult(BaseModel):
    matches: list[Found]
    note: str | None


class Chosen(BaseModel):
    id: str
    name: str
    weight: float
    reason: str
    trigger_words: list[str]


class TaskResult(BaseModel):
    keyword: str
    adapters: list[Chosen]


class ComposeResult(BaseModel):
    composition_id: str
    base_model: str
    prompt: str = Field(description="with the trigger words")
    tasks: list[TaskResult]
    uncovered: list[str] = Field(description="keywords without an adapter")
    composer: str
    notes: list[str]
    usage: Usage | None = Field(description="of language models, where any was asked")


def one_line(text: str, limit: int = ONE_LINE) -> str:
    """`text` without line breaks and control characters, cut at `limit` characters."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return line if len(line) <= limit else line[: limit - 1] + "…"


def found(match: Match) -> Found:
    adapter = match.adapter
    return Found(
        id=adapter.id,
        name=one_line(adapter.name, 80),
        category=adapter.category,
        base_model=adapter.base_model,
        description=one_line(adapter.description),
        trigger_words=[one_line(word, 60) for word in adapter.trigger_words[:5]],
        weight=adapter.weight,
        usable=adapter.download is not None or (adapter.file is not None and not adapter.missing),
        score=round(match.score, 3),
        why=one_line(match.why),
    )


def composed(composition: Composition) -> ComposeResult:
    return ComposeResult(
        composition_id=composition.id,
        base_model=composition.base_model,
        prompt=with_trigger_words(composition.prompt, [choice for choice in composition.choices if choice.weight > 0]),
        tasks=tasks_of(composition),
        uncovered=list(composition.uncovered),
        composer=composition.composer,
        notes=[one_line(note) for note in composition.notes],
        usage=composition.usage if composition.usage != Usage() else None,
    )


def tasks_of(composition: Composition) -> list[TaskResult]:
    return [
        TaskResult(
            keyword=task.keyword,
            adapters=[
                Chosen(
                    id=choice.adapter_id,
                    name=one_line(choice.name, 80),
                    weight=choice.weight,
                    reason=one_line(choice.reason),
                    trigger_words=[one_line(word, 60) for word in choice.trigger_words],
                )
                for choice in task.choices
            ],
        )
        for task in composition.tasks
    ]


def job_result(job: JobRecord, shown: ImageResponses = ImageResponses.THUMBNAIL) -> types.CallToolResult:
    """A job as content: JSON text; for a finished one also what is `shown` of its images, and links to them."""
    answer: dict[str, Any] = {"status": job.status.value, "job_id": job.id}
    if job.status in (JobStatus.QUEUED, JobStatus.RUNNING):
        answer["status"] = "running"
        answer["progress"] = progress_line(job)
        answer["note"] = "call job to wait; do not start it again"
        if job.cancel_requested:
            answer["note"] = "Cancellation accepted: it ends at its next step."
        return _content([_text(answer)])
    if job.status is not JobStatus.DONE:
        answer["error"] = job.error or "Cancelled before it started."
        return _content([_text(answer)])
    if not job.images:
        answer["note"] = "Its images were deleted since. Call generate_image with the same seed to draw them again."
        return _content([_text(answer | {"seed": job.request.seed})])
    composition = job.request.composition
    answer |= {
        "composition_id": composition.id,
        "seed": job.request.seed,
        "seconds": {stage: round(seconds, 4) for stage, seconds in job.images[0].seconds.items()},
        "tasks": [task.model_dump() for task in tasks_of(composition)],
        "images": [
            {
                "uri": image.uri,
                "path": image.location,
                "seed": image.seed,
                "size": f"{image.width}x{image.height}",
                "prompt": image.prompt,
                "adapters": {id: round(weight, 4) for id, weight in image.adapters.items()},
            }
            for image in job.images
        ],
    }
    blocks, notes = _shown(job.images, shown)
    if len(job.images) > 1 and shown is ImageResponses.THUMBNAIL:
        answer["picture"] = f"all {'other ' if notes else ''}images in order, row by row"
    if gone := job.request.count - len(job.images):
        notes.append(f"{gone} more of its images were deleted since.")
    if notes:
        answer["note"] = " ".join(notes)
    return _content([_text(answer), *blocks, *map(_link, job.images)])


def _shown(images: Sequence[ImageRecord], shown: ImageResponses) -> tuple[list[types.ContentBlock], list[str]]:
    """The pictures, and what to say of each that can't be read: one damaged file must not hide the others."""
    if shown is ImageResponses.OMIT:
        return [], []
    if shown is ImageResponses.THUMBNAIL:
        tiles, notes = _each(images, lambda image: fitted(image, _room(len(images))))
        return [contact_sheet(tiles)] if tiles else [], notes
    files, notes = _each(images, read_image)
    return [Picture(data=file, format="png").to_image_content() for file in files], notes


def _each(images: Sequence[ImageRecord], read: Callable[[ImageRecord], T]) -> tuple[list[T], list[str]]:
    read_ones, notes = [], []
    for image in images:
        try:
            read_ones.append(read(image))
        except StorageError as error:
            notes.append(str(error))
    return read_ones, notes


def progress_line(job: JobRecord) -> str:
    progress = job.progress
    if job.ahead:
        return f"{progress.stage}, {job.ahead} ahead"
    return f"{progress.stage} {progress.done}/{progress.total}" if progress.total else progress.stage


def _content(blocks: list[types.ContentBlock]) -> types.CallToolResult:
    return types.CallToolResult(content=blocks)


def _text(answer: dict[str, Any]) -> types.TextContent:
    return types.TextContent(type="text", text=json.dumps(answer, ensure_ascii=False))


def _link(image: ImageRecord) -> types.ResourceLink:
    return types.ResourceLink(
        type="resource_link", uri=image.uri, name=f"image {image.index} (seed {image.seed}).png", mime_type="image/png"
    )


def read_image(image: ImageRecord) -> bytes:
    """The PNG file. Raises StorageError."""
    try:
        with fsspec.open(image.location, "rb") as file:
            content: bytes = file.read()
    except OSError as error:
        raise StorageError(
            f"The file of image {image.id} can't be read ({error}). If it was deleted, repeat seed {image.seed}."
        ) from error
    return content


def _columns(count: int) -> int:
    return math.ceil(math.sqrt(count))


def _room(count: int) -> int:
    """Pixels: the side of a tile where a sheet has so many."""
    columns = _columns(count)
    return (SHEET - GAP * (columns - 1)) // columns


def contact_sheet(tiles: Sequence[Image.Image]) -> types.ImageContent:
    """All tiles in one JPEG (every client shows it) of at most SHEET pixels a side, near square."""
    columns = _columns(len(tiles))
    rows = math.ceil(len(tiles) / columns)
    width, height = max(tile.width for tile in tiles), max(tile.height for tile in tiles)
    sheet = Image.new("RGB", (columns * (width + GAP) - GAP, rows * (height + GAP) - GAP), "white")
    for place, tile in enumerate(tiles):
        row, column = divmod(place, columns)
        sheet.paste(tile, (column * (width + GAP), row * (height + GAP)))
    buffer = io.BytesIO()
    sheet.save(buffer, "JPEG", quality=88)
    return Picture(data=buffer.getvalue(), format="jpeg").to_image_content()


def fitted(image: ImageRecord, room: int) -> Image.Image:
    """The picture with its longest side at most `room` pixels; a small one is enlarged by a whole factor, so that it
    stays crisp. Raises StorageError."""
    try:
        picture = Image.open(io.BytesIO(read_image(image))).convert("RGB")
    except (OSError, ValueError, SyntaxError) as error:  # what Pillow raises for bytes that are no picture, or half one
        raise StorageError(
            f"The file of image {image.id} ({image.location}) is damaged. Repeat seed {image.seed} to draw it again."
        ) from error
    factor = room // max(picture.size)
    if factor > 1:
        return picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)
    picture.thumbnail((room, room), Image.Resampling.LANCZOS)
    return picture
