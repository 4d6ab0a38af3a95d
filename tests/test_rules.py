"""Whatever is proposed, what is settled keeps every rule, and what was left out is named."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stylus.lexical_composer import Draft, Limits
from stylus.records import Category
from stylus.rules import Nominee, Proposal, clean, settle
from tests.rulebook import OFFERED, PROMPT, adapter, check, hostile_tasks, some_limits


@given(hostile_tasks, some_limits, st.text(max_size=60) | st.just(PROMPT))
def test_settled_tasks_keep_every_rule(tasks: list[Any], limits: Limits, prompt: str) -> None:
    proposals = [
        Proposal(t["keyword"], tuple(Nominee(a["candidate"], a["reason"]) for a in t["adapters"])) for t in tasks
    ]
    settled, problems = settle(proposals, prompt, OFFERED, limits)
    check(Draft(settled, "test"), prompt, limits)
    proposed = sum(len(p.nominees) for p in proposals)
    kept = sum(len(t.choices) for t in settled)
    assert problems or (len(settled) == len(proposals) and kept == proposed)


def test_keywords_take_the_longest_place_first() -> None:
    settled, problems = settle([Proposal("cat"), Proposal("cat face")], "a cat face and a cat", [], Limits())
    assert ([t.keyword for t in settled], problems) == (["cat face", "cat"], ())


def test_keywords_are_whole_words() -> None:
    settled, problems = settle([Proposal("cat")], "concatenate", [], Limits())
    assert settled == ()
    assert "not in the prompt" in problems[0]


@pytest.mark.parametrize(
    ("name", "keyword", "serves"),
    [
        ("Ada of the Bridge", "Ada", True),
        ("Ada (Bridge Tales)", "young Ada", True),
        ("Ada Mira", "Mira", True),
        ("Ada of the Bridge", "stone bridge", False),
        ("Ada of the Bridge", "bridge", False),
        ("Ada Girl", "girl", False),
    ],
)
def test_a_character_serves_only_where_it_is_named(name: str, keyword: str, serves: bool) -> None:
    character = adapter(6, name, category=Category.CHARACTER)
    settled, _ = settle([Proposal(keyword, (Nominee(1),))], f"a picture of {keyword}", [character], Limits())
    assert bool(settled[0].choices) == serves


@given(st.text(max_size=400), st.integers(1, 50))
def test_clean_text_is_one_printable_line(text: str, most: int) -> None:
    cleaned = clean(text, most)
    assert len(cleaned) <= most
    assert "\n" not in cleaned
    assert all(c.isprintable() for c in cleaned)
