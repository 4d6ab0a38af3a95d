"""What a person decided about adapters and Stylus remembers: weights of their own, pairs that must not meet, and
what is hidden.

LoRango (PAPER.md): two adapters, each harmless alone, can attack when loaded together; so pairs are flagged, not only
single adapters.
"""

from collections.abc import Mapping, Sequence

from stylus.database import Database
from stylus.errors import InvalidInput

MOST_REASON = 200

Pair = tuple[str, str]
"""Two adapter ids, the lesser first."""


class Preferences:
    """Of the people who share this database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def weights(self, ids: Sequence[str] | None = None) -> dict[str, float]:
        """The weights that were set, of these adapters or of all: id -> weight."""
        query = "select adapter, weight from adapter_weights where %s::text[] is null or adapter = any(%s) order by 1"
        wanted = None if ids is None else list(ids)
        with self._database.connection() as connection:
            return dict(connection.execute(query, [wanted, wanted]).fetchall())

    def set_weight(self, id: str, weight: float) -> None:
        """From now on compositions use this weight. Raises InvalidInput outside [-4, 4]."""
        if not -4 <= weight <= 4:  # also NaN
            raise InvalidInput(f"weight is {weight}: it must be -4 to 4; 1 is as trained, 0 is off.")
        query = (
            "insert into adapter_weights (adapter, weight) values (%s, %s) "
            "on conflict (adapter) do update set weight = excluded.weight"
        )
        with self._database.connection() as connection:
            connection.execute(query, [id, weight])

    def forget_weight(self, id: str) -> bool:
        """Back to the recommended weight; tells whether there was one to forget."""
        with self._database.connection() as connection:
            return connection.execute("delete from adapter_weights where adapter = %s", [id]).rowcount > 0

    def pairs(self, ids: Sequence[str] | None = None) -> Mapping[Pair, str]:
        """The flagged pairs among these adapters, or all: pair -> reason."""
        query = (
            "select one, other, reason from flagged_pairs "
            "where %s::text[] is null or (one = any(%s) and other = any(%s)) order by 1, 2"
        )
        wanted = None if ids is None else list(ids)
        with self._database.connection() as connection:
            return {(one, other): why for one, other, why in connection.execute(query, [wanted] * 3)}

    def flag_pair(self, first: str, second: str, reason: str) -> None:
        """From now on these two never meet in a composition. Raises InvalidInput for one adapter twice."""
        if first == second:
            raise InvalidInput(f"{first!r} was passed twice: a pair needs two adapters.")
        query = (
            "insert into flagged_pairs (one, other, reason) values (%s, %s, %s) "
            "on conflict (one, other) do update set reason = excluded.reason"
        )
        with self._database.connection() as connection:
            connection.execute(query, [*_pair(first, second), reason[:MOST_REASON]])

    def forget_pair(self, first: str, second: str) -> bool:
        """Lets them meet again; tells whether there was a flag to forget."""
        query = "delete from flagged_pairs where one = %s and other = %s"
        with self._database.connection() as connection:
            return connection.execute(query, [*_pair(first, second)]).rowcount > 0

    def hidden(self, ids: Sequence[str] | None = None) -> dict[str, str]:
        """The hidden adapters among these, or all: id -> name."""
        query = "select id, name from adapters where hidden and (%s::text[] is null or id = any(%s)) order by 1"
        wanted = None if ids is None else list(ids)
        with self._database.connection() as connection:
            return dict(connection.execute(query, [wanted, wanted]).fetchall())

    def hide(self, id: str, *, hidden: bool = True) -> bool:
        """From now on no search and no composition finds it, or with `hidden` False they find it again; tells whether
        that changed anything."""
        query = "update adapters set hidden = %s, updated_at = now() where id = %s and hidden <> %s"
        with self._database.connection() as connection:
            return connection.execute(query, [hidden, id, hidden]).rowcount > 0


def _pair(first: str, second: str) -> Pair:
    return (first, second) if first < second else (second, first)
