"""The pocket cross-encoder is a rival worth beating: what a prompt asks for is nearly always among its first three."""

from examples.pocket.reranker import adapters
from stylus.pocket import RERANKER, prompts, truth
from stylus.policies import TOP
from stylus.reranker import LOCAL, LocalReranker


def test_what_is_asked_for_is_among_the_first_three() -> None:
    known = adapters()
    concepts = [truth()[adapter.id].concept for adapter in known]
    reranker = LocalReranker(f"{LOCAL}{RERANKER}")
    found = asked = 0
    for prompt in prompts()[::6]:
        scores = reranker.rank(prompt.text, known).scores
        best = sorted(range(len(known)), key=lambda n: -scores[n])[:TOP]
        found += len({concepts[n] for n in best}.intersection(prompt.concepts))
        asked += len(set(concepts).intersection(prompt.concepts))
    assert found > 0.9 * asked
