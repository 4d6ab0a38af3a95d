"""The tools, resources and prompts that the official conformance suites call, as their scenarios describe them."""

import asyncio
import io
import json
import struct
import wave
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import mcp_types as types
from mcp import MCPError
from mcp.server.mcpserver import Audio, Context, Image
from mcp.server.mcpserver.exceptions import ToolError
from mcp.server.mcpserver.prompts.base import UserMessage
from PIL import Image as Picture

from server.backend import Backend
from server.protocol import StylusServer

Caller = Context[Backend, Any]
Answer = types.CallToolResult | types.InputRequiredResult


def _png() -> bytes:
    buffer = io.BytesIO()
    Picture.new("RGB", (1, 1), "red").save(buffer, "PNG")
    return buffer.getvalue()


def _wav() -> bytes:
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setparams((1, 2, 8000, 1, "NONE", ""))
        file.writeframes(struct.pack("<h", 0))
    return buffer.getvalue()


def _text(text: str) -> types.TextContent:
    return types.TextContent(type="text", text=text)


def _embedded(uri: str, mime_type: str, text: str) -> types.EmbeddedResource:
    resource = types.TextResourceContents(uri=uri, mime_type=mime_type, text=text)
    return types.EmbeddedResource(type="resource", resource=resource)


def _result(*blocks: types.ContentBlock) -> types.CallToolResult:
    return types.CallToolResult(content=list(blocks))


def _form(message: str, properties: Mapping[str, Any]) -> types.ElicitRequest:
    schema = {"type": "object", "properties": dict(properties), "required": list(properties)}
    return types.ElicitRequest(params=types.ElicitRequestFormParams(message=message, requested_schema=schema))


def _sample(question: str) -> types.CreateMessageRequest:
    messages = [types.SamplingMessage(role="user", content=_text(question))]
    return types.CreateMessageRequest(params=types.CreateMessageRequestParams(messages=messages, max_tokens=100))


def register(server: StylusServer) -> None:
    _contents(server)
    _conversations(server)
    _rounds(server)
    _resources(server)
    _prompts(server)


def _tool(server: StylusServer, name: str, function: Callable[..., Awaitable[Answer]]) -> None:
    server.add_tool(
        function, name=name, description=f"Fixture {name} of the conformance suites", structured_output=False
    )


def _contents(server: StylusServer) -> None:
    """What a result may hold."""
    image, audio = (
        Image(data=_png(), format="png").to_image_content(),
        Audio(data=_wav(), format="wav").to_audio_content(),
    )
    answers: dict[str, list[types.ContentBlock]] = {
        "test_simple_text": [_text("This is a simple text response for testing.")],
        "test_image_content": [image],
        "test_audio_content": [audio],
        "test_embedded_resource": [
            _embedded("test://embedded-resource", "text/plain", "This is an embedded resource content.")
        ],
        "test_multiple_content_types": [
            _text("Multiple content types test:"),
            image,
            _embedded("test://mixed-content-resource", "application/json", '{"test":"data","value":123}'),
        ],
    }

    def constant(blocks: list[types.ContentBlock]) -> Callable[[], Awaitable[Answer]]:
        async def answer() -> Answer:
            return _result(*blocks)

        return answer

    for name, blocks in answers.items():
        _tool(server, name, constant(blocks))

    async def fail() -> Answer:
        raise ToolError("This tool intentionally returns an error for testing")

    async def schema() -> Answer:
        return _result(_text("ok"))

    _tool(server, "test_error_handling", fail)
    _tool(server, "json_schema_2020_12_tool", schema)
    _tool(server, "test_header_tool", schema)
    tools = server._tool_manager
    for name, parameters in (("json_schema_2020_12_tool", SCHEMA), ("test_header_tool", HEADER_SCHEMA)):
        found = tools.get_tool(name)
        assert found is not None
        found.parameters = parameters


SCHEMA: dict[str, Any] = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "type": "object",
    "$defs": {
        "address": {
            "$anchor": "addressDef",
            "type": "object",
            "properties": {"street": {"type": "string"}, "city": {"type": "string"}},
        }
    },
    "properties": {
        "name": {"type": "string"},
        "address": {"$ref": "#/$defs/address"},
        "contactMethod": {"type": "string", "enum": ["phone", "email"]},
        "phone": {"type": "string"},
        "email": {"type": "string"},
    },
    "allOf": [{"anyOf": [{"required": ["phone"]}, {"required": ["email"]}]}],
    "if": {"properties": {"contactMethod": {"const": "phone"}}, "required": ["contactMethod"]},
    "then": {"required": ["phone"]},
    "else": {"required": ["email"]},
    "additionalProperties": False,
}
HEADER_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"region": {"type": "string", "x-mcp-header": "Region"}},
}


