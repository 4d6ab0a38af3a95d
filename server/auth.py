"""Who may talk to the HTTP server: loopback with narrow Host and Origin checks, or callers with a bearer token.

The SDK's own default for loopback allows every port of localhost as an Origin, so that any page that some other local
server delivers could call us: allowed here are only our own.
"""

import hmac
import ipaddress
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from urllib.parse import urlsplit

import anyio
import anyio.to_thread
from mcp.server.auth.middleware.auth_context import get_access_token
from mcp.server.auth.middleware.bearer_auth import AuthenticatedUser
from mcp.server.auth.provider import AccessToken, TokenVerifier
from mcp.server.auth.routes import build_resource_metadata_url
from mcp.server.auth.settings import AuthSettings
from mcp.server.transport_security import TransportSecuritySettings
from pydantic import AnyHttpUrl
from starlette.exceptions import HTTPException
from starlette.requests import Request

from server.backend import Backend
from server.oauth import Issuer
from stylus.errors import InvalidInput, StylusError
from stylus.tokens import SCOPES, Tokens, digest

LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})


def security(host: str, port: int, url: str | None = None) -> TransportSecuritySettings:
    """Host and Origin values under which a server bound to `host` and `port` is known; `url` is how clients know it
    behind a proxy."""
    if host in LOOPBACK:
        names = ["127.0.0.1", "localhost", "[::1]"]
    elif ipaddress.ip_address(socket.getaddrinfo(host, port)[0][4][0]).is_unspecified:
        found = socket.getaddrinfo(socket.gethostname(), port, type=socket.SOCK_STREAM)
        addresses = {str(address[0]) for *_, address in found}
        names = [socket.gethostname(), socket.getfqdn(), *(f"[{a}]" if ":" in a else a for a in addresses)]
    else:
        names = [f"[{host}]" if ":" in host else host]
    hosts = [f"{name}:{port}" for name in names]
    origins = [f"http://{host}" for host in hosts]
    if url is not None:
        outside = urlsplit(url)
        hosts.append(outside.netloc)
        origins.append(f"{outside.scheme}://{outside.netloc}")
    return TransportSecuritySettings(allowed_hosts=hosts, allowed_origins=origins)


def auth_settings(url: str, issuer: str | None) -> AuthSettings:
    """`url` is the server's own; without an `issuer` the tokens are ours, so nobody else issues them."""
    return AuthSettings(
        issuer_url=issuer or url,  # as text: an added slash would make it another issuer
        resource_server_url=url,
        required_scopes=["read"],
        validate_token_resource=True,
    )


@dataclass(frozen=True)
class Door:
    """Guards our own routes, as the SDK guards only its own. `url`: the server's, if callers must bring a token."""

    url: str | None

    def admit(self, request: Request, scope: str) -> str:
        """Who asks: the owner of what is made and seen. Raises HTTPException 401 and 403."""
        if self.url is None:
            return ""
        user = request.scope.get("user")
        where = f'resource_metadata="{build_resource_metadata_url(AnyHttpUrl(self.url))}"'
        if not isinstance(user, AuthenticatedUser):
            raise HTTPException(401, headers={"WWW-Authenticate": f'Bearer error="invalid_token", {where}'})
        if scope not in user.scopes:
            lacks = f'Bearer error="insufficient_scope", scope="{scope}", {where}'
            raise HTTPException(403, headers={"WWW-Authenticate": lacks})
        return user.access_token.client_id


def owner() -> str:
    """Who makes this call: the name of its token; '' without one (stdio, or loopback without tokens)."""
    token = get_access_token()
    return token.client_id if token else ""


def require(scope: str) -> None:
    """Raises InvalidInput if the caller's token does not have the scope."""
    token = get_access_token()
    if token is not None and scope not in token.scopes:
        raise InvalidInput(f"Your token has no scope {scope!r}: ask the server's owner for one that has it.")


class Verifier(TokenVerifier):
    """The tokens of STYLUS_TOKENS, which may do everything, those of `stylus token`, each with its scopes, and those
    of the authorization server STYLUS_OAUTH_ISSUER."""

    def __init__(self, backend: Backend, url: str) -> None:
        """`url`: the server's own, for which all tokens are made."""
        settings = backend.settings
        tokens, issuer = settings.tokens, settings.oauth_issuer
        self._url = url
        self._issuer = Issuer(issuer, url, settings.oauth_jwks) if issuer else None
        # apart from the threads of the tools, which should not wait for an authorization server
        self._threads = anyio.CapacityLimiter(4)
        text = tokens.get_secret_value() if tokens else ""
        self._hashes = [digest(token.strip()) for token in text.split(",") if token.strip()]
        self._backend = backend

    async def verify_token(self, token: str) -> AccessToken | None:
        """Compares with all, in a time that tells nothing about which one nearly fitted."""
        given = digest(token)
        matches = [hmac.compare_digest(given, known) for known in self._hashes]
        if any(matches):
            return self._own(token, f"env:{given.hex()[:16]}", SCOPES)
        if self._issuer is not None and token.count(".") == 2:  # a JWT: ours have no dots
            return await anyio.to_thread.run_sync(self._issuer.verify, token, limiter=self._threads)
        try:
            found = await anyio.to_thread.run_sync(lambda: Tokens(self._backend.stylus.database).find(token))
        except StylusError:
            return None  # without its table nobody is known
        return None if found is None else self._own(token, found.name, found.scopes)

    def _own(self, token: str, name: str, scopes: Iterable[str]) -> AccessToken:
        return AccessToken(token=token, client_id=name, scopes=list(scopes), resource=self._url)
