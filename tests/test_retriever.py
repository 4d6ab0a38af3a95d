"""Prompt -> candidates with the real embedder and Postgres."""

import pytest

from stylus.catalog import Catalog
from stylus.database import Database
from stylus.embedder import Embedder
from stylus.ingest import ingest
from stylus.records import BaseModelFamily, Card, Filters
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
