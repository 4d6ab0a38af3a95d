"""The tools as their clients meet them: over stdio and HTTP, in both protocol eras."""

import base64
import io
import json
import time
from pathlib import Path
from typing import Any

import anyio
import pytest
from mcp import Client, MCPError
from mcp.types import (
    BlobResourceContents,
    CallToolResult,
    ImageContent,
    ResourceLink,
    ResourceTemplateReference,
    TextContent,
    TextResourceContents,
)
from PIL import Image

from tests.server.conftest import Session

FEW = {"size": "64x64", "steps": 2}
MANY = {"size": "64x64", "steps": 200, "count": 16}
"""Takes long enough to be cancelled in the middle."""


def text(result: CallToolResult) -> str:
    block = result.content[0]
    assert isinstance(block, TextContent)
    return block.text


def answer(result: CallToolResult) -> dict[str, Any]:
    assert not result.is_error, text(result)
    assert result.structured_content is None
    parsed: dict[str, Any] = json.loads(text(result))
    return parsed


def test_the_tools_of_the_contract_explain_themselves_in_few_tokens(session: Session) -> None:
    tools = session.run(lambda client: client.list_tools()).tools
    assert [tool.name for tool in tools] == ["search_adapters", "compose_adapters", "generate_image", "job"]
    sent = json.dumps([tool.model_dump(mode="json", by_alias=True, exclude_none=True) for tool in tools])
    assert len(sent) / 3.5 <= 3000
    for tool in tools:
        assert tool.description
        assert 2 <= tool.description.count(". ") + 1 <= 4
        assert len(tool.description) < 2048
        assert "$ref" not in json.dumps(tool.input_schema)
    assert session.run(lambda client: _instructions(client))


async def _instructions(client: Client) -> bool:
    return client.instructions is not None and len(client.instructions) < 2048


def test_search_finds_by_meaning(session: Session) -> None:
    result = session.call("search_adapters", query="a shining star shape", limit=3)
    matches = result.structured_content["matches"]
    assert matches[0]["id"] == "test:star"
    assert (matches[0]["weight"], matches[0]["usable"]) == (0.8, True)
    assert matches[0]["trigger_words"] == ["starword"]
    assert len(matches) == 3
    assert json.loads(text(result)) == result.structured_content


def test_search_filters(session: Session) -> None:
    result = session.call("search_adapters", query="castle", base_model="sdxl").structured_content
    assert [(match["id"], match["usable"]) for match in result["matches"]] == [("test:large", False)]
    nothing = session.call("search_adapters", query="castle", base_model="flux").structured_content
    assert nothing["matches"] == []
    assert "Drop a filter" in nothing["note"]


def test_compose_then_generate_with_progress_then_read_everything(session: Session, tmp_path: Path) -> None:
    composition = session.call("compose_adapters", prompt="a star and a moon").structured_content
    chosen = {adapter["id"] for task in composition["tasks"] for adapter in task["adapters"]}
    assert {"test:star", "test:moon"} <= chosen
    told: list[tuple[float, str | None]] = []

    async def on_progress(progress: float, total: float | None, message: str | None) -> None:
        told.append((progress, message))

    arguments = {"composition_id": composition["composition_id"], "count": 3, "seed": 7, **FEW}
    result = session.run(lambda client: client.call_tool("generate_image", arguments, progress_callback=on_progress))
    made = answer(result)
    assert made["status"] == "done"
    assert made["composition_id"] == composition["composition_id"]
    assert [image["seed"] for image in made["images"]] == [7, 8, 9]
    assert set(made["images"][0]["adapters"]) == chosen
    assert {"load", "generate"} <= set(made["seconds"])

    assert told
    assert [value for value, _ in told] == sorted({value for value, _ in told})

    pictures = [block for block in result.content if isinstance(block, ImageContent)]
    assert len(pictures) == 1
    assert len(pictures[0].data) < 300_000
    sheet = Image.open(io.BytesIO(base64.b64decode(pictures[0].data)))
    assert max(sheet.size) <= 512
    links = [str(block.uri) for block in result.content if isinstance(block, ResourceLink)]
    assert links == [image["uri"] for image in made["images"]]

    for image in made["images"]:
        [content] = read(session, image["uri"])
        assert isinstance(content, BlobResourceContents)
        assert content.mime_type == "image/png"
        png = base64.b64decode(content.blob)
        assert Image.open(io.BytesIO(png)).size == (64, 64)
        assert Path(image["path"]).read_bytes() == png

    stored = read_json(session, f"stylus://compositions/{composition['composition_id']}")
    assert stored["prompt"] == "a star and a moon"


