"""What results link to: images as PNG, adapters and compositions as JSON; and the lists and small copies of images that
the gallery shows. Ids of images and compositions can't be guessed, and none of them is a path: each is looked up in the
database."""

import json
from typing import Any

import anyio.to_thread
import mcp_types as types
from mcp.server import MCPServer
from mcp.server.mcpserver import Context

from server import gallery, results
from server.auth import owner
from server.backend import Backend
from stylus.errors import NotFound
from stylus.records import BaseModelFamily, Category, Filters

MOST_COMPLETED = 100
"""Values in one answer: as many as the protocol allows."""
MOST_LISTED = 200

Caller = Context[Backend, Any]


def register(server: MCPServer[Backend], backend: Backend) -> None:
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
        text = json.dumps(card | {"has_file": record.file is not None}, ensure_ascii=False)
        return "".join(filter(str.isprintable, text))  # in JSON nothing else is needed, and strangers wrote it

    @server.resource(
        "stylus://catalog/{base_model}/{category}",
        name="catalog",
        mime_type="application/json",
        description="Adapters of a base model and a category",
    )
    def catalog(base_model: str, category: str, ctx: Caller) -> str:
        if base_model not in set(BaseModelFamily) or category not in set(Category):
            raise NotFound(
                f"No {base_model[:40]!r} with {category[:40]!r}. Base models: {', '.join(BaseModelFamily)}; "
                f"categories: {', '.join(Category)}."
            )
        filters = Filters(base_model=BaseModelFamily(base_model), category=Category(category))
        found = ctx.request_context.lifespan_context.stylus.catalog.sample(filters, MOST_LISTED, seed=0)
        listed = [
            {"id": one.id, "name": results.one_line(one.name, 80), "description": results.one_line(one.description)}
            for one in sorted(found, key=lambda one: one.id)
        ]
        return json.dumps({"adapters": listed, "complete": len(listed) < MOST_LISTED}, ensure_ascii=False)

    @server.completion()  # type: ignore[no-untyped-call, untyped-decorator]  # not annotated in the SDK
    async def complete(
        ref: types.PromptReference | types.ResourceTemplateReference,
        argument: types.CompletionArgument,
        context: types.CompletionContext | None,
    ) -> types.Completion | None:
        """What an argument of a template may begin with; ids of images and compositions are nobody's to guess."""
        if not isinstance(ref, types.ResourceTemplateReference):
            return None
        if ref.uri.startswith("stylus://adapters/"):
            ids = await anyio.to_thread.run_sync(backend.stylus.catalog.beginning, argument.value, MOST_COMPLETED + 1)
        else:
            known = {"base_model": BaseModelFamily, "category": Category}.get(argument.name, ())
            ids = [str(value) for value in known if value.startswith(argument.value.lower())]
        return types.Completion(values=ids[:MOST_COMPLETED], has_more=len(ids) > MOST_COMPLETED)

    @server.resource(
        "stylus://compositions/{id}",
        name="composition",
        mime_type="application/json",
        description="Tasks of a prompt with adapters, weights and reasons",
    )
    def composition(id: str, ctx: Caller) -> str:
        return ctx.request_context.lifespan_context.stylus.history.composition(id, owner()).model_dump_json()
