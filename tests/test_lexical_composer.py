"""The lexical composer: exact words first, synonyms by standing out, few and good adapters, every rule kept."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stylus.evidence import doubts, word_evidence
from stylus.keywords import keywords, parts
from stylus.lexical_composer import Draft, LexicalComposer, Limits
from stylus.records import Adapter, BaseModelFamily, Category, Example, Match


def adapter(id: str, name: str, **fields: Any) -> Adapter:
    known = {"description": f"Draws {name}.", "base_model": BaseModelFamily.SD15}
    return Adapter(id=f"test:{id}", name=name, **{**known, **fields})


def match(adapter: Adapter, scores: dict[str, float] | None = None, prompt_score: float = 0.3) -> Match:
    return Match(adapter=adapter, score=prompt_score, prompt_score=prompt_score, keyword_scores=scores or {})


def compose(prompt: str, *matches: Match, limits: Limits = Limits()) -> Draft:  # noqa: B008
    return LexicalComposer().compose(prompt, matches, limits)


def of(draft: Draft) -> dict[str, list[str]]:
    return {task.keyword: [c.adapter_id.removeprefix("test:") for c in task.choices] for task in draft.tasks}


OTHERS = [match(adapter(f"other{n}", name)) for n, name in enumerate(["harbour", "violin", "lava lamp"])]


def with_scores(keyword: str, *scores: float) -> list[Match]:
    return [match(m.adapter, {keyword: score}) for m, score in zip(OTHERS, scores, strict=False)]


def test_a_tag_that_equals_the_keyword_is_chosen_with_its_reason() -> None:
    draft = compose("two corgis", match(adapter("a", "Welsh friends", tags=("corgi",))), *OTHERS)
    assert of(draft) == {"corgis": ["a"]}
    assert draft.tasks[0].choices[0].reason == "tag 'corgi' equals the keyword"


def test_exact_words_outrank_similarity() -> None:
    exact = match(adapter("exact", "corgi"), {"corgi": 0.4})
    similar = match(adapter("similar", "sheepdog"), {"corgi": 0.9})
    assert of(compose("a corgi", similar, exact)) == {"corgi": ["exact"]}


def test_a_synonym_that_stands_out_is_chosen() -> None:
    kitty = match(adapter("cat", "cat face"), {"kitty": 0.5})
    draft = compose("a kitty", kitty, *with_scores("kitty", 0.3, 0.25, 0.2))
    assert of(draft) == {"kitty": ["cat"]}
    assert draft.tasks[0].choices[0].reason == "similar to 'kitty' (0.50)"


def test_rivals_of_the_same_purpose_do_not_hide_a_synonym() -> None:
    kitties = [match(adapter(f"cat{n}", f"cat face v{n}"), {"kitty": 0.5 + n / 100}) for n in range(3)]
    assert of(compose("a kitty", *kitties, *with_scores("kitty", 0.3, 0.25))) == {"kitty": ["cat2"]}


def test_vague_similarity_to_many_chooses_nothing() -> None:
    assert of(compose("a circle", *with_scores("circle", 0.36, 0.35, 0.33))) == {"circle": []}


def test_colours_sizes_and_bare_backgrounds_choose_nothing() -> None:
    prompt = "a big red on a blue background"
    blue = match(adapter("blue", "blueprint"), {"blue background": 0.6, "big red": 0.6})
    assert of(compose(prompt, blue, *OTHERS)) == {"big red": [], "blue background": []}


@pytest.mark.parametrize(
    ("better", "worse"),
    [
        ("corgi", "big corgi dog show"),  # exact before narrower
        ("corgi", "dog"),  # and before what the keyword does not say
        ("red corgi", "corgi"),  # the attributes count where a card has them
        ("corgi", "corgi house"),  # the head of the phrase is what it is about
    ],
)
def test_neither_broader_nor_narrower(better: str, worse: str) -> None:
    draft = compose("a red corgi", match(adapter("worse", worse)), match(adapter("better", better)))
    assert of(draft) == {"red corgi": ["better"]}


def test_another_thing_with_the_word_in_it_is_not_chosen() -> None:
    assert of(compose("a bus", match(adapter("stop", "bus stop sign")))) == {"bus": []}


def test_a_second_adapter_comes_only_for_words_that_the_first_leaves_and_is_a_task_of_its_own() -> None:
    corgi, other, neon = adapter("corgi", "corgi"), adapter("other", "corgi"), adapter("neon", "neon")
    draft = compose("a neon corgi", match(corgi), match(other), match(neon))
    assert of(draft) == {"neon": ["neon"], "corgi": ["corgi"]}
    one_a_task = compose("a neon corgi", match(corgi), match(neon), limits=Limits(per_task=1))
    assert of(one_a_task) == {"neon": ["neon"], "corgi": ["corgi"]}


def test_each_adapter_once_where_it_fits_best() -> None:
    draft = compose("a corgi and a corgi puppy", match(adapter("a", "corgi puppy")))
    assert of(draft) == {"corgi": [], "corgi puppy": ["a"]}


def test_caps_hold_and_the_best_evidence_stays() -> None:
    exact = [match(adapter(word, word)) for word in ("corgi", "lantern")]
    weaker = match(adapter("bridge", "old stone bridge"))
    prompt = "bridge, corgi, lantern"
    assert of(compose(prompt, weaker, *exact)) == {"bridge": ["bridge"], "corgi": ["corgi"], "lantern": ["lantern"]}
    assert compose(prompt, weaker, *exact).notes == ()
    capped = compose(prompt, weaker, *exact, limits=Limits(total=2))
    assert of(capped)["bridge"] == []
    assert capped.notes == ("Without an adapter, since at most 2 adapters and 2 styles are chosen: bridge.",)
    assert of(compose(prompt, weaker, *exact, limits=Limits(total=0))) == {"bridge": [], "corgi": [], "lantern": []}


def test_at_most_two_styles() -> None:
    names = ("mosaic", "halftone", "woodcut")
    matches = [match(adapter(name, name, category=Category.STYLE)) for name in names]
    draft = compose("mosaic, halftone, woodcut", *matches)
    [left] = [task.keyword for task in draft.tasks if not task.choices]
    assert draft.notes[0].endswith(f": {left}.")


def test_characters_only_when_named() -> None:
    ada = match(adapter("ada", "Ada Mira", category=Category.CHARACTER, tags=("sailor",)), {"sailor": 0.9})
    assert of(compose("a sailor", ada)) == {"sailor": []}
    assert of(compose("Ada Mira on a boat", ada)) == {"Ada Mira": ["ada"], "boat": []}


def test_flagged_and_hidden_adapters_are_never_chosen() -> None:
    flagged = match(adapter("flagged", "corgi", quality="inverted"))
    assert of(compose("a corgi", flagged, match(adapter("hidden", "corgi", hidden=True)))) == {"corgi": []}


def test_one_base_model_family() -> None:
    sdxl = match(adapter("xl", "lantern", base_model=BaseModelFamily.SDXL))
    draft = compose("a corgi, a lantern", match(adapter("a", "corgi", tags=("corgi",))), sdxl)
    assert of(draft) == {"corgi": ["a"], "lantern": []}


@pytest.mark.parametrize(
    "doubtful",
    [
        {"weight": 0.1},
        {"weight": -1.0},
        {"weight": 2.0},
        {"description": ""},
        {"description": "First attempt, undertrained."},
        {"description": "WIP"},
        {"description": "THE STRONGEST CORGI HERE, SHOUTED"},
        {"description": "Slider: from no corgi to all corgi."},
    ],
)
def test_a_card_that_speaks_against_itself_loses(doubtful: dict[str, Any]) -> None:
    draft = compose("a corgi", match(adapter("a", "corgi", **doubtful)), match(adapter("b", "corgi")))
    assert of(draft) == {"corgi": ["b"]}


def test_examples_speak_where_a_description_is_missing() -> None:
    assert doubts(adapter("a", "corgi", description="", examples=(Example(image="x.webp"),))) == 0


def test_among_equals_the_card_that_says_more_is_chosen() -> None:
    terse = adapter("terse", "corgi", description="Corgi.")
    careful = adapter("careful", "corgi", description="Short legs, large ears, a fluffy coat; trained on show dogs.")
    assert of(compose("a corgi", match(terse), match(careful))) == {"corgi": ["careful"]}
    # what is said beyond some 20 words is no more evidence: it may be advertising
    loud = adapter("loud", "corgi puppies", description=" ".join(f"praise{n}" for n in range(200)))
    assert of(compose("a corgi", match(loud), match(careful))) == {"corgi": ["careful"]}


def test_weak_evidence_is_left_out_beside_strong_but_counts_where_all_is_weak() -> None:
    says_much = {"description": "Short legs, large ears, a fluffy coat; trained on show dogs. " * 3}
    corgi = match(adapter("corgi", "corgi", **says_much), prompt_score=0.7)
    bridge = match(adapter("bridge", "mossy stone bridge"), prompt_score=0.1)
    assert of(compose("a corgi on a bridge", corgi, bridge)) == {"corgi": ["corgi"], "bridge": []}
    assert of(compose("a stone bridge", bridge)) == {"stone bridge": ["bridge"]}


def test_a_card_without_words_is_similar_to_nothing() -> None:
    empty = match(adapter("empty", "untitled", description=""), {"kitty": 0.9})
    assert of(compose("a kitty", empty, *with_scores("kitty", 0.2, 0.1))) == {"kitty": []}


def test_singular_plural_and_spelling_count_as_equal() -> None:
    evidence = word_evidence("watercolours", adapter("a", "Watercolor"))
    assert evidence is not None
    assert evidence.strength == 1


def test_empty_prompts_and_no_matches() -> None:
    assert compose("").tasks == ()
    assert of(compose("a corgi")) == {"corgi": []}


def test_temperature_is_said_to_have_no_effect() -> None:
    assert "deterministic" in LexicalComposer().compose("a corgi", [], Limits(), temperature=0.7).notes[0]


vocabulary = st.sampled_from(["corgi", "neon", "bus", "stop", "red", "style", "Ada", "girl", "v2", "猫", ""])
names = st.lists(vocabulary, min_size=1, max_size=4).map(" ".join).filter(str.strip)
adapters = st.builds(
    Adapter,
    id=st.integers(0, 9).map("test:{}".format),
    name=names,
    tags=st.lists(names, max_size=3).map(tuple),
    trigger_words=st.lists(names, max_size=2).map(tuple),
    category=st.sampled_from(Category),
    base_model=st.sampled_from([None, BaseModelFamily.SD15, BaseModelFamily.SDXL]),
    weight=st.floats(-4, 4),
    quality=st.sampled_from([None, None, "bad"]),
)
scores = st.dictionaries(vocabulary, st.floats(-1, 1), max_size=5)
matches = st.builds(
    Match, adapter=adapters, score=st.floats(-1, 1), prompt_score=st.floats(-1, 1), keyword_scores=scores
)


@given(
    st.lists(vocabulary | st.sampled_from([",", "of", "and"]), max_size=14).map(" ".join),
    st.lists(matches, max_size=12),
    st.builds(Limits, st.integers(0, 3), st.integers(0, 5), st.integers(0, 2)),
)
def test_every_rule_holds_and_nothing_depends_on_chance(prompt: str, matches: list[Match], limits: Limits) -> None:
    draft = compose(prompt, *matches, limits=limits)
    assert draft == compose(prompt, *matches, limits=limits)
    tasks = [task.keyword for task in draft.tasks]
    for keyword in keywords(prompt):  # a task each, or one for each half
        found = [keyword] if tasks[0] == keyword else list(parts(keyword) or ())
        assert tasks[: len(found)] == found
        del tasks[: len(found)]
    assert not tasks
    choices = [choice for task in draft.tasks for choice in task.choices]
    ids = [choice.adapter_id for choice in choices]
    assert len(ids) == len(set(ids)) <= limits.total
    assert all(len(task.choices) <= limits.per_task for task in draft.tasks)
    assert sum(choice.category is Category.STYLE for choice in choices) <= limits.styles
    assert all(any(m.adapter.id == id and m.adapter.quality is None for m in matches) for id in ids)
    assert all(choice.reason for choice in choices)


def test_similarity_to_the_core_counts_where_the_retriever_searched_for_it() -> None:
    kitty = match(adapter("cat", "cat face"), {"kitty": 0.5})
    draft = compose("a black kitty", kitty, *with_scores("kitty", 0.3, 0.25))
    assert of(draft) == {"black kitty": ["cat"]}


def test_a_style_named_by_a_synonym_in_a_phrase_stands_beside_the_thing() -> None:
    scores = {"gilded crown": 0.4, "gilded": 0.5, "crown": 0.2}
    gold = match(adapter("gold", "gold metal", category=Category.STYLE), scores)
    crown = match(adapter("crown", "crown"), {"gilded crown": 0.5, "gilded": 0.2, "crown": 0.6})
    draft = compose("a gilded crown", gold, crown, *with_scores("gilded", 0.2))
    assert of(draft) == {"gilded": ["gold"], "crown": ["crown"]}


def test_other_adapters_of_a_synonym_come_along_so_that_the_best_card_wins() -> None:
    loud = match(adapter("loud", "cat face", description="Extreme cats, crank it up."), {"kitty": 0.5})
    calm = match(adapter("calm", "cat face"), {"kitty": 0.42})
    assert of(compose("a kitty", loud, calm, *with_scores("kitty", 0.4, 0.25))) == {"kitty": ["calm"]}
