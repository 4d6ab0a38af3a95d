"""All SQL on adapters: keep, find by id, find the nearest under filters.

The paper's code filters after its 150 candidates are chosen and so wastes most of them; here the filters are part of
the query. Small catalogs are searched exactly; from INDEX_FROM vectors on, an HNSW index per embedding model serves,
scanned further and further (pgvector's iterative scan) until enough adapters pass the filters.
"""

import difflib
import hashlib
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import psycopg
from jaxtyping import Float32
from pgvector import HalfVector
from psycopg import sql
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb

from stylus.database import Database
from stylus.errors import InvalidInput, NotFound
from stylus.records import Adapter, BaseModelFamily, Card, Filters

INDEX_FROM = 10_000
"""Vectors of a model from which on it gets an index: below, the exact search takes milliseconds."""

_INDEX_LOCK = 0x496E646578
_SEARCHED = 400
"""hnsw.ef_search: how many neighbours the index weighs at a time."""

_FIELDS = tuple(Adapter.model_fields)
_COLUMNS = sql.SQL(", ").join(map(sql.Identifier, _FIELDS))


@dataclass(frozen=True)
class Entry:
    """An adapter with what the catalog keeps beside it."""

    adapter: Adapter
    content_hash: str
    """Of the card that the adapter came from."""
    vectors: Float32[np.ndarray, "chunks d"]


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
        with self._database.connection() as connection:
            _forget(connection, kept, model="")
            _upsert(connection, kept)

    def add_embedded(self, entries: Sequence[Entry], model: str) -> None:
        """Keeps adapters with their vectors of `model`, all or none; changed content drops those of other models."""
        kept = [(entry.adapter, entry.content_hash) for entry in entries]
        with self._database.connection() as connection, connection.cursor() as cursor:
            _forget(connection, kept, model)
            _upsert(connection, kept)
            cursor.executemany(
                "insert into embeddings (adapter, model, chunk, embedding) values (%s, %s, %s, %s::halfvec)",
                [
                    (entry.adapter.id, model, chunk, _text(vector))
                    for entry in entries
                    for chunk, vector in enumerate(entry.vectors)
                ],
            )

    def move(self, adapters: Iterable[Adapter]) -> None:
        """Updates where the files of known adapters and the pictures beside them lie, and nothing else."""
        with self._database.connection() as connection, connection.cursor() as cursor:
            cursor.executemany(
                'update adapters set file = %s, url = %s, sha256 = %s, bytes = %s, download = %s, "group" = %s, '
                "examples = %s, missing = false, updated_at = now() where id = %s",
                [(*location(adapter), _examples(adapter), adapter.id) for adapter in adapters],
            )

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
        """Makes the index of a model's vectors if there are enough of them; tells whether there is one now."""
        name = _index_name(model)
        with self._database.connection() as connection:
            connection.execute("select pg_advisory_xact_lock(%s)", [_INDEX_LOCK])
            if connection.execute("select to_regclass(%s)", [name]).fetchone() != (None,):
                return True
            row = connection.execute(
                "select count(*), max(vector_dims(embedding)) from embeddings where model = %s", [model]
            ).fetchone()
            if row is None or row[0] < from_vectors or row[0] == 0:
                return False
            connection.execute(
                sql.SQL(
                    "create index {} on embeddings using hnsw ((embedding::halfvec({})) halfvec_cosine_ops) "
                    "where model = {}"
                ).format(sql.Identifier(name), sql.Literal(row[1]), sql.Literal(model))
            )
        return True

    # --- Finding ---

    def get(self, ids: Iterable[str]) -> dict[str, Adapter]:
        """The adapters among `ids` that are there."""
        wanted = [id for id in ids if "\0" not in id]
        query = sql.SQL("select {} from adapters where id = any(%s)").format(_COLUMNS)
        with self._database.connection() as connection, connection.cursor(row_factory=dict_row) as cursor:
            return {row["id"]: _adapter(row) for row in cursor.execute(query, [wanted])}

    def require(self, ids: Sequence[str]) -> list[Adapter]:
        """The adapters of `ids`, in their order. Raises NotFound that names the first unknown id and ids like it."""
        found = self.get(ids)
        for id in ids:
            if id not in found:
                like = self._like(id)
                near = f" Nearest: {', '.join(like)}." if like else ""
                raise NotFound(f"No adapter has the id {id[:200]!r}.{near} Call search_adapters to find ids.")
        return [found[id] for id in ids]

    def nearest(
        self, vector: Float32[np.ndarray, " d"], model: str, filters: Filters, limit: int
    ) -> list[tuple[Adapter, float]]:
        """The `limit` adapters that pass `filters` and whose best chunk is most similar to `vector`, best first, with
        that cosine similarity in [-1, 1]. Only vectors of `model` are compared; fewer come only if there are fewer."""
        if limit < 1:
            return []
        with self._database.connection() as connection:
            try:
                scores = dict(itertools.islice(self._stream(connection, vector, model, filters, limit), limit))
            except psycopg.errors.DataException as error:
                raise InvalidInput(
                    f"The query vector has {len(vector)} numbers, the catalog's vectors of {model} have others. Ingest "
                    "the adapters again with this embedding model."
                ) from error
        adapters = self.get(scores)
        ranked = sorted(scores.items(), key=lambda pair: (-pair[1], pair[0]))
        return [(adapters[id], score) for id, score in ranked if id in adapters]

    def similarities(
        self, ids: Sequence[str], vectors: Float32[np.ndarray, "n d"], model: str
    ) -> Mapping[str, Float32[np.ndarray, " n"]]:
        """Of each adapter's best chunk to each vector: cosine similarities in [-1, 1]. Without vectors: absent."""
        query = """
            select adapter, query.number, max(1 - (embedding <=> query.vector::halfvec))
            from embeddings, unnest(%s::text[]) with ordinality as query (vector, number)
            where model = %s and adapter = any(%s) group by 1, 2
        """
        scores: dict[str, Float32[np.ndarray, " n"]] = {}
        with self._database.connection() as connection:
            for id, number, score in connection.execute(query, [list(map(_text, vectors)), model, list(ids)]):
                scores.setdefault(id, np.zeros(len(vectors), np.float32))[number - 1] = score
        return scores

    def count(self) -> dict[BaseModelFamily | None, int]:
        """How many adapters there are of each base model family; None is unknown."""
        query = "select base_model, count(*) from adapters where not hidden group by 1 order by 1"
        with self._database.connection() as connection:
            return {
                None if family is None else BaseModelFamily(family): count
                for family, count in connection.execute(query)
            }

    def _stream(
        self, connection: psycopg.Connection[Any], vector: np.ndarray, model: str, filters: Filters, limit: int
    ) -> Iterator[tuple[str, float]]:
        """(id, similarity) of each adapter once, best first, read from the server only as far as it is asked for."""
        conditions, values = _conditions(filters)
        # Model and dimension stand in the text, for only then does the planner see that the partial index fits.
        query = sql.SQL(
            "select id, 1 - (embedding::halfvec({dimension}) <=> %s::halfvec({dimension})) "
            "from embeddings join adapters on id = adapter where model = {model} and {conditions} "
            "order by embedding::halfvec({dimension}) <=> %s::halfvec({dimension})"
        ).format(dimension=sql.Literal(len(vector)), model=sql.Literal(model), conditions=conditions)
        for setting in (
            f"hnsw.ef_search = {_SEARCHED}",
            "hnsw.iterative_scan = strict_order",
            "hnsw.max_scan_tuples = 2147483647",
            "hnsw.scan_mem_multiplier = 16",
        ):
            connection.execute(f"set local {setting}")
        seen: set[str] = set()
        text = _text(vector)
        with connection.cursor("nearest") as cursor:
            cursor.itersize = limit + 50
            cursor.execute(query, [text, *values, text])
            for id, similarity in cursor:
                if id not in seen:
                    seen.add(id)
                    yield id, float(similarity)

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


