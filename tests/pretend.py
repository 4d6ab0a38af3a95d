"""A Civitai and a hub on loopback: the shapes of their public APIs over real HTTP, with the accidents of the net."""

import hashlib
import json
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit

import numpy as np
from safetensors.numpy import save


def weights(seed: int = 0, width: int = 768, rank: int = 4) -> bytes:
    """A LoRA file of one layer; `width` 768 is SD 1.5."""
    key = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k.lora_down.weight"
    content: bytes = save({key: np.random.default_rng(seed).standard_normal((rank, width)).astype(np.float32)})
    return content


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@dataclass(frozen=True)
class Fault:
    """What goes wrong with one answer."""

    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | None = None
    """Sent instead of the answer."""
    cut: int | None = None
    """Announce the whole answer, send so many bytes of it and hang up."""


@dataclass(frozen=True)
class Asked:
    path: str
    query: dict[str, list[str]]
    headers: dict[str, str]


class Pretend:
    """`with Pretend() as server:` then STYLUS_CIVITAI_URL=server.url or HF_ENDPOINT=server.url."""

    def __init__(self) -> None:
        self.models: list[dict[str, Any]] = []
        """Of Civitai, as GET /models/{id} gives them; `versions` has the fuller /model-versions/{id}."""
        self.versions: dict[int, dict[str, Any]] = {}
        self.repositories: dict[str, dict[str, Any]] = {}
        """Of the hub: name -> what GET /api/models/{name} gives."""
        self.files: dict[str, bytes] = {}
        """Path below / -> content; `/api/download/models/{id}` and `/{repo}/resolve/...` redirect there."""
        self.page = 2
        self.pause = 0.0
        """Seconds between two pieces of a file."""
        self.faults: dict[str, list[Fault]] = {}
        """Path -> what happens to the next answers."""
        self.asked: list[Asked] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                server._answer(self)

            def log_message(self, format: str, *args: object) -> None:
                """Silent: tests read `asked`."""

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._http.server_address[1]}"

    def paths(self, part: str = "") -> list[str]:
        return [asked.path for asked in self.asked if part in asked.path]

    def _answer(self, request: BaseHTTPRequestHandler) -> None:
        parts = urlsplit(request.path)
        asked = Asked(parts.path, parse_qs(parts.query), {k.lower(): v for k, v in request.headers.items()})
        self.asked.append(asked)
        waiting = self.faults.get(asked.path, [])
        fault = waiting.pop(0) if waiting else Fault()
        status, headers, body = self._content(asked)
        if fault.status != 200 or fault.body is not None:
            status, headers, body = fault.status, {}, fault.body or b""
        try:
            request.send_response(status)
            for name, value in ({"content-length": str(len(body))} | headers | dict(fault.headers)).items():
                request.send_header(name, value)
            request.end_headers()
            for start in range(0, len(body[: fault.cut]), 16384):
                request.wfile.write(body[: fault.cut][start : start + 16384])
                request.wfile.flush()
                time.sleep(self.pause if asked.path in self.files else 0)
        except (BrokenPipeError, ConnectionResetError):
            pass  # the client was killed: that is what some tests are for
        request.close_connection = fault.cut is not None

    def _content(self, asked: Asked) -> tuple[int, dict[str, str], bytes]:
        if asked.path in self.files:
            return _range(self.files[asked.path], asked.headers.get("range", ""))
        if asked.path.startswith("/api/download/models/"):
            return 307, {"location": f"/files/{asked.path.rpartition('/')[2]}.safetensors?signature=secret"}, b""
        if "/resolve/" in asked.path:
            return 302, {"location": "/files/" + asked.path.rpartition("/")[2]}, b""
        found = self._api(asked)
        if found is None:
            return 404, {"content-type": "application/json"}, b'{"error": "Not found"}'
        return 200, {"content-type": "application/json; charset=utf-8"}, json.dumps(found).encode()

    def _api(self, asked: Asked) -> Any:
        *_, place, last = asked.path.split("/")
        if asked.path == "/api/v1/models":
            start = int(asked.query.get("cursor", ["0"])[0])
            more = {"nextCursor": str(start + self.page)} if start + self.page < len(self.models) else {}
            return {"items": self.models[start : start + self.page], "metadata": more}
        if asked.path.startswith("/api/v1/") and place == "models":
            return next((model for model in self.models if str(model["id"]) == last), None)
        if place == "model-versions":
            return self.versions.get(int(last))
        if place == "by-hash":
            hashes = {f["hashes"]["SHA256"].lower(): v for v in self.versions.values() for f in v["files"]}
            return hashes.get(last.lower())
        return self.repositories.get(asked.path.removeprefix("/api/models/"))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()


def _range(content: bytes, asked: str) -> tuple[int, dict[str, str], bytes]:
    kind = {"content-type": "application/octet-stream"}
    if not asked:
        return 200, kind, content
    start = int(asked.removeprefix("bytes=").partition("-")[0])
    if start >= len(content):
        return 416, kind, b""
    return 206, kind | {"content-range": f"bytes {start}-{len(content) - 1}/{len(content)}"}, content[start:]
