"""All SQL that finds adapters: nearest vectors, words, and the facets that both are filtered by.

Few vectors pass: all of them are compared, which is exact. Many pass: an HNSW index per embedding model is walked, as
deep as the filter makes necessary (pgvector's iterative scan). README, Decisions, has the figures behind both.
"""

import hashlib
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import psycopg
from jaxtyping import Float32
from pgvector import HalfVector
from psycopg import sql

from stylus import bm25
from stylus.errors import InvalidInput
from stylus.ranking import Identity
from stylus.records import Filters

Connection = psycopg.Connection[Any]
Vectors = Float32[np.ndarray, "n d"]

_STEP_COST = 16
"""One more adapter out of the index takes as long as this many exact comparisons (measured, README)."""

_BREADTH = 8 / 5
"""hnsw.ef_search per result, for those that pass and those that don't: so many neighbours does the walk keep in mind,
and a second walk from where the first ended, for the few that were still missing, takes as long as the first."""
_MOST_BREADTH = 1000  # pgvector's own bound

_WALKING = {
    "hnsw.iterative_scan": "strict_order",
    "hnsw.max_scan_tuples": 2**31 - 1,
    "hnsw.scan_mem_multiplier": 16,
    "enable_seqscan": "off",
    "enable_bitmapscan": "off",
    "enable_sort": "off",
}
"""Settings of the walk. Other plans are not forbidden, only made to look dear."""

_CARDS, _CARDS_AND_NAMES = sql.SQL(" and chunk >= 0"), sql.SQL("")
INDEX = sql.SQL(
    "create index concurrently {name} on embeddings using hnsw ((embedding::halfvec({dimension})) halfvec_cosine_ops) "
    "where model = {model}{pieces}"
)
"""Names are near to short texts. In one index with the cards they would stand in the way of a prompt."""


@dataclass
class Found:
    """One list of candidates, best first."""

    scores: dict[str, float] = field(default_factory=dict)
    """Adapter id -> similarity in [-1, 1], or BM25 score above 0."""
    complete: bool = True
    """Whether everything that could be in the list is."""


def facets(connection: Connection, filters: Filters) -> list[int]:
    """The combinations of base model, rating, licence and so on that pass; embeddings and postings carry one each."""
    parts: list[tuple[str, Any]] = [("rating = any(%s)", sorted(filters.ratings))]
    if filters.base_model is not None:
        parts.append(("base_model = %s", filters.base_model))
    if filters.category is not None:
        parts.append(("category = %s", filters.category))
    if filters.kinds is not None:
        parts.append(("kind = any(%s)", sorted(filters.kinds)))
    if filters.licences is not None:
        parts.append(("licence = any(%s)", [licence.lower()[:100] for licence in sorted(filters.licences)]))
    if filters.has_file is not None:
        parts.append(("has_file = %s", filters.has_file))
    if filters.usable is not None:
        parts.append(("(has_file or fetchable) = %s", filters.usable))
    plain = [text for text, shown in (("not hidden", filters.hidden), ("not flagged", filters.flagged)) if not shown]
    texts = [*plain, *(text for text, _ in parts)]
    query = sql.SQL("select id from facets where {}").format(sql.SQL(" and ").join(map(sql.SQL, texts)))
    return [id for (id,) in connection.execute(query, [value for _, value in parts])]


def nearest(
    connection: Connection, vectors: Vectors, model: str, among: Sequence[int], depth: int, *, names: bool = False
) -> list[Found]:
    """For each vector the adapters whose best piece is most similar, out of the `depth` nearest pieces of cards, or of
    cards and names. `among`: the facets that pass. Raises InvalidInput for vectors of another dimension.

    Until the end of its transaction other queries are planned as walks too: give it one of its own."""
    if not among or not len(vectors):
        return [Found() for _ in vectors]
    pieces = _CARDS_AND_NAMES if names else _CARDS
    walk = _prepare(connection, model, pieces, among, depth)
    distance = sql.SQL("embedding::halfvec({0}) <=> asked.vector").format(sql.Literal(vectors.shape[1]))
    # Model and dimension stand in the text, for only then does the planner see that the partial index fits.
    # An order by something else than the distance itself is one that the index can't give.
    query = sql.SQL(
        "with asked as materialized (select place, text::halfvec({dimension}) as vector "
        "from unnest(%s::text[]) with ordinality as given (text, place)) "
        "select place, adapter, distance from asked cross join lateral (select adapter, {distance} as distance "
        "from embeddings where model = {model}{pieces} and facet = any(%s) order by {order} limit %s) as hits"
    ).format(
        dimension=sql.Literal(vectors.shape[1]),
        distance=distance,
        model=sql.Literal(model),
        pieces=pieces,
        order=distance if walk else sql.SQL("({}) + 0").format(distance),
    )
    found, hits = [Found() for _ in vectors], [0] * len(vectors)
    try:
        rows = connection.execute(query, [list(map(as_text, vectors)), list(among), depth], prepare=False).fetchall()
    except psycopg.errors.DataException as error:
        raise InvalidInput(
            f"The query vector has {vectors.shape[1]} numbers, the catalog's vectors of {model} have others. Run "
            "`stylus embed` to embed the adapters again, or ingest them again with this embedding model."
        ) from error
    for place, adapter, distance_found in rows:
        hits[place - 1] += 1
        similarity, scores = 1 - float(distance_found), found[place - 1].scores
        scores[adapter] = max(similarity, scores.get(adapter, -1.0))
    for one, count in zip(found, hits, strict=True):
        one.complete = count < depth
        one.scores = _ranked(one.scores)
    return found


