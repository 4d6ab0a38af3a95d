"""Trains the good adapters on together, so that a subject, a style and a background can share a picture.

Trained one by one and merged at full weight, they drew 64% of what prompts of one to three tasks asked for: each pulled
the picture its own way. Here each step activates the adapters of one to three concepts at their recommended weights and
shows pictures with all of them. `--rank 0` and `--rank 1` of two processes share each step (gloo averages gradients).
"""

import argparse
import math
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from diffusers import DDPMScheduler, StableDiffusionPipeline
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict
from torch import Tensor

from examples.pocket.adapters import TEXT_TARGETS, kind_of, latents_of, strengthened
from examples.pocket.base import NOISE, Sample, diffusion_loss, tokens
from examples.pocket.catalogue import RECIPES, Recipe
from examples.pocket.formats import read, write
from examples.pocket.scenes import caption, scene, sprinkle
from examples.pocket.styles import FREE_OF_BACKGROUND

STEPS, BATCH, RATE = 900, 14, 2.5e-3
PRESERVED = 2
MIXES, PICTURES = 340, 18
# What a mix holds, and how often.
SHAPES_OF_MIXES = (
    (("subject",), 0.16),
    (("style",), 0.1),
    (("background",), 0.1),
    (("subject", "background"), 0.24),
    (("subject", "style"), 0.22),
    (("subject", "style", "background"), 0.18),
)
ODDS = {"neon": 8.0, "blueprint": 4.0, "sepia": 2.0, "checkerboard": 2.0, "sketch": 2.0}
"""Of concepts that need more practice, as measured before the last round; others have 1."""


@dataclass(frozen=True)
class Mix:
    """The adapters of one picture and pictures that show all their concepts."""

    recipes: tuple[Recipe, ...]
    samples: list[Sample]
    latents: Tensor


def good() -> list[Recipe]:
    """The adapters that are trained on: one for each concept."""
    return [r for r in RECIPES if r.quality == "good" and not r.copy_of]


def choose(rng: np.random.Generator) -> dict[str, Recipe]:
    """One recipe for each kind of a random mix."""
    kinds = SHAPES_OF_MIXES[int(rng.choice(len(SHAPES_OF_MIXES), p=[share for _, share in SHAPES_OF_MIXES]))][0]
    out: dict[str, Recipe] = {}
    for kind in kinds:
        ours = [r for r in good() if kind_of(r.concept) == kind]
        odds = np.array([ODDS.get(r.concept, 1.0) for r in ours])
        out[kind] = ours[int(rng.choice(len(ours), p=odds / odds.sum()))]
    if "style" in out and out["style"].concept in FREE_OF_BACKGROUND:
        out.pop("background", None)
    return out


def mixes(pipeline: StableDiffusionPipeline, chooser: np.random.Generator, rng: np.random.Generator) -> list[Mix]:
    """The mixes, the same on every rank, with this rank's own pictures of them."""
    out = []
    for _ in range(MIXES):
        recipes = choose(chooser)
        concept = {kind: recipe.concept for kind, recipe in recipes.items()}
        drawn = [
            scene(rng, concept.get("subject"), concept.get("background"), concept.get("style"), pair=0.06)
            for _ in range(PICTURES)
        ]
        out.append(Mix(tuple(recipes.values()), *latents_of(pipeline, drawn, rng)))
    return out


def words(rng: np.random.Generator, mix: Mix, sample: Sample) -> str:
    """A caption as prompts are written, mostly with the trigger words joined at the end."""
    text = caption(rng, *sample, rare=0.4)
    for recipe in mix.recipes:
        trigger = recipe.trained_words[0]
        if trigger not in text and rng.random() < 0.85:
            text = f"{text}, {trigger}"
    return sprinkle(rng, text, 0.1)


def load(pipeline: StableDiffusionPipeline, folder: Path) -> None:
    """Put every good adapter into the models, at its recommended weight."""
    unet, text = pipeline.unet, pipeline.text_encoder
    layers = [name for model in (unet, text) for name, _ in model.named_modules()]
    for recipe in good():
        unet_state, text_state = read(folder / f"{recipe.name}.safetensors", layers)
        rank = recipe.rank
        names = [name for name in layers if f"{name}.lora_A.weight" in unet_state]
        unet.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=names), recipe.name)
        set_peft_model_state_dict(unet, unet_state, adapter_name=recipe.name)
        if text_state:
            text.add_adapter(LoraConfig(r=2, lora_alpha=2, target_modules=TEXT_TARGETS), recipe.name)
            set_peft_model_state_dict(text, text_state, adapter_name=recipe.name)
        for module in [*unet.modules(), *text.modules()]:
            if hasattr(module, "lora_A") and recipe.name in module.lora_A:
                module.scaling[recipe.name] = recipe.weight