def _conversations(server: StylusServer) -> None:
    """What a tool may send while it works: progress, logs, and, in the handshake era, requests to the client."""

    async def log(ctx: Caller) -> Answer:
        for text in ("Tool execution started", "Tool processing data", "Tool execution completed"):
            await ctx.session.send_log_message("info", text, related_request_id=ctx.request_id)
            await asyncio.sleep(0.05)
        return _result(_text("logged"))

    async def progress(ctx: Caller) -> Answer:
        for value in (0, 50, 100):
            await ctx.report_progress(value, 100)
            await asyncio.sleep(0.05)
        return _result(_text("progress reported"))

    async def sampling(prompt: str, ctx: Caller) -> Answer:
        message = types.SamplingMessage(role="user", content=_text(prompt))
        made = await ctx.session.create_message([message], max_tokens=100, related_request_id=ctx.request_id)
        text = made.content.text if isinstance(made.content, types.TextContent) else ""
        return _result(_text(f"LLM response: {text}"))

    def elicits(properties: dict[str, Any], said: str) -> Callable[..., Awaitable[Answer]]:
        async def elicit(ctx: Caller, message: str = "Please answer") -> Answer:
            params = _form(message, properties).params
            assert isinstance(params, types.ElicitRequestFormParams)
            schema = params.requested_schema
            made = await ctx.session.elicit_form(message, schema, related_request_id=ctx.request_id)
            return _result(_text(f"{said}: action={made.action}, content={json.dumps(made.content)}"))

        return elicit

    async def polling(ctx: Caller) -> Answer:
        await ctx.close_sse_stream()
        await asyncio.sleep(0.1)
        return _result(_text("Reconnection test completed successfully"))

    async def needs_sampling(ctx: Caller) -> Answer:
        if ctx.client_capabilities is None or ctx.client_capabilities.sampling is None:
            needed: dict[str, Any] = {"requiredCapabilities": {"sampling": {}}}
            raise MCPError(types.MISSING_REQUIRED_CLIENT_CAPABILITY, "This tool needs sampling", needed)
        return _result(_text("sampling is there"))

    text = {"type": "string"}
    _tool(server, "test_tool_with_logging", log)
    _tool(server, "test_logging_tool", log)
    _tool(server, "test_tool_with_progress", progress)
    _tool(server, "test_sampling", sampling)
    _tool(server, "test_elicitation", elicits({"username": text, "email": text}, "User response"))
    _tool(server, "test_elicitation_sep1034_defaults", elicits(DEFAULTS, "Elicitation completed"))
    _tool(server, "test_elicitation_sep1330_enums", elicits(ENUMS, "Elicitation completed"))
    _tool(server, "test_reconnection", polling)
    _tool(server, "test_missing_capability", needs_sampling)


DEFAULTS: dict[str, Any] = {
    "name": {"type": "string", "default": "John Doe"},
    "age": {"type": "integer", "default": 30},
    "score": {"type": "number", "default": 95.5},
    "status": {"type": "string", "enum": ["active", "inactive", "pending"], "default": "active"},
    "verified": {"type": "boolean", "default": True},
}


def _titled(kind: str) -> list[dict[str, str]]:
    return [{"const": f"value{n}", "title": f"{word} {kind}"} for n, word in enumerate(("First", "Second", "Third"), 1)]


OPTIONS = ["option1", "option2", "option3"]
ENUMS: dict[str, Any] = {
    "untitledSingle": {"type": "string", "enum": OPTIONS},
    "titledSingle": {"type": "string", "oneOf": _titled("Option")},
    "legacyEnum": {
        "type": "string",
        "enum": ["opt1", "opt2", "opt3"],
        "enumNames": ["Option One", "Option Two", "Option Three"],
    },
    "untitledMulti": {"type": "array", "items": {"type": "string", "enum": OPTIONS}},
    "titledMulti": {"type": "array", "items": {"anyOf": _titled("Choice")}},
}


