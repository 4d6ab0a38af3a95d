"""Makes what `tools/list` sends small: every agent pays for it in each conversation, and some clients cut it.

pydantic repeats each name as a title, writes an optional argument as a choice between its type and null, and keeps
nested types apart under `$defs`, which not every client resolves. What is accepted stays the same.
"""

import inspect
from collections.abc import Callable
from typing import Any

from mcp.server.mcpserver.tools import Tool
from mcp.server.mcpserver.utilities.func_metadata import FuncMetadata
from mcp_types import ToolAnnotations


class _Metadata(FuncMetadata):
    """The SDK reads strings that are JSON, as some clients send lists and objects; but a prompt that is JSON, as people
    write them for some models, is a text."""

    texts: frozenset[str]
    """Arguments that take nothing but a string."""

    def pre_parse_json(self, data: dict[str, Any]) -> dict[str, Any]:
        parsed = super().pre_parse_json(data)
        return {
            name: data[name] if name in self.texts and isinstance(value, list | dict) else value
            for name, value in parsed.items()
        }


def tool(
    function: Callable[..., Any], title: str, annotations: ToolAnnotations, *, structured: bool, page: str | None = None
) -> Tool:
    """`function` as a tool; its docstring, as one paragraph, is the description. `page` is the ui:// URI of the MCP App
    in which hosts that know these show its results."""
    description = " ".join(inspect.cleandoc(function.__doc__ or "").split())
    made = Tool.from_function(
        function,
        title=title,
        description=description,
        annotations=annotations,
        structured_output=structured,
        meta={"ui": {"resourceUri": page}} if page else None,
    )
    made.parameters = slim(made.parameters)
    texts = {name for name, schema in made.parameters["properties"].items() if schema.get("type") == "string"}
    made.fn_metadata = _Metadata(**dict(made.fn_metadata), texts=frozenset(texts))
    if made.fn_metadata.output_schema is not None:
        made.fn_metadata.output_schema = _inlined(made.fn_metadata.output_schema, {})
    return made


def slim(schema: dict[str, Any]) -> dict[str, Any]:
    """A tool's input schema with types in place, without titles, and with optional arguments merely not required."""
    short: dict[str, Any] = _without_null(_inlined(schema, {}))
    return short


def _inlined(schema: Any, definitions: dict[str, Any]) -> Any:
    if isinstance(schema, list):
        return [_inlined(part, definitions) for part in schema]
    if not isinstance(schema, dict):
        return schema
    definitions = definitions | schema.get("$defs", {})
    if "$ref" in schema:
        target = definitions[schema["$ref"].rpartition("/")[2]]
        if "enum" in target:  # what each value means is said where it is used
            target = {key: value for key, value in target.items() if key != "description"}
        schema = target | {key: value for key, value in schema.items() if key != "$ref"}
    kept = {key: value for key, value in schema.items() if key != "$defs" and not (key == "title" and _is_text(value))}
    return {key: _inlined(value, definitions) for key, value in kept.items()}


def _is_text(value: Any) -> bool:
    """A title, not a property that is called title."""
    return isinstance(value, str)


def _without_null(schema: Any) -> Any:
    """What is asked for, at any depth: who does not want to say anything leaves the argument away. Not for results,
    which do say null."""
    if isinstance(schema, list):
        return [_without_null(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    short = {key: _without_null(value) for key, value in schema.items()}
    if "properties" in short and short.get("type") == "object":
        short["properties"] = {name: _optional(part) for name, part in short["properties"].items()}
    return short


def _optional(schema: dict[str, Any]) -> dict[str, Any]:
    if schema.get("default", "") is not None or "anyOf" not in schema:
        return schema
    choices = [choice for choice in schema["anyOf"] if choice != {"type": "null"}]
    rest = {key: value for key, value in schema.items() if key not in ("anyOf", "default")}
    return choices[0] | rest if len(choices) == 1 else {"anyOf": choices} | rest