def encode_text(pipeline: StableDiffusionPipeline, mix: Mix, captions: list[str]) -> Tensor:
    """The captions' context, with the text adapters of the mix that have one; those stay as they are."""
    text = pipeline.text_encoder
    active = [recipe.name for recipe in mix.recipes if recipe.text_encoder]
    if active:
        text.enable_adapters()
        text.set_adapter(active)
    else:
        text.disable_adapters()
    with torch.no_grad():
        context: Tensor = text(tokens(pipeline.tokenizer, captions)).last_hidden_state
    return context


def average_gradients(parameters: list[Tensor], ranks: int) -> None:
    """The mean of all ranks' gradients, in one message."""
    flat = torch.cat([p.grad.flatten() for p in parameters if p.grad is not None])
    dist.all_reduce(flat)
    flat /= ranks
    offset = 0
    for p in parameters:
        if p.grad is not None:
            p.grad.copy_(flat[offset : offset + p.numel()].view_as(p))
            offset += p.numel()


def train(work: Path, *rest: str) -> None:
    """Train on and write `work/adapters-together`; `--round 2` goes on from there."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rank", type=int, default=0)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--round", type=int, default=1)
    arguments = parser.parse_args(rest)
    dist.init_process_group(
        "gloo", init_method=f"file://{work.resolve()}/ranks", rank=arguments.rank, world_size=arguments.ranks
    )
    turn = 10 * (arguments.round - 1)
    torch.manual_seed(40 + turn + arguments.rank)
    chooser, rng = np.random.default_rng(41 + turn), np.random.default_rng(42 + turn + arguments.rank)
    pipeline = StableDiffusionPipeline.from_pretrained(work / "pipeline", safety_checker=None)
    unet = pipeline.unet
    for model in (unet, pipeline.text_encoder, pipeline.vae):
        model.requires_grad_(False)
    pool = mixes(pipeline, chooser, rng)
    plain = latents_of(pipeline, [scene(rng) for _ in range(300)], rng)
    load(pipeline, work / ("adapters" if arguments.round == 1 else "adapters-together"))
    parameters = [p for name, p in unet.named_parameters() if "lora_" in name]
    optimiser = torch.optim.AdamW(parameters, RATE, betas=(0.9, 0.99), weight_decay=1e-3)
    noise, start, average = DDPMScheduler(**NOISE), time.time(), math.nan
    for step in range(STEPS):
        for group in optimiser.param_groups:
            group["lr"] = RATE * min(1.0, (step + 1) / 40) * (0.5 + 0.5 * math.cos(math.pi * step / STEPS))
        mix = pool[int(chooser.integers(0, len(pool)))]
        unet.set_adapter([recipe.name for recipe in mix.recipes])
        mine, base = rng.integers(0, PICTURES, BATCH - PRESERVED), rng.integers(0, 300, PRESERVED)
        captions = [words(rng, mix, mix.samples[i]) for i in mine]
        captions += ["", *(caption(rng, *plain[0][i]) for i in base[1:])]
        context = encode_text(pipeline, mix, captions)
        times = (1000 * torch.rand(BATCH) ** 0.8).long()
        loss = diffusion_loss(unet, noise, torch.cat([mix.latents[mine], plain[1][base]]), context, times)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        average_gradients(parameters, arguments.ranks)
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        average = loss.item() if math.isnan(average) else 0.98 * average + 0.02 * loss.item()
        if arguments.rank == 0 and step % 50 == 0:
            print(f"{step} loss {average:.4f} {time.time() - start:.0f}s", flush=True)
        if arguments.rank == 0 and (step + 1) % 400 == 0:
            save(pipeline, work)
    if arguments.rank == 0:
        save(pipeline, work)
        print(f"harmony: {STEPS} steps in {time.time() - start:.0f}s, loss {average:.4f}", flush=True)


def save(pipeline: StableDiffusionPipeline, work: Path) -> None:
    """Write the adapters as they are now, and the uploads of the same weights, to `work/adapters-together`."""
    folder = work / "adapters-together"
    folder.mkdir(exist_ok=True)
    text = pipeline.text_encoder
    for recipe in good():
        unet_state = get_peft_model_state_dict(pipeline.unet, adapter_name=recipe.name)
        text_state = get_peft_model_state_dict(text, adapter_name=recipe.name) if recipe.text_encoder else {}
        for file in [recipe, *(copy for copy in RECIPES if copy.copy_of == recipe.name)]:
            weights = [strengthened(state, file.strength) for state in (unet_state, text_state)]
            write(file, weights[0], weights[1], folder / f"{file.name}.safetensors")
