"""OAuth 2.1 resource server (MCP authorization, 2026-07-28): access tokens are JWTs of one authorization server (RFC
9068), made for this server's URL (RFC 8707), and checked with the keys that the authorization server publishes.

Where to get such a token stands in the protected resource metadata (RFC 9728), which the SDK serves.
"""

import logging
import threading
import time
from typing import Any

import httpx2
import jwt
from mcp.client.auth.utils import build_oauth_authorization_server_metadata_discovery_urls
from mcp.server.auth.provider import AccessToken

logger = logging.getLogger(__name__)

ALGORITHMS = ["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"]
"""Signatures only: whoever checks a MAC could make one, and `none` is none."""
TIMEOUT = 5.0
"""Seconds for an answer of the authorization server."""
PAUSE = 10.0
"""Seconds until it is asked again after it was away."""


class Issuer:
    """One authorization server whose tokens are taken. Safe to share between threads."""

    def __init__(self, issuer: str, audience: str, jwks: str | None = None) -> None:
        """`audience`: this server's URL, as it must stand in the tokens. `jwks`: URL of the keys; None: it is asked of
        the issuer's metadata (RFC 8414 or OpenID Connect Discovery) when the first token comes."""
        self.issuer, self._audience = issuer, audience
        self._keys = jwt.PyJWKClient(jwks, timeout=TIMEOUT) if jwks else None
        self._lock = threading.Lock()
        self._not_before = 0.0

    def verify(self, token: str) -> AccessToken | None:
        """What a valid token grants, None for any other. Blocks while keys are fetched."""
        try:
            claims: dict[str, Any] = jwt.decode(
                token,
                self._client().get_signing_key_from_jwt(token),
                algorithms=ALGORITHMS,
                audience=self._audience,
                issuer=self.issuer,
                options={"require": ["exp", "iss", "aud", "sub"]},
            )
        except (jwt.PyJWKClientConnectionError, _NoKeysError) as error:
            logger.warning("Tokens of %s can't be checked: %s", self.issuer, error)
            return None
        except (jwt.PyJWTError, RecursionError):
            return None
        granted = claims.get("scope") or claims.get("scp") or []
        return AccessToken(
            token=token,
            client_id=f"{self.issuer}#{claims['sub']}",  # whoever it is, by whatever program: the owner of the work
            scopes=granted.split() if isinstance(granted, str) else [str(scope) for scope in granted],
            expires_at=int(claims["exp"]),
            resource=self._audience,
            subject=str(claims["sub"]),
            claims={"iss": self.issuer},
        )

    def _client(self) -> jwt.PyJWKClient:
        with self._lock:
            if self._keys is None:
                if time.monotonic() < self._not_before:
                    raise _NoKeysError("it did not tell where its keys are a moment ago")
                self._not_before = time.monotonic() + PAUSE
                self._keys = jwt.PyJWKClient(self._discovered(), timeout=TIMEOUT)
            return self._keys

    def _discovered(self) -> str:
        """Where the keys are. Metadata that names another issuer is nobody's (RFC 8414, section 3.3)."""
        for url in build_oauth_authorization_server_metadata_discovery_urls(self.issuer, self._audience):
            try:
                answer = httpx2.get(url, timeout=TIMEOUT)
                metadata = answer.raise_for_status().json()
            except (httpx2.HTTPError, ValueError) as error:
                logger.info("No metadata at %s (%s)", url, type(error).__name__)
                continue
            if isinstance(metadata, dict) and metadata.get("issuer") == self.issuer and metadata.get("jwks_uri"):
                return str(metadata["jwks_uri"])
        raise _NoKeysError("it has no metadata that names it and its keys; set STYLUS_OAUTH_JWKS")


class _NoKeysError(Exception):
    """Nobody knows where the keys are."""
