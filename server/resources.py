"""What results link to: images as PNG, adapters and compositions as JSON; and the lists and small copies of images that
the gallery shows. Ids of images and compositions can't be guessed, and none of them is a path: each is looked up in the
database."""

import json
from typing import Any

from mcp.server import MCPServer
from mcp.server.mcpserver import Context

from server import gallery, results
from server.auth import owner
from server.backend import Backend

Caller = Context[Backend, Any]


def register(server: MCPServer[Backend]) -> None:
    @server.resource("stylus://images/{id}", name="image", mime_type="image/png", description="A generated image")
    def image(id: str, ctx: Caller) -> bytes:
        return results.read_image(ctx.request_context.lifespan_context.stylus.history.image(id, owner()))

    @server.resource(
        "stylus://thumbnails/{id}", name="thumbnail", mime_type="image/webp", description="A small copy of an image"
    )
    def thumbnail(id: str, ctx: Caller) -> bytes:
        return gallery.thumbnail(ctx.request_context.lifespan_context.stylus.history.image(id, owner()))

    @server.resource(
        "stylus://images{?before,like}",
        name="images",
        mime_type="application/json",
        description="Your newest images with what made them; before=ID: older ones; like=ID: that image and those that "
        "differ from it in adapters and weights only",
    )
    def images(ctx: Caller, before: str | None = None, like: str | None = None) -> str:
        history = ctx.request_context.lifespan_context.stylus.history
        return json.dumps(gallery.listed(history, owner(), before=before, like=like), ensure_ascii=False)

    # {+id}: adapter ids hold colons and slashes, which need no escaping so
    @server.resource(
        "stylus://adapters/{+id}", name="adapter", mime_type="application/json", description="An adapter's card"
    )
    def adapter(id: str, ctx: Caller) -> str:
        [record] = ctx.request_context.lifespan_context.stylus.catalog.require([id])
        card = record.model_dump(mode="json", exclude={"file", "examples"})
        return json.dumps(card | {"has_file": record.file is not None}, ensure_ascii=False)

    @server.resource(
        "stylus://compositions/{id}",
        name="composition",
        mime_type="application/json",
        description="Tasks of a prompt with adapters, weights and reasons",
    )
    def composition(id: str, ctx: Caller) -> str:
        return ctx.request_context.lifespan_context.stylus.history.composition(id, owner()).model_dump_json()
