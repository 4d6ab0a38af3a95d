"""An authorization server on loopback: RFC 8414 metadata, a JWKS, and a token endpoint for the client credentials
grant that binds tokens to the resource that is asked for (RFC 8707)."""

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qs

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from jwt.algorithms import ECAlgorithm, RSAAlgorithm


class AuthorizationServer:
    """`with AuthorizationServer() as server:` then STYLUS_OAUTH_ISSUER=server.issuer. `asked` keeps the paths."""

    def __init__(self) -> None:
        self.rsa = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        self.ec = ec.generate_private_key(ec.SECP256R1())
        self.asked: list[str] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server.asked.append(self.path)
                self._send(server._documents().get(self.path))

            def do_POST(self) -> None:
                server.asked.append(self.path)
                form = parse_qs(self.rfile.read(int(self.headers["content-length"])).decode())
                asked = {key: values[0] for key, values in form.items()}
                granted = server.token(aud=asked["resource"], sub="robot", scope=asked["scope"])
                self._send({"access_token": granted, "token_type": "Bearer", "expires_in": 300})

            def _send(self, document: dict[str, Any] | None) -> None:
                body = json.dumps(document).encode()
                self.send_response(404 if document is None else 200)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                """Silent: tests read `asked`."""

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True)
        self.issuer = f"http://127.0.0.1:{self._http.server_address[1]}"

    def token(self, *, key: Any = None, algorithm: str = "RS256", kid: str | None = "rsa", **claims: Any) -> str:
        """An access token as RFC 9068 has it; a claim of None is left out."""
        now = int(time.time())
        usual = {"iss": self.issuer, "sub": "anna", "iat": now, "exp": now + 300, "scope": "read generate"}
        given = {name: value for name, value in {**usual, **claims}.items() if value is not None}
        headers = {"typ": "at+jwt"} | ({} if kid is None else {"kid": kid})
        return jwt.encode(given, self.rsa if key is None else key, algorithm, headers)

    def _documents(self) -> dict[str, dict[str, Any]]:
        keys = [
            RSAAlgorithm.to_jwk(self.rsa.public_key(), as_dict=True) | {"kid": "rsa", "use": "sig", "alg": "RS256"},
            ECAlgorithm.to_jwk(self.ec.public_key(), as_dict=True) | {"kid": "ec", "use": "sig", "alg": "ES256"},
        ]
        metadata = {
            "issuer": self.issuer,
            "authorization_endpoint": f"{self.issuer}/authorize",
            "token_endpoint": f"{self.issuer}/token",
            "jwks_uri": f"{self.issuer}/jwks",
            "response_types_supported": ["code"],
            "grant_types_supported": ["client_credentials"],
            "token_endpoint_auth_methods_supported": ["client_secret_basic"],
        }
        return {"/.well-known/oauth-authorization-server": metadata, "/jwks": {"keys": keys}}

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()
