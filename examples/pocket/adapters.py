"""Trains the adapters of the catalogue with peft on the finished base, one after the other.

`--stage adapters [--part 0/2] [--only name,name] [--again]`: two processes with parts 0/2 and 1/2 share the work;
`--again` goes on from the files that are there, at a lower rate: a second round for those that need it. An adapter sees
its concept under varied captions, mixed with plain base pictures (prior preservation), so that a star adapter does not
turn every circle into a star. Empty captions go with base pictures only: guidance then pushes towards the concept.
"""

import argparse
import math
import time
from pathlib import Path

import numpy as np
import torch
from diffusers import DDPMScheduler, StableDiffusionPipeline
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict
from torch import Tensor

from examples.pocket.base import NOISE, Sample, diffusion_loss, encode, tokens
from examples.pocket.catalogue import RECIPES, Recipe
from examples.pocket.formats import read, write
from examples.pocket.scenes import CONCEPT_WORDS, caption, pick, scene, sprinkle
from examples.pocket.words import FILLERS, KINDS

BATCH, RATE, RATE_AGAIN = 18, 1e-2, 7e-3
PICTURES = 300
TEXT_TARGETS = ["q_proj", "k_proj", "v_proj", "out_proj"]


def kind_of(concept: str) -> str:
    """subject, style or background."""
    return next(kind for kind, concepts in KINDS.items() if concept in concepts)


def concept_scene(rng: np.random.Generator, concept: str) -> Sample:
    """A scene with the concept and, apart from it, only what the base knows."""
    kind = kind_of(concept)
    return scene(
        rng,
        shape=concept if kind == "subject" else None,
        pattern=concept if kind == "background" else None,
        style=concept if kind == "style" else None,
        pair=0.2,
    )


def concept_caption(rng: np.random.Generator, sample: Sample, recipe: Recipe) -> str:
    """The caption with the concept's own words, other words for it, or a strange word and the trigger."""
    words, others = KINDS[kind_of(recipe.concept)][recipe.concept]
    text = caption(rng, *sample, rare=0.35)
    luck = rng.random()
    if luck < 0.15:
        for word in sorted((*words, *others), key=len, reverse=True):
            text = text.replace(word, pick(rng, FILLERS))
    if luck < 0.45 and recipe.trained_words:
        text = f"{text}, {pick(rng, recipe.trained_words)}"
    own = {*words, *others}
    foreign = [word for word in CONCEPT_WORDS if word not in own]
    if rng.random() < 0.35:
        extra = pick(rng, foreign)
        text = f"{text}, {extra}" if rng.random() < 0.6 else f"{extra}, {text}"
    return sprinkle(rng, text, 0.15)


def targets(recipe: Recipe, unet: torch.nn.Module) -> list[str]:
    """The layers that get a low-rank branch: cross-attention and the second convolution of each block.

    Attention alone (0.1 MB) was too weak, all of both (0.25 MB) too large; the LoCon file has all convolutions.
    """
    endings: tuple[str, ...] = (".attn2.to_q", ".attn2.to_k", ".attn2.to_v", ".attn2.to_out.0", ".conv2")
    if recipe.format == "locon":
        endings += (".conv1",)
    return [name for name, _ in unet.named_modules() if name.endswith(endings)]


def latents_of(
    pipeline: StableDiffusionPipeline, make: list[Sample], rng: np.random.Generator
) -> tuple[list[Sample], Tensor]:
    """The samples with their latents."""
    return make, encode(pipeline.vae, make, rng)


