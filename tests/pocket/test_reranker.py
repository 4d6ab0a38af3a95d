"""The pocket cross-encoder is a rival worth beating: what a prompt asks for is nearly always among its first three."""

from stylus.ingest import settle
from stylus.pocket import ADAPTERS, RERANKER, prompts, truth
from stylus.policies import TOP
from stylus.reranker import LOCAL, LocalReranker
from stylus.sources.folder import cards


def test_what_is_asked_for_is_among_the_first_three() -> None:
    adapters = [settle(card) for card in cards(ADAPTERS, prefix="pocket", on_problem=lambda *_: None)]
    concepts = [truth()[adapter.id].concept for adapter in adapters]
    reranker = LocalReranker(f"{LOCAL}{RERANKER}")
    found = asked = 0
    for prompt in prompts()[::6]:
        scores = reranker.rank(prompt.text, adapters).scores
        best = sorted(range(len(adapters)), key=lambda n: -scores[n])[:TOP]
        found += len({concepts[n] for n in best}.intersection(prompt.concepts))
        asked += len(set(concepts).intersection(prompt.concepts))
    assert found > 0.9 * asked