def similarities(connection: Connection, ids: Sequence[str], vectors: Vectors, model: str) -> Mapping[str, np.ndarray]:
    """Of each adapter's best piece to each vector: cosine similarities in [-1, 1]. Without vectors: absent."""
    query = (
        "select adapter, halfvec_send(embedding) from embeddings where model = %s and adapter = any(%s) and chunk >= 0"
    )
    best: dict[str, np.ndarray] = {}
    for adapter, sent in connection.execute(query, [model, list(ids)], binary=True):
        piece = np.frombuffer(sent, ">f2", offset=4).astype(np.float32)  # after its dimension and an unused number
        found = np.clip(vectors @ piece / max(float(np.linalg.norm(piece)), 1e-9), -1, 1)
        best[adapter] = np.maximum(found, best.get(adapter, found))
    return best


def lexical(connection: Connection, texts: Sequence[str], among: Sequence[int], depths: Sequence[int]) -> list[Found]:
    """For each text the adapters with the highest BM25 scores, of those that share a word with it, and as many as its
    place in `depths` says.

    The postings come once, as the bytes of one array a term, and are summed here: for a prompt with its keywords, whose
    words are the same, that takes a fifth of the time of a sum in SQL.
    """
    asked = [bm25.terms(text) for text in texts]
    words = sorted({term for terms in asked for term in terms})
    if not among or not words:
        return [Found() for _ in texts]
    stems = dict(connection.execute("select word, stem(word) from unnest(%s::text[]) as word", [words]).fetchall())
    total = connection.execute("select documents, length from collection").fetchone()
    documents, length = total if total else (0, 0.0)
    rows = connection.execute(
        """
        select term, count(*), string_agg(int8send(number) || float4send(frequency) || float4send(length), '')
            filter (where passes)
        from (select *, facet = any(%s) as passes from postings where term = any(%s)) as found group by term
        """,
        [list(among), sorted(set(stems.values()))],
        binary=True,
    ).fetchall()
    postings: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for term, holding, passing in rows:
        entries = np.frombuffer(passing or b"", [("number", ">i8"), ("frequency", ">f4"), ("length", ">f4")])
        parts = bm25.saturated(
            entries["frequency"].astype(np.float64), entries["length"].astype(np.float64), length / max(documents, 1)
        )
        weight = bm25.inverse_document_frequency(holding, documents)
        postings[term] = entries["number"].astype(np.int64), parts * weight
    best = [
        _sums([postings[stem] for stem in {stems[t] for t in terms} if stem in postings], depth)
        for terms, depth in zip(asked, depths, strict=True)
    ]
    wanted = sorted({number for numbers, _ in best for number in numbers.tolist()})
    ids = dict(connection.execute("select number, adapter from documents where number = any(%s)", [wanted]).fetchall())
    return [
        Found(
            _ranked({ids[n]: s for n, s in zip(numbers.tolist(), scores.tolist(), strict=True) if n in ids}),
            complete=len(numbers) < depth,
        )
        for (numbers, scores), depth in zip(best, depths, strict=True)
    ]


def identities(connection: Connection, ids: Collection[str]) -> dict[str, Identity]:
    """What near-duplicates among these adapters are told by; those that are gone are absent."""
    query = 'select id, name, author, base_model, sha256, "group" from adapters where id = any(%s)'
    return {id: Identity(*rest) for id, *rest in connection.execute(query, [list(ids)])}


def index_names(model: str) -> dict[str, sql.SQL]:
    """Name of each HNSW index of a model -> which vectors it holds."""
    digest = hashlib.sha256(model.encode()).hexdigest()[:16]
    return {f"embeddings_{digest}": _CARDS, f"embeddings_all_{digest}": _CARDS_AND_NAMES}


def as_text(vector: np.ndarray) -> str:
    return str(HalfVector(vector).to_text())


def _prepare(connection: Connection, model: str, pieces: sql.SQL, among: Sequence[int], depth: int) -> bool:
    """Whether to walk the index. Comparing all of `passing` vectors takes time as `passing`; the walk, which meets
    vectors near and far alike, as depth x all / passing."""
    [name] = [name for name, held in index_names(model).items() if held is pieces]
    found = connection.execute(
        "select coalesce(sum(reltuples), 0)::float8 from pg_class where oid = to_regclass(%s)", [name]
    ).fetchone()
    everything = found[0] if found else 0.0
    if everything <= 0:
        return False
    plan = connection.execute(
        sql.SQL("explain (format json) select from embeddings where model = {}{} and facet = any(%s)").format(
            sql.Literal(model), pieces
        ),
        [list(among)],
        prepare=False,
    ).fetchone()
    passing = plan[0][0]["Plan"]["Plan Rows"] if plan else 0
    if passing * passing < _STEP_COST * depth * everything:
        return False
    breadth = min(_MOST_BREADTH, max(40, math.ceil(_BREADTH * depth * everything / passing)))
    settings = {"hnsw.ef_search": breadth, **_WALKING}
    connection.execute("; ".join(f"set local {name} = {value}" for name, value in settings.items()), prepare=False)
    return True


def _sums(postings: Sequence[tuple[np.ndarray, np.ndarray]], depth: int) -> tuple[np.ndarray, np.ndarray]:
    """The documents with the highest sums of their parts, in no order, with these sums."""
    if not postings:
        return np.zeros(0, np.int64), np.zeros(0)
    numbers, place = np.unique(np.concatenate([numbers for numbers, _ in postings]), return_inverse=True)
    scores = np.bincount(place, np.concatenate([parts for _, parts in postings]), len(numbers))
    if len(numbers) > depth:
        kept = np.argpartition(-scores, depth - 1)[:depth]
        numbers, scores = numbers[kept], scores[kept]
    return numbers, scores


def _ranked(scores: Mapping[str, float]) -> dict[str, float]:
    return dict(sorted(scores.items(), key=lambda pair: (-pair[1], pair[0])))