def read(session: Session, uri: str) -> list[TextResourceContents | BlobResourceContents]:
    return list(session.run(lambda client: client.read_resource(uri)).contents)


def read_json(session: Session, uri: str) -> Any:
    [content] = read(session, uri)
    assert isinstance(content, TextResourceContents)
    assert content.mime_type == "application/json"
    return json.loads(content.text)


@pytest.mark.parametrize("uri", ["stylus://adapters/test:slash/name", "stylus://adapters/test%3Aslash%2Fname"])
def test_adapters_are_read_by_ids_with_colons_and_slashes(session: Session, uri: str) -> None:
    card = read_json(session, uri)
    assert card["id"] == "test:slash/name"
    assert card["has_file"] is True
    assert "file" not in card


def completed(session: Session, template: str, name: str, start: str) -> list[str]:
    ref = ResourceTemplateReference(uri=template)
    return session.run(lambda client: client.complete(ref, {"name": name, "value": start})).completion.values


def test_arguments_of_templates_are_completed(session: Session) -> None:
    templates = session.run(lambda client: client.list_resource_templates()).resource_templates
    assert {template.uri_template for template in templates} >= {*TEMPLATES, "stylus://compositions/{id}"}
    adapters, catalog, images = TEMPLATES
    assert completed(session, adapters, "id", "test:s") == ["test:slash/name", "test:star"]
    assert completed(session, adapters, "id", "%") == []
    assert completed(session, adapters, "id", "\0") == []
    assert completed(session, catalog, "base_model", "sd") == ["sd15", "sdxl", "sd3"]
    assert completed(session, catalog, "category", "Sty") == ["style"]
    assert completed(session, images, "id", "") == []
    listed = read_json(session, "stylus://catalog/sdxl/object")
    assert [adapter["id"] for adapter in listed["adapters"]] == ["test:large"]


TEMPLATES = ("stylus://adapters/{+id}", "stylus://catalog/{base_model}/{category}", "stylus://images/{id}")


def test_lists_say_how_long_they_hold_where_the_era_knows_that(session: Session) -> None:
    async def hints(client: Client) -> tuple[bool, Any, Any]:
        tools = await client.list_tools()
        card = await client.read_resource("stylus://adapters/test:star")
        return client.protocol_version >= "2026", tools, card

    modern, tools, card = session.run(hints)
    if modern:
        assert (tools.ttl_ms, tools.cache_scope) == (600_000, "public")
        assert (card.ttl_ms, card.cache_scope) == (0, "private")
    else:
        assert "ttl_ms" not in tools.model_fields_set


@pytest.mark.parametrize(
    "uri",
    [
        "stylus://images/nope",
        "stylus://compositions/nope",
        "stylus://adapters/test:nope",
        "stylus://adapters/../../etc/passwd",
        "stylus://images/..%2F..%2Fetc%2Fpasswd",
        "stylus://catalog/sd15/nope",
        "stylus://elsewhere/x",
    ],
)
def test_unknown_resources_are_refused(session: Session, uri: str) -> None:
    with pytest.raises(MCPError) as caught:
        session.run(lambda client: client.read_resource(uri))
    assert caught.value.error.code == -32602
    assert "Traceback" not in caught.value.error.message


def test_the_caller_can_be_the_composer(session: Session) -> None:
    picks = [{"id": "test:star", "weight": 0.6, "task": "shape"}, {"id": "test:neon", "task": "style"}]
    made = answer(session.call("generate_image", prompt="a star", adapters=picks, seed=1, **FEW))
    assert [(task["keyword"], task["adapters"][0]["weight"]) for task in made["tasks"]] == [
        ("shape", 0.6),
        ("style", 0.8),
    ]
    plain = answer(session.call("generate_image", prompt="a star", adapters=[], seed=1, **FEW))
    assert plain["images"][0]["adapters"] == {}
    assert Path(plain["images"][0]["path"]).read_bytes() != Path(made["images"][0]["path"]).read_bytes()


