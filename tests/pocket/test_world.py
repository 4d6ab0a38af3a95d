"""The pocket world holds what it promises (cards, truth, prompts, sizes), and its judge reads rendered pictures."""

import json
import re

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from transformers import CLIPModel, CLIPTokenizer

from examples.pocket.renderer import draw, to_image
from examples.pocket.scenes import any_scene, caption
from examples.pocket.words import CONCEPTS, KINDS
from stylus.pocket import ADAPTERS, CLIP, PIPELINE, ROOT, prompts, truth
from stylus.pocket.judge import Judge

PARAPHRASES = [word for kind in KINDS.values() for _, rare in kind.values() for word in rare]


def cards() -> dict[str, dict[str, object]]:
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(ADAPTERS.glob("*.json"))}


def says(text: str, phrase: str) -> bool:
    return re.search(rf"\b{re.escape(phrase)}\b", text.lower()) is not None


def test_every_adapter_has_a_card_weights_and_a_truth() -> None:
    names = set(cards())
    assert len(names) >= 40
    assert {path.stem for path in ADAPTERS.glob("*.safetensors")} == names
    assert {name.removeprefix("pocket:") for name in truth()} == names


def test_truth_names_a_good_adapter_for_many_concepts_and_the_usual_flaws() -> None:
    rows = truth().values()
    assert len({row.concept for row in rows if row.quality == "good"} & set(CONCEPTS)) >= 39
    flaws = {
        "undertrained",
        "weak",
        "overstrong",
        "inverted",
        "mislabelled",
        "empty_card",
        "misleading_card",
        "wrong_base",
    }
    assert flaws <= {row.quality for row in rows}
    assert any(row.mature for row in rows)


def test_no_card_uses_a_paraphrase() -> None:
    for name, card in cards().items():
        text = " ".join(map(str, [card["name"], card["description"], card["tags"], card["trained_words"]]))
        assert not [word for word in PARAPHRASES if says(text, word)], name


def test_prompts_ask_for_one_to_three_known_concepts_and_half_are_paraphrased() -> None:
    rows = prompts()
    assert len(rows) >= 60
    assert all(1 <= len(row.concepts) <= 3 and set(row.concepts) <= set(CONCEPTS) for row in rows)
    assert all(row.paraphrase == any(says(row.text, word) for word in PARAPHRASES) for row in rows)
    assert sum(row.paraphrase for row in rows) * 2 >= len(rows)
    assert sum(row.demo for row in rows) == 8


def test_the_example_pictures_exist_and_are_small() -> None:
    for name, card in cards().items():
        images = card["images"]
        assert isinstance(images, list)
        for image in images:
            with Image.open(ADAPTERS / image["file"]) as picture:
                assert picture.size == (64, 64), name


def test_the_pocket_world_is_small_and_stored_in_half_precision() -> None:
    assert sum(path.stat().st_size for path in ROOT.rglob("*") if path.is_file()) < 22_000_000
    for path in [*PIPELINE.rglob("*.safetensors"), *ADAPTERS.glob("*.safetensors"), *CLIP.glob("*.safetensors")]:
        with safe_open(path, framework="np") as file:
            assert {file.get_slice(key).get_dtype() for key in file.keys()} == {"F16"}, path.name  # noqa: SIM118


@pytest.fixture(scope="module")
def judge() -> Judge:
    return Judge.load()


def test_the_judge_reads_fresh_pictures_of_the_renderer(judge: Judge) -> None:
    rng = np.random.default_rng(99)
    scenes = [any_scene(rng, pair=0.04) for _ in range(200)]
    found = judge.concepts([to_image(draw(scene, rng)) for scene in scenes])
    wanted = [scene.labels for scene in scenes]
    recall = sum(len(a & b) for a, b in zip(found, wanted, strict=True)) / sum(map(len, wanted))
    wrong = sum(len(a - b) for a, b in zip(found, wanted, strict=True)) / (len(judge.names) * len(scenes))
    assert recall >= 0.97
    assert wrong <= 0.01


def test_the_judge_takes_no_images(judge: Judge) -> None:
    assert judge.concepts([]) == []


def test_the_clip_tells_fresh_pictures_of_the_renderer_apart_by_their_captions() -> None:
    rng = np.random.default_rng(98)
    scenes = [any_scene(rng) for _ in range(50)]
    pixels = torch.from_numpy(np.stack([draw(scene, rng) for scene in scenes])).permute(0, 3, 1, 2) * 2 - 1
    clip, tokenizer = CLIPModel.from_pretrained(CLIP, dtype=torch.float32), CLIPTokenizer.from_pretrained(CLIP)
    texts = tokenizer([caption(rng, scene) for scene in scenes], padding=True, return_tensors="pt")
    with torch.no_grad():
        nearest = clip(**texts, pixel_values=pixels).logits_per_image.argmax(1)
    assert int((nearest == torch.arange(50)).sum()) >= 40
