"""Prompt -> candidates (paper, section 3.2, which knows the whole prompt's vector only).

A long prompt's vector lies near no single concept of it, so each keyword searches too. The lists take turns until there
are enough adapters; every candidate is then compared with the prompt and all keywords.
"""

from collections.abc import Sequence
from itertools import islice, zip_longest

import numpy as np

from stylus.catalog import Catalog
from stylus.embedder import Embedder
from stylus.records import Filters, Match

MOST_KEYWORDS = 32
"""Each costs an embedding and a search."""


class Retriever:
    """Searches a catalog with the embedder that its adapters were embedded with."""

    def __init__(self, catalog: Catalog, embedder: Embedder) -> None:
        self._catalog = catalog
        self._embedder = embedder

    def retrieve(
        self,
        prompt: str,
        *,
        keywords: Sequence[str] = (),
        filters: Filters = Filters(),  # noqa: B008 (frozen)
        limit: int = 150,
    ) -> list[Match]:
        """At most `limit` adapters that pass `filters`, best first by the highest of their similarities to the prompt
        and the keywords. Raises ModelUnavailable and DatabaseUnavailable."""
        words = list(dict.fromkeys(keywords))[:MOST_KEYWORDS]
        vectors = self._embedder.queries([prompt, *words])
        model = self._embedder.name
        lists = [self._catalog.nearest(vector, model, filters, limit) for vector in vectors]
        turns = (found for rank in zip_longest(*lists) for found in rank if found is not None)
        distinct = dict(islice({adapter.id: adapter for adapter, _ in turns}.items(), limit))
        similarities = self._catalog.similarities(list(distinct), vectors, model)
        matches = []
        for id, adapter in distinct.items():
            if id not in similarities:
                continue  # deleted in the meantime
            scores = np.clip(similarities[id], -1.0, 1.0)
            best = int(np.argmax(scores))
            matches.append(
                Match(
                    adapter=adapter,
                    score=float(scores[best]),
                    prompt_score=float(scores[0]),
                    keyword_scores=dict(zip(words, map(float, scores[1:]), strict=True)),
                    why=_why(words[best - 1] if best else None, float(scores[best])),
                )
            )
        return sorted(matches, key=lambda match: (-match.score, match.adapter.id))


def _why(keyword: str | None, score: float) -> str:
    return f"similar to the prompt ({score:.2f})" if keyword is None else f"similar to {keyword!r} ({score:.2f})"