def test_a_composition_is_drawn_at_other_weights(session: Session) -> None:
    made = answer(session.call("generate_image", prompt="a star and a moon", seed=1, **FEW))
    arguments = {"composition_id": made["composition_id"], "seed": 1, "request_id": f"weights {id(session)}", **FEW}
    changed = {**arguments, "adapters": [{"id": "test:star", "weight": 1.5}, {"id": "test:moon", "weight": 0}]}
    other = answer(session.call("generate_image", **changed))
    assert other["images"][0]["adapters"]["test:star"] == 1.5
    assert "test:moon" not in other["images"][0]["adapters"]
    assert "moonword" not in other["images"][0]["prompt"]
    assert Path(other["images"][0]["path"]).read_bytes() != Path(made["images"][0]["path"]).read_bytes()
    assert answer(session.call("generate_image", **changed)) == other
    assert session.call("generate_image", **arguments).is_error
    strange = {"composition_id": other["composition_id"], "adapters": [{"id": "test:moon", "weight": 1}]}
    assert "no adapter 'test:moon'" in text(session.call("generate_image", **strange))


@pytest.mark.parametrize("prompt", ["a moon", "a moon <lora:foo:0.8>", "a\r\nmoon", " a\u00a0moon "])
def test_a_retry_with_the_same_request_id_draws_nothing_twice(session: Session, prompt: str) -> None:
    arguments = {"prompt": prompt, "seed": 1, "request_id": f"retry {id(session)} {prompt!r}", **FEW}
    first, second = (
        answer(session.call("generate_image", **arguments)),
        answer(session.call("generate_image", **arguments, count=1)),
    )
    assert first == second
    changes: list[dict[str, Any]] = [{"prompt": "a star"}, {"seed": 2}, {"adapters": []}, {"count": 2}, {"steps": 3}]
    for other in changes:
        refused = session.call("generate_image", **{**arguments, **other})
        assert refused.is_error
        assert first["job_id"] in text(refused)
        assert "new request_id" in text(refused)


def test_a_client_that_cancels_its_call_ends_the_job(session: Session) -> None:
    request_id = f"cancelled {id(session)}"

    async def cancel_midway(client: Client) -> None:
        begun = anyio.Event()

        async def on_progress(progress: float, total: float | None, message: str | None) -> None:
            if message and message.startswith("generating"):
                begun.set()

        async with anyio.create_task_group() as group:
            arguments = {"prompt": "a star", "request_id": request_id, **MANY}
            group.start_soon(lambda: client.call_tool("generate_image", arguments, progress_callback=on_progress))
            await begun.wait()
            group.cancel_scope.cancel()

    session.run(cancel_midway)
    start = time.monotonic()
    again = {"prompt": "a star", "request_id": request_id, **FEW}
    while (retried := session.call("generate_image", **again)).is_error:  # the job is not told of its end yet
        assert time.monotonic() - start < 10
    assert answer(retried)["status"] == "done"
    assert time.monotonic() - start < 10


