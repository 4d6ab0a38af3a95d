"""All SQL on what vision models said of pairs: each reply is kept by the content of the question, and paid for once."""

from collections.abc import Sequence
from typing import Any

from psycopg.types.json import Jsonb

from stylus.database import Database


class Judgements:
    """Safe to share between threads."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def get(self, keys: Sequence[str]) -> dict[str, Any]:
        """The replies to these questions, as JSON, as far as they were answered."""
        query = "select key, reply from judgements where key = any(%s)"
        with self._database.connection() as connection:
            return dict(connection.execute(query, [list(keys)]).fetchall())

    def keep(self, key: str, model: str, reply: Any, *, tokens: tuple[int, int], cost: float | None) -> None:
        """Keeps a reply and what it cost (tokens in and out, US dollars)."""
        with self._database.connection() as connection:
            connection.execute(
                "insert into judgements (key, model, reply, input_tokens, output_tokens, cost) "
                "values (%s, %s, %s, %s, %s, %s) on conflict do nothing",
                [key, model, Jsonb(reply), *tokens, cost],
            )
