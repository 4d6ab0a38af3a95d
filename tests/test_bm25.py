"""Words of cards and queries, and the formula."""

import numpy as np
import pytest

from stylus import bm25
from stylus.records import Adapter


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Two CORGIS in the snow", ("corgi", "snow")),
        ("t-shirt, T-Shirt", ("t", "shirt", "t", "shirt")),
        ("고양이가", ("고양", "양이", "이가")),
        ("산 위의 고양이", ("산", "위의", "고양", "양이")),
        ("猫と月", ("猫と", "と月")),
        ("LoRA고양", ("lora", "고양")),
        ("", ()),
        ("the of and", ()),
        ("x" * 100_000, ("x" * bm25.LONGEST,)),
    ],
)
def test_terms(text: str, expected: tuple[str, ...]) -> None:
    assert bm25.terms(text) == expected


def test_a_korean_noun_is_found_with_another_particle_and_however_it_is_composed() -> None:
    import unicodedata

    assert set(bm25.terms("고양이")) <= set(bm25.terms("고양이와"))
    assert bm25.terms(unicodedata.normalize("NFD", "고양이")) == bm25.terms("고양이")


def test_a_word_counts_by_the_weight_of_each_field_it_stands_in() -> None:
    adapter = Adapter(id="a:1", name="Corgi", tags=("dog", "corgi"), trigger_words=("c0rg1",), description="a dog dog")
    assert bm25.frequencies(adapter) == {"corgi": 3 + 2, "dog": 2 + 1 + 1, "c0rg1": 2}


def test_rare_words_weigh_more_and_none_weighs_against_a_card() -> None:
    weights = [bm25.inverse_document_frequency(holding, 1000) for holding in (1, 10, 500, 1000, 1001)]
    assert weights == sorted(weights, reverse=True)
    assert weights[-1] > 0


def test_repetition_saturates_and_a_longer_card_scores_less() -> None:
    counts, mean = np.array([1.0, 2.0, 100.0]), 10.0
    parts = bm25.saturated(counts, np.full(3, 10.0), mean)
    assert (np.diff(parts) > 0).all()
    assert parts[-1] < bm25.K1 + 1
    assert bm25.saturated(counts, np.full(3, 20.0), mean)[0] < parts[0]
    # k1 0.9, b 0.4: 1 x 1.9 / (1 + 0.9 x (0.6 + 0.4 x 1))
    assert parts[0] == pytest.approx(1.0)
