"""The voting page: pairs of pictures side by side, blind, for everybody who has the link.

The same habits as the MCP server's: loopback unless asked otherwise, Host and Origin checked, limits per caller. On
other addresses the link holds a token, which becomes a cookie, so that pictures need no other way to bring it.
"""

import hmac
import secrets
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, TypeVar

import anyio.to_thread
import uvicorn
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from server.app import bound
from server.auth import LOOPBACK, security
from server.guard import Guard
from server.images import told
from server.pages import page
from stylus.errors import InvalidInput, NotFound, StylusError, flaws
from stylus.evaluation.poll import Poll, as_csv, bare
from stylus.evaluation.votes import Choice, Vote, Votes

Form = TypeVar("Form", bound=BaseModel)

AHEAD = 3
"""Pairs that a page knows of, so that the next pictures are there when a vote is given."""
MOST_BODY = 4096
COOKIE = "stylus-vote-{port}"
"""Browsers share cookies between the ports of a host."""


def _name(text: str) -> str:
    name = " ".join(text.split())
    if not name.isprintable() or not 1 <= len(name) <= 40:
        raise ValueError("a name has 1 to 40 printable characters")
    return name


Name = Annotated[str, AfterValidator(_name)]


class _Voter(BaseModel):
    model_config = ConfigDict(extra="forbid")

    voter: Name


class _Cast(_Voter):
    ballot: str = Field(max_length=64)
    choice: Choice


@dataclass(frozen=True)
class Voting:
    """The routes. What a page gets tells nothing about arms but the results, which voters see when they are done."""

    poll: Poll
    votes: Votes

    async def show(self, _: Request) -> Response:
        return page("vote")

    async def ballots(self, request: Request) -> Response:
        """What comes next for a voter."""
        return await self._next(_checked(_Voter, request.query_params).voter)

    async def vote(self, request: Request) -> Response:
        cast = _checked(_Cast, await _body(request))
        ballot = self.poll.require(cast.ballot)
        (left, _), (right, _) = self.poll.sides(cast.voter, ballot)
        vote = Vote(
            voter=cast.voter, ballot=ballot.id, prompt=ballot.prompt, left=left, right=right, choice=cast.choice
        )
        await anyio.to_thread.run_sync(self.votes.add, vote)
        return await self._next(cast.voter)

    async def undo(self, request: Request) -> Response:
        voter = _checked(_Voter, await _body(request)).voter
        await anyio.to_thread.run_sync(self.votes.undo, voter, self.poll.by_id.keys())
        return await self._next(voter)

    async def picture(self, request: Request) -> Response:
        voter = _checked(_Voter, request.query_params).voter
        sides = self.poll.sides(voter, self.poll.require(request.path_params["ballot"]))
        side = request.path_params["side"]
        if side not in (0, 1):
            raise NotFound("A pair has the pictures 0 (left) and 1 (right).")
        _, path = sides[side]
        content = await anyio.to_thread.run_sync(bare, path)
        return Response(content, media_type="image/png", headers={"Cache-Control": "private, max-age=86400"})

    async def results(self, _: Request) -> Response:
        standings = await anyio.to_thread.run_sync(lambda: self.poll.standings(self.votes.on(self.poll.by_id.keys())))
        counts = {"ballots": len(self.poll.ballots), "identical": self.poll.identical}
        return JSONResponse(standings.model_dump(mode="json") | counts)

    async def export(self, _: Request) -> Response:
        text = await anyio.to_thread.run_sync(lambda: as_csv(self.votes.on(self.poll.by_id.keys())))
        headers = {"Content-Disposition": 'attachment; filename="votes.csv"'}
        return Response(text, media_type="text/csv; charset=utf-8", headers=headers)

    async def _next(self, voter: str) -> Response:
        given = await anyio.to_thread.run_sync(self.votes.on, self.poll.by_id.keys(), voter)
        done = {vote.ballot for vote in given}
        left = [ballot for ballot in self.poll.ballots if ballot.id not in done]
        following = [{"ballot": ballot.id, "prompt": ballot.prompt} for ballot in left[:AHEAD]]
        return JSONResponse({"done": len(done), "total": len(self.poll.ballots), "next": following})


class Door:
    """ASGI middleware: lets in who comes with the link, and from then on brings the cookie that it gave."""

    def __init__(self, app: ASGIApp, token: str, cookie: str) -> None:
        self._app, self._token, self._cookie = app, token, cookie

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request = Request(scope)
        answer: ASGIApp
        if self._is(request.cookies.get(self._cookie, "")):
            answer = self._app
        elif request.url.path == "/" and self._is(request.query_params.get("token", "")):
            # Lax and not Strict: a browser sends no strict cookie after a click in a messenger
            answer = RedirectResponse("/", 303, headers={"Referrer-Policy": "no-referrer"})
            answer.set_cookie(self._cookie, self._token, max_age=30 * 86400, httponly=True, samesite="lax")
        else:
            answer = PlainTextResponse("Open the whole link that you were given, with its token.", 403)
        await answer(scope, receive, send)

    def _is(self, given: str) -> bool:
        return hmac.compare_digest(given.encode(), self._token.encode())


def build(poll: Poll, votes: Votes, host: str, port: int, token: str | None) -> Starlette:
    """The app as it is served at this address. With a token, only to whom has the link."""
    voting = Voting(poll, votes)
    middleware = [Middleware(Guard, security=security(host, port))]
    if token is not None:
        middleware.append(Middleware(Door, token=token, cookie=COOKIE.format(port=port)))

    async def on_error(_: Request, error: Exception) -> Response:
        return told(error) if isinstance(error, StylusError) else Response(status_code=500)

    return Starlette(
        routes=[
            Route("/", voting.show),
            Route("/ballots", voting.ballots),
            Route("/votes", voting.vote, methods=["POST"]),
            Route("/undo", voting.undo, methods=["POST"]),
            Route("/pictures/{ballot}/{side:int}", voting.picture),
            Route("/results", voting.results),
            Route("/votes.csv", voting.export),
        ],
        middleware=middleware,
        exception_handlers={StylusError: on_error},
    )


def run(poll: Poll, votes: Votes, *, host: str = "127.0.0.1", port: int = 8766) -> None:
    """Serves until a signal ends it. Raises SettingsError for an address that can't be bound."""
    with bound(host, port) as listener:
        port = listener.getsockname()[1]
        token = None if host in LOOPBACK else secrets.token_urlsafe(24)
        app = build(poll, votes, host, port, token)
        names = [f"127.0.0.1:{port}"] if token is None else security(host, port).allowed_hosts
        for name in names:
            link = f"http://{name}/" if token is None else f"http://{name}/?token={token}"
            sys.stderr.write(f"Vote at {link}\n")
        sys.stderr.write("Results are at the same address with #results, or by `stylus vote ... --results`.\n")
        uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False, timeout_graceful_shutdown=3)).run(
            sockets=[listener]
        )


async def _body(request: Request) -> bytes:
    # a page of another origin can't send this type without asking first, and it would be refused
    if request.headers.get("content-type", "").partition(";")[0] != "application/json":
        raise InvalidInput("Send JSON, as application/json.")
    data = b""
    async for part in request.stream():
        data += part
        if len(data) > MOST_BODY:
            raise InvalidInput(f"At most {MOST_BODY} bytes are taken.")
    return data


def _checked(form: type[Form], given: bytes | Mapping[str, str]) -> Form:
    try:
        return form.model_validate_json(given) if isinstance(given, bytes) else form.model_validate(dict(given))
    except ValidationError as error:
        raise InvalidInput(flaws(error)) from error
