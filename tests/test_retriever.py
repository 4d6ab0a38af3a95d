"""Prompt -> candidates with the real embedder and Postgres."""

import contextlib
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stylus.catalog import Catalog, Entry
from stylus.database import Database
from stylus.embedder import Embedder
from stylus.ingest import ingest
from stylus.records import Adapter, BaseModelFamily, Card, Filters, Rating
from stylus.retriever import Retriever

CARDS = {
    "star": "five-pointed star shape",
    "cat": "cute cat face with whiskers",
    "snow": "snowfall, winter background with snowflakes",
    "neon": "glowing neon outline style",
    "house": "small house with a roof and a door",
    "wave": "ocean waves, stylised sea",
}


@pytest.fixture
def retriever(database: Database, embedder: Embedder) -> Retriever:
    catalog = Catalog(database)
    cards = [
        Card.model_validate(
            {
                "id": f"pocket:{name}",
                "name": name,
                "description": text,
                "base_model": "sdxl" if name == "wave" else None,
            }
        )
        for name, text in CARDS.items()
    ]
    ingest(cards, catalog, embedder)
    return Retriever(catalog, embedder)


def test_the_nearest_comes_first_with_its_evidence(retriever: Retriever) -> None:
    [first, second] = retriever.retrieve("a kitten", limit=2)
    assert first.adapter.id == "pocket:cat"
    assert first.score == 1.0 > second.score
    assert first.prompt_score > second.prompt_score
    assert first.keyword_scores == {}
    assert "prompt" in first.why


def test_one_connection_is_enough(retriever: Retriever, database: Database) -> None:
    # with two a search, as many searches as there are connections would wait for each other
    with contextlib.ExitStack() as busy:
        for _ in range(15):
            busy.enter_context(database.connection())
        assert retriever.retrieve("a kitten", keywords=["kitten"], limit=2)


def test_each_keyword_brings_its_own_candidate(retriever: Retriever) -> None:
    prompt = "a kitten in a blizzard, in the glow of tubes"
    matches = retriever.retrieve(prompt, keywords=["kitten", "blizzard", "neon glow", "kitten"], limit=4)
    assert {"pocket:cat", "pocket:snow", "pocket:neon"} <= {match.adapter.id for match in matches}
    assert [match.score for match in matches] == sorted((match.score for match in matches), reverse=True)
    for match in matches:
        assert set(match.keyword_scores) == {"kitten", "blizzard", "neon glow"}
        assert 0 < match.score <= 1
    best = {}
    for keyword in ("kitten", "blizzard"):
        scores = {match.adapter.id: match.keyword_scores[keyword] for match in matches}
        best[keyword] = max(scores, key=scores.__getitem__)
    assert best == {"kitten": "pocket:cat", "blizzard": "pocket:snow"}


def test_limit_filters_and_an_empty_catalog(retriever: Retriever, database: Database) -> None:
    assert len(retriever.retrieve("anything", keywords=["sea"], limit=150)) == len(CARDS)
    assert len(retriever.retrieve("anything", keywords=["sea", "star"], limit=3)) == 3
    filters = Filters(base_model=BaseModelFamily.SDXL)
    assert [match.adapter.name for match in retriever.retrieve("a cat", keywords=["cat"], filters=filters)] == ["wave"]
    with database.connection() as connection:
        connection.execute("truncate adapters cascade")
    assert retriever.retrieve("a cat", keywords=["cat"]) == []


class ByLetters(Embedder):
    """Counts letters, so that hundreds of searches take no time."""

    def queries(self, texts: Sequence[str]) -> np.ndarray:
        counts = np.array([[1 + text.count(letter) for letter in "abcdefgh"] for text in texts], np.float32)
        return np.asarray(counts / np.linalg.norm(counts, axis=1, keepdims=True))


