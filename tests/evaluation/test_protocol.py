"""The plan is fair: arms differ in what they are named for, and in nothing else."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from stylus.errors import InvalidInput
from stylus.evaluation.prompt_sets import EvaluationPrompt, load_prompts, pocket_prompts
from stylus.evaluation.protocol import ARMS, GUIDANCE, PRESETS, Arm, Mode, Plan, spread
from stylus.records import BaseModelFamily, Choice, Composition, MaskMode, Method, Policy, Task

PROMPTS = tuple(EvaluationPrompt(text=f"a red star, number {n}") for n in range(10))


def plan(**fields: object) -> Plan:
    return Plan.model_validate({"prompts": PROMPTS, "steps": 20, "guidance": 4.0, **fields})


def composition(prompt: int) -> Composition:
    choices = (Choice(adapter_id="pocket:star"), Choice(adapter_id="pocket:heart"))
    return Composition(
        id="x",
        prompt=PROMPTS[prompt].text,
        base_model=BaseModelFamily.POCKET,
        tasks=(Task(keyword="red star", choices=choices),),
        composer="test",
    )


@pytest.mark.parametrize("preset", [{}, *PRESETS.values()])
def test_every_arm_has_the_same_prompt_suffix_seeds_count_guidance_and_steps(preset: dict[str, object]) -> None:
    fair = plan(**preset)
    own = {"method", "masks"}
    for number in range(len(PROMPTS)):
        units = [unit for unit in fair.units() if unit.prompt == number and unit.mode is Mode.TEXT]
        requests = [fair.request(unit, composition(number)) for unit in units if unit.guidance == fair.guidance]
        assert len(requests) == len(ARMS)
        assert len({request.model_copy(update=dict.fromkeys(own)).model_dump_json() for request in requests}) == 1
        assert all(request.composition.prompt.endswith(fair.suffix) for request in requests)


def test_seeds_of_different_prompts_never_meet() -> None:
    most = plan(images=64)
    first = {most.request(unit, composition(unit.prompt), "0" * 64).seed for unit in most.units()}
    assert len(first) == len(PROMPTS)
    assert min(abs(a - b) for a in first for b in first if a != b) >= 64


def test_the_base_is_drawn_first_and_once_and_nothing_twice() -> None:
    units = list(plan(arms=(Arm.parse("stylus"), Arm.parse("base"), Arm.parse("stylus"))).units())
    assert [unit.arm.name for unit in units[: 2 * len(PROMPTS)]] == ["base"] * 10 + ["stylus"] * 10
    assert len(set(units)) == len(units)
    assert len({unit.path(0) for unit in units}) == len(units)


def test_the_curve_shares_the_pictures_of_its_own_guidance() -> None:
    units = list(plan(curve_prompts=4).units())
    curve = [unit for unit in units if unit.mode is Mode.TEXT and unit.guidance != 4]
    assert {unit.guidance for unit in curve} == set(GUIDANCE) - {4}
    assert len(curve) == 2 * 4 * (len(GUIDANCE) - 1)
    assert {unit.arm.name for unit in curve} == {"base", "stylus"}
    with pytest.raises(ValidationError, match="no curve"):
        plan(arms=(Arm.parse("base"),))


def test_spread_takes_from_everywhere() -> None:
    assert spread(10, 5) == [0, 2, 4, 6, 8]
    assert spread(3, 5) == [0, 1, 2]
    assert spread(5, 0) == []


def test_arms_are_named_by_what_they_change() -> None:
    assert Arm.parse("retriever-sample") == Arm(name="retriever-sample", policy=Policy.RETRIEVER, masks=MaskMode.SAMPLE)
    assert Arm.parse("stylus-composite-sample").method is Method.COMPOSITE
    for wrong in ("", "best", "base-sample", "stylus-merge", "stylus-switch-composite", "stylus-sample-sample"):
        with pytest.raises(InvalidInput, match="no arm"):
            Arm.parse(wrong)


def test_a_plan_is_known_by_its_content() -> None:
    again = Plan.model_validate_json(plan().model_dump_json())
    assert again == plan()
    assert again.id == plan().id
    assert len({plan().id, plan(seed=1).id, plan(suffix="x").id, plan(prompts=PROMPTS[:9]).id}) == 4


def test_coco_gives_one_caption_an_image(tmp_path: Path) -> None:
    path = tmp_path / "captions.json"
    path.write_text(
        '{"images": [], "annotations": [{"image_id": 7, "id": 1, "caption": "A cat \\n on a mat."},'
        '{"image_id": 7, "id": 2, "caption": "Another."}, {"image_id": 8, "id": 3, "caption": "A dog."}]}'
    )
    assert [(p.text, p.category) for p in load_prompts(path)] == [("A cat on a mat.", "coco"), ("A dog.", "coco")]


def test_parti_keeps_its_categories_and_quotation_marks(tmp_path: Path) -> None:
    path = tmp_path / "parti.tsv"
    path.write_text(
        "Prompt\tCategory\tChallenge\tNote\n"
        'a sign that says "Stop\tArtifacts\tWriting & Symbols\t\n'
        "a corgi\tAnimals\tBasic\t\n"
    )
    found = load_prompts(path)
    assert [(p.text, p.category) for p in found] == [('a sign that says "Stop', "Artifacts"), ("a corgi", "Animals")]


def test_plain_lists_and_jsonl(tmp_path: Path) -> None:
    plain = tmp_path / "list.txt"
    plain.write_text("# mine\na corgi\n\na corgi\na cat\n")
    assert [prompt.text for prompt in load_prompts(plain)] == ["a corgi", "a cat"]
    assert [prompt.text for prompt in load_prompts(plain, 1)] == ["a corgi"]
    rich = tmp_path / "list.jsonl"
    rich.write_text('{"text": "a corgi", "category": "dogs", "concepts": ["corgi"]}\n')
    assert load_prompts(rich)[0].concepts == ("corgi",)
    rich.write_text('{"text": "a corgi\u2028a cat"}\n\n{"text": "a dog"}', encoding="utf-8")
    assert [prompt.text for prompt in load_prompts(rich)] == ["a corgi\u2028a cat", "a dog"]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.json", "{}", "annotations"),
        ("a.json", "[", "list of prompts"),
        ("a.tsv", "Text\nx\n", "Prompt"),
        ("a.jsonl", '{"text": "x"}\n{"prompt": "x"}', "line 2"),
        ("a.txt", "# nothing\n", "0 prompts"),
    ],
)
def test_what_is_no_list_is_told(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(InvalidInput, match=message):
        load_prompts(tmp_path / name)


def test_a_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="can't be read"):
        load_prompts(tmp_path / "missing.txt")


def test_pocket_prompts_are_split_by_their_words() -> None:
    found = pocket_prompts()
    assert len(found) >= 60
    assert {prompt.category for prompt in found} == {"words of cards", "other words"}
    assert all(prompt.concepts for prompt in found)
