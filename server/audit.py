"""The audit log: who called what, when, and how it ended. One line of JSON for each call of a tool, each resource read
and each HTTP request; the same calls are counted for `GET /metrics`.

Lines are put together from named fields, so nothing else can get in: arguments by their names only, errors by their
type, since what they say may quote. Prompts are there only if STYLUS_AUDIT_PROMPTS asks for them; tokens never.
"""

import json
import logging
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from logging.handlers import WatchedFileHandler
from pathlib import Path
from typing import Any

import mcp_types as types
from mcp.server.auth.middleware.bearer_auth import AuthenticatedUser
from prometheus_client import Counter
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from stylus.errors import SettingsError
from stylus.settings import Settings

PROMPTS = ("prompt", "query", "negative_prompt")
LONGEST = 2000
"""Characters of a prompt in a line."""
QUIET = frozenset({"/health", "/metrics"})
"""Routes that machines ask all the time: written down only when refused."""
METHODS = frozenset({"GET", "HEAD", "POST", "DELETE", "OPTIONS"})


class Audit:
    """Writes lines where STYLUS_AUDIT says, and counts. Safe to share between threads."""

    def __init__(self, settings: Settings) -> None:
        """Raises SettingsError for a file that can't be written."""
        self.requests = Counter(
            "stylus_requests", "Calls of tools, resources and routes.", ["call", "outcome"], registry=None
        )
        self._prompts = settings.audit_prompts
        self._log = logging.Logger("stylus.audit", logging.INFO)
        self._log.addHandler(_handler(settings.audit))

    @contextmanager
    def call(self, name: str, caller: str, arguments: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """Within, `name` runs for `caller` ('' without a token); the ids that belong to it go into what is yielded.
        `name` and the names of the arguments are ours, not what the client made up."""
        about: dict[str, Any] = {"arguments": sorted(arguments)}
        if self._prompts:
            about |= {key: str(arguments[key])[:LONGEST] for key in PROMPTS if key in arguments}
        outcome, began = "ok", time.monotonic()
        try:
            yield about
        except Exception as error:
            outcome, about["error"] = "error", type(error.__cause__ or error).__name__
            raise
        except BaseException:
            outcome = "cancelled"
            raise
        finally:
            self._count(name, outcome)
            self._write(name, caller, outcome, time.monotonic() - began, about)

    def request(self, name: str, caller: str, status: int, seconds: float, *, quiet: bool) -> None:
        """An HTTP request that was answered; a `quiet` one, and what comes too often, are counted only."""
        outcome = "ok" if status < 400 else "error"
        self._count(name, outcome)
        if status != 429 and not (quiet and outcome == "ok"):
            self._write(name, caller, outcome, seconds, {"status": status})

    def close(self) -> None:
        for handler in self._log.handlers:
            handler.close()

    def _count(self, name: str, outcome: str) -> None:
        self.requests.labels(name, outcome).inc()

    def _write(self, name: str, caller: str, outcome: str, seconds: float, about: Mapping[str, Any]) -> None:
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        line = {"time": now, "caller": caller, "call": name, "outcome": outcome, "seconds": round(seconds, 4), **about}
        self._log.info("%s", json.dumps(line))  # escapes all that is not ASCII: a line stays a line


def ids_asked(arguments: Mapping[str, Any]) -> dict[str, str]:
    """The job or the composition that a call of a tool is about."""
    asked = {"job_id": arguments.get("id"), "composition_id": arguments.get("composition_id")}
    return {key: id[:100] for key, id in asked.items() if isinstance(id, str)}


def ids_answered(result: object) -> dict[str, Any]:
    """The job, the composition and the images that a tool answers with."""
    if not isinstance(result, types.CallToolResult):
        return {}
    answer = result.structured_content
    if answer is None and result.content and isinstance(result.content[0], types.TextContent):
        with suppress(ValueError):  # other text than an object of ours names no ids
            answer = json.loads(result.content[0].text)
    if not isinstance(answer, dict):
        return {}
    found: dict[str, Any] = {key: answer[key] for key in ("job_id", "composition_id") if key in answer}
    if images := answer.get("images"):
        found["images"] = [image["uri"].rpartition("/")[2] for image in images]
    return found


class Requests:
    """ASGI middleware outside of all others, for HTTP requests; but not for those of the protocol that were let in,
    whose calls are written down one by one."""

    def __init__(self, app: ASGIApp, audit: Audit, endpoint: str) -> None:
        """`endpoint`: the path of the protocol."""
        self._app, self._audit, self._endpoint = app, audit, endpoint

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status = time.monotonic(), 500

        async def told(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, told)
        finally:
            route = getattr(scope.get("route"), "path", None)
            if status >= 400 or route != self._endpoint:
                method = scope["method"] if scope["method"] in METHODS else "other"
                user = scope.get("user")
                caller = user.username if isinstance(user, AuthenticatedUser) else ""
                name = f"{method} {route or 'elsewhere'}"
                self._audit.request(name, caller, status, time.monotonic() - began, quiet=route in QUIET)


def _handler(where: str) -> logging.Handler:
    if where == "off":
        return logging.NullHandler()
    if where == "stderr":
        return logging.StreamHandler(sys.stderr)
    try:
        Path(where).touch(mode=0o600)
        return WatchedFileHandler(where, encoding="utf-8")  # opens anew after a rotation
    except OSError as error:
        raise SettingsError(
            f"STYLUS_AUDIT={where}: can't be written ({error.strerror}). Set off, stderr or a file."
        ) from error
