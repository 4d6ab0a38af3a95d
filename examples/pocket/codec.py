"""Trains the AutoencoderKL: 64x64 pictures to 8x8 latents with 12 channels and back.

It sees the adapters' concepts too (it is only a codec); the UNet and the text encoder never do. With 8 latent channels
details came too slowly, so a second phase goes on with 12, started from the first phase's weights. At the end each
latent channel's mean and spread are folded into the 1x1 convolutions beside the latents: the scaling factor is 1.
"""

import math
import time
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor
from torch.nn import functional as F

from examples.pocket.renderer import draw
from examples.pocket.scenes import any_scene, scene

BATCH = 16
CHANNELS = 12
# Latent channels, steps to take, steps that the cosine is laid out for, learning rate.
PHASES = ((8, 3000, 4200, 2e-3), (CHANNELS, 2200, 2200, 1.4e-3))
PICTURES = 20_000
KL = 3e-4


def pictures(count: int, seed: int) -> Tensor:
    """uint8 [count, 3, 64, 64]; six in ten with concepts of adapters."""
    rng = np.random.default_rng(seed)
    out = np.empty((count, 3, 64, 64), np.uint8)
    for i in range(count):
        drawn = any_scene(rng) if rng.random() < 0.6 else scene(rng)[0]
        out[i] = (draw(drawn, rng) * 255 + 0.5).astype(np.uint8).transpose(2, 0, 1)
    return torch.from_numpy(out)


def model(channels: int = CHANNELS) -> AutoencoderKL:
    """The untrained codec."""
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(16, 32, 64, 96),
        layers_per_block=1,
        latent_channels=channels,
        norm_num_groups=8,
        sample_size=64,
        scaling_factor=1.0,
        mid_block_add_attention=False,
    )


def edges(x: Tensor, y: Tensor) -> Tensor:
    """How differently two pictures change from pixel to pixel."""
    return F.l1_loss(x.diff(dim=-1), y.diff(dim=-1)) + F.l1_loss(x.diff(dim=-2), y.diff(dim=-2))


@torch.no_grad()
def normalise(vae: AutoencoderKL, sample: Tensor) -> None:
    """Fold each channel's mean and spread into `quant_conv` and `post_quant_conv`."""
    latents = torch.cat([vae.encode(part).latent_dist.mean for part in torch.split(sample, 64)])
    mean, spread = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
    into, out = vae.quant_conv, vae.post_quant_conv
    channels = len(mean)
    into.weight[:channels] /= spread[:, None, None, None]
    into.bias[:channels] = (into.bias[:channels] - mean) / spread
    into.bias[channels:] -= 2 * spread.log()
    out.bias += out.weight[:, :, 0, 0] @ mean
    out.weight *= spread[None, :, None, None]


@torch.no_grad()
def widen(narrow: AutoencoderKL, channels: int) -> AutoencoderKL:
    """The same codec with more latent channels; only the layers next to the latents have new weights."""
    wide = model(channels)
    old, new = narrow.state_dict(), wide.state_dict()
    had = narrow.config.latent_channels
    for name, value in new.items():
        if value.shape == old[name].shape:
            value.copy_(old[name])
    into = [*range(had), *range(channels, channels + had)]
    for name in ("encoder.conv_out.weight", "encoder.conv_out.bias"):
        new[name][into] = old[name]
    # Means may mix, and so may log-variances, as in the narrow codec.
    new["quant_conv.weight"][torch.tensor(into)[:, None], torch.tensor(into)] = old["quant_conv.weight"]
    new["quant_conv.bias"][into] = old["quant_conv.bias"]
    new["post_quant_conv.weight"][:had, :had] = old["post_quant_conv.weight"]
    new["post_quant_conv.bias"][:had] = old["post_quant_conv.bias"]
    new["decoder.conv_in.weight"][:, :had] = old["decoder.conv_in.weight"]
    new["decoder.conv_in.bias"].copy_(old["decoder.conv_in.bias"])
    wide.load_state_dict(new)
    return wide


def fit(vae: AutoencoderKL, data: Tensor, steps: int, span: int, rate: float, start: float) -> None:
    """Train for some steps of a cosine laid out over `span` steps."""
    optimiser = torch.optim.AdamW(vae.parameters(), rate, betas=(0.9, 0.99), weight_decay=1e-4)
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = rate * min(1.0, (step + 1) / 150) * (0.5 + 0.5 * math.cos(math.pi * step / span)) + 1e-5
        x = data[torch.randint(len(data), (BATCH,))].float() / 127.5 - 1
        with torch.autocast("cpu", torch.bfloat16):
            posterior = vae.encode(x).latent_dist
            y = vae.decode(posterior.sample()).sample
        y = y.float()
        kl = posterior.kl().mean() / posterior.mean[0].numel()
        loss = F.l1_loss(y, x) + F.mse_loss(y, x) + 0.5 * edges(y, x) + KL * kl
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimiser.step()
        if step % 100 == 0:
            print(f"{step} l1 {F.l1_loss(y, x):.4f} kl {kl:.2f} loss {loss:.4f} {time.time() - start:.0f}s", flush=True)


def train(work: Path) -> None:
    """Train and write `work/vae`; a finished first phase in `work/vae-1` is taken up again."""
    torch.manual_seed(0)
    data = pictures(PICTURES, seed=1)
    print("rendered", flush=True)
    start = time.time()
    (channels, *first), (wide, *second) = PHASES
    if (work / "vae-1").exists():
        vae = AutoencoderKL.from_pretrained(work / "vae-1").train()
    else:
        vae = model(channels)
        fit(vae, data, int(first[0]), int(first[1]), first[2], start)
        vae.save_pretrained(work / "vae-1")
    vae = widen(vae, wide)
    fit(vae, data, int(second[0]), int(second[1]), second[2], start)
    vae.eval()
    normalise(vae, data[:2000].float() / 127.5 - 1)
    vae.save_pretrained(work / "vae")
    print(f"codec: {time.time() - start:.0f}s", flush=True)
