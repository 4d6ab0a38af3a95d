"""Recall of the paper's retriever, of BM25 alone and of ours on published picks, all through Postgres.

`python -m tests.benchmarks.retrieval --cards FILE --queries FILE --json OUT`. A query's recall at K is the share of its
picked adapters, over all its topics, that are among the first K; the figure is the mean over the queries that have a
pick among the cards. The paper's retriever is section 3.2: whole prompt, cosine, over "name. tags".
"""

import argparse
import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from stylus import search_index
from stylus.catalog import Catalog, Entry
from stylus.database import Database
from stylus.embedder import Embedder
from stylus.ingest import ingest, settle
from stylus.keywords import search_terms
from stylus.records import Card, Filters, Rating
from stylus.retriever import Retriever
from stylus.settings import Settings
from tests.benchmarks import data_folder

DEPTHS = (10, 50, 150)
EVERYTHING = Filters(ratings=frozenset(Rating), flagged=True)
PAPER = "name and tags"
"""Under which the paper's vectors are kept beside ours."""

Search = Callable[[str], Sequence[str]]
Queries = Sequence[tuple[str, frozenset[str]]]
"""Prompts and the ids that were picked for them."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cards", type=Path, required=True, help="JSONL: id, name, tags, description")
    parser.add_argument("--queries", type=Path, required=True, help="JSONL: prompt, topics (topic -> adapter ids)")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    parser.add_argument("--every", type=int, default=1, help="only each n-th query, from the first")
    arguments = parser.parse_args()
    cards = [_card(line) for line in _lines(arguments.cards)]
    queries = _relevant(_lines(arguments.queries)[:: arguments.every], {card.id for card in cards})
    with data_folder() as folder, Database.open(Settings(data=folder)) as database:
        catalog, embedder = Catalog(database), Embedder.open(Settings(data=folder))
        ingest(cards, catalog, embedder)
        recalls = _recalls(Retriever(catalog, embedder), catalog, embedder, cards, queries)
    text = json.dumps(recalls, indent=2)
    print(text)
    if arguments.json:
        arguments.json.write_text(text + "\n")


def _recalls(
    retriever: Retriever,
    catalog: Catalog,
    embedder: Embedder,
    cards: Sequence[Card],
    queries: Queries,
) -> dict[str, dict[str, float]]:
    ours = measure(lambda prompt: _ours(retriever, prompt), queries)
    texts = [f"{card.name}. {', '.join(card.tags)}" for card in cards]
    entries = [
        Entry(settle(card), card.content_hash(), vector[None])
        for card, vector in zip(cards, embedder.documents(texts), strict=True)
    ]
    catalog.add_embedded(entries, PAPER)

    def paper(prompt: str) -> list[str]:
        [vector] = embedder.queries([prompt])
        return [adapter.id for adapter, _ in catalog.nearest(vector, PAPER, EVERYTHING, max(DEPTHS))]

    def lexical(prompt: str) -> list[str]:
        with catalog.reading() as connection:
            among = search_index.facets(connection, EVERYTHING)
            return list(search_index.lexical(connection, [prompt], among, [max(DEPTHS)])[0].scores)

    return {"paper": measure(paper, queries), "lexical": measure(lexical, queries), "ours": ours}


def _ours(retriever: Retriever, prompt: str) -> list[str]:
    matches = retriever.retrieve(prompt, keywords=search_terms(prompt), filters=EVERYTHING, limit=max(DEPTHS))
    return [match.adapter.id for match in matches]


def measure(search: Search, queries: Queries) -> dict[str, float]:
    """Mean recall at each depth."""
    found = [(search(prompt), picked) for prompt, picked in queries]
    return {
        str(depth): round(statistics.fmean(len(picked & set(ids[:depth])) / len(picked) for ids, picked in found), 4)
        for depth in DEPTHS
    }


def _relevant(queries: Sequence[Mapping[str, Any]], ids: set[str]) -> Queries:
    picked = [(query["prompt"], frozenset(id for of in query["topics"].values() for id in of)) for query in queries]
    return [(prompt, found & ids) for prompt, found in picked if found & ids]


def _card(line: Mapping[str, Any]) -> Card:
    return Card(id=line["id"], name=line["name"], tags=tuple(line["tags"]), description=line["description"])


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


if __name__ == "__main__":
    main()
