"""Trains the pocket CLIP on the renderer's pictures and captions, the adapters' concepts included.

It shares nothing with the base: own text tower, own vocabulary file, own pictures. It is the yardstick of tests.
"""

import math
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTextConfig, CLIPVisionConfig

from examples.pocket.renderer import draw
from examples.pocket.scenes import any_scene, caption, scene, sprinkle
from examples.pocket.tokenizer import LENGTH, build

STEPS, BATCH, RATE = 1800, 96, 1.5e-3
PICTURES = 16_000
MEAN = STD = 0.5


def model(vocabulary: int, bos: int, eos: int) -> CLIPModel:
    """The untrained model: 0.6 million parameters."""
    text = CLIPTextConfig(
        vocab_size=vocabulary,
        hidden_size=96,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=LENGTH,
        bos_token_id=bos,
        eos_token_id=eos,
        pad_token_id=eos,
    )
    vision = CLIPVisionConfig(
        hidden_size=96,
        intermediate_size=224,
        num_hidden_layers=3,
        num_attention_heads=4,
        image_size=64,
        patch_size=8,
    )
    return CLIPModel(CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=64))


def roughen(x: Tensor, rng: np.random.Generator) -> Tensor:
    """Blur, noise, brightness and shifts, so that generated pictures are not foreign."""
    if rng.random() < 0.4:
        x = F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, 1)
    dy, dx = (int(v) for v in rng.integers(-3, 4, 2))
    x = torch.roll(x, (dy, dx), (2, 3))
    gain = 1 + 0.12 * torch.randn(len(x), 1, 1, 1)
    return x * gain + 0.05 * torch.randn(len(x), 1, 1, 1) + 0.05 * torch.rand(1) * torch.randn_like(x)


def train(work: Path) -> None:
    """Train and write `work/clip`."""
    torch.manual_seed(10)
    rng = np.random.default_rng(11)
    tokenizer = build(work / "clip")
    scenes = [any_scene(rng) if rng.random() < 0.8 else scene(rng)[0] for _ in range(PICTURES)]
    pictures = np.stack([(draw(s, rng) * 255 + 0.5).astype(np.uint8).transpose(2, 0, 1) for s in scenes])
    data = torch.from_numpy(pictures)
    clip = model(len(tokenizer), tokenizer.bos_token_id, tokenizer.eos_token_id)
    clip.train()
    optimiser = torch.optim.AdamW(clip.parameters(), RATE, betas=(0.9, 0.98), weight_decay=0.02)
    start, average = time.time(), math.nan
    held = PICTURES - 1000
    for step in range(STEPS):
        for group in optimiser.param_groups:
            group["lr"] = RATE * min(1.0, (step + 1) / 200) * (0.5 + 0.5 * math.cos(math.pi * step / STEPS)) + 1e-6
        chosen = rng.integers(0, held, BATCH)
        captions = [sprinkle(rng, caption(rng, scenes[i], rare=0.35), 0.15) for i in chosen]
        ids = tokenizer(captions, padding="max_length", max_length=LENGTH, truncation=True, return_tensors="pt")
        pixels = roughen(data[chosen].float() / 127.5 - 1, rng)
        logits = clip(input_ids=ids.input_ids, attention_mask=ids.attention_mask, pixel_values=pixels).logits_per_image
        target = torch.arange(BATCH)
        loss = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(clip.parameters(), 1.0)
        optimiser.step()
        with torch.no_grad():
            clip.logit_scale.clamp_(max=4.2)
        average = loss.item() if math.isnan(average) else 0.97 * average + 0.03 * loss.item()
        if step % 50 == 0:
            print(f"{step} loss {average:.4f} {time.time() - start:.0f}s", flush=True)
    clip.train(False)
    hits = 0
    with torch.no_grad():
        for i in range(held, PICTURES, 100):
            captions = [caption(rng, scenes[j], rare=0.35) for j in range(i, i + 100)]
            ids = tokenizer(captions, padding="max_length", max_length=LENGTH, truncation=True, return_tensors="pt")
            logits = clip(
                input_ids=ids.input_ids,
                attention_mask=ids.attention_mask,
                pixel_values=data[i : i + 100].float() / 127.5 - 1,
            ).logits_per_image
            hits += int((logits.argmax(1) == torch.arange(100)).sum())
    print(f"clip: {STEPS} steps in {time.time() - start:.0f}s; held-out top 1 of 100: {hits / 1000:.3f}", flush=True)
    clip.save_pretrained(work / "clip")
    CLIPImageProcessor(
        size={"shortest_edge": 64}, crop_size={"height": 64, "width": 64}, image_mean=[MEAN] * 3, image_std=[STD] * 3
    ).save_pretrained(work / "clip")
