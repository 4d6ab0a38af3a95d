"""The short list: which candidates a model is shown, and what of their cards."""

from stylus.records import Match
from stylus.short_list import MOST_CANDIDATES, card, render, short_list
from tests.rulebook import NUMBER, adapter


def test_the_short_list_is_short_and_leaves_flagged_ones_out() -> None:
    many = [
        Match(adapter=adapter(n, f"thing {n}"), score=0.1, prompt_score=0.1, keyword_scores={"corgi": n / 1000})
        for n in range(150)
    ]
    listed = short_list("a corgi", many)
    assert len(listed) == MOST_CANDIDATES
    assert listed[0].id == "test:149"
    assert "test:10" not in NUMBER


def test_cards_are_one_line_of_bounded_length() -> None:
    long = adapter(1, "n" * 200, description="d" * 9000, tags=("t" * 500,) * 99, trigger_words=("w" * 500,) * 99)
    assert len(card(long)) < 800
    assert len(render("p", [long]).splitlines()) == 4
