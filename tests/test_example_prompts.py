"""What example prompts tell: weights that are really used, and trigger words only where there is no doubt."""

import pytest

from stylus.example_prompts import positive, trigger_words, weight, without_names
from stylus.ingest import settle
from stylus.records import Card, Example


def card(*prompts: str, **fields: object) -> Card:
    examples = tuple(Example(image="x.png", prompt=prompt) for prompt in prompts)
    return Card.model_validate({"id": "file:1", "name": "Red Star", "examples": examples, **fields})


@pytest.mark.parametrize(
    ("prompts", "expected"),
    [
        (["a star <lora:red_star:0.6>", "<lora:RedStar:0.9> x", "<lora:red-star:0.7:0.5> y"], 0.7),
        (["a <lora:red_star:0.6>, <lora:more_details:1>"], 0.6),
        (["a <lora:other_name:0.5>", "b <lora:other_name:0.7>", "c"], 0.6),
        (["a <lora:one:0.5> <lora:two:0.7>"], None),
        (["a <lora:one:0.5>", "b <lora:two:0.7>"], None),
        (["a <lyco:red_star:-1>"], -1.0),
        (["a <lora:red_star:4>"], None),
        (["a <lora:red_star:0>"], None),
        (["a star\nNegative prompt: <lora:red_star:0.3>\nSteps: 20"], None),
        (["a <lora:red_star:0.9>\nSteps: 20, Lora hashes: <lora:red_star:0.2>"], 0.9),
        (["", "no tag"], None),
        ([], None),
    ],
)
def test_weight_is_the_median_of_the_adapters_own_tags(prompts: list[str], expected: float | None) -> None:
    assert weight(card(*prompts)) == expected


def test_a_tag_has_the_name_of_the_file() -> None:
    prompts = ["a <lora:rs_v2:0.5> <lora:detail:1>"]
    assert weight(card(*prompts, file="/loras/rs_v2.safetensors")) == 0.5


def test_positive_ends_where_the_negative_prompt_begins() -> None:
    assert positive("a cat\n\nNegative prompt: dog\nSteps: 3") == "a cat"
    assert positive(" the steps: two ") == "the steps: two"


def test_trigger_words_stand_in_every_prompt_and_name_the_thing() -> None:
    prompts = [
        "rdst star, 1girl, (glowing:1.2), sea",
        "1girl, rdst star, glowing",
        "rdst star <lora:x:1>, 1girl, Glowing",
    ]
    assert trigger_words(card(*prompts)) == ("rdst star",)
    assert trigger_words(card(*prompts, tags=("glowing",))) == ("rdst star", "glowing")
    assert trigger_words(card(*prompts[:2])) == ()
    assert trigger_words(card(*prompts[:2], "something else")) == ()


def test_settle_takes_the_cards_word_first() -> None:
    prompts = ["star, a <lora:red_star:0.6>", "star, b", "star, c"]
    assert (settle(card(*prompts)).weight, settle(card(*prompts)).trigger_words) == (0.6, ("star",))
    said = settle(card(*prompts, weight=0.0, trigger_words=("rdst",)))
    assert (said.weight, said.trigger_words, said.refined) == (0.0, ("rdst",), False)


@pytest.mark.parametrize(
    ("prompt", "text", "named"),
    [
        ("a cat, on a roof", "a cat, on a roof", ()),
        ("a  cat,, on a roof", "a  cat,, on a roof", ()),
        (
            "<lora:a_b:0.8> a cat, <lyco:x:1>, on a <lora:a_b:0.8> roof",
            "a cat, on a roof",
            ("<lora:a_b:0.8>", "<lyco:x:1>"),
        ),
        ("<lora:star:1>", "", ("<lora:star:1>",)),
        ("a <lora of:1> b", "a <lora of:1> b", ()),
    ],
)
def test_names_of_adapters_leave_a_prompt_and_nothing_else_does(prompt: str, text: str, named: tuple[str, ...]) -> None:
    assert without_names(prompt) == (text, named)
