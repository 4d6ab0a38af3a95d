"""Keeps adapters with their vectors and words, and finds them by id. Searching is `search_index`."""

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
import psycopg
from jaxtyping import Float32
from psycopg import sql
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb

from stylus import bm25, search_index
from stylus.database import Database
from stylus.errors import NotFound
from stylus.records import Adapter, BaseModelFamily, Card, Filters

INDEX_FROM = 10_000
"""Vectors of a model from which on it gets an index: below, the exact search takes milliseconds."""

_INDEX_LOCK = 0x496E646578
_BUILD_MEMORY = "1GB"
"""Most memory for building an index: a graph that outgrows it is built many times slower."""

_FIELDS = tuple(Adapter.model_fields)
_COLUMNS = sql.SQL(", ").join(map(sql.Identifier, _FIELDS))


@dataclass(frozen=True)
class Entry:
    """An adapter with what the catalog keeps beside it."""

    adapter: Adapter
    content_hash: str
    """Of the card that the adapter came from."""
    vectors: Float32[np.ndarray, "chunks d"]
    name: Float32[np.ndarray, " d"] | None = None
    """Of the name alone, to compare keywords with: short with short. None: the card has no more text than that."""

    def chunks(self) -> list[tuple[int, Float32[np.ndarray, " d"]]]:
        """Vectors under their numbers: pieces of the card from 0, the name as -1."""
        return [*([] if self.name is None else [(-1, self.name)]), *enumerate(self.vectors)]


Location = tuple[str | None, str | None, str | None, int | None, str | None, str | None]
"""file, url, sha256, bytes, download, group: what may change without a change of content."""


@dataclass(frozen=True)
class Known:
    """What the catalog knows of a card, to tell what changed."""

    content_hash: str
    embedded: bool
    """Whether there are vectors of the model that was asked for."""
    location: Location
    hidden: bool
    missing: bool
    name: str