WORDS = st.lists(st.sampled_from(["aaaa", "bbbb", "cccc", "dddd", "eeee", "abcd"]), min_size=1, max_size=3).map(
    " ".join
)
FEW = st.sampled_from([None, "x", "y"])
CARD = st.fixed_dictionaries(
    {
        "name": WORDS,
        "description": WORDS,
        "sha256": FEW,
        "group": FEW,
        "author": FEW,
        "base_model": st.sampled_from([None, "sd15", "sdxl"]),
        "rating": st.sampled_from(["general", "general", "mature"]),
        "hidden": st.booleans(),
    }
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    cards=st.lists(st.tuples(CARD, st.integers(0, 2)), max_size=14),
    family=st.sampled_from([None, BaseModelFamily.SD15]),
    limit=st.integers(1, 6),
)
def test_filters_and_folding_lose_no_adapter_and_repeat_none(
    database: Database, cards: list[tuple[dict[str, object], int]], family: BaseModelFamily | None, limit: int
) -> None:
    catalog, embedder = Catalog(database), ByLetters("letters", "by:letters")
    with database.connection() as connection:
        connection.execute("truncate adapters cascade")
    adapters = [Adapter.model_validate({"id": f"a:{i}", **fields}) for i, (fields, _) in enumerate(cards)]
    for adapter, (_, pieces) in zip(adapters, cards, strict=True):
        if pieces:  # the others are found by their words alone
            vectors = embedder.queries([adapter.name, adapter.description][:pieces])
            catalog.add_embedded([Entry(adapter, adapter.content_hash(), vectors, vectors[0])], "letters")
        else:
            catalog.add([adapter])
    filters, retriever = Filters(base_model=family), Retriever(catalog, embedder)
    asked = "aaaa bbbb cccc dddd eeee abcd"
    every = retriever.retrieve(asked, keywords=["aaaa", "dddd"], filters=filters, limit=150)
    seen = [id for match in every for id in (match.adapter.id, *match.folded)]
    passing = [a.id for a in adapters if not a.hidden and a.rating is Rating.GENERAL and family in (None, a.base_model)]
    assert sorted(seen) == sorted(passing)
    assert [match.score for match in every] == sorted((match.score for match in every), reverse=True)
    some = retriever.retrieve(asked, keywords=["aaaa", "dddd"], filters=filters, limit=limit)
    assert [match.adapter.id for match in some] == [match.adapter.id for match in every[:limit]]


def test_a_limit_is_filled_although_near_duplicates_crowd_the_front(database: Database, embedder: Embedder) -> None:
    """400 versions of one model are nearest, more than any list is deep; the ten others follow them."""
    catalog = Catalog(database)
    letters = ByLetters("letters", "by:letters")
    adapters = [Adapter(id=f"a:{i}", name="aaaa", group="m:1" if i < 400 else None) for i in range(410)]
    vectors = letters.queries(["aaaa"] * 400 + ["aaab"] * 10)
    catalog.add_embedded(
        [Entry(a, a.content_hash(), v[None]) for a, v in zip(adapters, vectors, strict=True)], "letters"
    )
    matches = Retriever(catalog, letters).retrieve("aaaa", limit=11)
    assert len(matches) == 11
    assert {match.adapter.group for match in matches[:1]} == {"m:1"}
    assert sum(match.adapter.group is None for match in matches) == 10


def test_why_names_the_words_in_common_or_the_likeness(database: Database, embedder: Embedder) -> None:
    cards = [
        Card(id="a:1", name="V2 final", trigger_words=("c0rg1, fluffy corgi",), description="A small herding dog."),
        Card(id="a:2", name="Lighthouse", description="Tall, by the sea."),
    ]
    catalog = Catalog(database)
    ingest(cards, catalog, embedder)
    retriever = Retriever(catalog, embedder)
    assert retriever.retrieve("corgis", limit=1)[0].why.startswith("trigger word 'fluffy corgi', similar to")
    assert retriever.retrieve("a herding dog", limit=1)[0].why.startswith("its description says dog, herding")
    assert retriever.retrieve("puppy", limit=1)[0].why.startswith("similar to the prompt (0.")