ERRORS = [
    ("search_adapters", {}, "query: Field required"),
    ("search_adapters", {"query": ""}, "at least 1 character"),
    ("search_adapters", {"query": "   "}, "The prompt is empty"),
    ("search_adapters", {"query": "x" * 100_000}, "100,000 characters"),
    ("search_adapters", {"query": "star", "limit": 0}, "limit: Input should be greater than or equal to 1 (given: 0)"),
    ("search_adapters", {"query": "star", "limit": "many"}, "limit: Input should be a valid integer"),
    ("search_adapters", {"query": "star", "base_model": "sd9"}, "'pocket', 'sd15'"),
    ("search_adapters", {"query": "star", "colour": "red"}, "no argument 'colour'. It has: query,"),
    ("compose_adapters", {"prompt": ""}, "at least 1 character"),
    ("compose_adapters", {"prompt": "x" * 100_000}, "at most 10000 characters (given: 100,000 characters, "),
    ("compose_adapters", {"prompt": 7}, "prompt: Input should be a valid string"),
    ("compose_adapters", {"prompt": "star", "temperature": -1}, "greater than or equal to 0"),
    ("generate_image", {}, "Pass either prompt or composition_id"),
    ("generate_image", {"prompt": "star", "composition_id": "x"}, "Pass either prompt or composition_id"),
    (
        "generate_image",
        {"prompt": '{"subject": "a star"}', "composition_id": "x"},
        "Pass either prompt or composition_id",
    ),
    ("generate_image", {"prompt": " \n "}, "The prompt is empty"),
    ("generate_image", {"prompt": "x" * 100_000}, "at most 10000 characters (given: 100,000 characters, "),
    ("generate_image", {"prompt": "star", "count": 0}, "greater than or equal to 1 (given: 0)"),
    ("generate_image", {"prompt": "star", "count": 10_000}, "less than or equal to 64 (given: 10000)"),
    ("generate_image", {"prompt": "star", "control": True}, "pass a count of 2 or more"),
    ("generate_image", {"prompt": "star", "request_id": "no\0pe"}, "request_id: String should match pattern"),
    ("generate_image", {"prompt": "star", "strength": 0.5}, "pass the image, or leave strength out"),
    ("generate_image", {"prompt": "star", "seed": -1}, "seed: Input should be greater than or equal to 0"),
    ("generate_image", {"prompt": "star", "size": "63x64"}, "63 is not a multiple of 8"),
    ("generate_image", {"prompt": "star", "size": "huge"}, "size: String should match pattern"),
    ("generate_image", {"composition_id": "nope"}, "Call compose_adapters"),
    ("generate_image", {"composition_id": "no\0pe"}, "Call compose_adapters"),
    ("generate_image", {"composition_id": "x", "adapters": []}, 'pass masks="none"'),
    ("generate_image", {"composition_id": "x", "base_model": "sd15"}, "A composition has its base model"),
    ("generate_image", {"composition_id": "x", "adapters": [{"id": "test:star"}]}, "its new weight"),
    ("generate_image", {"composition_id": "x", "adapters": [{"id": "test:star", "weight": 1}] * 2}, "once, with its"),
    ("generate_image", {"prompt": "star", "adapters": [{"id": "test:sta"}]}, "test:star"),
    ("generate_image", {"prompt": "star", "adapters": [{"id": "test:sta"}]}, "search_adapters"),
    ("generate_image", {"prompt": "star", "adapters": [{"id": "star"}]}, "adapters.0.id"),
    ("generate_image", {"prompt": "star", "adapters": [{"id": "test:star", "weight": 99}]}, "less than or equal to 4"),
    ("generate_image", {"prompt": "star", "adapters": [{"id": "test:large"}]}, "sdxl"),
    ("generate_image", {"prompt": "star", "adapters": [{"id": "test:corrupt"}], **FEW}, "test:corrupt"),
    ("generate_image", {"prompt": "star", "adapters": [{"id": "test:missing"}], **FEW}, "test:missing"),
    (
        "generate_image",
        {"prompt": "star", "adapters": [], "base_model": "sdxl"},
        "no checkpoint is configured for sdxl",
    ),
    ("job", {"id": "nope"}, "Job ids come from generate_image"),
    ("job", {"id": "nope", "action": "cancel"}, "Job ids come from generate_image"),
    ("job", {"id": "nope", "action": "restart"}, "'wait', 'status' or 'cancel'"),
    ("job", {"id": "no\0pe"}, "job"),
]


@pytest.mark.parametrize(("tool", "arguments", "said"), ERRORS)
def test_errors_say_what_was_wrong_and_what_to_do(
    session: Session, tool: str, arguments: dict[str, Any], said: str
) -> None:
    result = session.call(tool, **arguments)
    assert result.is_error
    assert said in text(result)
    assert len(text(result)) < 1000
    assert "Traceback" not in text(result)
    assert not text(result).startswith("Error executing")
