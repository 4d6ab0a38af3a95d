"""Catalog on a real Postgres: what goes in comes out, filters are part of the query, best chunk counts."""

import numpy as np
import psycopg
import pytest

from stylus.catalog import Catalog, Entry
from stylus.database import Database
from stylus.errors import InvalidInput, NotFound
from stylus.records import Adapter, BaseModelFamily, Category, Example, Filters, Kind, Rating
from stylus.search_index import similarities

EVERYTHING = Filters(ratings=frozenset(Rating), flagged=True)


def adapter(id: str, **fields: object) -> Adapter:
    return Adapter.model_validate({"id": id, "name": id.partition(":")[2], **fields})


def unit(*numbers: float) -> np.ndarray:
    vector = np.asarray(numbers, np.float32)
    return np.asarray(vector / np.linalg.norm(vector))


def entry(a: Adapter, *vectors: np.ndarray) -> Entry:
    return Entry(a, a.content_hash(), np.stack(vectors))


@pytest.fixture
def catalog(database: Database) -> Catalog:
    return Catalog(database)


FULL = adapter(
    "file:0123",
    name="Étoile ⭐ 'quoted' %s",
    description="two\nlines",
    tags=("a", "b c"),
    trigger_words=("st4r",),
    base_model="sdxl",
    kind="locon",
    category="style",
    weight=-0.7,
    rating="mature",
    examples=(Example(image="/x/y.png", prompt="a {star}"),),
    author="me",
    licence="CC0",
    url="https://example.org",
    file="/x/y.safetensors",
    sha256="ab",
    bytes=2**40,
    refined=True,
    quality="blurry",
)


def test_every_field_comes_back_as_it_went_in(catalog: Catalog) -> None:
    catalog.add([FULL, adapter("pocket:plain")])
    assert catalog.get(["file:0123", "pocket:plain", "pocket:absent", "nul:\0"]) == {
        "file:0123": FULL,
        "pocket:plain": adapter("pocket:plain"),
    }


def test_require_keeps_the_order_and_names_the_nearest_of_an_unknown_id(catalog: Catalog) -> None:
    catalog.add([adapter("pocket:star"), adapter("pocket:heart"), adapter("pocket:start_here", hidden=True)])
    assert [a.id for a in catalog.require(["pocket:star", "pocket:heart", "pocket:star"])] == [
        "pocket:star",
        "pocket:heart",
        "pocket:star",
    ]
    with pytest.raises(NotFound, match=r"'pocket:sta'.*Nearest: pocket:star\. Call search_adapters"):
        catalog.require(["pocket:heart", "pocket:sta"])
    for strange in ("", "%", "\\", "nothing:like\0it", "x" * 100_000):
        with pytest.raises(NotFound, match="search_adapters"):
            catalog.require([strange])


def test_count_by_family_leaves_hidden_ones_out(catalog: Catalog) -> None:
    catalog.add([adapter("a:1", base_model="sd15"), adapter("a:2", base_model="sd15"), adapter("a:3")])
    catalog.add([adapter("a:4", base_model="flux", hidden=True)])
    assert catalog.count() == {BaseModelFamily.SD15: 2, None: 1}


def test_an_adapter_scores_by_its_best_chunk_and_comes_once(catalog: Catalog) -> None:
    catalog.add_embedded(
        [
            entry(adapter("a:many"), unit(0, 1, 0), unit(1, 0.1, 0), unit(1, 0.2, 0), unit(1, 0.3, 0)),
            entry(adapter("a:one"), unit(1, 0.5, 0)),
            entry(adapter("a:far"), unit(-1, 0, 0)),
        ],
        "m",
    )
    found = catalog.nearest(unit(1, 0, 0), "m", EVERYTHING, 3)
    assert [a.id for a, _ in found] == ["a:many", "a:one", "a:far"]
    assert [score for _, score in found] == pytest.approx([1 / 1.01**0.5, 1 / 1.25**0.5, -1], abs=2e-3)
    assert [a.id for a, _ in catalog.nearest(unit(1, 0, 0), "m", EVERYTHING, 2)] == ["a:many", "a:one"]
    assert catalog.nearest(unit(1, 0, 0), "m", EVERYTHING, 0) == []
    assert catalog.nearest(unit(1, 0, 0), "another model", EVERYTHING, 3) == []


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        (Filters(), {"plain", "sdxl", "style", "loha", "file", "gone", "fetchable", "free"}),
        (Filters(base_model=BaseModelFamily.SDXL), {"sdxl"}),
        (Filters(category=Category.STYLE), {"style"}),
        (Filters(kinds=frozenset({Kind.LOHA, Kind.DORA})), {"loha"}),
        (Filters(has_file=True), {"file"}),
        (Filters(has_file=False), {"plain", "sdxl", "style", "loha", "gone", "fetchable", "free"}),
        (Filters(usable=True), {"file", "fetchable"}),
        (Filters(licences=frozenset({"CC0-1.0", "MIT"})), {"free"}),
        (Filters(licences=frozenset()), set()),
        (Filters(ratings=frozenset({Rating.MATURE})), {"mature"}),
        (Filters(ratings=frozenset()), set()),
        (Filters(has_file=True, flagged=True, hidden=True), {"file"}),
        (Filters(category=Category.POSE), set()),
        (Filters(category=Category.POSE, flagged=True), {"flagged"}),
        (Filters(category=Category.POSE, hidden=True), {"hidden"}),
        (Filters(category=Category.STYLE, base_model=BaseModelFamily.SDXL), set()),
    ],
)
def test_filters(catalog: Catalog, filters: Filters, expected: set[str]) -> None:
    varied: dict[str, dict[str, object]] = {
        "plain": {},
        "sdxl": {"base_model": "sdxl"},
        "style": {"category": "style"},
        "loha": {"kind": "loha"},
        "file": {"file": "/f"},
        "mature": {"rating": "mature"},
        "flagged": {"quality": "blurry", "category": "pose"},
        "hidden": {"hidden": True, "category": "pose"},
        "gone": {"file": "/f", "missing": True},
        "fetchable": {"download": "https://example.org/f"},
        "free": {"licence": "cc0-1.0"},
    }
    catalog.add_embedded([entry(adapter(f"a:{name}", **fields), unit(1, 0)) for name, fields in varied.items()], "m")
    assert {a.name for a, _ in catalog.nearest(unit(1, 0), "m", filters, 100)} == expected