class Catalog:
    """The adapters of a database. Safe to share between threads."""

    def __init__(self, database: Database) -> None:
        self._database = database

    # --- Keeping ---

    def add(self, adapters: Iterable[Adapter]) -> None:
        """Keeps adapters without vectors: they are found by id, and by `nearest` once `add_embedded` follows.

        One that is there already is replaced; its vectors stay if its content is the same.
        """
        kept = [(adapter, adapter.content_hash()) for adapter in adapters]
        self._database.transact(lambda connection: _keep(connection, kept, model=""))

    def add_embedded(self, entries: Sequence[Entry], model: str) -> None:
        """Keeps adapters with their vectors of `model`, all or none; changed content drops those of other models."""
        kept = [(entry.adapter, entry.content_hash) for entry in entries]

        def keep(connection: psycopg.Connection[Any]) -> None:
            _keep(connection, kept, model)
            _embed(connection, entries, model)

        self._database.transact(keep)

    def embed_missing(
        self, model: str, make: Callable[[Sequence[Adapter]], Sequence[Entry]], after: str = "", limit: int = 64
    ) -> str | None:
        """Gives the next adapters after id `after` without vectors of `model` to `make` and keeps what it returns.
        Returns the last id that it looked at, None if there was nothing left to do.

        The claim is a lock on their rows: other machines pass over them, and it dies with its holder.
        """
        without = "not exists (select from embeddings where adapter = id and model = %s)"
        claim = sql.SQL(
            "select id from adapters where id > %s and {} order by id limit %s for no key update skip locked"
        ).format(sql.SQL(without))
        # Once more with a new snapshot: who had them until now may have made their vectors since the last one.
        claimed = sql.SQL("select {} from adapters where id = any(%s) and {} order by id").format(
            _COLUMNS, sql.SQL(without)
        )
        with self._database.connection() as connection, connection.cursor(row_factory=dict_row) as cursor:
            ids = [row["id"] for row in cursor.execute(claim, [after, model, limit])]
            if found := [_adapter(row) for row in cursor.execute(claimed, [ids, model])]:
                _embed(connection, make(found), model)
        return ids[-1] if ids else None

    def move(self, adapters: Iterable[Adapter]) -> None:
        """Updates where the files of known adapters and the pictures beside them lie, or that they are missing, and
        nothing else."""
        query = (
            'update adapters set file = %s, url = %s, sha256 = %s, bytes = %s, download = %s, "group" = %s, '
            "examples = %s, missing = %s, updated_at = now() where id = %s"
        )
        rows = [(*location(adapter), _examples(adapter), adapter.missing, adapter.id) for adapter in adapters]
        self._database.transact(lambda connection: connection.cursor().executemany(query, rows))

    def known(self, ids: Sequence[str], model: str) -> dict[str, Known]:
        """What is kept of these ids, and whether it has vectors of `model`."""
        query = """
            select id, content_hash, file, url, sha256, bytes, download, "group", hidden, missing, name,
                   exists (select from embeddings where adapter = id and model = %s)
            from adapters where id = any(%s)
        """
        with self._database.connection() as connection:
            return {
                id: Known(digest, embedded, tuple(location), hidden, missing, name)
                for id, digest, *location, hidden, missing, name, embedded in connection.execute(
                    query, [model, list(ids)]
                )
            }

    def index(self, model: str, *, from_vectors: int = INDEX_FROM) -> bool:
        """Makes the indexes of a model's vectors if there are enough of them; tells whether there are some now.
        Searches and ingestions go on meanwhile."""
        with self._database.connection() as connection:
            connection.commit()
            connection.autocommit = True  # an index that keeps nobody waiting can't be made inside a transaction
            try:
                return _make_indexes(connection, model, from_vectors)
            finally:
                connection.autocommit = False

    def read_words(self, limit: int = 500) -> int:
        """Makes the postings of at most `limit` adapters that have none, or have those of another version's rules;
        returns how many there were."""
        query = sql.SQL("""
            select {} from adapters where not exists (select from documents where adapter = id and rules = %s)
            order by id limit %s for no key update skip locked
        """).format(_COLUMNS)
        with self._database.connection() as connection, connection.cursor(row_factory=dict_row) as cursor:
            found = [_adapter(row) for row in cursor.execute(query, [bm25.rules(), limit])]
            _keep_words(connection, found)
        return len(found)

    def coverage(self) -> tuple[int, dict[str, int]]:
        """How many adapters there are, and how many of them have vectors of each embedding model."""
        with self._database.connection() as connection:
            [(adapters,)] = connection.execute("select count(*) from adapters").fetchall()
            models = connection.execute("select model, count(*) from embeddings where chunk = 0 group by 1 order by 1")
            return adapters, dict(models.fetchall())

    # --- Finding ---

    def get(self, ids: Iterable[str]) -> dict[str, Adapter]:
        """The adapters among `ids` that are there."""
        wanted = [id for id in ids if "\0" not in id]
        query = sql.SQL("select {} from adapters where id = any(%s)").format(_COLUMNS)
        with self._database.connection() as connection, connection.cursor(row_factory=dict_row) as cursor:
            return {row["id"]: _adapter(row) for row in cursor.execute(query, [wanted])}

    def all(self) -> Iterator[tuple[Adapter, str]]:
        """All adapters in the order of their ids, each with the content hash of the card that it came from."""
        query = sql.SQL("select {}, content_hash from adapters order by id").format(_COLUMNS)
        with self._database.connection() as connection, connection.cursor("all", row_factory=dict_row) as cursor:
            for row in cursor.execute(query):
                yield _adapter(row), row["content_hash"]

    def require(self, ids: Sequence[str]) -> list[Adapter]:
        """The adapters of `ids`, in their order. Raises NotFound that names the first unknown id and ids like it."""
        found = self.get(ids)
        for id in ids:
            if id not in found:
                like = self._like(id)
                near = f" Nearest: {', '.join(like)}." if like else ""
                raise NotFound(f"No adapter has the id {id[:200]!r}.{near} Call search_adapters (`stylus search`).")
        return [found[id] for id in ids]

    def nearest(
        self, vector: Float32[np.ndarray, " d"], model: str, filters: Filters, limit: int
    ) -> list[tuple[Adapter, float]]:
        """The `limit` adapters that pass `filters` and whose best piece is most similar to `vector`, best first, with
        that cosine similarity in [-1, 1]. Only vectors of `model` are compared; fewer come only if there are fewer."""
        if limit < 1:
            return []
        depth = limit
        with self.reading() as connection:
            among = search_index.facets(connection, filters)
            while True:
                [found] = search_index.nearest(connection, vector[None], model, among, depth)
                if found.complete or len(found.scores) >= limit:
                    break
                depth *= 2  # several pieces of one card
        adapters = self.get(found.scores)
        return [(adapters[id], score) for id, score in found.scores.items() if id in adapters][:limit]

    def sample(self, filters: Filters, count: int, seed: int | str) -> list[Adapter]:
        """`count` adapters that pass `filters`, drawn by chance: the same seed draws the same from the same catalog."""
        query = sql.SQL("select {} from adapters where facet = any(%s) order by md5(id || %s), id limit %s").format(
            _COLUMNS
        )
        with self.reading() as connection, connection.cursor(row_factory=dict_row) as cursor:
            among = search_index.facets(connection, filters)
            return [_adapter(row) for row in cursor.execute(query, [among, str(seed), count])]

    def beginning(self, start: str, limit: int) -> list[str]:
        """At most `limit` ids that begin with `start`, in their order; of adapters that are not hidden."""
        if "\0" in start:
            return []  # Postgres can't even compare with it
        query = "select id from adapters where not hidden and starts_with(id, %s) order by id limit %s"
        with self._database.connection() as connection:
            return [id for (id,) in connection.execute(query, [start, limit])]

    def reading(self) -> AbstractContextManager[psycopg.Connection[Any]]:
        """A transaction for the functions of `search_index`."""
        return self._database.connection()

    def count(self) -> dict[BaseModelFamily | None, int]:
        """How many adapters there are of each base model family; None is unknown."""
        query = "select base_model, count(*) from adapters where not hidden group by 1 order by 1"
        with self._database.connection() as connection:
            return {
                None if family is None else BaseModelFamily(family): count
                for family, count in connection.execute(query)
            }

    def _like(self, id: str) -> list[str]:
        local = id.rpartition(":")[2].replace("\0", "")[:100]
        pieces = {local, local[:2], local[-2:]} - {""}
        patterns = [f"%{piece.translate(_ESCAPES)}%" for piece in sorted(pieces, key=len, reverse=True)]
        with self._database.connection() as connection:
            rows = connection.execute(
                "select id from adapters where not hidden and id ilike any(%s) "
                "order by abs(length(id) - %s), id limit 500",
                [patterns, len(id)],
            ).fetchall()
        names = {row[0]: row[0].rpartition(":")[2].lower() for row in rows}
        close = difflib.get_close_matches(local.lower(), list(dict.fromkeys(names.values())), n=3, cutoff=0.5)
        return [next(id for id, name in names.items() if name == match) for match in close]


