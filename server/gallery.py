"""The gallery: recent pictures with what made them, and the same again at other weights.

One page in two places: at /gallery of the HTTP server, and as an MCP App (SEP-1865, specification 2026-01-26) inside
hosts that know these. In both it speaks MCP: it needs no routes of its own, and meets the checks that all clients do.
"""

import io
from collections.abc import Mapping
from typing import Any

from mcp.server.apps import Apps
from starlette.requests import Request
from starlette.responses import Response

from server import results
from server.pages import html, page
from stylus.history import History
from stylus.records import Composition, ImageRecord, Method

GALLERY = "ui://stylus/gallery"
AT_ONCE = 36
"""Pictures of one list."""
THUMBNAIL = 256
"""Pixels: the longest side."""
LARGEST_SEED = 2**53 - 65
"""What JSON readers keep exact, and generate_image takes."""


def app() -> Apps:
    """The page as an MCP App."""
    apps = Apps()
    apps.add_html_resource(
        GALLERY,
        html("gallery"),
        name="gallery",
        title="Stylus gallery",
        description="Pictures with their adapters, and sliders to draw them again at other weights",
        prefers_border=True,
    )
    return apps


async def show(_: Request) -> Response:
    """The page. It holds no data: whoever opens it needs a token for these, where there are tokens."""
    return page("gallery")


def thumbnail(image: ImageRecord) -> bytes:
    """A WebP file. Raises StorageError."""
    buffer = io.BytesIO()
    results.fitted(image, THUMBNAIL).save(buffer, "WEBP", quality=80)
    return buffer.getvalue()


def listed(history: History, owner: str, *, before: str | None = None, like: str | None = None) -> dict[str, Any]:
    """The owner's newest images, those after the image `before`, or `like` and what differs from it in adapters only.

    Raises NotFound."""
    if like is not None:
        images = history.same_seed(like, AT_ONCE, owner)
    else:
        images = history.recent_images(AT_ONCE, owner, before=before)
    compositions = history.compositions([image.composition_id for image in images])
    older = like is None and len(images) == AT_ONCE
    return {
        "images": [_entry(image, compositions.get(image.composition_id or "")) for image in images],
        "before": images[-1].id if older else None,
    }


def _entry(image: ImageRecord, composition: Composition | None) -> dict[str, Any]:
    """`again`: the arguments of generate_image that draw this image again, at the weights of its composition; null
    where generate_image has no arguments for it."""
    return {
        "id": image.id,
        "seed": str(image.seed),
        "size": f"{image.width}x{image.height}",
        "created_at": image.created_at.isoformat(),
        "prompt": composition.prompt if composition else image.prompt,
        "sent": image.prompt,
        "adapters": {id: round(weight, 4) for id, weight in image.adapters.items()},
        "composer": composition.composer if composition else None,
        "tasks": [task.model_dump() for task in results.tasks_of(composition)] if composition else [],
        "notes": [results.one_line(note) for note in (*(composition.notes if composition else ()), *image.notes)],
        "flagged": image.flagged,
        "again": _again(image, image.provenance.get("request")) if composition else None,
    }


def _again(image: ImageRecord, request: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if request is None or image.seed > LARGEST_SEED or request.get("checkpoint") or request.get("budget"):
        return None
    other_turns = request.get("method") == Method.SWITCH and request.get("switch_every", 5) != 5
    sides = request.get("width"), request.get("height")
    if request.get("emphasise") or other_turns or sides.count(None) == 1:
        return None
    same = ("method", "negative_prompt", "steps", "guidance_scale", "image", "mask", "strength", "hires")
    kept = {name: request[name] for name in same if request.get(name) is not None}
    size = {} if None in sides else {"size": "{}x{}".format(*sides)}
    return {"composition_id": image.composition_id, "seed": image.seed, **size, **kept}
