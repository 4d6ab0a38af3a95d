"""Keywords come from the prompt, in order, disjoint, at most four words; from captions they nouns and actions."""

import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stylus.keywords import MOST_KEYWORDS, MOST_WORDS, core, keywords, parts, search_terms
from stylus.words import content_words, fold


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a red circle on a blue background", ["red circle", "blue background"]),
        ("A RED CIRCLE ON A BLUE BACKGROUND", ["RED CIRCLE", "BLUE BACKGROUND"]),
        ("an oil lamp in the style of stained glass", ["oil lamp", "stained glass"]),
        ("a lighthouse in woodcut style", ["lighthouse", "woodcut style"]),
        ("a man riding a horse", ["man", "riding", "horse"]),
        ("a man is riding horses", ["man", "riding", "horses"]),
        ("big running shoes", ["big running shoes"]),
        ("a dining table and a parking lot", ["dining table", "parking lot"]),
        ("a van parked on the street", ["van", "street"]),
        ("a huge stuffed bear", ["huge stuffed bear"]),
        ("a picture of a dog", ["dog"]),
        ("a dog, a cat; a mouse", ["dog", "cat", "mouse"]),
        ("masterpiece, best quality, 8k, highly detailed, a fox <lora:fox:0.8>", ["fox"]),
        ("(fox_tail:1.2)", ["fox_tail"]),
        ("big old brown wooden garden chair", ["big old", "brown wooden garden chair"]),
        ("a dog and two dogs", ["dog"]),
        ("a purple brolly, slowly", ["purple brolly"]),
        ("赤い猫, かわいい", ["赤い猫", "かわいい"]),
        ("हिन्दी चित्र", ["हिन्दी चित्र"]),
        ("a circle without a star", ["circle"]),
        ("no hearts or moons, a star", ["star"]),
        ("don't draw a cat; draw a dog", ["draw", "dog"]),
        ("a dog that isn’t wearing a hat on a bed", ["dog", "bed"]),
        ("not a star but a heart", ["heart"]),
        ("a no parking sign", ["parking sign"]),
        ("neither a cat nor a dog, a fox", ["fox"]),
        ("not only a cat but also a dog", ["cat", "dog"]),
        ("a cat instead of a dog", ["cat"]),
        ("a cat rather than a dog", ["cat"]),
        ("a dog instead and a cat", ["dog", "cat"]),
        ("a street devoid of cars", ["street"]),
        ("a beach without people, cars or dogs", ["beach"]),
        ("no text, watermark, or logo, a fox", ["fox"]),
        ("no text, a cat or a dog", ["cat", "dog"]),
        ("no text, cat, dog", ["cat", "dog"]),
        ("", []),
        (" \n\t ", []),
        ("the of and", []),
        ("!!! ,,, ---", []),
    ],
)
def test_examples(prompt: str, expected: list[str]) -> None:
    assert keywords(prompt) == expected


@pytest.mark.parametrize(
    "unit",
    [
        "a cat, ",
        "cat ",
        "a",
        "a-",
        "<",
        "<a ",
        "-",
        "é'",
        "best quality ",
        "cat\n",
        " ",
        "\u0301",
        "running ",
        "no a, ",
    ],
)
def test_long_prompts_take_linear_time(unit: str) -> None:
    prompt = (unit * (100_000 // len(unit) + 1))[:100_000]
    start = time.perf_counter()
    found = keywords(prompt)
    assert time.perf_counter() - start < 5
    assert len(found) <= MOST_KEYWORDS


def test_many_different_phrases_are_capped() -> None:
    assert len(keywords(", ".join(f"thing{i}" for i in range(10_000)))) == MOST_KEYWORDS


words = st.sampled_from(
    ["cat", "red", "riding", "a", "of", "is", "parked", "-", ",", "style", "<x>", "8-bit", "O'Neil", "é"]
)


@given(st.one_of(st.text(max_size=200), st.lists(words, max_size=40).map(" ".join)))
def test_keywords_are_disjoint_substrings_in_order(prompt: str) -> None:
    position = 0
    for keyword in keywords(prompt):
        found = prompt.find(keyword, position)
        assert found >= 0, f"{keyword!r} is not in the rest of the prompt"
        position = found + len(keyword)
        assert 1 <= len(keyword.split()) <= MOST_WORDS
        assert len(re.findall(r"[^\W_]+", keyword)) <= MOST_WORDS
        assert keyword == keyword.strip()
    assert keywords(prompt) == keywords(prompt)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Corgis", "corgi"),
        ("cookies", "cookie"),
        ("berries", "berry"),
        ("boxes", "box"),
        ("tomatoes", "tomato"),
        ("watches", "watch"),
        ("glasses", "glass"),
        ("horses", "horse"),
        ("women", "woman"),
        ("grey", "gray"),
        ("watercolour", "watercolor"),
        ("dog's", "dog"),
        ("buses", "bus"),
    ],
)
def test_forms_of_one_word_fold_together(one: str, other: str) -> None:
    assert fold(one) == fold(other)


@pytest.mark.parametrize(("one", "other"), [("cat", "car"), ("glass", "glas"), ("princess", "princes"), ("bus", "bu")])
def test_different_words_stay_apart(one: str, other: str) -> None:
    assert fold(one) != fold(other)


def test_content_words_drop_function_words_and_repeats() -> None:
    assert content_words("The cat and two Cats of a house") == ("cat", "house")


@pytest.mark.parametrize(
    ("keyword", "expected"),
    [
        ("black kitty", "kitty"),
        ("woodcut style", "woodcut"),
        ("tiny red fire truck", "fire truck"),
        ("checked background", "checked"),
        ("blue background", "blue background"),
        ("corgi", "corgi"),
    ],
)
def test_the_core_leaves_colours_sizes_and_style_out(keyword: str, expected: str) -> None:
    assert core(keyword) == expected


def test_parts_are_modifier_and_head() -> None:
    assert parts("carved wooden crown") == ("carved wooden", "crown")
    assert parts("black crown") is None


@given(st.one_of(st.text(max_size=200), st.lists(words, max_size=40).map(" ".join)))
def test_search_terms_are_few_and_from_the_prompt(prompt: str) -> None:
    terms = search_terms(prompt)
    assert len(terms) == len(set(terms)) <= MOST_KEYWORDS
    assert all(term in prompt for term in terms)
    assert bool(terms) == bool(keywords(prompt))
