"""Prompt -> candidates (paper, section 3.2, which knows the whole prompt's vector only).

A long prompt's vector lies near no single concept of it, and a vector alone misses names. So four rankings are fused:
whole prompt and keywords, each by meaning and by words. The prompt is compared with whole cards; a keyword also with
the cards' names, short with short. Filters are part of each search; near-duplicates are folded before the limit.
"""

from collections.abc import Sequence

from stylus import bm25, search_index
from stylus.catalog import Catalog
from stylus.embedder import Embedder
from stylus.ranking import fold, fuse
from stylus.records import Adapter, Filters, Match
from stylus.serving import Serving
from stylus.telemetry import stage

MOST_KEYWORDS = 32
"""Each costs an embedding and a search."""
DEPTH = 300
"""Candidates for the whole prompt, at least: so that the first ten are the same whether ten or a hundred are asked for,
and twice what a composer sees, since what is in the middle of several lists comes before the end of one."""

MOST_READ = 2000
"""Characters of a description in which to look for the reason."""


class Retriever:
    """Searches a catalog by the configured embedding model, or by the one before it until all is embedded again."""

    def __init__(self, catalog: Catalog, embedder: Embedder) -> None:
        self._catalog = catalog
        self._serving = Serving(catalog, embedder)

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
        model, vectors = self._serving.queries(texts)
        depth = max(DEPTH, limit)
        with self._catalog.reading() as connection:
            among = search_index.facets(connection, filters)
            while True:
                some = depth // 3  # a keyword is about less than the prompt, and each costs a walk
                alike = search_index.nearest(connection, vectors[:1], model, among, depth)
                alike += search_index.nearest(connection, vectors[1:], model, among, some, names=True)
                spoken = search_index.lexical(connection, texts, among, [depth, *[some] * len(words)])
                scores = _fused([list(found.scores) for found in alike], [list(found.scores) for found in spoken])
                kept = _folded(connection, list(scores), limit)
                if len(kept) >= limit or (alike[0].complete and spoken[0].complete):
                    break
                depth *= 2
            first = list(kept)[:limit]
            similarities = search_index.similarities(connection, first, vectors, model)
        # After the search: whoever waits for a second connection while holding one can wait for someone who does too.
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


def _fused(alike: Sequence[Sequence[str]], spoken: Sequence[Sequence[str]]) -> dict[str, float]:
    """Prompt and keywords count the same, by meaning as by words; the keywords share their half."""
    lists = [(alike[0], 1.0), (spoken[0], 1.0)]
    lists += [(ids, 1 / (len(alike) - 1)) for ids in [*alike[1:], *spoken[1:]]]
    return fuse(lists)


def _folded(connection: search_index.Connection, ids: Sequence[str], limit: int) -> dict[str, list[str]]:
    """At least `limit` adapters that are no near-duplicates of each other, each with those of its own, if there are so
    many. Mostly twice as many are enough to look at."""
    for some in (ids[: 2 * limit], ids):
        identities = search_index.identities(connection, some)
        kept = fold(filter(identities.__contains__, some), identities)
        if len(kept) >= limit:
            break
    return kept


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
