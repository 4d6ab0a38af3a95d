"""Who may talk to the HTTP server: loopback with narrow Host and Origin checks, or callers with a bearer token.

The SDK's own default for loopback allows every port of localhost as an Origin, so that any page that some other local
server delivers could call us: allowed here are only our own.
"""

import hmac
import ipaddress
import socket

import anyio.to_thread
from mcp.server.auth.middleware.auth_context import get_access_token
from mcp.server.auth.provider import AccessToken, TokenVerifier
from mcp.server.auth.settings import AuthSettings
from mcp.server.transport_security import TransportSecuritySettings
from pydantic import AnyHttpUrl

from server.backend import Backend
from stylus.errors import InvalidInput, StylusError
from stylus.tokens import Tokens, digest

LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})


def security(host: str, port: int) -> TransportSecuritySettings:
    """Host and Origin values under which a server bound to `host` and `port` is known."""
    if host in LOOPBACK:
        names = ["127.0.0.1", "localhost", "[::1]"]
    elif ipaddress.ip_address(socket.getaddrinfo(host, port)[0][4][0]).is_unspecified:
        found = socket.getaddrinfo(socket.gethostname(), port, type=socket.SOCK_STREAM)
        addresses = {str(address[0]) for *_, address in found}
        names = [socket.gethostname(), socket.getfqdn(), *(f"[{a}]" if ":" in a else a for a in addresses)]
    else:
        names = [f"[{host}]" if ":" in host else host]
    hosts = [f"{name}:{port}" for name in names]
    return TransportSecuritySettings(allowed_hosts=hosts, allowed_origins=[f"http://{host}" for host in hosts])


def auth_settings(url: str) -> AuthSettings:
    """`url` is the server's own: the tokens are ours, so nobody else issues them."""
    return AuthSettings(
        issuer_url=AnyHttpUrl(url),
        resource_server_url=AnyHttpUrl(url),
        required_scopes=["read"],
        validate_token_resource=False,  # the tokens are valid for this server alone
    )


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
    """The tokens of STYLUS_TOKENS, which may do everything, and those of `stylus token`, each with its scopes."""

    def __init__(self, backend: Backend) -> None:
        tokens = backend.settings.tokens
        text = tokens.get_secret_value() if tokens else ""
        self._hashes = [digest(token.strip()) for token in text.split(",") if token.strip()]
        self._backend = backend

    async def verify_token(self, token: str) -> AccessToken | None:
        """Compares with all, in a time that tells nothing about which one nearly fitted."""
        given = digest(token)
        matches = [hmac.compare_digest(given, known) for known in self._hashes]
        if any(matches):
            return AccessToken(token=token, client_id=f"env:{given.hex()[:16]}", scopes=["read", "generate"])
        try:
            found = await anyio.to_thread.run_sync(lambda: Tokens(self._backend.stylus.database).find(token))
        except StylusError:
            return None  # without its table nobody is known
        return None if found is None else AccessToken(token=token, client_id=found.name, scopes=list(found.scopes))
