"""What every test stands on: no network but loopback, no paid model, one thread of torch."""

import socket
from collections.abc import Iterator
from typing import Any

import pydantic_ai.models
import pytest

pydantic_ai.models.ALLOW_MODEL_REQUESTS = False


def _is_loopback(address: Any) -> bool:
    return not isinstance(address, tuple) or address[0] in {"127.0.0.1", "::1", "localhost"}


@pytest.fixture(autouse=True, scope="session")
def only_loopback() -> Iterator[None]:
    """Refuses every socket that leaves this machine, so that no test depends on a hub or a provider."""
    with pytest.MonkeyPatch.context() as patch:
        for method in ("connect", "connect_ex"):
            original = getattr(socket.socket, method)

            def guarded(self: socket.socket, address: Any, original: Any = original) -> Any:
                if not _is_loopback(address):
                    raise RuntimeError(f"a test tried to reach {address}: only loopback is allowed")
                return original(self, address)

            patch.setattr(socket.socket, method, guarded)
        yield
