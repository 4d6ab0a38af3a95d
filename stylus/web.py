"""HTTP to the places that adapters come from, with the manners they ask for.

Retry-After on 429 is obeyed, 5xx and broken connections are tried again with exponential pauses and jitter (tenacity,
with pydantic-ai's reading of the header). Only https is spoken, redirects included; a source that is itself on
loopback (a mirror, a test) may speak http there. A token goes to the source's own hosts, in a header, and nowhere else.
"""

import ipaddress
import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from typing import Any, NoReturn, Self, TypeVar

import httpx2
from pydantic import SecretStr
from pydantic_ai.retries import wait_retry_after
from tenacity import RetryCallState, Retrying, retry_if_exception_type, wait_exponential_jitter

from stylus.errors import InvalidInput, NotFound, SourceUnavailable
from stylus.text import clean_line

T = TypeVar("T")
logger = logging.getLogger(__name__)

ATTEMPTS = 6
"""Tries of one request in all; three where nobody answers at all, which is mostly a machine without network."""
MOST_JSON = 64 * 2**20
"""Bytes of an answer that are read."""
_LONGEST_WAIT = 300.0
_LONG = 10.0
"""Seconds of waiting that a person should hear of."""
_PASSING = {408, 425, 429, 500, 502, 503, 504, 520, 521, 522, 523, 524}


class Web:
    """A source's API and files. Safe to share between threads."""

    def __init__(
        self,
        name: str,
        base: str,
        *,
        hosts: frozenset[str] = frozenset(),
        token: SecretStr | None = None,
        remedy: str = "",
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """`name` is for people; `base` the URL of the source; `hosts` further hosts of its own, reached by https;
        `remedy` what to do when it asks who we are. Raises InvalidInput for a base that is no https URL."""
        self.name = name
        self.remedy = remedy
        self._base, self._hosts = _parsed(base), hosts
        self._local = _is_loopback(self._base)
        self._token = token
        self._retrying = Retrying(
            retry=retry_if_exception_type((httpx2.HTTPStatusError, httpx2.TransportError)),
            wait=wait_retry_after(wait_exponential_jitter(initial=1, max=60), max_wait=_LONGEST_WAIT),
            stop=_enough,
            before_sleep=self._tell,
            sleep=sleep,
            reraise=True,
        )
        if not self._speakable(self._base):
            raise InvalidInput(f"{base!r} can't be the address of {name}: it must start with https://.")

    @cached_property
    def _client(self) -> httpx2.Client:
        # made at the first request: reading the certificates takes longer than many an `owns`
        return httpx2.Client(
            follow_redirects=True,
            timeout=httpx2.Timeout(30.0, connect=10.0),
            headers={"user-agent": "stylus-adapters"},
            event_hooks={"request": [self._check]},
        )

    def owns(self, url: str) -> bool:
        """Whether `url` lies on the source's own host, so that it may be fetched and the token sent along."""
        try:
            parsed = httpx2.URL(url)
        except (httpx2.InvalidURL, TypeError):
            return False
        if parsed.userinfo or not self._speakable(parsed):
            return False
        home = (parsed.scheme, parsed.host, parsed.port) == (self._base.scheme, self._base.host, self._base.port)
        return home or (parsed.scheme == "https" and parsed.port is None and parsed.host in self._hosts)

    def url(self, path: str) -> str:
        """The URL of a path below the base."""
        return str(self._base).rstrip("/") + path

    def json(self, path: str, params: Mapping[str, Any] | None = None) -> Any:
        """The answer to GET `path`. Raises NotFound (404), InvalidInput (400) or SourceUnavailable."""

        def ask() -> Any:
            with self.stream(self.url(path), params=params) as response:
                return json.loads(b"".join(_capped(response)))

        try:
            return self.retry(ask)
        except (ValueError, RecursionError) as error:
            raise SourceUnavailable(
                f"{self.name} answered with something else than JSON (a page of an error or of a login?). "
                f"Try again later. {self.remedy}".rstrip()
            ) from error

    @contextmanager
    def stream(
        self, url: str, *, params: Mapping[str, Any] | None = None, headers: Mapping[str, str] | None = None
    ) -> Iterator[httpx2.Response]:
        """An open answer of status 2xx or 416. To be used inside `retry`, which tries again what passes."""
        sent = dict(headers or {})
        if self._token is not None and self.owns(url):
            sent["authorization"] = f"Bearer {self._token.get_secret_value()}"
        with self._client.stream("GET", url, params=params, headers=sent) as response:
            if response.status_code in _PASSING:
                raise httpx2.HTTPStatusError(
                    f"status {response.status_code}", request=response.request, response=response
                )
            if not response.is_success and response.status_code != 416:
                self._refused(response)
            yield response

    def retry(self, call: Callable[[], T]) -> T:
        """What `call` gives, tried again while that may help. Raises SourceUnavailable when it no longer does."""
        try:
            return self._retrying(call)
        except httpx2.HTTPStatusError as error:
            raise SourceUnavailable(
                f"{self.name} answers with status {error.response.status_code} again and again. Try again later: "
                "what has been done stays, and the same command goes on from there."
            ) from error
        except httpx2.HTTPError as error:
            raise SourceUnavailable(
                f"{self.name} ({self._base.host}) can't be reached ({type(error).__name__}). Check the connection: "
                "what has been done stays, and the same command goes on from there."
            ) from error

    def _refused(self, response: httpx2.Response) -> NoReturn:
        status, said = response.status_code, _message(response)
        what = f"{self.name} answers with status {status}{f' ({said})' if said else ''}"
        if status == 404:
            raise NotFound(f"{what}: what was asked for is not there, or is not public.")
        if status == 400:
            raise InvalidInput(f"{what} to the request.")
        raise SourceUnavailable(f"{what}. {self.remedy}".rstrip())

    def _tell(self, state: RetryCallState) -> None:
        if (pause := state.upcoming_sleep) >= _LONG:
            logger.warning("%s asks to wait: trying again in %.0f s.", self.name, pause)

    def _check(self, request: httpx2.Request) -> None:
        if not self._speakable(request.url):
            raise SourceUnavailable(
                f"{self.name} sends us to {request.url.scheme}://{request.url.host}, which is refused: only https is."
            )

    def _speakable(self, url: httpx2.URL) -> bool:
        return url.scheme == "https" or (url.scheme == "http" and self._local and _is_loopback(url))

    def close(self) -> None:
        if "_client" in vars(self):
            self._client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _parsed(base: str) -> httpx2.URL:
    try:
        return httpx2.URL(base)
    except httpx2.InvalidURL as error:
        raise InvalidInput(f"{base!r} is no URL: {error}.") from error


def _is_loopback(url: httpx2.URL) -> bool:
    try:
        return url.host == "localhost" or ipaddress.ip_address(url.host).is_loopback
    except ValueError:
        return False


def _enough(state: RetryCallState) -> bool:
    error = state.outcome.exception() if state.outcome else None
    return state.attempt_number >= (3 if isinstance(error, httpx2.ConnectError) else ATTEMPTS)


def _capped(response: httpx2.Response) -> Iterator[bytes]:
    size = 0
    for piece in response.iter_bytes():
        size += len(piece)
        if size > MOST_JSON:
            raise ValueError(f"more than {MOST_JSON:,} bytes")
        yield piece


def _message(response: httpx2.Response) -> str:
    """What an error answer says, in one short line; "" if it says nothing that we understand."""
    try:
        content = json.loads(next(response.iter_bytes(100_000), b""))
        return clean_line(content.get("message") or content.get("error"), 200)
    except (ValueError, AttributeError, RecursionError, httpx2.HTTPError):
        return ""
