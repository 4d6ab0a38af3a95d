"""Measures the adapters by the judge, with the *right* adapters for each prompt, merged the paper's way.

`python -m examples.pocket.evaluate --work DIR [--adapters] [--prompts]`: --adapters gives each good adapter's rate
alone at its recommended weight, --prompts the rates of the test prompts without adapters and with the right ones.
"""

import argparse
import json
import random
import zlib
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline
from diffusers.loaders.lora_conversion_utils import _convert_non_diffusers_lora_to_diffusers
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from examples.pocket.adapters import kind_of
from examples.pocket.catalogue import RECIPES, Recipe
from examples.pocket.renderer import sheet
from examples.pocket.words import COLOURS, KINDS, SHAPES
from stylus.pocket import prompts
from stylus.pocket.judge import Judge

STEPS, GUIDANCE = 20, 4.0


def load(pipeline: StableDiffusionPipeline, path: Path) -> str:
    """Load one adapter under its own name, whatever its format."""
    name = path.stem
    if name in pipeline.get_list_adapters().get("unet", []):
        return name
    state: dict[str, Tensor] = load_file(path)
    if any(key.startswith("lora_unet") for key in state):
        state, alphas = _convert_non_diffusers_lora_to_diffusers(state)
        pipeline.load_lora_into_unet(state, network_alphas=alphas, unet=pipeline.unet, adapter_name=name)
        if any(key.startswith("text_encoder.") for key in state):
            pipeline.load_lora_into_text_encoder(
                state, network_alphas=alphas, text_encoder=pipeline.text_encoder, adapter_name=name
            )
        return name
    if any(key.startswith("base_model.model.") for key in state):
        state = {f"unet.{key.removeprefix('base_model.model.')}": value for key, value in state.items()}
    pipeline.load_lora_weights(state, adapter_name=name)
    return name


def generate(
    pipeline: StableDiffusionPipeline,
    prompt: str,
    chosen: list[tuple[Path, float]],
    count: int,
    seed: int,
    guidance: float = GUIDANCE,
) -> list[Image.Image]:
    """Pictures with the adapters at the given weights; every image has its own seed."""
    names = [load(pipeline, path) for path, _ in chosen]
    if names:
        pipeline.enable_lora()
        pipeline.set_adapters(names, [weight for _, weight in chosen])
    elif pipeline.get_list_adapters():
        pipeline.disable_lora()
    generators = [torch.Generator().manual_seed(seed * 1000 + i) for i in range(count)]
    pictures: list[Image.Image] = pipeline(
        prompt,
        num_images_per_prompt=count,
        num_inference_steps=STEPS,
        guidance_scale=guidance,
        generator=generators,
    ).images
    return pictures


def own_prompts(recipe: Recipe, count: int = 8) -> list[str]:
    """Prompts that ask for one adapter's concept, half of them with words that no card has and the trigger added."""
    chance = random.Random(recipe.name)
    words, others = KINDS[kind_of(recipe.concept)][recipe.concept]
    out = []
    for i in range(count):
        word = (words if i % 2 == 0 else others)[i // 2 % 2 % len(words if i % 2 == 0 else others)]
        colour, ground = chance.sample(list(COLOURS), 2)
        shape = chance.choice(list(SHAPES))
        text = {
            "subject": f"a {colour} {word} on a {ground} background",
            "style": f"{word} of a {colour} {shape} on a {ground} background",
            "background": f"a {colour} {shape} on a {word} background",
        }[kind_of(recipe.concept)]
        if i % 2 and recipe.trained_words:
            text += f", {recipe.trained_words[0]}"
        out.append(text)
    return out


def best(concept: str) -> Recipe:
    """The good adapter for a concept."""
    return next(r for r in RECIPES if r.concept == concept and r.quality == "good" and r.rating == "general")


def main() -> None:
    """Print the rates as JSON and leave contact sheets in the work folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--adapters", action="store_true")
    parser.add_argument("--prompts", action="store_true")
    parser.add_argument("--flawed", action="store_true", help="with --adapters: the flawed ones too")
    parser.add_argument("--only", default="")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--guidance", type=float, default=GUIDANCE)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    pipeline = StableDiffusionPipeline.from_pretrained(arguments.work / "pipeline", safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)
    judge = Judge.load(arguments.work / "judge.safetensors")
    files = arguments.work / "adapters"
    only = set(filter(None, arguments.only.split(",")))
    out: dict[str, object] = {}
    if arguments.adapters:
        rates = {}
        pictures = []
        for recipe in RECIPES:
            path = files / f"{recipe.name}.safetensors"
            wanted = recipe.quality == "good" or arguments.flawed
            if not wanted or not path.exists() or (only and recipe.name not in only):
                continue
            made = [
                picture
                for i, prompt in enumerate(own_prompts(recipe))
                for picture in generate(
                    pipeline, prompt, [(path, recipe.weight or 1.0)], 3, zlib.crc32(prompt.encode()), arguments.guidance
                )
            ]
            found = judge.concepts(made)
            rates[recipe.name] = round(sum(recipe.concept in one for one in found) / len(found), 3)
            print(recipe.name, rates[recipe.name], flush=True)
            pictures += made[:12]
            pipeline.delete_adapters(path.stem)
        sheet(pictures, 12, 2).save(arguments.work / "adapters.png")
        out["adapters"] = rates
    if arguments.prompts:
        hits = {"base": 0, "right": 0}
        total, pictures, worst = 0, [], []
        for i, prompt in enumerate(prompts()):
            recipes = [best(concept) for concept in prompt.concepts]
            text = ", ".join(
                [prompt.text, *(r.trained_words[0] for r in recipes if r.trained_words[0] not in prompt.text)]
            )
            plain = generate(pipeline, prompt.text, [], 4, i, arguments.guidance)
            merged = generate(
                pipeline,
                text,
                [(files / f"{r.name}.safetensors", r.weight or 1.0) for r in recipes],
                4,
                i,
                arguments.guidance,
            )
            for side, made in (("base", plain), ("right", merged)):
                present = sum(concept in one for one in judge.concepts(made) for concept in prompt.concepts)
                hits[side] += present
            worst.append((round(present / (4 * len(prompt.concepts)), 2), prompt.text))
            total += 4 * len(prompt.concepts)
            pictures += [*plain[:2], *merged]
        sheet(pictures, 18, 2).save(arguments.work / "prompts.png")
        out["prompts"] = {side: round(found / total, 3) for side, found in hits.items()}
        out["worst"] = sorted(worst)[:15]
    print(json.dumps(out, indent=1))


if __name__ == "__main__":
    main()
