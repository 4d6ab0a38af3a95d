"""`python -m tests.conformance.app PORT`: the fixtures of the suites on the server's own stack: StylusServer, tokens,
Guard, Host and Origin checks. The suites bring no token, so one is added to each request on its way in."""

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator

import mcp_types as types
import uvicorn
from mcp.server import MCPServer
from mcp.server.context import ServerRequestContext
from starlette.types import ASGIApp, Receive, Scope, Send

from server.app import http_app
from server.auth import Verifier, auth_settings
from server.backend import Backend
from server.protocol import StylusServer
from stylus.settings import Settings
from tests.conformance import fixtures

TOKEN = "of-the-suite"  # noqa: S105


def server(backend: Backend, url: str) -> StylusServer:
    @contextlib.asynccontextmanager
    async def lifespan(_: MCPServer[Backend]) -> AsyncIterator[Backend]:
        yield backend

    made = StylusServer(
        name="conformance",
        version="1",
        lifespan=lifespan,
        token_verifier=Verifier(backend, url),
        auth=auth_settings(url, None),
    )
    fixtures.register(made)
    _methods(made)
    return made


def _methods(server: StylusServer) -> None:
    """Methods that the suite calls and the server itself does not offer."""

    async def nothing(_: ServerRequestContext[Backend], __: types.RequestParams) -> types.EmptyResult:
        return types.EmptyResult()

    for method, params in (
        ("resources/subscribe", types.SubscribeRequestParams),
        ("resources/unsubscribe", types.UnsubscribeRequestParams),
        ("logging/setLevel", types.SetLevelRequestParams),
    ):
        server._lowlevel_server.add_request_handler(method, params, nothing)

    async def complete(_: ServerRequestContext[Backend], __: types.CompleteRequestParams) -> types.CompleteResult:
        values = ["paris", "park", "party"]
        return types.CompleteResult(completion=types.Completion(values=values, total=len(values), has_more=False))

    server._lowlevel_server.add_request_handler("completion/complete", types.CompleteRequestParams, complete)


def with_token(app: ASGIApp) -> ASGIApp:
    async def called(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            scope = {**scope, "headers": [*scope["headers"], (b"authorization", f"Bearer {TOKEN}".encode())]}
        await app(scope, receive, send)

    return called


def main() -> None:
    port = int(sys.argv[1])
    # the database is asked for no token, since the environment's come first
    backend = Backend(Settings.model_validate({"tokens": TOKEN, "database_url": "postgresql://127.0.0.1:1/none"}))
    app = http_app(server(backend, f"http://127.0.0.1:{port}/mcp"), backend, "127.0.0.1", port)
    config = uvicorn.Config(with_token(app), port=port, log_config=None, access_log=False)
    asyncio.run(uvicorn.Server(config).serve())


if __name__ == "__main__":
    main()
