"""Small real implementations of what the outside world does.

A language model on loopback: OpenAI's chat completions and Anthropic's messages over real HTTP, scripted to answer
well, badly, slowly, half, never or with errors. One object per reply, in order; the last one repeats."""

import json
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self


@dataclass(frozen=True)
class Answer:
    """`arguments` go into a call of the first tool offered (a str goes there as it is); or `text` is plain content."""

    arguments: object = None
    text: str | None = None
    status: int = 200
    body: bytes | None = None
    """Sent instead of a completion."""
    seconds: float = 0.0
    half: bool = False
    """Announce the whole length, send half of it and hang up."""
    headers: Mapping[str, str] = field(default_factory=dict)


class ChatServer:
    """`with ChatServer([Answer(...)]) as server:` then OPENAI_BASE_URL=server.url or ANTHROPIC_BASE_URL=server.root.
    `requests` keeps what was asked. Where several ask at once, a function gives each the answer to its question."""

    def __init__(self, answers: Sequence[Answer] | Callable[[dict[str, Any]], Answer]) -> None:
        self.requests: list[dict[str, Any]] = []
        self._closing = threading.Event()
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
                server.requests.append(asked)
                answer = answers(asked) if callable(answers) else answers[: len(server.requests)][-1]
                server._closing.wait(answer.seconds)
                form = _message if self.path.startswith("/v1/messages") else _completion
                body = answer.body if answer.body is not None else form(asked, answer)
                try:
                    self.send_response(answer.status)
                    self.send_header("content-type", "application/json")
                    self.send_header("content-length", str(len(body)))
                    for name, value in answer.headers.items():
                        self.send_header(name, value)
                    self.end_headers()
                    self.wfile.write(body[: len(body) // 2] if answer.half else body)
                except (BrokenPipeError, ConnectionResetError):
                    pass  # the client gave up first: that is what a slow answer is for

            def log_message(self, format: str, *args: object) -> None:
                """Silent: tests read `requests`."""

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True)

    @property
    def root(self) -> str:
        return f"http://127.0.0.1:{self._http.server_address[1]}"

    @property
    def url(self) -> str:
        return f"{self.root}/v1"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing.set()
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()


def _completion(asked: dict[str, Any], answer: Answer) -> bytes:
    message: dict[str, Any] = {"role": "assistant", "content": answer.text}
    if answer.text is None:
        arguments = answer.arguments if isinstance(answer.arguments, str) else json.dumps(answer.arguments)
        name = asked["tools"][0]["function"]["name"]
        call = {"id": "call-1", "type": "function", "function": {"name": name, "arguments": arguments}}
        message["tool_calls"] = [call]
    completion = {
        "id": "chat-1",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": asked["model"],
        "choices": [{"index": 0, "message": message, "finish_reason": "stop" if answer.text else "tool_calls"}],
        "usage": {"prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 120},
    }
    return json.dumps(completion).encode()


def _message(asked: dict[str, Any], answer: Answer) -> bytes:
    content: dict[str, Any] = {"type": "text", "text": answer.text}
    if answer.text is None:
        content = {"type": "tool_use", "id": "call-1", "name": asked["tools"][0]["name"], "input": answer.arguments}
    message = {
        "id": "message-1",
        "type": "message",
        "role": "assistant",
        "model": asked["model"],
        "content": [content],
        "stop_reason": "end_turn" if answer.text else "tool_use",
        "usage": {"input_tokens": 100, "output_tokens": 20},
    }
    return json.dumps(message).encode()