def location(card: Card) -> Location:
    return card.file, card.url, card.sha256, card.bytes, card.download, card.group


_ESCAPES = str.maketrans({"\\": r"\\", "%": r"\%", "_": r"\_"})


def _forget(connection: psycopg.Connection[Any], kept: Sequence[tuple[Adapter, str]], model: str) -> None:
    """Drops the vectors of `model`, and of every model where the content hash is no longer the same."""
    connection.execute(
        "delete from embeddings using adapters, unnest(%s::text[], %s::text[]) as new (id, content_hash) "
        "where adapter = new.id and adapters.id = new.id and (model = %s or adapters.content_hash <> new.content_hash)",
        [[adapter.id for adapter, _ in kept], [digest for _, digest in kept], model],
    )


def _keep(connection: psycopg.Connection[Any], kept: Sequence[tuple[Adapter, str]], model: str) -> None:
    _forget(connection, kept, model)
    columns = [*_FIELDS, "content_hash"]
    changes = [sql.SQL("{0} = excluded.{0}").format(sql.Identifier(name)) for name in columns if name != "id"]
    query = sql.SQL(
        "insert into adapters ({}) values ({}) on conflict (id) do update set {}, updated_at = now()"
    ).format(
        sql.SQL(", ").join(map(sql.Identifier, columns)),
        sql.SQL(", ").join(map(sql.Placeholder, columns)),
        sql.SQL(", ").join(changes),
    )
    with connection.cursor() as cursor:
        # In one order for all: two ingestions of the same cards would else wait for each other.
        rows = sorted(kept, key=lambda pair: pair[0].id)
        cursor.executemany(query, [{**_row(adapter), "content_hash": digest} for adapter, digest in rows])
    _keep_words(connection, [adapter for adapter, _ in rows])


