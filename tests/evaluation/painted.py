"""Evaluations whose pictures are painted and not drawn: laid into folder and Postgres in milliseconds."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from PIL import Image, PngImagePlugin

from stylus.database import Database
from stylus.evaluation.ledger import Ledger
from stylus.evaluation.prompt_sets import EvaluationPrompt
from stylus.evaluation.protocol import Arm, Plan
from stylus.records import Composition

Painter = Callable[[str, int, int], Image.Image]
"""Arm, place of the prompt, index -> picture."""


def redder(arm: str, prompt: int, index: int) -> Image.Image:
    """Those of `stylus` are redder, except of prompt 0, on which all arms made the same."""
    strength = 60 if prompt == 0 else {"stylus": 200, "base": 60}.get(arm, 120)
    return Image.new("RGB", (48, 48), (strength, 20 * index, 5 * prompt))


def evaluation(
    database: Database,
    folder: Path,
    paint: Painter = redder,
    *,
    prompts: Sequence[str] = ("a heart", "a star", "a <b>moon</b>", "a fish"),
    arms: Sequence[str] = ("base", "stylus"),
    images: int = 2,
) -> Ledger:
    """Whole, with each arm's name and adapters inside its files, as the true ones have."""
    plan = Plan(
        prompts=tuple(EvaluationPrompt(text=text) for text in prompts),
        arms=tuple(Arm.parse(arm) for arm in arms),
        images=images,
        steps=1,
        guidance=3.0,
        curve_prompts=0,
        start_prompts=0,
    )
    ledger = Ledger.begin(database, plan, folder)
    for unit in plan.units():
        prompt = plan.prompts[unit.prompt].text
        composition = Composition(
            id="c", prompt=prompt, base_model=plan.base_model, tasks=(), composer=unit.arm.policy.value
        )
        request = plan.request(unit, composition)
        for index in range(images):
            chunks = PngImagePlugin.PngInfo()
            chunks.add_itxt("parameters", f"{prompt} <lora:secret-{unit.arm.name}:1>")
            record = {"index": index, "seed": request.seed + index, "request": request.model_dump(mode="json")}
            chunks.add_itxt("stylus", json.dumps(record))
            path = folder / unit.path(index)
            path.parent.mkdir(parents=True, exist_ok=True)
            paint(unit.arm.name, unit.prompt, index).save(path, pnginfo=chunks)
        assert ledger.take_in(unit, request)
    return ledger
