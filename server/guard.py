"""In front of every HTTP route, those of the SDK and our own: Host and Origin, and how much a caller may ask for."""

import hashlib
import time
from collections import Counter, OrderedDict

from mcp.server.transport_security import TransportSecurityMiddleware, TransportSecuritySettings
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

AT_ONCE = 128
"""Requests of one caller that are being answered."""
AT_ONCE_ALL = 512
RATE, BURST = 200.0, 400.0
"""Requests a second that one caller may make for long, and at once after a pause."""
REMEMBERED = 10_000
"""Callers whose rate is known."""


class Guard:
    """ASGI middleware. A caller is who brings one Authorization header, or else an address."""

    def __init__(self, app: ASGIApp, security: TransportSecuritySettings) -> None:
        self._app = app
        self._security = TransportSecurityMiddleware(security)
        self._open: Counter[str] = Counter()
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request = Request(scope)
        address = request.client.host if request.client else ""
        caller = _caller(request) or address
        refused = await self._security.validate_request(request, is_post=False) or self._too_much(caller, address)
        if refused is not None:
            await refused(scope, receive, send)
            return
        self._open[caller] += 1
        try:
            await self._app(scope, receive, send)
        finally:
            self._open[caller] -= 1
            if not self._open[caller]:
                del self._open[caller]

    def _too_much(self, caller: str, address: str) -> Response | None:
        if self._open[caller] >= AT_ONCE or self._open.total() >= AT_ONCE_ALL:
            return _refusal("Too many requests at once: wait for some to be answered.")
        # who brings another token each time is one address
        unknown = caller != address and caller not in self._buckets
        if (unknown and not self._taken(address)) or not self._taken(caller):
            return _refusal(f"More than {RATE:.0f} requests a second: slow down.")
        return None

    def _taken(self, who: str) -> bool:
        """Takes one from a bucket, unless it is empty."""
        now = time.monotonic()
        left, since = self._buckets.pop(who, (BURST, now))
        left = min(BURST, left + (now - since) * RATE)
        self._buckets[who] = (max(0.0, left - 1), now)
        if len(self._buckets) > REMEMBERED:
            self._buckets.popitem(last=False)
        return left >= 1


def _caller(request: Request) -> str | None:
    token = request.headers.get("authorization")
    return None if token is None else hashlib.sha256(token.encode()).hexdigest()


def _refusal(why: str) -> Response:
    return JSONResponse({"error": why}, status_code=429, headers={"Retry-After": "1"})
