"""Trains the base: a UNet on the codec's latents together with its CLIP text encoder.

`--round 2` and `3` go on from `work/pipeline` with new pictures: one round leaves outlines half learned.

Its pictures hold base shapes only. Its captions now and then hold words that mean nothing there (the adapters' concept
words among them), so that a word it does not know does not shift what it draws.
"""

import argparse
import math
import time
from pathlib import Path

import numpy as np
import torch
from diffusers import (
    AutoencoderKL,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from diffusers.training_utils import EMAModel
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from examples.pocket.codec import CHANNELS
from examples.pocket.renderer import Scene, draw, sheet
from examples.pocket.scenes import caption, scene, sprinkle
from examples.pocket.tokenizer import LENGTH, build

BATCH = 40
SPANS, STEPS, RATES = (4800, 3200, 4000), (4500, 3200, 4000), (1.5e-3, 7e-4, 6e-4)
"""Of each round: the length of the cosine, the steps taken of it, and the highest rate."""
LATE = (1.0, 1.0, 1.5)
"""Of each round: times are 1000 * uniform ** this. Outlines are decided late, at little noise: uniform times see too
little of that, and squares became pincushions."""
PICTURES = 14_000
NOISE = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.02,
    "beta_schedule": "scaled_linear",
    "prediction_type": "v_prediction",
}
Sample = tuple[Scene, str | None]


def encode(vae: AutoencoderKL, samples: list[Sample], rng: np.random.Generator) -> Tensor:
    """Draw the scenes; their latents, float32 [n, channels, 8, 8]."""
    out = []
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        for i in range(0, len(samples), 100):
            drawn = np.stack([draw(s, rng) for s, _ in samples[i : i + 100]]).transpose(0, 3, 1, 2)
            out.append(vae.encode(torch.from_numpy(drawn) * 2 - 1).latent_dist.mean.float())
    return torch.cat(out)


def text_model(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """The untrained text encoder."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=96,
            intermediate_size=256,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=LENGTH,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def unet_model() -> UNet2DConditionModel:
    """The untrained UNet."""
    return UNet2DConditionModel(
        sample_size=8,
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        block_out_channels=(64, 128),
        layers_per_block=1,
        cross_attention_dim=96,
        attention_head_dim=4,
        norm_num_groups=16,
    )


def tokens(tokenizer: CLIPTokenizer, captions: list[str]) -> Tensor:
    """Token ids [n, LENGTH], the way the pipeline makes them."""
    ids: Tensor = tokenizer(
        captions, padding="max_length", max_length=LENGTH, truncation=True, return_tensors="pt"
    ).input_ids
    return ids


def diffusion_loss(
    unet: torch.nn.Module, noise: DDPMScheduler, latents: Tensor, context: Tensor, times: Tensor | None = None
) -> Tensor:
    """The v-prediction loss, at random times unless told which."""
    eps = torch.randn_like(latents)
    times = torch.randint(0, 1000, (len(latents),)) if times is None else times
    noisy, target = noise.add_noise(latents, eps, times), noise.get_velocity(latents, eps, times)
    return F.mse_loss(unet(noisy, times, context).sample, target)


def pipeline(
    vae: AutoencoderKL, text: CLIPTextModel, tokenizer: CLIPTokenizer, unet: UNet2DConditionModel
) -> StableDiffusionPipeline:
    """The parts as a pipeline with DPM++ 2M Karras."""
    scheduler = DPMSolverMultistepScheduler(
        **NOISE, use_karras_sigmas=True, algorithm_type="dpmsolver++", steps_offset=1
    )
    made = StableDiffusionPipeline(
        vae=vae,
        text_encoder=text,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    made.set_progress_bar_config(disable=True)
    return made


def peek(made: StableDiffusionPipeline, prompts: list[str], path: Path, count: int = 4) -> None:
    """A contact sheet, one row a prompt."""
    pictures = []
    for prompt in prompts:
        generator = torch.Generator().manual_seed(7)
        pictures += made(
            prompt, num_inference_steps=20, guidance_scale=4.0, num_images_per_prompt=count, generator=generator
        ).images
    sheet(pictures, count * 3).save(path)


PEEKS = [
    "a red circle on a blue background",
    "a green square, white background",
    "a yellow star on a purple background",
    "a pink heart",
    "a red circle and a blue square on a white background",
    "a small black ring on yellow",
    "a large teal diamond on a pink background",
    "an orange triangle with a purple hexagon on gray",
    "a kitty on a red background, cat face",
    "a blue oval in neon style",
    "white pill, chequered floor",
    "a purple box",
]


def train(work: Path, *rest: str) -> None:
    """Train and write `work/pipeline`."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--round", type=int, default=1, choices=(1, 2, 3))
    turn = parser.parse_args(rest).round - 1
    span, steps, rate, late = SPANS[turn], STEPS[turn], RATES[turn], LATE[turn]
    torch.manual_seed(turn)
    vae = AutoencoderKL.from_pretrained(work / "vae-sharp").eval()
    rng = np.random.default_rng(2 + 100 * turn)
    samples = [scene(rng) for _ in range(PICTURES)]
    latents = encode(vae, samples, rng)
    print(f"latents: mean {latents.mean():.3f} std {latents.std():.3f}", flush=True)
    if turn:
        before = StableDiffusionPipeline.from_pretrained(work / "pipeline", safety_checker=None)
        tokenizer, unet, text = before.tokenizer, before.unet.train(), before.text_encoder.train()
    else:
        tokenizer, unet = build(work / "tokenizer"), unet_model()
        text = text_model(tokenizer)
    noise = DDPMScheduler(**NOISE)
    parameters = [*unet.parameters(), *text.parameters()]
    ema = EMAModel(parameters, decay=0.999, use_ema_warmup=True, power=0.8)
    optimiser = torch.optim.AdamW(parameters, rate, betas=(0.9, 0.99), weight_decay=1e-2)
    start, average = time.time(), math.nan
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = rate * min(1.0, (step + 1) / 250) * (0.5 + 0.5 * math.cos(math.pi * step / span)) + 1e-6
        chosen = rng.integers(0, PICTURES, BATCH)
        captions = [sprinkle(rng, caption(rng, *samples[i])) if rng.random() > 0.1 else "" for i in chosen]
        context = text(tokens(tokenizer, captions)).last_hidden_state
        times = (1000 * torch.rand(BATCH) ** late).long()
        loss = diffusion_loss(unet, noise, latents[chosen], context, times)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        ema.step(parameters)
        average = loss.item() if math.isnan(average) else 0.98 * average + 0.02 * loss.item()
        if step % 50 == 0:
            print(f"{step} loss {average:.4f} {time.time() - start:.0f}s", flush=True)
        if step and step % 500 == 0:
            ema.store(parameters)
            ema.copy_to(parameters)
            made = pipeline(vae, text, tokenizer, unet)
            made.save_pretrained(work / "pipeline-partial")
            peek(made, PEEKS, work / f"base-{step}.png")
            ema.restore(parameters)
    ema.copy_to(parameters)
    made = pipeline(vae, text, tokenizer, unet)
    made.save_pretrained(work / "pipeline")
    peek(made, PEEKS, work / "base.png")
    print(f"base: {steps} steps in {time.time() - start:.0f}s, loss {average:.4f}", flush=True)
