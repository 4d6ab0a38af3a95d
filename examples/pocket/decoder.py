"""Goes on training the codec's decoder alone, for sharper pictures; the base can train meanwhile."""

import math
import time
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch.nn import functional as F

from examples.pocket.codec import BATCH, edges, pictures

SPAN, STEPS, RATE = 3600, 3000, 1.6e-3
PICTURES = 12_000


def train(work: Path) -> None:
    """Train `work/vae`'s decoder and write the codec to `work/vae-sharp`; its encoder stays as it is."""
    torch.manual_seed(5)
    data = pictures(PICTURES, seed=6)
    vae = AutoencoderKL.from_pretrained(work / "vae")
    vae.requires_grad_(False)
    parts = []
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        for part in torch.split(data, 100):
            parts.append(vae.encode(part.float() / 127.5 - 1).latent_dist.parameters.float())
    mean, logvar = torch.cat(parts).chunk(2, 1)
    spread = (0.5 * logvar.clamp(-30, 20)).exp()
    print("encoded", flush=True)
    trained = [*vae.decoder.parameters(), *vae.post_quant_conv.parameters()]
    for parameter in trained:
        parameter.requires_grad_(True)
    optimiser = torch.optim.AdamW(trained, RATE, betas=(0.9, 0.99), weight_decay=1e-4)
    start, average = time.time(), math.nan
    for step in range(STEPS):
        for group in optimiser.param_groups:
            group["lr"] = RATE * min(1.0, (step + 1) / 150) * (0.5 + 0.5 * math.cos(math.pi * step / SPAN)) + 1e-5
        chosen = torch.randint(len(data), (BATCH,))
        x = data[chosen].float() / 127.5 - 1
        latents = mean[chosen] + spread[chosen] * torch.randn_like(mean[chosen])
        with torch.autocast("cpu", torch.bfloat16):
            y = vae.decode(latents).sample
        y = y.float()
        loss = F.l1_loss(y, x) + F.mse_loss(y, x) + edges(y, x)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimiser.step()
        l1 = F.l1_loss(y, x).item()
        average = l1 if math.isnan(average) else 0.98 * average + 0.02 * l1
        if step % 100 == 0:
            print(f"{step} l1 {average:.4f} {time.time() - start:.0f}s", flush=True)
        if step and step % 1000 == 0:
            vae.save_pretrained(work / "vae-sharp")
    vae.save_pretrained(work / "vae-sharp")
    print(f"decoder: {STEPS} steps in {time.time() - start:.0f}s, l1 {average:.4f}", flush=True)
