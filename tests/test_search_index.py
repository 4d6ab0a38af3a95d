"""Finding by vectors and by words on a real Postgres, against the same computed here."""

from collections import Counter

import numpy as np
import psycopg
import pytest

from stylus import bm25, search_index
from stylus.catalog import Catalog, Entry
from stylus.database import Database
from stylus.records import Adapter, BaseModelFamily, Filters

MODEL = "model with 'quotes'"
FAMILIES = {"none": None, "half": BaseModelFamily.SD15, "few": BaseModelFamily.FLUX}


@pytest.fixture
def catalog(database: Database) -> Catalog:
    return Catalog(database)


def adapter(number: int, **fields: object) -> Adapter:
    return Adapter.model_validate({"id": f"a:{number}", "name": f"card {number}", **fields})


def words_of(catalog: Catalog, query: str, filters: Filters = Filters(), depth: int = 50) -> dict[str, float]:  # noqa: B008
    with catalog.reading() as connection:
        among = search_index.facets(connection, filters)
        return search_index.lexical(connection, [query], among, [depth])[0].scores


@pytest.mark.parametrize("indexed", [False, True])
def test_recall_against_exact_search_whatever_the_filter_keeps(catalog: Catalog, indexed: bool) -> None:
    random = np.random.default_rng(0)
    centres = random.normal(size=(40, 24))
    points = centres[random.integers(40, size=3000)] + 0.7 * random.normal(size=(3000, 24))
    points = (points / np.linalg.norm(points, axis=1, keepdims=True)).astype(np.float32)
    families = random.choice(["sd15", "sdxl", "flux"], size=3000, p=[0.5, 0.45, 0.05])
    cards = [adapter(i, base_model=str(families[i])) for i in range(3000)]
    catalog.add_embedded(
        [Entry(a, a.content_hash(), point[None], -point) for a, point in zip(cards, points, strict=True)], MODEL
    )
    if indexed:
        assert catalog.index(MODEL, from_vectors=1)
    queries = points[:12] + 0.05 * random.normal(size=(12, 24)).astype(np.float32)
    for name, family in FAMILIES.items():
        rows = np.flatnonzero(families == family) if family else np.arange(3000)
        with catalog.reading() as connection:
            among = search_index.facets(connection, Filters(base_model=family))
            # Few that pass are compared one by one, index or not.
            walks = search_index._prepare(connection, MODEL, search_index._CARDS, among, 20)
            assert walks is (indexed and name != "few")
            found = search_index.nearest(connection, queries, MODEL, among, 20)
            [far] = search_index.nearest(connection, -queries[:1], MODEL, among, 20, names=True)
        recalls = []
        for query, one in zip(queries, found, strict=True):
            exact = points[rows] @ (query / np.linalg.norm(query))
            best = {f"a:{row}" for row in rows[np.argsort(-exact)[:20]]}
            recalls.append(len(best & one.scores.keys()) / 20)
            assert list(one.scores.values()) == sorted(one.scores.values(), reverse=True)
            assert not one.complete
            assert len(one.scores) == 20
        assert np.mean(recalls) >= 0.98, name
        # The names' vectors are the opposites: what is nearest to the opposite query is the name of the nearest card.
        nearest_name = rows[np.argmax(points[rows] @ queries[0])]
        assert next(iter(far.scores)) == f"a:{nearest_name}"