@pytest.mark.parametrize("indexed", [False, True])
def test_a_filter_that_keeps_few_still_gives_all_that_were_asked_for(
    catalog: Catalog, database: Database, indexed: bool
) -> None:
    """5% pass and lie far from the query, so that a filter after the limit would find none of them."""
    random = np.random.default_rng(0)
    points = random.normal(size=(2000, 16)).astype(np.float32)
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    query = unit(*random.normal(size=16))
    order = np.argsort(-(points @ query))
    passing = set(order[-100:].tolist())
    catalog.add_embedded(
        [
            entry(adapter(f"a:{i}", base_model="sdxl" if i in passing else "sd15"), point)
            for i, point in enumerate(points)
        ],
        "model with 'quotes'",
    )
    if indexed:
        assert catalog.index("model with 'quotes'", from_vectors=1)
        with database.connection() as connection:
            connection.execute(f"alter database {connection.info.dbname} set enable_seqscan = off")
            connection.execute(f"alter database {connection.info.dbname} set enable_bitmapscan = off")
        database = Database(database.url)
        catalog = Catalog(database)
    filters = Filters(base_model=BaseModelFamily.SDXL)
    found = [int(a.name) for a, _ in catalog.nearest(query, "model with 'quotes'", filters, 50)]
    exact = [int(i) for i in order if i in passing][:50]
    assert len(found) == 50
    assert len(set(found) & set(exact)) >= (49 if indexed else 50)  # halfvec rounds: a tie may fall either way
    if indexed:
        database.close()


def test_the_index_waits_for_enough_vectors_and_is_made_once(catalog: Catalog, database: Database) -> None:
    catalog.add_embedded([entry(adapter("a:1"), unit(1, 0))], "m")
    assert not catalog.index("m")
    assert catalog.index("m", from_vectors=1)
    assert catalog.index("m", from_vectors=1)
    with database.connection() as connection:
        found = connection.execute("select indexdef from pg_indexes where indexdef like '%hnsw%' order by 1").fetchall()
    held = ("((model = 'm'::text) AND (chunk >= 0))", "(model = 'm'::text)")
    for (definition,), which in zip(found, held, strict=True):
        assert "halfvec(2)" in definition
        assert definition.endswith(f"WHERE {which}")


def test_changed_content_drops_the_vectors_of_every_model_and_the_same_content_keeps_them(catalog: Catalog) -> None:
    first = adapter("a:1")
    catalog.add_embedded([entry(first, unit(1, 0))], "m")
    catalog.add_embedded([entry(first, unit(0, 1, 0))], "n")
    assert catalog.nearest(unit(1, 0), "m", EVERYTHING, 1)
    catalog.add([first.model_copy(update={"file": "/moved"})])
    assert catalog.nearest(unit(1, 0), "m", EVERYTHING, 1)[0][0].file == "/moved"
    catalog.add_embedded([entry(first.model_copy(update={"description": "new"}), unit(1, 0))], "m")
    assert catalog.nearest(unit(1, 0), "m", EVERYTHING, 1)
    assert not catalog.nearest(unit(0, 1, 0), "n", EVERYTHING, 1)
    catalog.add([first.model_copy(update={"description": "newer"})])
    assert not catalog.nearest(unit(1, 0), "m", EVERYTHING, 1)


def test_adding_is_all_or_nothing(catalog: Catalog) -> None:
    good, bad = adapter("a:good"), adapter("a:bad", description="NUL \0 inside")
    with pytest.raises(InvalidInput, match="NUL"):
        catalog.add_embedded([entry(good, unit(1, 0)), entry(bad, unit(1, 0))], "m")
    assert catalog.get(["a:good", "a:bad"]) == {}


def test_similarities_are_those_of_the_best_chunks(catalog: Catalog) -> None:
    catalog.add_embedded([entry(adapter("a:1"), unit(1, 0), unit(0, 1)), entry(adapter("a:2"), unit(-1, 0))], "m")
    with catalog.reading() as connection:
        scores = similarities(connection, ["a:1", "a:2", "a:3"], np.stack([unit(1, 0), unit(0, 1)]), "m")
    assert set(scores) == {"a:1", "a:2"}
    np.testing.assert_allclose(scores["a:1"], [1, 1], atol=1e-3)
    np.testing.assert_allclose(scores["a:2"], [-1, 0], atol=1e-3)


def test_a_query_of_another_dimension_says_to_ingest_again(catalog: Catalog) -> None:
    catalog.add_embedded([entry(adapter("a:1"), unit(1, 0))], "m")
    with pytest.raises(InvalidInput, match=r"3 numbers.*[Ii]ngest"):
        catalog.nearest(unit(1, 0, 0), "m", EVERYTHING, 1)


def test_ids_are_data_and_never_sql(catalog: Catalog, database: Database) -> None:
    name = "x'); drop table adapters; --"
    catalog.add([adapter("a:1", name=name, tags=(name,))])
    assert catalog.get(["a:1", name])["a:1"].name == name
    with database.connection() as connection:
        assert isinstance(connection, psycopg.Connection)
        assert connection.execute("select count(*) from adapters").fetchone() == (1,)