def _conditions(filters: Filters) -> tuple[sql.Composable, list[Any]]:
    """The filters as SQL, and its parameters in order."""
    parts: list[tuple[str, Any]] = [("rating = any(%s)", sorted(filters.ratings))]
    if filters.base_model is not None:
        parts.append(("base_model = %s", filters.base_model))
    if filters.category is not None:
        parts.append(("category = %s", filters.category))
    if filters.kinds is not None:
        parts.append(("kind = any(%s)", sorted(filters.kinds)))
    if filters.has_file is not None:
        parts.append(("(file is not null and not missing) = %s", filters.has_file))
    plain = ["not hidden"] if filters.flagged else ["not hidden", "quality is null"]
    texts = [*plain, *(text for text, _ in parts)]
    return sql.SQL(" and ").join(map(sql.SQL, texts)), [value for _, value in parts]


def _forget(connection: psycopg.Connection[Any], kept: Sequence[tuple[Adapter, str]], model: str) -> None:
    """Drops the vectors of `model`, and of every model where the content hash is no longer the same."""
    connection.execute(
        "delete from embeddings using adapters, unnest(%s::text[], %s::text[]) as new (id, content_hash) "
        "where adapter = new.id and adapters.id = new.id and (model = %s or adapters.content_hash <> new.content_hash)",
        [[adapter.id for adapter, _ in kept], [digest for _, digest in kept], model],
    )


def _upsert(connection: psycopg.Connection[Any], kept: Sequence[tuple[Adapter, str]]) -> None:
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
        cursor.executemany(query, [{**_row(adapter), "content_hash": digest} for adapter, digest in kept])


def _row(adapter: Adapter) -> dict[str, Any]:
    values = adapter.model_dump()
    values["examples"] = _examples(adapter)
    return values | {"tags": list(adapter.tags), "trigger_words": list(adapter.trigger_words)}


def _examples(adapter: Adapter) -> Jsonb:
    return Jsonb([example.model_dump() for example in adapter.examples])


def _adapter(row: Mapping[str, Any]) -> Adapter:
    return Adapter.model_validate({name: row[name] for name in _FIELDS})


def _text(vector: np.ndarray) -> str:
    return str(HalfVector(vector).to_text())


def _index_name(model: str) -> str:
    return f"embeddings_{hashlib.sha256(model.encode()).hexdigest()[:16]}"
