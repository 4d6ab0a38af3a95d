"""Copies what was trained into the package as fp16: `python -m examples.pocket.pack --work DIR [--what cards]`.

cards: the adapters' cards and the truth about them; pipeline, clip, judge, adapters: the weights; images: the example
pictures of the cards, made with the packed pipeline and each adapter at its recommended weight; sheet: the picture of
the README, the first example of each good adapter.
"""

import argparse
import csv
import json
import shutil
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline
from PIL import Image, ImageDraw, ImageFont
from safetensors.torch import load_file, save_file

from examples.pocket.adapters import kind_of
from examples.pocket.catalogue import RECIPES, Recipe
from examples.pocket.evaluate import generate
from examples.pocket.formats import foreign
from stylus.pocket import ADAPTERS, CLIP, JUDGE, PIPELINE, ROOT

SCENES = {
    "subject": (
        "a red {w} on a yellow background",
        "a blue {w} on a white background",
        "a pink {w} on a purple background",
    ),
    "style": ("{w} of a blue circle on an orange background", "a red diamond in {w} style", "{w}, a green ring"),
    "background": ("a white circle on a {w} background", "a red square in front of {w}", "a yellow ring, {w}"),
}


def example_prompts(recipe: Recipe) -> list[str]:
    """The prompts of a card's example pictures."""
    word = recipe.trained_words[0] if recipe.trained_words else recipe.concept
    weight = 1.0 if recipe.weight is None else recipe.weight
    opening = SCENES[kind_of(recipe.concept)][: recipe.examples]
    return [f"{text.format(w=word)} <lora:{recipe.name}:{weight:g}>" for text in opening]


def cards() -> None:
    """Write every card and the truth."""
    ADAPTERS.mkdir(parents=True, exist_ok=True)
    truth = {}
    for recipe in RECIPES:
        images = [
            {"file": f"{recipe.name}.{i}.webp", "prompt": prompt, "seed": i}
            for i, prompt in enumerate(example_prompts(recipe), 1)
        ]
        card = {
            "name": recipe.title,
            "description": recipe.description,
            "tags": recipe.tags,
            "trained_words": recipe.trained_words,
            "base_model": recipe.base_model,
            "weight": recipe.weight,
            "rating": recipe.rating,
            "licence": recipe.licence,
            "author": recipe.author,
            "kind": recipe.card_kind,
            "images": images,
        }
        (ADAPTERS / f"{recipe.name}.json").write_text(
            json.dumps(card, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
        )
        truth[f"pocket:{recipe.name}"] = {
            "concept": recipe.concept,
            "kind": kind_of(recipe.concept),
            "quality": recipe.quality,
            "mature": recipe.rating == "mature",
            "note": recipe.note,
        }
    (ROOT / "truth.json").write_text(json.dumps(truth, indent=1) + "\n", encoding="utf-8")


def halve(folder: Path) -> None:
    """Store every weight file under the folder as fp16."""
    for path in folder.rglob("*.safetensors"):
        save_file({key: value.half().contiguous() for key, value in load_file(path).items()}, path, {"format": "pt"})


def folder(source: Path, target: Path, *skip: str) -> None:
    """Copy a model folder and halve it."""
    if target.exists():
        shutil.rmtree(target)
    shutil.copytree(source, target, ignore=shutil.ignore_patterns(*skip))
    halve(target)
    for config in target.rglob("config.json"):
        values = json.loads(config.read_text(encoding="utf-8"))
        values.pop("_name_or_path", None)  # where it was trained
        config.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def adapters(work: Path, only: set[str]) -> None:
    """Copy the adapters, and write the one that belongs to another base."""
    for recipe in RECIPES:
        target = ADAPTERS / f"{recipe.name}.safetensors"
        if recipe.base_model != "pocket":
            foreign(target)
        elif not only or recipe.name in only:
            shutil.copy(work / "adapters" / target.name, target)


def images(only: set[str]) -> None:
    """Make the example pictures."""
    pipeline = StableDiffusionPipeline.from_pretrained(PIPELINE, dtype=torch.float32, safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)
    for recipe in RECIPES:
        if recipe.examples == 0 or (only and recipe.name not in only):
            continue
        weight = 1.0 if recipe.weight is None else recipe.weight
        for i, prompt in enumerate(example_prompts(recipe), 1):
            path = ADAPTERS / f"{recipe.name}.safetensors"
            (picture,) = generate(pipeline, prompt.split(" <lora")[0], [(path, weight)], count=1, seed=i)
            picture.save(ADAPTERS / f"{recipe.name}.{i}.webp", quality=88, method=6)


def judge(work: Path) -> None:
    """Copy the judge, and its held-out confusion matrix as a table: which share of a concept's pictures shows which."""
    shutil.copy(work / "judge.safetensors", JUDGE)
    found = json.loads((work / "judge.json").read_text(encoding="utf-8"))
    with JUDGE.with_suffix(".csv").open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(["concept", "recall", "false_positives", *found["names"]])
        for name, shares in zip(found["names"], found["matrix"], strict=True):
            row = found["rows"][name]
            rows.writerow([name, row["recall"], row["false_positives"], *(f"{share:.3g}" for share in shares)])


def sheet(columns: int = 7, cell: int = 128, label: int = 20) -> None:
    """Lay out what the good adapters draw."""
    named = [r for r in RECIPES if r.quality == "good" and r.rating == "general" and not r.copy_of]
    page = Image.new("RGB", (columns * cell, -(-len(named) // columns) * (cell + label)), "white")
    text = ImageDraw.Draw(page)
    for i, recipe in enumerate(named):
        x, y = i % columns * cell, i // columns * (cell + label)
        with Image.open(ADAPTERS / f"{recipe.name}.1.webp") as picture:
            page.paste(picture.resize((cell - 6, cell - 6), Image.Resampling.LANCZOS), (x + 3, y + 3))
        text.text((x + 3, y + cell - 2), recipe.name, "black", ImageFont.load_default(13))
    page.save(ROOT / "adapters.webp", quality=80, method=6)


def main() -> None:
    """Pack what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--what", default="cards,pipeline,clip,judge,adapters,images,sheet")
    parser.add_argument("--only", default="", help="names of adapters")
    arguments = parser.parse_args()
    what, only = set(arguments.what.split(",")), set(filter(None, arguments.only.split(",")))
    if "cards" in what:
        cards()
    if "pipeline" in what:
        folder(arguments.work / "pipeline", PIPELINE)
    if "clip" in what:
        folder(arguments.work / "clip", CLIP)
    if "judge" in what:
        judge(arguments.work)
    if "adapters" in what:
        adapters(arguments.work, only)
    if "images" in what:
        images(only)
    if "sheet" in what:
        sheet()


if __name__ == "__main__":
    main()
