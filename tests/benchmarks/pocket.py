"""Rates of requested concepts that the judge sees in the pocket world's pictures.

`python -m tests.benchmarks.pocket --json OUT`: over all test prompts, 4 images each, per image and requested concept:
the base alone and Stylus's own choice from the same seeds; and each good adapter alone at its recommended weight, on
prompts that ask for its concept. All through the public class `Stylus`.
"""

import argparse
import json
import random
import sys
from pathlib import Path

import fsspec
from PIL import Image

from examples.pocket.words import COLOURS, KINDS, SHAPES
from stylus.ingest import ingest_pocket
from stylus.pocket import Truth, prompts, truth
from stylus.pocket.judge import Judge
from stylus.records import Composition, ImageRecord, Pick
from stylus.settings import Settings
from stylus.stylus import Stylus
from tests.benchmarks import data_folder

IMAGES = 4
TEMPLATES = {
    "subject": "a {colour} {word} on a {ground} background",
    "style": "{word} of a {colour} {shape} on a {ground} background",
    "background": "a {colour} {shape} on a {word} background",
}


def read(record: ImageRecord) -> Image.Image:
    """The picture that a record points to."""
    with fsspec.open(record.location, "rb") as file:
        return Image.open(file).convert("RGB")


def shown(judge: Judge, records: list[ImageRecord], concepts: tuple[str, ...]) -> int:
    """How many (image, concept) pairs of those asked for the judge sees."""
    return sum(concept in seen for seen in judge.concepts([read(r) for r in records]) for concept in concepts)


def over_prompts(stylus: Stylus, judge: Judge) -> tuple[dict[str, float], list[dict[str, object]]]:
    """The rates of the base and of Stylus's choice, and what happened to each prompt."""
    hits, wanted, rows = {"base": 0, "stylus": 0}, 0, []
    for number, prompt in enumerate(prompts()):
        composition = stylus.compose(prompt.text)
        request = stylus.request(composition, seed=1000 * number, count=IMAGES)
        base = shown(judge, stylus.generate(stylus.control(request)), prompt.concepts)
        chosen = shown(judge, stylus.generate(request), prompt.concepts)
        hits["base"] += base
        hits["stylus"] += chosen
        wanted += IMAGES * len(prompt.concepts)
        adapters = [choice.adapter_id for choice in composition.choices]
        rows.append({"prompt": prompt.text, "adapters": adapters, "rate": chosen / (IMAGES * len(prompt.concepts))})
        print(f"{rows[-1]['rate']:.2f} {prompt.text}: {', '.join(adapters)}", file=sys.stderr, flush=True)
    return {who: round(count / wanted, 4) for who, count in hits.items()}, rows


def own_prompts(adapter: str, row: Truth, count: int) -> list[str]:
    """Prompts that ask for one concept, by turns in the words of cards and in others."""
    chance = random.Random(adapter)
    words = [word for group in zip(*KINDS[row.kind][row.concept], strict=False) for word in group]
    out = []
    for i in range(count):
        colour, ground = chance.sample(list(COLOURS), 2)
        shape = chance.choice(list(SHAPES))
        out.append(TEMPLATES[row.kind].format(word=words[i % len(words)], colour=colour, ground=ground, shape=shape))
    return out


def alone(stylus: Stylus, judge: Judge, adapter: str, row: Truth, count: int) -> float:
    """The rate of one adapter at its recommended weight, its trigger words joined as Stylus joins them."""
    hits = 0
    for number, text in enumerate(own_prompts(adapter, row, count)):
        composition: Composition = stylus.compose(text, picks=[Pick(id=adapter)])
        hits += shown(judge, stylus.generate(composition, seed=number, count=IMAGES), (row.concept,))
    return round(hits / (count * IMAGES), 4)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="where to write the figures")
    parser.add_argument("--prompts-each", type=int, default=6, help="prompts for each good adapter alone")
    arguments = parser.parse_args()
    judge = Judge.load()
    with data_folder() as folder, Stylus(Settings(data=folder)) as stylus:
        ingest_pocket(stylus.catalog, stylus.embedder)
        rates, rows = over_prompts(stylus, judge)
        good = {
            adapter: alone(stylus, judge, adapter, row, arguments.prompts_each)
            for adapter, row in truth().items()
            if row.quality == "good" and not row.mature
        }
    text = json.dumps({**rates, "good_adapters": good, "prompts": rows}, indent=2)
    print(text)
    if arguments.json:
        arguments.json.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
