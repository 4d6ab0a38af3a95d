"""The one place where our errors become errors of the protocol.

The SDK hides every exception but its own from the client, which is right for bugs. A StylusError is made to be read by
the caller, so it is let through; a value that the schema refuses is explained without pydantic's links and dumps.
"""

from collections.abc import Iterable
from typing import Any

import mcp_types as types
from mcp.server import MCPServer
from mcp.server.lowlevel.helper_types import ReadResourceContents
from mcp.server.mcpserver import Context
from mcp.server.mcpserver.exceptions import (
    ResourceError,
    ResourceNotFoundError,
    ToolError,
    UnexpectedResourceError,
    UnexpectedToolError,
)
from pydantic import AnyUrl, ValidationError

from server.audit import ids_answered, ids_asked
from server.auth import owner
from server.backend import Backend
from stylus.errors import NotFound, StylusError, flaws


class StylusServer(MCPServer[Backend]):
    async def call_tool(
        self, name: str, arguments: dict[str, Any], context: Context[Backend, Any] | None = None
    ) -> types.CallToolResult | types.InputRequiredResult:
        if context is None:  # nobody's call
            return await self._called(name, arguments, context)
        schema = self._tool_input_schema(name)
        told = {key: arguments[key] for key in (schema or {}).get("properties", {}) if key in arguments}
        audit = context.request_context.lifespan_context.audit
        with audit.call(name if schema else "unknown tool", owner(), told) as about:
            about.update(ids_asked(told))
            result = await self._called(name, arguments, context)
            about.update(ids_answered(result))
        return result

    async def _called(
        self, name: str, arguments: dict[str, Any], context: Context[Backend, Any] | None
    ) -> types.CallToolResult | types.InputRequiredResult:
        self._refuse_unknown(name, arguments)
        try:
            return await super().call_tool(name, arguments, context)
        except ToolError as error:
            cause = error.__cause__
            if isinstance(cause, StylusError | ToolError):
                raise ToolError(str(cause)) from cause
            if isinstance(cause, ValidationError) and not isinstance(error, UnexpectedToolError):
                raise ToolError(f"{flaws(cause)}. Mend this and call again.") from cause
            raise

    def _refuse_unknown(self, name: str, arguments: dict[str, Any]) -> None:
        """The SDK drops arguments that a tool does not have: a picture without what was asked for would be worse."""
        schema = self._tool_input_schema(name)
        known = schema.get("properties", {}) if schema else arguments
        if unknown := [argument for argument in arguments if argument not in known]:
            raise ToolError(f"{name} has no argument {unknown[0][:60]!r}. It has: {', '.join(known)}.")

    async def read_resource(
        self, uri: AnyUrl | str, context: Context[Backend, Any] | None = None
    ) -> Iterable[ReadResourceContents] | types.InputRequiredResult:
        if context is None:
            return await self._read(uri, context)
        with context.request_context.lifespan_context.audit.call("resources/read", owner(), {}) as about:
            about["uri"] = str(uri)[:200]
            return await self._read(uri, context)

    async def _read(
        self, uri: AnyUrl | str, context: Context[Backend, Any] | None
    ) -> Iterable[ReadResourceContents] | types.InputRequiredResult:
        try:
            return await super().read_resource(uri, context)
        except UnexpectedResourceError as error:
            cause = error.__cause__
            if isinstance(cause, NotFound):
                raise ResourceNotFoundError(str(cause)) from cause
            if isinstance(cause, StylusError):
                raise ResourceError(str(cause)) from cause
            raise
