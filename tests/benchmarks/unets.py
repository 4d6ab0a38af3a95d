"""What the generation benchmarks share: an SD 1.5 UNet of random weights, adapters for it, and a denoising loop.

Random weights cost what trained ones cost. The loop is the sampler alone (DPM++ 2M, no text encoder, no decoder), so
that what is compared is the UNet with its adapters.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import DPMSolverMultistepScheduler, UNet2DConditionModel
from torch import Tensor

from stylus.records import Adapter
from tests.generation import tiny

SD15 = {"cross_attention_dim": 768, "attention_head_dim": 8}
SMALL = {**SD15, "block_out_channels": (32, 64, 64, 64), "norm_num_groups": 8}
RANK = 16


@dataclass(frozen=True)
class World:
    """A device, a UNet there, and inputs of its batch: latents [rows, 4, side, side] and text [rows, 77, 768]."""

    device: torch.device
    unet: Any
    latents: Tensor
    text: Tensor
    steps: int

    def denoise(self, unet: Any, rows: slice = slice(None), before: Callable[[int], None] | None = None) -> Tensor:
        """Latents after `steps` steps; `before(step)` is called ahead of each."""
        # a random UNet predicts no noise; read as velocity, its output leaves latents of a trained one's size
        scheduler = DPMSolverMultistepScheduler(
            beta_schedule="scaled_linear", use_karras_sigmas=True, prediction_type="v_prediction"
        )
        scheduler.set_timesteps(self.steps, device=self.device)
        latents: Tensor = self.latents[rows] * scheduler.init_noise_sigma
        with torch.no_grad():
            for step, timestep in enumerate(scheduler.timesteps):
                if before:
                    before(step)
                noise = unet(latents, timestep, encoder_hidden_states=self.text[rows]).sample
                latents = scheduler.step(noise, timestep, latents).prev_sample
        return latents

    def timed(self, work: Callable[[], Any]) -> float:
        """Seconds of `work`, the device's queue included."""
        self._wait()
        start = time.perf_counter()
        work()
        self._wait()
        return time.perf_counter() - start

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def world(full: bool, small: bool, half: bool, rows: int, side: int, steps: int) -> World:
    """`full`: 64x64 latents on the GPU, where there is one. `small`: a UNet of the same layout and a few channels, to
    try the benchmark itself. `half`: float16."""
    device = torch.device("cuda" if full and torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    with device:
        unet = UNet2DConditionModel(**(SMALL if small else SD15)).eval().requires_grad_(False)
        side = 64 if full else side
        dtype = torch.float16 if half else torch.float32
        latents, text = torch.randn(rows, 4, side, side).to(dtype), torch.randn(rows, 77, 768).to(dtype)
        return World(device, unet.to(dtype), latents, text, steps)


def twin(unet: Any) -> Any:
    """A second UNet on the same weights, not a copy of them: what one wraps, the other doesn't see."""
    with torch.device("meta"):
        other = UNet2DConditionModel.from_config(unet.config)
    other.load_state_dict(unet.state_dict(), assign=True)
    return other.eval().requires_grad_(False)


def write_adapters(unet: Any, folder: Path, count: int) -> list[Adapter]:
    """Random adapters of rank 16 on all attention layers."""
    return [
        tiny.adapter(
            f"style{n}",
            tiny.write(
                folder / f"style{n}.safetensors",
                tiny.dotted(
                    tiny.random_factors({"unet": unet}, seed=n, rank=RANK, keep=tiny.attention),
                    "unet.",
                    "lora_A",
                    "lora_B",
                ),
            ),
        )
        for n in range(count)
    ]
