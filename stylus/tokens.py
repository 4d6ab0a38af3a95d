"""Bearer tokens of the HTTP server: made here, shown once, kept as hashes only."""

import hashlib
import secrets
from collections.abc import Iterable
from datetime import datetime
from typing import Literal, get_args

from stylus.database import Database
from stylus.errors import InvalidInput, NotFound
from stylus.records import Record

Scope = Literal["read", "generate", "metrics"]
"""`read` searches, composes and looks at what is the caller's own; `generate` also draws; `metrics` sees the numbers of
GET /metrics, and alone nothing else."""
SCOPES: tuple[Scope, ...] = get_args(Scope)


class Token(Record):
    """What is known of a token. `name` owns what is made with it."""

    name: str
    scopes: tuple[str, ...]
    created_at: datetime
    revoked_at: datetime | None


class Tokens:
    """All SQL on tokens."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, name: str, scopes: Iterable[Scope]) -> str:
        """A new token, of 256 random bits. Raises InvalidInput for a name that was used before, revoked or not: what
        its owner made would be the new one's."""
        if not name.isprintable() or not 1 <= len(name.strip()) <= 100:
            raise InvalidInput(f"{name[:100]!r} can't name a token: use 1 to 100 printable characters.")
        token = secrets.token_urlsafe(32)
        with self._database.connection() as connection:
            made = connection.execute(
                "insert into tokens (name, hash, scopes) values (%s, %s, %s) on conflict (name) do nothing returning 1",
                [name, digest(token), sorted(set(scopes))],
            ).fetchone()
        if made is None:
            raise InvalidInput(f"There was a token {name!r} already: choose another name.")
        return token

    def list(self) -> list[Token]:
        """All there ever were, oldest first."""
        query = "select name, scopes, created_at, revoked_at from tokens order by created_at, name"
        with self._database.connection() as connection:
            return [_token(*row) for row in connection.execute(query)]

    def revoke(self, name: str) -> None:
        """Ends a token from the next request on. Raises NotFound."""
        query = "update tokens set revoked_at = now() where name = %s and revoked_at is null returning 1"
        with self._database.connection() as connection:
            if connection.execute(query, [name]).fetchone() is None:
                raise NotFound(f"No token in use is called {name!r}: `stylus token list` shows them.")

    def find(self, token: str) -> Token | None:
        """The token in use that this is. Found by its hash: the time that takes tells nothing about the token."""
        query = "select name, scopes, created_at, revoked_at from tokens where hash = %s and revoked_at is null"
        with self._database.connection() as connection:
            row = connection.execute(query, [digest(token)]).fetchone()
        return None if row is None else _token(*row)


def digest(token: str) -> bytes:
    """SHA-256: a long random token needs no slower hash."""
    return hashlib.sha256(token.encode()).digest()


def _token(name: str, scopes: Iterable[str], created_at: datetime, revoked_at: datetime | None) -> Token:
    return Token(name=name, scopes=tuple(scopes), created_at=created_at, revoked_at=revoked_at)
