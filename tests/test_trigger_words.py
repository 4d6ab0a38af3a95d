"""Trigger words join the prompt once each, and only those that serve the task."""

from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st

from stylus.records import Card, Choice
from stylus.trigger_words import serving, with_trigger_words, wording


def choice(*trigger_words: str) -> Choice:
    return Choice(adapter_id="test:1", trigger_words=trigger_words)


def card(*trigger_words: str) -> Card:
    return Card(id="test:1", name="anything", trigger_words=trigger_words)


def test_missing_words_follow_the_prompt_in_order() -> None:
    assert with_trigger_words("a corgi", [choice("fluffy dog"), choice("neon outline")]) == (
        "a corgi, fluffy dog, neon outline"
    )


def test_words_that_the_prompt_holds_are_not_repeated() -> None:
    assert with_trigger_words("Two CATS asleep", [choice("cat"), choice("cat")]) == "Two CATS asleep"


def test_held_means_whole_words() -> None:
    assert with_trigger_words("concatenate", [choice("cat")]) == "concatenate, cat"


def test_words_of_a_phrase_must_stand_together() -> None:
    assert with_trigger_words("a fish and a red cup", [choice("red fish")]) == "a fish and a red cup, red fish"


def test_the_end_of_the_prompt_and_a_trigger_make_no_phrase() -> None:
    assert with_trigger_words("a red", [choice("cat"), choice("red cat")]) == "a red, cat, red cat"


def test_each_word_once_over_all_choices() -> None:
    assert with_trigger_words("x", [choice("ohwx", "Glow"), choice("glow")]) == "x, ohwx, Glow"


def test_no_choices_leave_the_prompt_alone() -> None:
    assert with_trigger_words("a corgi", []) == "a corgi"


def test_empty_prompt_gets_the_words_alone() -> None:
    assert with_trigger_words("", [choice("ohwx")]) == "ohwx"


def test_symbols_alone_join_once() -> None:
    assert with_trigger_words("x", [choice("<!>", "<!>", "  ")]) == "x, <!>"


def test_a_lone_trigger_word_serves() -> None:
    assert serving(card("ohwx"), "corgi") == ("ohwx",)


def test_of_several_the_one_that_shares_the_keyword_serves() -> None:
    assert serving(card("school uniform", "red evening dress", "armour"), "evening dresses") == ("red evening dress",)


def test_where_none_shares_the_first_serves() -> None:
    assert serving(card("ohwx woman", "glasses", "hat"), "portrait") == ("ohwx woman",)


def test_lists_in_one_entry_are_split_and_prompts_dropped() -> None:
    assert serving(card("masterpiece " * 30, "cat face, whiskers"), "kitty") == ("cat face",)


def test_no_trigger_words() -> None:
    assert serving(card(), "corgi") == ()


@given(st.text(max_size=60), st.lists(st.lists(st.text(max_size=12), max_size=4), max_size=4))
def test_joining_twice_adds_nothing(prompt: str, triggers: list[list[str]]) -> None:
    choices = [choice(*words) for words in triggers]
    once = with_trigger_words(prompt, choices)
    assert with_trigger_words(once, choices) == once
    assert once.startswith(prompt.strip())


@given(st.lists(st.text(max_size=80), max_size=8), st.text(max_size=30))
def test_serving_words_are_few_and_from_the_card(triggers: list[str], keyword: str) -> None:
    found = serving(card(*triggers), keyword)
    assert len(found) <= 2
    assert all(any(word in trigger for trigger in triggers) for word in found)


def reads(most: int) -> Callable[[str], bool]:
    """An encoder of `most` words."""
    return lambda text: len(text.split()) <= most


def test_with_room_the_wording_is_the_joined_prompt_and_nothing_is_said() -> None:
    choices = [choice("ohwx"), choice("neon outline")]
    made = wording("a corgi", choices, reads(77))
    assert (made.text, made.left_out, made.cut, made.note) == (with_trigger_words("a corgi", choices), (), "", "")


def test_what_has_no_room_is_left_out_and_named() -> None:
    made = wording("a corgi", [choice("fluffy dog of the north"), choice("ohwx")], reads(4))
    assert made.text == "a corgi, ohwx"
    assert made.left_out == ("fluffy dog of the north",)
    assert "fluffy dog of the north" in made.note


def test_the_end_of_a_prompt_that_is_not_read_is_named() -> None:
    made = wording("a corgi on a bridge at night", [choice("ohwx")], reads(5))
    assert (made.text, made.cut) == ("a corgi on a bridge at night", "at night")
    assert made.left_out == ("ohwx",)
    assert "at night" in made.note
    assert "ohwx" in made.note


def test_emphasised_keywords_come_last_and_only_beside_adapters() -> None:
    assert wording("a corgi, a lamp", [choice("ohwx")], reads(77), ["lamp"]).text == "a corgi, a lamp, ohwx, lamp"
    assert wording("a corgi, a lamp", [], reads(77), ["lamp"]).text == "a corgi, a lamp"
    assert wording("a corgi, a lamp", [choice("ohwx")], reads(5), ["lamp"]).left_out == ("lamp",)


phrases = st.lists(st.sampled_from(["ohwx", "neon outline", "red cat", "lamp", "<!>", "a"]), max_size=3)


@given(st.text("ab c,", max_size=40), st.lists(phrases, max_size=4), phrases, st.integers(0, 12))
def test_no_wording_exceeds_the_encoder_but_by_the_prompt_itself(
    prompt: str, triggers: list[list[str]], emphasised: list[str], most: int
) -> None:
    fits = reads(most)
    made = wording(prompt, [choice(*words) for words in triggers], fits, emphasised)
    assert made.text.startswith(prompt.strip())
    assert fits(made.text) or made.text == prompt.strip()
    assert bool(made.cut) == (not fits(prompt.strip()))
    assert made.text.endswith(made.cut)
    assert fits(made.text.removesuffix(made.cut)) or not made.cut
