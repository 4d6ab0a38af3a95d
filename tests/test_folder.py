"""Folder -> cards: the sidecars that people have, bad files that must not stop the rest, text from strangers."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from safetensors.numpy import save_file

from stylus.errors import InvalidInput
from stylus.records import BaseModelFamily, Card, Category, Kind, Rating
from stylus.sources.folder import cards
from stylus.text import clean, clean_line

KEY = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k.lora_down.weight"


def weights(path: Path, width: int = 96, metadata: dict[str, str] | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({KEY: np.zeros((4, width), np.float16)}, path, metadata)
    return path


def read(root: Path, prefix: str = "file") -> tuple[list[Card], dict[str, str]]:
    problems: dict[str, str] = {}
    found = list(cards(root, prefix=prefix, on_problem=lambda path, why: problems.update({path.name: why})))
    return found, problems


def test_a_pocket_card_gives_all_its_facts(tmp_path: Path) -> None:
    weights(tmp_path / "star.safetensors")
    (tmp_path / "star.1.webp").write_bytes(b"x")
    (tmp_path / "star.json").write_text(
        json.dumps(
            {
                "name": "Star",
                "description": "<p>Five points &amp; a glow</p>",
                "tags": ["star", "sky"],
                "trained_words": ["st4r"],
                "base_model": "pocket",
                "weight": 0.9,
                "rating": "mature",
                "licence": "CC0-1.0",
                "author": "someone",
                "kind": "background",
                "images": [
                    {"file": "star.1.webp", "prompt": "a star <lora:star:0.9>", "seed": 1},
                    {"file": "../../etc/passwd", "prompt": "no"},
                    {"file": "absent.webp", "prompt": "no"},
                    {"file": "\udce9.webp", "prompt": "no"},
                ],
            }
        )
    )
    [card], problems = read(tmp_path, "pocket")
    assert not problems
    assert card.model_dump(exclude={"bytes", "rank"}) == Card.model_validate(
        {
            "id": "pocket:star",
            "name": "Star",
            "description": "Five points & a glow",
            "tags": ("star", "sky"),
            "trigger_words": ("st4r",),
            "base_model": "pocket",
            "weight": 0.9,
            "rating": "mature",
            "licence": "CC0-1.0",
            "author": "someone",
            "category": "background",
            "examples": ({"image": str(tmp_path / "star.1.webp"), "prompt": "a star <lora:star:0.9>"},),
            "file": str(tmp_path / "star.safetensors"),
        }
    ).model_dump(exclude={"bytes", "rank"})


def test_automatic1111_metadata(tmp_path: Path) -> None:
    path = weights(tmp_path / "x.safetensors", 768)
    content = {
        "description": "d",
        "notes": "n",
        "activation text": "one, two,one",
        "preferred weight": 0,
        "sd version": "SD1",
    }
    path.with_suffix(".json").write_text(json.dumps(content), encoding="utf-8-sig")
    (tmp_path / "x.preview.png").write_bytes(b"png")
    [card], _ = read(tmp_path)
    assert (card.name, card.description, card.trigger_words, card.weight) == ("x", "d\n\nn", ("one", "two"), None)
    assert card.base_model == BaseModelFamily.SD15
    assert [example.image for example in card.examples] == [str(tmp_path / "x.preview.png")]
    path.with_suffix(".json").write_text(json.dumps({**content, "preferred weight": 1.5}))
    assert read(tmp_path)[0][0].weight == 1.5


def test_civitai_info(tmp_path: Path) -> None:
    weights(tmp_path / "x.safetensors", 320)
    info = {
        "modelId": 7,
        "trainedWords": ["ohwx"],
        "baseModel": "SDXL 1.0",
        "description": "<b>version</b>",
        "model": {"name": "Nice", "nsfw": True, "tags": ["Style", "ink"], "description": None},
        "images": [{"url": "https://example.org/1.png", "meta": {"prompt": "p"}}, {"url": "file:///etc/passwd"}, "?"],
    }
    (tmp_path / "x.civitai.info").write_text(json.dumps(info))
    [card], problems = read(tmp_path)
    assert not problems
    assert (card.name, card.description, card.trigger_words) == ("Nice", "version", ("ohwx",))
    assert (card.base_model, card.category, card.rating) == (BaseModelFamily.SDXL, Category.STYLE, Rating.MATURE)
    assert card.url == "https://civitai.com/models/7"
    assert [(example.image, example.prompt) for example in card.examples] == [("https://example.org/1.png", "p")]


def test_lora_managers_metadata(tmp_path: Path) -> None:
    path = weights(tmp_path / "x.safetensors", 320)
    content = {
        "model_name": "Herons",
        "base_model": "Illustrious",
        "tags": ["animal", "bird"],
        "modelDescription": "<p>Long legs</p>",
        "notes": "good at dusk",
        "usage_tips": '{"strength_min": 0.4, "strength_max": 1.0}',
        "civitai": {"modelId": 5, "id": 55, "trainedWords": ["heron"], "model": {"nsfw": False}, "creator": {}},
        "preview_url": "/somewhere/else.webp",
    }
    path.with_suffix(".metadata.json").write_text(json.dumps(content))
    path.with_suffix(".civitai.info").write_text(json.dumps({"model": {"name": "not asked"}, "trainedWords": ["no"]}))
    [card], problems = read(tmp_path)
    assert not problems
    assert (card.name, card.description, card.tags) == ("Herons", "Long legs\n\ngood at dusk", ("animal", "bird"))
    assert (card.trigger_words, card.category, card.weight) == (("heron",), Category.ANIMAL, 0.7)
    assert (card.base_model, card.group) == (BaseModelFamily.SDXL, "civitai:5")
    assert card.url == "https://civitai.com/models/5?modelVersionId=55"
    for tips, weight in (('{"strength": 0.9, "strength_min": 0.1}', 0.9), ("{}", None), ("[", None), (7, None)):
        path.with_suffix(".metadata.json").write_text(json.dumps({**content, "usage_tips": tips}))
        assert read(tmp_path)[0][0].weight == weight


@pytest.mark.parametrize(
    ("suffix", "content", "rating", "shown"),
    [
        (".civitai.info", {"nsfwLevel": 28}, Rating.MATURE, [1, 16]),
        (".civitai.info", {"nsfwLevel": 29}, Rating.GENERAL, [1]),
        (".metadata.json", {"civitai": {"nsfwLevel": 28}, "preview_nsfw_level": 16}, Rating.MATURE, [1, 16]),
        (".metadata.json", {"civitai": {"nsfwLevel": 29}, "preview_nsfw_level": 2}, Rating.GENERAL, [1]),
        (".metadata.json", {"preview_nsfw_level": 8, "civitai": {}}, Rating.MATURE, [1]),
        (".metadata.json", {"preview_nsfw_level": "?", "civitai": {"nsfwLevel": []}}, Rating.GENERAL, [1]),
    ],
)
def test_levels_rate_sidecars_as_they_rate_civitais_own_answers(
    tmp_path: Path, suffix: str, content: dict[str, Any], rating: Rating, shown: list[int]
) -> None:
    path = weights(tmp_path / "x.safetensors")
    images = [{"url": f"https://example.org/{level}.png", "nsfwLevel": level} for level in (1, 16)]
    content.get("civitai", content)["images"] = images
    path.with_suffix(suffix).write_text(json.dumps(content))
    [card], problems = read(tmp_path)
    assert not problems
    assert card.rating is rating
    assert [example.image for example in card.examples] == [f"https://example.org/{level}.png" for level in shown]


def test_previews_give_their_prompts_and_stand_before_pictures_elsewhere(tmp_path: Path) -> None:
    path = weights(tmp_path / "x.safetensors")
    chunks = PngInfo()
    chunks.add_text("parameters", "a heron <lora:x:0.6>\nSteps: 20, Seed: 1")
    Image.new("RGB", (4, 4)).save(path.with_suffix(".preview.png"), pnginfo=chunks)
    Image.new("RGB", (4, 4)).save(path.with_suffix(".webp"))
    images = [{"url": f"https://example.org/{n}.png", "meta": {"prompt": f"p{n}"}} for n in range(20)]
    path.with_suffix(".civitai.info").write_text(json.dumps({"images": images}))
    [card], _ = read(tmp_path)
    assert [(Path(example.image).name, example.prompt) for example in card.examples[:3]] == [
        ("x.preview.png", "a heron <lora:x:0.6>"),
        ("x.webp", ""),
        ("0.png", "p0"),
    ]
    assert len(card.examples) == 10


@pytest.mark.parametrize("suffix", [".txt", ".description.txt"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
def test_descriptions_in_text_files_of_any_encoding(tmp_path: Path, suffix: str, encoding: str) -> None:
    weights(tmp_path / "x.safetensors").with_suffix(suffix).write_bytes("Café – naïve\r\nlines".encode(encoding))
    [card], problems = read(tmp_path)
    assert (card.description, problems) == ("Café – naïve\nlines", {})


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32", "cp1252"])
def test_cards_of_any_encoding(tmp_path: Path, encoding: str) -> None:
    text = json.dumps({"description": "Café\x01\0 – naïve", "name": "é"}, ensure_ascii=False)
    weights(tmp_path / "x.safetensors").with_suffix(".json").write_bytes(text.encode(encoding))
    [card], problems = read(tmp_path)
    assert (card.name, card.description, problems) == ("é", "Café – naïve", {})


def test_metadata_of_trainers_speaks_where_no_sidecar_does(tmp_path: Path) -> None:
    frequency = json.dumps({"set a": {"1girl": 3, "hat": 10}, "set b": {"hat": 1, "sky": "x" if False else 5}})
    weights(tmp_path / "x.safetensors", 96, {"ss_output_name": "Hats", "ss_tag_frequency": frequency})
    weights(tmp_path / "y.safetensors", 97, {"ss_tag_frequency": "not json", "ss_base_model_version": "sd_v1"})
    first, second = read(tmp_path)[0]
    assert (first.name, first.tags, first.kind) == ("Hats", ("hat", "sky", "1girl"), Kind.LORA)
    assert (second.name, second.tags, second.base_model) == ("y", (), BaseModelFamily.SD15)


def test_shapes_stand_above_what_the_card_says(tmp_path: Path) -> None:
    path = weights(tmp_path / "x.safetensors", 768)
    path.with_suffix(".json").write_text(json.dumps({"base_model": "pocket"}))
    assert read(tmp_path)[0][0].base_model == BaseModelFamily.SD15


def test_file_ids_survive_a_move_and_tell_contents_apart(tmp_path: Path) -> None:
    weights(tmp_path / "a.safetensors", 96)
    weights(tmp_path / "b.safetensors", 768)
    before = {card.file: card.id for card in read(tmp_path)[0]}
    assert len(set(before.values())) == 2
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / "a.safetensors").rename(tmp_path / "deep" / "er" / "renamed.SAFETENSORS")
    after = {card.id for card in read(tmp_path)[0]}
    assert after == set(before.values())


def test_bad_files_are_reported_and_the_rest_goes_on(tmp_path: Path) -> None:
    good = weights(tmp_path / "m_good.safetensors")
    (tmp_path / "a_empty.safetensors").write_bytes(b"")
    (tmp_path / "b_pickle.safetensors").write_bytes(b"\x80\x04\x95rest")
    (tmp_path / "c_cut.safetensors").write_bytes(good.read_bytes()[:-5])
    save_file({"conv_in.weight": np.zeros((2, 2), np.float16)}, tmp_path / "d_model.safetensors")
    (tmp_path / "e_folder.safetensors").mkdir()
    (tmp_path / "f_dangling.safetensors").symlink_to(tmp_path / "nowhere")
    (tmp_path / "loop").symlink_to(tmp_path)
    os.mkfifo(tmp_path / "g_pipe.safetensors")  # to open it would wait for ever
    os.mkfifo(tmp_path / "m_good.txt")
    good.with_suffix(".json").write_bytes(b"\xff\xfe no json")
    found, problems = read(tmp_path)
    assert [card.name for card in found] == ["m_good"]
    assert set(problems) == {
        "a_empty.safetensors",
        "b_pickle.safetensors",
        "c_cut.safetensors",
        "d_model.safetensors",
        "f_dangling.safetensors",
        "g_pipe.safetensors",
        "m_good.json",
    }
    assert "pickle" in problems["b_pickle.safetensors"]
    assert "whole model" in problems["d_model.safetensors"]


@pytest.mark.parametrize(
    "content", ["[1]", '"x"', "[" * 100_000, "{", '{"tags": 3, "images": 4, "model": [], "name": {}}']
)
def test_strange_sidecars_never_cost_the_adapter(tmp_path: Path, content: str) -> None:
    path = weights(tmp_path / "x.safetensors")
    path.with_suffix(".json").write_text(content)
    (tmp_path / "x.civitai.info").write_text(content)
    assert [card.name for card in read(tmp_path)[0]] == ["x"]


@pytest.mark.parametrize(("suffix", "wrap"), [(".civitai.info", "{}"), (".metadata.json", '{{"civitai": {}}}')])
def test_a_value_without_measure_costs_its_card_and_not_the_adapter(tmp_path: Path, suffix: str, wrap: str) -> None:
    path = weights(tmp_path / "x.safetensors")
    path.with_suffix(suffix).write_text(wrap.format('{"modelId": ' + "7" * 400 + ', "trainedWords": ["no"]}'))
    path.with_suffix(".txt").write_text("herons")
    [card], problems = read(tmp_path)
    assert (card.description, card.trigger_words, card.group) == ("herons", (), None)
    [(name, why)] = problems.items()
    assert name == f"x{suffix}"
    assert why.startswith("This card was left out, the adapter kept: group: ")
    assert "'civitai:777" in why
    assert "pydantic" not in why


@pytest.mark.parametrize("suffix", [".txt", ".json"])
def test_a_sidecar_that_leads_elsewhere_is_not_read(tmp_path: Path, suffix: str) -> None:
    store, folder = tmp_path / "store", tmp_path / "folder"
    path = weights(folder / "x.safetensors")
    weights(store / "y.safetensors", 768)
    for file in (tmp_path / f"key{suffix}", store / f"y{suffix}"):
        file.write_text('{"description": "secret"}' if suffix == ".json" else "secret")
    path.with_suffix(suffix).symlink_to(tmp_path / f"key{suffix}")
    [card], problems = read(folder)
    assert (card.description, list(problems)) == ("", [f"x{suffix}"])
    assert "link" in problems[f"x{suffix}"]
    path.with_suffix(suffix).unlink()
    # Weights and card linked from one place, a folder that is a link, a card under a second name: people's own.
    for name in ("y.safetensors", f"y{suffix}"):
        (folder / name).symlink_to(store / name)
    (tmp_path / "linked").symlink_to(store)
    (folder / f"kept{suffix}").write_text((store / f"y{suffix}").read_text())
    path.with_suffix(suffix).symlink_to(f"kept{suffix}")
    for root, count in ((folder, 2), (tmp_path / "linked", 1)):
        found, problems = read(root)
        assert not problems
        assert [card.description for card in found] == ["secret"] * count


def test_a_name_of_all_the_characters_that_a_disk_allows(tmp_path: Path) -> None:
    path = weights(tmp_path / f"{'x' * (255 - len('.safetensors'))}.safetensors")
    assert [card.file for card in read(tmp_path)[0]] == [str(path)]


def test_hostile_text_is_cleaned_and_capped(tmp_path: Path) -> None:
    path = weights(tmp_path / "x.safetensors")
    evil = "a\0b\x1b[31m\u202ec" + "<script>steal()</script>" + "<div>" * 5_000 + "d" * 1_000_000
    path.with_suffix(".json").write_text(
        json.dumps({"name": evil, "description": evil, "tags": [evil] * 3 + ["tag"] * 100_000})
    )
    [card], problems = read(tmp_path)
    assert not problems
    assert card.name.startswith("ab[31mc")
    assert len(card.name) <= 200
    assert len(card.description) <= 20_000
    assert len(card.tags) == 2
    assert "steal" not in card.description


def test_no_such_folder(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="no folder"):
        read(tmp_path / "absent")


def test_clean_keeps_what_people_write() -> None:
    assert clean("weight < 1 and > 2 & so on", 100) == "weight < 1 and > 2 & so on"
    assert clean("한국어 ⭐ é\n\n\n\nline", 100) == "한국어 ⭐ é\n\nline"
    assert clean(None, 10) == clean(3, 10) == ""
    assert clean_line("a\nb\t c", 100) == "a b c"
    assert clean("x <lora:star:0.8> <b>y</b>", 100) == "x <lora:star:0.8> y"
