"""All SQL on refinements: what is to do, who does it, what was paid for, what is in use.

Several machines may refine one catalog. Who works on a card holds an advisory lock of Postgres for it, in a session
that ends with the process, so that a killed one frees its cards at once and nobody needs leases or heartbeats. A reply
is kept as soon as it has come: whatever happens then, it is not paid for again.
"""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import psycopg
from psycopg.types.json import Jsonb

from stylus.catalog import Catalog, Entry
from stylus.database import Database
from stylus.records import Adapter, Category, Rating, Record, Weight

_LOCK = 0x52656669
"""First half of the keys of our advisory locks; the second is the hash of the adapter's id."""

_REPLACED = ("description", "category", "weight", "trigger_words", "rating", "quality")
"""The fields of an adapter that a refinement replaces."""


class TriggerWord(Record):
    word: str
    does: str = ""
    """What it brings into the picture."""


class Refinement(Record):
    """What a vision model made of a card, after the checks of `refiner.mend`."""

    description: str
    category: Category
    weight: Weight
    trigger_words: tuple[TriggerWord, ...] = ()
    rating: Rating
    quality: str | None = None
    """Why the adapter should not be picked; None: nothing speaks against it."""

    def of(self, card: Adapter) -> Adapter:
        """The adapter that `card` becomes. What its trigger words do is found and read as a part of its description."""
        uses = [f"{trigger.word}: {trigger.does}" for trigger in self.trigger_words if trigger.does]
        return Adapter.model_validate(
            {
                **card.model_dump(),
                **self.model_dump(exclude={"trigger_words", "description"}),
                "description": "\n".join([self.description, *uses]),
                "trigger_words": [trigger.word for trigger in self.trigger_words],
                "refined": True,
            }
        )


@dataclass(frozen=True)
class Work:
    """A card to refine."""

    card: Adapter
    """As its source describes it: never as an earlier refinement does."""
    content_hash: str
    paid: Refinement | None
    """A reply that was kept and is not in use yet."""
    folders: frozenset[Path]
    """Ingested folders that hold the adapter's file."""


@dataclass(frozen=True)
class Scope:
    """Which adapters a run is about."""

    model: str
    only: tuple[str, ...] | None = None
    """Ids; None: all that are neither hidden nor missing."""
    since: datetime | None = None
    """Refinements from before this moment don't count."""


_FROM = "adapters a left join refinements r on r.adapter = a.id and r.content_hash = a.content_hash"
_IN_SCOPE = "(a.id = any(%(only)s) or %(only)s::text[] is null and not a.hidden and not a.missing)"
_PAID = "(r.model = %(model)s and r.refined_at >= coalesce(%(since)s::timestamptz, '-infinity')) is true"
# an adapter that came refined from an export was paid for elsewhere
_DONE = f"(a.refined and ({_PAID} and r.applied or r.adapter is null and %(since)s::timestamptz is null))"
_COUNT = f"select count(*), count(*) filter (where {_DONE}) from {_FROM} where {_IN_SCOPE}"  # noqa: S608
_NEXT = f"""
select a.id from {_FROM} where {_IN_SCOPE} and not {_DONE} and a.id > %(after)s order by a.id limit %(limit)s
"""  # noqa: S608
_WORK = f"""
select a.content_hash, r.original, r.refinement ->> 'quality', case when {_PAID} then r.refinement end,
    array(select path from files where files.adapter = a.id)
from {_FROM} where a.id = %(id)s and not {_DONE}
"""  # noqa: S608
_KEEP = """
insert into refinements (adapter, content_hash, model, refinement, original, repairs, input_tokens, output_tokens, cost)
values (%(id)s, %(content_hash)s, %(model)s, %(refinement)s, %(original)s, %(repairs)s, %(input)s, %(output)s, %(cost)s)
on conflict (adapter) do update set (content_hash, model, refinement, original, repairs, input_tokens, output_tokens,
    cost, applied, refined_at) = (excluded.content_hash, excluded.model, excluded.refinement, excluded.original,
    excluded.repairs, excluded.input_tokens, excluded.output_tokens, excluded.cost, false, now())
"""