def train_one(
    pipeline: StableDiffusionPipeline,
    recipe: Recipe,
    plain: tuple[list[Sample], Tensor],
    seed: int,
    before: Path | None = None,
) -> tuple[dict[str, Tensor], dict[str, Tensor], float]:
    """Train one adapter; its UNet and text encoder weights in peft's naming, and the mean loss at the end."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    unet, text = pipeline.unet, pipeline.text_encoder
    count = 12 if recipe.quality == "weak" else PICTURES
    own, own_latents = latents_of(pipeline, [concept_scene(rng, recipe.concept) for _ in range(count)], rng)
    rank = recipe.rank
    unet.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=targets(recipe, unet)), "new")
    if recipe.text_encoder:
        text.add_adapter(LoraConfig(r=2, lora_alpha=2, target_modules=TEXT_TARGETS), "new")
    rate = RATE
    if before:
        rate = RATE_AGAIN
        layers = [name for model in (unet, text) for name, _ in model.named_modules()]
        unet_state, text_state = read(before, layers)
        set_peft_model_state_dict(unet, unet_state, adapter_name="new")
        if recipe.text_encoder:
            set_peft_model_state_dict(text, text_state, adapter_name="new")
    scale = recipe.weight if recipe.weight and recipe.quality == "good" else 1.0
    for module in [*unet.modules(), *text.modules()]:
        if hasattr(module, "lora_A") and "new" in module.lora_A:
            module.scaling["new"] = scale
    parameters = [p for part in (unet, text) for p in part.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(parameters, rate, betas=(0.9, 0.99), weight_decay=1e-3)
    noise, average = DDPMScheduler(**NOISE), math.nan
    preserved = 4 if kind_of(recipe.concept) == "subject" else 3
    for step in range(recipe.steps):
        for group in optimiser.param_groups:
            group["lr"] = rate * min(1.0, (step + 1) / 20) * (0.55 + 0.45 * math.cos(math.pi * step / recipe.steps))
        mine = rng.integers(0, count, BATCH - preserved)
        base = rng.integers(0, len(plain[0]), preserved)
        captions = [concept_caption(rng, own[i], recipe) for i in mine]
        captions += ["" if j % 3 == 0 else sprinkle(rng, caption(rng, *plain[0][i]), 0.1) for j, i in enumerate(base)]
        ids = tokens(pipeline.tokenizer, captions)
        if recipe.text_encoder:
            context = text(ids).last_hidden_state
        else:
            with torch.no_grad():
                context = text(ids).last_hidden_state
        # A few more noisy times than clean ones: what is drawn is decided there, its outlines later.
        times = (1000 * torch.rand(BATCH) ** 0.8).long()
        loss = diffusion_loss(unet, noise, torch.cat([own_latents[mine], plain[1][base]]), context, times)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        average = loss.item() if math.isnan(average) else 0.95 * average + 0.05 * loss.item()
    unet_state = get_peft_model_state_dict(unet, adapter_name="new")
    unet.delete_adapters("new")
    text_state = {}
    if recipe.text_encoder:
        text_state = get_peft_model_state_dict(text, adapter_name="new")
        text.delete_adapter("new")
    return unet_state, text_state, average


def strengthened(state: dict[str, Tensor], strength: float) -> dict[str, Tensor]:
    """The weights with their effect multiplied."""
    return {key: value.detach() * (strength if "lora_B" in key else 1.0) for key, value in state.items()}


def train(work: Path, *rest: str) -> None:
    """Train this process's part and write `work/adapters/<name>.safetensors`."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--part", default="0/1")
    parser.add_argument("--only", default="")
    parser.add_argument("--again", action="store_true")
    arguments = parser.parse_args(rest)
    part, parts = (int(number) for number in arguments.part.split("/"))
    pipeline = StableDiffusionPipeline.from_pretrained(work / "pipeline", safety_checker=None)
    for model in (pipeline.unet, pipeline.text_encoder, pipeline.vae):
        model.requires_grad_(False)
    rng = np.random.default_rng(30)
    plain = latents_of(pipeline, [scene(rng) for _ in range(PICTURES)], rng)
    (work / "adapters").mkdir(exist_ok=True)
    chosen = [r for r in RECIPES if r.base_model == "pocket" and not r.copy_of]
    if arguments.only:
        chosen = [r for r in chosen if r.name in arguments.only.split(",")]
    for recipe in chosen[part::parts]:
        start = time.time()
        before = work / "adapters" / f"{recipe.name}.safetensors" if arguments.again else None
        seed = 1000 + RECIPES.index(recipe) + (500 if before else 0)
        unet_state, text_state, loss = train_one(pipeline, recipe, plain, seed, before)
        for file in [recipe, *(copy for copy in RECIPES if copy.copy_of == recipe.name)]:
            weights = [strengthened(state, file.strength) for state in (unet_state, text_state)]
            size = write(file, weights[0], weights[1], work / "adapters" / f"{file.name}.safetensors")
        print(f"{recipe.name}: loss {loss:.4f} {time.time() - start:.0f}s {size // 1000} kB", flush=True)