NAME = _form("What is your name?", {"name": {"type": "string"}})
CONFIRM = _form("Please confirm", {"ok": {"type": "boolean"}})
ROUNDS: dict[str, list[dict[str, types.InputRequest]]] = {
    "elicitation": [{"user_name": NAME}],
    "sampling": [{"capital_question": _sample("What is the capital of France?")}],
    "list_roots": [{"client_roots": types.ListRootsRequest()}],
    "request_state": [{"confirm": CONFIRM}],
    "multiple_inputs": [
        {"user_name": NAME, "greeting": _sample("Generate a greeting"), "client_roots": types.ListRootsRequest()}
    ],
    "multi_round": [
        {"step1": _form("Step 1: What is your name?", {"name": {"type": "string"}})},
        {"step2": _form("Step 2: What is your favorite color?", {"color": {"type": "string"}})},
    ],
    "tampered_state": [{"confirm": CONFIRM}],
}
"""What each tool asks for, round by round; the request state says which round it is."""


def _rounds(server: StylusServer) -> None:
    """Requests that need input of the client first (2026-07-28)."""

    def asks(rounds: list[dict[str, types.InputRequest]]) -> Callable[[Caller], Awaitable[Answer]]:
        async def ask(ctx: Caller) -> Answer:
            asked = int(ctx.request_state or 0)
            if _answered(rounds[asked], ctx):
                asked += 1
            if asked < len(rounds):
                return types.InputRequiredResult(input_requests=rounds[asked], request_state=str(asked))
            said = json.dumps(
                {key: value.model_dump(mode="json") for key, value in (ctx.input_responses or {}).items()}
            )
            return _result(_text(f"state-ok: {said}"))

        return ask

    for name, rounds in ROUNDS.items():
        _tool(server, f"test_input_required_result_{name}", asks(rounds))

    async def by_capabilities(ctx: Caller) -> Answer:
        known = ctx.client_capabilities or types.ClientCapabilities()
        offered: dict[str, types.InputRequest] = {}
        if known.sampling is not None:
            offered["greeting"] = _sample("Generate a greeting")
        if known.elicitation is not None:
            offered["user_name"] = NAME
        if not offered or _answered(offered, ctx):
            return _result(_text("done"))
        return types.InputRequiredResult(input_requests=offered)

    _tool(server, "test_input_required_result_capabilities", by_capabilities)
    _tool(server, "test_streaming_elicitation", asks(ROUNDS["elicitation"]))


def _answered(requests: Mapping[str, types.InputRequest], ctx: Caller) -> bool:
    given = ctx.input_responses or {}
    for key, request in requests.items():
        answer = given.get(key)
        if isinstance(request, types.ElicitRequest):
            if not isinstance(answer, types.ElicitResult) or answer.action != "accept":
                return False
        elif answer is None:
            return False
    return True


def _resources(server: StylusServer) -> None:
    @server.resource("test://static-text", name="static text", mime_type="text/plain", description="A text")
    def static_text() -> str:
        return "This is the content of the static text resource."

    @server.resource("test://static-binary", name="static binary", mime_type="image/png", description="A picture")
    def static_binary() -> bytes:
        return _png()

    @server.resource("test://watched-resource", name="watched", mime_type="text/plain", description="May be watched")
    def watched() -> str:
        return "Nothing happened yet."

    @server.resource(
        "test://template/{id}/data", name="template", mime_type="application/json", description="Data for an id"
    )
    def template(id: str) -> str:
        return json.dumps({"id": id, "templateTest": True, "data": f"Data for ID: {id}"})


def _prompts(server: StylusServer) -> None:
    @server.prompt(name="test_simple_prompt", description="No arguments")
    def simple() -> str:
        return "This is a simple prompt for testing."

    @server.prompt(name="test_prompt_with_arguments", description="Two arguments")
    def with_arguments(arg1: str, arg2: str) -> str:
        return f"Prompt with arguments: arg1='{arg1}', arg2='{arg2}'"

    @server.prompt(name="test_prompt_with_embedded_resource", description="A resource and a text")
    def with_resource(resourceUri: str) -> list[UserMessage]:
        resource = _embedded(resourceUri, "text/plain", "Embedded resource content for testing.")
        return [UserMessage(resource), UserMessage("Please process the embedded resource above.")]

    @server.prompt(name="test_prompt_with_image", description="A picture and a text")
    def with_image() -> list[UserMessage]:
        return [UserMessage(Image(data=_png(), format="png")), UserMessage("Please analyze the image above.")]

    @server.prompt(name="test_input_required_result_prompt", description="Asks for its context first")
    def asks_first(ctx: Caller) -> list[UserMessage] | types.InputRequiredResult:
        asked: dict[str, types.InputRequest] = {
            "user_context": _form("What context should the prompt use?", {"context": {"type": "string"}})
        }
        if not _answered(asked, ctx):
            return types.InputRequiredResult(input_requests=asked)
        return [UserMessage("Use the context that was given.")]
