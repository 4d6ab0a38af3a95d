"""Whatever is proposed, what is settled keeps every rule, and what was left out is named."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stylus.lexical_composer import Draft, Limits
from stylus.records import Adapter, BaseModelFamily, Category, Choice, Kind, Task
from stylus.rules import Nominee, Proposal, clash, clean, separate, settle
from tests.rulebook import ADAPTERS, OFFERED, PROMPT, adapter, check, hostile_tasks, some_limits


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


APART = {("test:1", "test:2"): "they draw a third thing together"}


@pytest.mark.parametrize(
    ("one", "other", "same_task", "reason"),
    [
        (adapter(2, "Lantern"), adapter(1, "Corgi"), True, "flagged: they draw a third thing"),
        (adapter(3, "Corgi"), adapter(4, "Corgi (fluffy)"), False, "both draw 'corgi'"),
        (adapter(3, "Corgi"), adapter(4, "Corgi (fluffy)"), True, None),
        (adapter(3, "Corgi"), adapter(4, "Corgi puppy"), False, None),
        (adapter(3, "Style"), adapter(4, "Style"), False, None),
        (adapter(3, "Corgi"), adapter(4, "Lamp", base_model=BaseModelFamily.SDXL), False, "one is for sdxl"),
        (adapter(3, "Corgi"), adapter(4, "Lamp", base_model=None), False, None),
        (adapter(3, "Corgi", kind=Kind.DORA), adapter(4, "Lamp", kind=Kind.DORA), False, "DoRA"),
        (adapter(3, "Corgi", kind=Kind.DORA), adapter(4, "Lamp", kind=Kind.LOHA), False, None),
    ],
)
def test_what_must_not_be_loaded_together(one: Adapter, other: Adapter, same_task: bool, reason: str | None) -> None:
    for first, second in ((one, other), (other, one)):
        found = clash(first, second, same_task, APART)
        assert (found is None) == (reason is None)
        if reason is not None and "one is for" not in reason:
            assert found is not None
            assert reason in found


some_tasks = st.lists(st.lists(st.sampled_from(ADAPTERS), max_size=3), max_size=4)
some_pairs = st.lists(st.tuples(st.sampled_from(ADAPTERS), st.sampled_from(ADAPTERS)), max_size=4)


@given(some_tasks, some_pairs)
def test_separated_tasks_hold_no_clash_and_lose_nothing_else(
    chosen: list[list[Adapter]], flagged: list[tuple[Adapter, Adapter]]
) -> None:
    known = {one.id: one for one in ADAPTERS}
    apart = {(min(a.id, b.id), max(a.id, b.id)): "flagged" for a, b in flagged if a.id != b.id}
    tasks = [
        Task(keyword=f"task {n}", choices=tuple(Choice(adapter_id=one.id) for one in adapters))
        for n, adapters in enumerate(chosen)
    ]
    parted, problems = separate(tasks, known, apart)
    assert [task.keyword for task in parted] == [task.keyword for task in tasks]
    placed = [(known[choice.adapter_id], n) for n, task in enumerate(parted) for choice in task.choices]
    for place, (one, task) in enumerate(placed):
        for other, its in placed[:place]:
            assert clash(one, other, task == its, apart) is None
    assert len(placed) + len(problems) == sum(map(len, chosen))
    assert separate(parted, known, apart) == (parted, ())


def test_a_pair_that_a_model_proposes_is_named_to_it() -> None:
    numbers = {one.id: number for number, one in enumerate(OFFERED, start=1)}
    proposals = [
        Proposal("corgi", (Nominee(numbers["test:1"]),)),
        Proposal("lantern", (Nominee(numbers["test:2"]),)),
    ]
    settled, problems = settle(proposals, PROMPT, OFFERED, Limits(apart=APART))
    assert [len(task.choices) for task in settled] == [1, 0]
    assert f"Candidate {numbers['test:2']} must not be chosen beside candidate {numbers['test:1']}" in problems[0]


def test_adapters_that_are_not_known_are_left_alone() -> None:
    task = Task(keyword="corgi", choices=(Choice(adapter_id="test:unknown"),))
    assert separate([task], {}, APART) == ((task,), ())
