"""The denoising loop: text to image, image translation and inpainting, with several rows an image and weights that
change over the steps.

Rows of one image share its latents, and their predictions are averaged (LoRA Composite, arXiv 2402.16843). With one row
an image and constant weights this is the loop of diffusers' own pipelines, and gives their pictures (tests).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from stylus.generation.checkpoints import LoadedPipeline
from stylus.generation.families import Text
from stylus.telemetry import stage


@dataclass(frozen=True)
class Start:
    """What to begin from instead of noise."""

    latents: Tensor
    """[images, channels, height, width]"""
    strength: float
    """Share of the steps that are run, in (0, 1]."""
    mask: Tensor | None = None
    """[1, 1, height, width], 1 where the picture is drawn anew, 0 where it is kept."""


@dataclass(frozen=True)
class Texts:
    """Of each image; `negative` is None without classifier-free guidance."""

    positive: Text
    negative: Text | None
    scale: float
    """Of classifier-free guidance."""


@stage("denoise")
def denoise(
    loaded: LoadedPipeline,
    texts: Texts,
    noise: Tensor,
    image_of_row: Sequence[int],
    steps: int,
    guidance_scale: float,
    start: Start | None,
    before_step: Callable[[int], None],
    after_step: Callable[[int, Tensor], None],
) -> Tensor:
    """Latents [images, channels, height, width] of `noise` of that shape.

    `before_step(step)` is called ahead of the network; `after_step(step, latents)` may raise to end the work. Steps
    count from 0 to `steps`, whatever share of them is run."""
    kind, scheduler = loaded.kind, loaded.pipeline.scheduler
    timesteps = kind.timesteps(steps, noise.shape[-2], noise.shape[-1], noise.device)
    first, latents = 0, noise
    if start is not None:
        first = steps - steps_run(steps, start.strength)
        scheduler.set_begin_index(first)
        if start.mask is None or first > 0:
            latents = kind.noised(start.latents, noise, timesteps[first])
    rows = torch.tensor(image_of_row, device=noise.device)
    text = {name: tensor[rows] for name, tensor in texts.positive.items()}
    if texts.negative is not None:
        # first all rows with the negative prompt, then all with theirs
        text = {name: torch.cat([texts.negative[name][rows], tensor]) for name, tensor in text.items()}
    for step in range(first, steps):
        before_step(step)
        inputs = latents[rows]
        if texts.negative is not None:
            inputs = torch.cat([inputs, inputs])
        predicted = kind.predict(inputs, timesteps[step], text, guidance_scale)
        if texts.negative is not None:
            against, towards = predicted.chunk(2)
            predicted = against + texts.scale * (towards - against)
        predicted = _averaged(predicted, rows, len(noise))
        latents = scheduler.step(predicted, timesteps[step], latents, return_dict=False)[0]
        if start is not None and start.mask is not None:
            last = step + 1 == steps
            known = start.latents if last else kind.noised(start.latents, noise, timesteps[step + 1])
            latents = (1 - start.mask) * known + start.mask * latents
        after_step(step, latents)
    return latents


def steps_run(steps: int, strength: float) -> int:
    """How many of the steps a denoising strength leaves: at least one."""
    return max(1, min(steps, int(steps * strength)))


def _averaged(predicted: Tensor, rows: Tensor, images: int) -> Tensor:
    if len(rows) == images:
        return predicted
    sums = torch.zeros(images, *predicted.shape[1:], device=predicted.device, dtype=predicted.dtype)
    counts = torch.bincount(rows, minlength=images).to(predicted.dtype)
    return sums.index_add(0, rows, predicted) / counts.reshape(-1, *(1,) * (predicted.ndim - 1))