class Refinements:
    """The refinements of a database. Safe to share between threads."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._catalog = Catalog(database)

    def now(self) -> datetime:
        """The database's clock, which all machines share."""
        with self._database.connection() as connection:
            moment: datetime = _row(connection, "select now()", {})[0]
            return moment

    def count(self, scope: Scope) -> tuple[int, int]:
        """How many adapters are in the scope, and how many of them are done."""
        with self._database.connection() as connection:
            total, done = _row(connection, _COUNT, _values(scope))
            return total, done

    def next(self, scope: Scope, after: str, limit: int) -> list[str]:
        """The ids of the first `limit` adapters to do whose ids come after `after`."""
        with self._database.connection() as connection:
            values = {**_values(scope), "after": after, "limit": limit}
            return [id for (id,) in connection.execute(_NEXT, values)]

    def work(self, scope: Scope, id: str) -> Work | None:
        """What there is to do for an adapter; None if it was done meanwhile, or is gone."""
        with self._database.connection() as connection:
            row = connection.execute(_WORK, {**_values(scope), "id": id}).fetchone()
        adapter = self._catalog.get([id]).get(id)
        if row is None or adapter is None:
            return None
        content_hash, original, flag, paid, paths = row
        card = adapter.model_dump() | {"refined": False}
        if adapter.refined and original is not None:
            # a flag that is not the refinement's was set or taken away since, by the check of the file
            card |= original if adapter.quality == flag else {**original, "quality": adapter.quality}
        return Work(
            card=Adapter.model_validate(card),
            content_hash=content_hash,
            paid=None if paid is None else Refinement.model_validate(paid),
            folders=frozenset(Path(path).parent for path in paths),
        )

    def keep(
        self,
        work: Work,
        model: str,
        refinement: Refinement,
        *,
        repairs: Sequence[str],
        tokens: tuple[int, int],
        cost: float | None,
    ) -> None:
        """Keeps a reply: what it cost (tokens in and out, US dollars) and what was mended in it."""
        original = work.card.model_dump(mode="json", include=set(_REPLACED))
        with self._database.connection() as connection:
            connection.execute(
                _KEEP,
                {
                    "id": work.card.id,
                    "content_hash": work.content_hash,
                    "model": model,
                    "refinement": Jsonb(refinement.model_dump(mode="json")),
                    "original": Jsonb(original),
                    "repairs": list(repairs),
                    "input": tokens[0],
                    "output": tokens[1],
                    "cost": cost,
                },
            )

    def apply(self, entry: Entry, embedding_model: str) -> None:
        """Puts a refined adapter and its vectors in use, unless its card was changed meanwhile. Vectors of other models
        go: they are of the text before."""
        id = entry.adapter.id
        known = self._catalog.known([id], embedding_model).get(id)
        if known is None or known.content_hash != entry.content_hash:
            return
        # an answer may take a day: what a person hid meanwhile stays hidden
        adapter = entry.adapter.model_copy(update={"hidden": known.hidden, "missing": known.missing})
        self._catalog.add_embedded([replace(entry, adapter=adapter)], embedding_model)
        with self._database.connection() as connection:
            connection.execute("delete from embeddings where adapter = %s and model <> %s", [id, embedding_model])
            connection.execute("update refinements set applied = true where adapter = %s", [id])

    @contextlib.contextmanager
    def claims(self) -> Iterator["Claims"]:
        """A session whose end, however it comes, frees what was claimed in it."""
        with self._database.connection() as connection:
            # a machine that lost its power frees its cards after two minutes; without effect on a Unix socket
            connection.execute(
                "set tcp_keepalives_idle = 60; set tcp_keepalives_interval = 20; set tcp_keepalives_count = 3"
            )
            connection.commit()
            try:
                yield Claims(connection)
            finally:
                with contextlib.suppress(psycopg.OperationalError):
                    connection.execute("select pg_advisory_unlock_all()")


class Claims:
    """Who works on what. One session: not for use by two threads at once."""

    def __init__(self, connection: psycopg.Connection[Any]) -> None:
        self._connection = connection

    def take(self, id: str) -> bool:
        """Claims an adapter; False if another process has it."""
        taken: bool = _row(self._connection, "select pg_try_advisory_lock(%(lock)s, hashtext(%(id)s))", _key(id))[0]
        self._connection.commit()
        return taken

    def give_back(self, id: str) -> None:
        self._connection.execute("select pg_advisory_unlock(%(lock)s, hashtext(%(id)s))", _key(id))
        self._connection.commit()


def _key(id: str) -> dict[str, Any]:
    return {"lock": _LOCK, "id": id}


def _values(scope: Scope) -> dict[str, Any]:
    only = None if scope.only is None else list(scope.only)
    return {"model": scope.model, "only": only, "since": scope.since}


def _row(connection: psycopg.Connection[Any], query: str, values: dict[str, Any]) -> Any:
    row = connection.execute(query, values).fetchone()
    if row is None:
        raise AssertionError("a query without a FROM gave no row")
    return row