def _row(adapter: Adapter) -> dict[str, Any]:
    values = adapter.model_dump()
    values["examples"] = _examples(adapter)
    return values | {"tags": list(adapter.tags), "trigger_words": list(adapter.trigger_words)}


def _examples(adapter: Adapter) -> Jsonb:
    return Jsonb([example.model_dump() for example in adapter.examples])


def _adapter(row: Mapping[str, Any]) -> Adapter:
    return Adapter.model_validate({name: row[name] for name in _FIELDS})


def _embed(connection: psycopg.Connection[Any], entries: Sequence[Entry], model: str) -> None:
    with connection.cursor() as cursor:
        cursor.executemany(
            "insert into embeddings (adapter, model, chunk, embedding) values (%s, %s, %s, %s::halfvec) "
            "on conflict do nothing",
            [
                (entry.adapter.id, model, chunk, search_index.as_text(vector))
                for entry in entries
                for chunk, vector in entry.chunks()
            ],
        )


def _keep_words(connection: psycopg.Connection[Any], adapters: Sequence[Adapter]) -> None:
    """Makes the postings of these adapters anew. Document frequencies are counted from them, so that they are right
    after each change."""
    words = {adapter.id: bm25.frequencies(adapter) for adapter in adapters}
    connection.execute("delete from documents where adapter = any(%s)", [list(words)])
    connection.execute(
        "insert into documents (adapter, length, rules) "
        "select adapter, length, %s from unnest(%s::text[], %s::real[]) as read (adapter, length)",
        [bm25.rules(), list(words), [float(sum(counts.values())) for counts in words.values()]],
    )
    rows = [(id, term, count) for id, counts in words.items() for term, count in counts.items()]
    connection.execute(
        """
        insert into postings (term, number, frequency, length, facet)
        select stem(term), number, sum(frequency), length, facet
        from unnest(%s::text[], %s::text[], %s::real[]) as read (adapter, term, frequency)
        join documents using (adapter) join adapters on id = adapter
        group by 1, 2, 4, 5
        """,
        [[row[0] for row in rows], [row[1] for row in rows], [row[2] for row in rows]],
    )


def _make_indexes(connection: psycopg.Connection[Any], model: str, from_vectors: int) -> bool:
    """`connection` commits each statement by itself."""
    valid = "select indisvalid from pg_index where indexrelid = to_regclass(%s)"
    pieces = search_index.index_names(model)
    if connection.execute("select pg_try_advisory_lock(%s)", [_INDEX_LOCK]).fetchone() != (True,):
        # Waiting would hold a snapshot, which is what the other one's index waits for.
        return all(connection.execute(valid, [name]).fetchone() == (True,) for name in pieces)
    try:
        query = "select count(*), max(vector_dims(embedding)) from embeddings where model = %s"
        count, dimension = connection.execute(query, [model]).fetchone() or (0, None)
        missing = [name for name in pieces if connection.execute(valid, [name]).fetchone() != (True,)]
        if dimension is None or (missing and count < from_vectors):
            return False
        connection.execute(f"set maintenance_work_mem = '{_BUILD_MEMORY}'")
        for name in missing:
            # It is there, and not valid, where a build was stopped.
            connection.execute(sql.SQL("drop index if exists {}").format(sql.Identifier(name)))
            connection.execute(
                search_index.INDEX.format(
                    name=sql.Identifier(name),
                    dimension=sql.Literal(dimension),
                    model=sql.Literal(model),
                    pieces=pieces[name],
                )
            )
        connection.execute("reset maintenance_work_mem")
        if missing:
            connection.execute("vacuum (analyze) embeddings, documents, postings")
    finally:
        connection.execute("select pg_advisory_unlock(%s)", [_INDEX_LOCK])
    return True