def test_words_score_as_the_formula_says_and_frequencies_follow_every_change(
    catalog: Catalog, database: Database
) -> None:
    random = np.random.default_rng(1)
    vocabulary = [f"zorb{letter}k" for letter in "abcdefgh"]

    def card(number: int) -> Adapter:
        some = [vocabulary[i] for i in random.integers(len(vocabulary), size=7)]
        return adapter(number, name=some[0], tags=tuple(some[1:3]), description=" ".join(some[3:]))

    def check() -> None:
        counts = {a.id: bm25.frequencies(a) for a in cards.values()}
        lengths = {id: sum(found.values()) for id, found in counts.items()}
        mean, holding = np.mean(list(lengths.values())), Counter(term for found in counts.values() for term in found)
        query = vocabulary[:3]
        expected = {
            id: sum(
                bm25.inverse_document_frequency(holding[term], len(counts))
                * found[term]
                * (bm25.K1 + 1)
                / (found[term] + bm25.K1 * (1 - bm25.B + bm25.B * lengths[id] / mean))
                for term in query
                if term in found
            )
            for id, found in counts.items()
            if any(term in found for term in query)
        }
        assert words_of(catalog, " ".join(query)) == pytest.approx(expected, rel=1e-4)

    cards = {number: card(number) for number in range(30)}
    catalog.add(cards.values())
    check()
    cards |= {number: card(number) for number in (3, 4, 30, 31)}
    catalog.add([cards[number] for number in (3, 4, 30, 31)])
    check()
    with database.connection() as connection:
        connection.execute("delete from adapters where id = any(%s)", [["a:0", "a:30"]])
    del cards[0], cards[30]
    check()
    with database.connection() as connection:
        connection.execute("truncate adapters cascade")
        assert connection.execute("select documents, length from collection").fetchone() == (0, 0)
        assert connection.execute("select count(*) from postings").fetchone() == (0,)
    assert words_of(catalog, vocabulary[0]) == {}


def test_words_are_filtered_and_cut_at_the_depth(catalog: Catalog) -> None:
    catalog.add([adapter(i, tags=("lantern",) * (1 + i), base_model="sdxl" if i % 2 else "sd15") for i in range(8)])
    scores = words_of(catalog, "paper lanterns", Filters(base_model=BaseModelFamily.SDXL), depth=3)
    assert list(scores) == ["a:7", "a:5", "a:3"]  # stemmed; all four of them share the word
    assert words_of(catalog, "the of") == words_of(catalog, "unheard") == {}


def test_a_facet_that_changes_takes_vectors_and_words_along(catalog: Catalog, database: Database) -> None:
    one = adapter(1, tags=("lantern",))
    catalog.add_embedded([Entry(one, one.content_hash(), np.eye(1, 3, dtype=np.float32))], MODEL)
    here = Filters(has_file=True)
    assert not words_of(catalog, "lantern", here)
    with database.connection() as connection:  # whoever writes it, and however
        connection.execute("update adapters set file = '/x', licence = 'CC0' where id = 'a:1'")
    for filters in (here, Filters(licences=frozenset({"cc0"})), Filters(usable=True)):
        assert list(words_of(catalog, "lantern", filters)) == ["a:1"]
        assert catalog.nearest(np.eye(1, 3, dtype=np.float32)[0], MODEL, filters, 5)
    with database.connection() as connection:
        connection.execute("update adapters set hidden = true")
    assert not words_of(catalog, "lantern", here)
    assert words_of(catalog, "lantern", Filters(hidden=True))


def test_documents_read_by_other_rules_are_read_again(catalog: Catalog, database: Database) -> None:
    catalog.add([adapter(i, tags=("lantern",)) for i in range(5)])
    with database.connection() as connection:
        connection.execute("update documents set rules = 'of last year' where adapter = 'a:1'")
        connection.execute("delete from documents where adapter = 'a:2'")
    assert sorted(words_of(catalog, "lantern")) == ["a:0", "a:1", "a:3", "a:4"]
    assert (catalog.read_words(1), catalog.read_words(), catalog.read_words()) == (1, 1, 0)
    assert len(words_of(catalog, "lantern")) == 5


def test_an_index_whose_build_was_stopped_is_made_again(catalog: Catalog, database: Database) -> None:
    one = adapter(1)
    catalog.add_embedded([Entry(one, one.content_hash(), np.eye(1, 3, dtype=np.float32))], MODEL)
    assert catalog.index(MODEL, from_vectors=1)
    name = next(iter(search_index.index_names(MODEL)))
    with psycopg.connect(database.url) as connection:
        connection.execute("update pg_index set indisvalid = false where indexrelid = %s::regclass", [name])
    assert catalog.index(MODEL, from_vectors=1)
    with database.connection() as connection:
        valid = "select indisvalid from pg_index where indexrelid = %s::regclass"
        assert connection.execute(valid, [name]).fetchone() == (True,)
