"""Who may talk to the HTTP server: loopback with narrow Host and Origin checks, or callers with a bearer token.

The SDK's own default for loopback allows every port of localhost as an Origin, so that any page that some other local
server delivers could call us: allowed here are only our own.
"""

import hashlib
import hmac
import ipaddress
import socket

from mcp.server.auth.provider import AccessToken, TokenVerifier
from mcp.server.auth.settings import AuthSettings
from mcp.server.transport_security import TransportSecuritySettings
from pydantic import AnyHttpUrl

from stylus.settings import Settings

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
        required_scopes=["stylus"],
        validate_token_resource=False,  # the tokens are valid for this server alone
    )


class Tokens(TokenVerifier):
    """The tokens of STYLUS_TOKENS."""

    def __init__(self, settings: Settings) -> None:
        text = settings.tokens.get_secret_value() if settings.tokens else ""
        self._hashes = [_hash(token.strip()) for token in text.split(",") if token.strip()]

    async def verify_token(self, token: str) -> AccessToken | None:
        """Compares with all, in a time that tells nothing about which one nearly fitted."""
        given = _hash(token)
        matches = [hmac.compare_digest(given, known) for known in self._hashes]
        if not any(matches):
            return None
        return AccessToken(token=token, client_id=given.hex()[:16], scopes=["stylus"])


def _hash(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()
