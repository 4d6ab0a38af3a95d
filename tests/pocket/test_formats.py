"""One adapter written in each format draws the same picture through diffusers."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file

from examples.pocket.catalogue import RECIPES, Format
from examples.pocket.evaluate import generate
from examples.pocket.formats import write
from stylus.pocket import ADAPTERS, PIPELINE

STAR = next(recipe for recipe in RECIPES if recipe.name == "star")


@pytest.fixture(scope="module")
def pipeline() -> StableDiffusionPipeline:
    made = StableDiffusionPipeline.from_pretrained(PIPELINE, dtype=torch.float32, safety_checker=None)
    made.set_progress_bar_config(disable=True)
    return made


@pytest.mark.parametrize("form", ["kohya", "peft", "locon"])
@pytest.mark.filterwarnings("ignore:Already found a `peft_config`")
def test_formats_draw_the_same_picture(pipeline: StableDiffusionPipeline, tmp_path: Path, form: Format) -> None:
    original = ADAPTERS / "star.safetensors"
    state = {key.removeprefix("unet."): value for key, value in load_file(original).items()}
    path = tmp_path / f"star_{form}.safetensors"
    write(replace(STAR, format=form), state, {}, path)
    (first,) = generate(pipeline, "a red star on a blue background", [(original, 0.8)], count=1, seed=3)
    (second,) = generate(pipeline, "a red star on a blue background", [(path, 0.8)], count=1, seed=3)
    pipeline.delete_adapters([original.stem, path.stem])
    assert np.abs(np.asarray(first, np.int16) - np.asarray(second, np.int16)).max() <= 1


def test_an_adapter_changes_the_picture_and_leaves_nothing_behind(pipeline: StableDiffusionPipeline) -> None:
    prompt, path = "a red star on a blue background", ADAPTERS / "star.safetensors"
    (before,) = generate(pipeline, prompt, [], count=1, seed=3)
    (with_it,) = generate(pipeline, prompt, [(path, 1.0)], count=1, seed=3)
    (after,) = generate(pipeline, prompt, [], count=1, seed=3)
    assert np.array_equal(np.asarray(before), np.asarray(after))
    assert np.abs(np.asarray(before, np.int16) - np.asarray(with_it, np.int16)).mean() > 5
