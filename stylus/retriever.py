"""Prompt -> candidates (paper, section 3.2, which knows the whole prompt's vector only).

A long prompt's vector lies near no single concept of it, and a vector alone misses names. So four rankings are fused:
whole prompt and keywords, each by meaning and by words. The prompt is compared with whole cards; a keyword also with
the cards' names, short with short. Filters are part of each search; near-duplicates are folded before the limit.
"""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import TypeVar

from stylus import bm25, search_index
from stylus.catalog import Catalog
from stylus.embedder import Embedder
from stylus.ranking import fold, fuse
from stylus.records import Adapter, Filters, Match
from stylus.search_index import Connection, Found
from stylus.serving import Serving
from stylus.telemetry import stage

T = TypeVar("T")

MOST_KEYWORDS = 32
"""Each costs an embedding and a search."""
DEPTH = 300
"""Candidates for the whole prompt, at least: so that the first ten are the same whether ten or a hundred are asked for,
and twice what a composer sees, since what is in the middle of several lists comes before the end of one."""

WORDS = 0.8
"""What a ranking by words counts beside one by meaning: the same word may be about another thing."""

MOST_AT_ONCE = 4
"""Searches of one process in Postgres at a time."""
TOGETHER = 4
"""Keywords in one of them."""

MOST_READ = 2000
"""Characters of a description in which to look for the reason."""


class Retriever:
    """Searches a catalog by the configured embedding model, or by the one before it until all is embedded again."""

    def __init__(self, catalog: Catalog, embedder: Embedder) -> None:
        self._catalog = catalog
        self._serving = Serving(catalog, embedder)
        self._pool = ThreadPoolExecutor(min(MOST_AT_ONCE, os.cpu_count() or 1), "stylus-search")

    @stage("search")
    def retrieve(
        self,
        prompt: str,
        *,
        keywords: Sequence[str] = (),
        filters: Filters = Filters(),  # noqa: B008 (frozen)
        limit: int = 150,
    ) -> list[Match]:
        """At most `limit` adapters that pass `filters`, best first. Fewer come only if fewer pass (near-duplicates
        count once). Raises ModelUnavailable and DatabaseUnavailable."""
        words = [word for word in dict.fromkeys(keywords) if word != prompt][:MOST_KEYWORDS]
        texts = [prompt, *words]
        among = self._read(lambda connection: search_index.facets(connection, filters))
        depth = max(DEPTH, limit)
        while True:
            model, vectors, alike, spoken = self._search(texts, among, depth)
            scores = _fused([list(found.scores) for found in alike], [list(found.scores) for found in spoken])
            kept = self._folded(list(scores), limit)
            if len(kept) >= limit or (alike[0].complete and spoken[0].complete):
                break
            depth *= 2
        first = list(kept)[:limit]
        similarities = self._read(lambda connection: search_index.similarities(connection, first, vectors, model))
        adapters = self._catalog.get(first)
        asked = {term for text in texts for term in bm25.terms(text)}
        matches = []
        for id in filter(adapters.__contains__, first):
            cosines = [float(score) for score in similarities[id]] if id in similarities else []
            matches.append(
                Match(
                    adapter=adapters[id],
                    score=scores[id],
                    prompt_score=cosines[0] if cosines else 0.0,
                    keyword_scores=dict(zip(words, cosines[1:], strict=False)),  # empty without vectors
                    lexical_score=spoken[0].scores.get(id, 0.0),
                    folded=tuple(kept[id]),
                    why=_why(adapters[id], asked, dict(zip(texts, cosines, strict=False))),
                )
            )
        return matches

    def _search(
        self, texts: Sequence[str], among: Sequence[int], depth: int
    ) -> tuple[str, search_index.Vectors, list[Found], list[Found]]:
        """The embedding model, each text's vector, and for each text what is found by meaning and by words."""
        some = depth // 3  # a keyword is about less than the prompt, and each costs a walk
        depths = [depth, *[some] * (len(texts) - 1)]
        spoken = self._beside(partial(search_index.lexical, texts=texts, among=among, depths=depths))
        model, vectors = self._serving.queries(list(texts))
        near = partial(search_index.nearest, model=model, among=among)
        alike = [self._beside(partial(near, vectors=vectors[:1], depth=depth))]
        for start in range(1, len(vectors), TOGETHER):
            part = vectors[start : start + TOGETHER]
            alike.append(self._beside(partial(near, vectors=part, depth=some, names=True)))
        return model, vectors, [found for part in alike for found in part.result()], spoken.result()

    def _folded(self, ids: Sequence[str], limit: int) -> dict[str, list[str]]:
        """At least `limit` adapters that are no near-duplicates of each other, if there are so many, each with its own.
        Mostly twice as many are enough to look at."""
        for some in (ids[: 2 * limit], ids):
            identities = self._read(partial(search_index.identities, ids=some))
            kept = fold(filter(identities.__contains__, some), identities)
            if len(kept) >= limit:
                break
        return kept

    def _read(self, search: Callable[[Connection], T]) -> T:
        with self._catalog.reading() as connection:
            return search(connection)

    def _beside(self, search: Callable[[Connection], T]) -> Future[T]:
        """On another connection. Who waits for it must hold none: else all may wait for one that nobody gives back."""
        return self._pool.submit(self._read, search)


def _fused(alike: Sequence[Sequence[str]], spoken: Sequence[Sequence[str]]) -> dict[str, float]:
    """Prompt and keywords count the same; the keywords share their half."""
    others = len(alike) - 1
    parts = [1.0, *[1 / others] * others] if others else [1.0]
    words = [WORDS * part for part in parts]
    return fuse([*zip(alike, parts, strict=True), *zip(spoken, words, strict=True)])


def _why(adapter: Adapter, asked: set[str], cosines: dict[str, float]) -> str:
    """The phrase of the card that shares most with what was asked, and what it is most similar to."""
    fields = (
        ("name", [adapter.name]),
        ("trigger word", [part.strip() for word in adapter.trigger_words for part in word.split(",")]),
        ("tag", adapter.tags),
    )
    reasons = []
    found = [(bm25.shared(phrase, asked), field, phrase) for field, phrases in fields for phrase in phrases]
    most, field, phrase = max(found, key=lambda one: one[0])  # the first of equals
    if most:
        reasons.append(f"{field} {phrase[:60]!r}")
    elif said := sorted(asked.intersection(bm25.terms(adapter.description[:MOST_READ]))):
        reasons.append(f"its description says {', '.join(said)}"[:80])
    if cosines:
        text, cosine = max(cosines.items(), key=lambda pair: pair[1])
        what = "the prompt" if text == next(iter(cosines)) else repr(text)
        reasons.append(f"similar to {what} ({cosine:.2f})")
    return ", ".join(reasons)
