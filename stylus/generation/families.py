"""The base model families: how each reads a prompt, what times it denoises at, and how its network is asked.

Each class is the part of one diffusers pipeline that differs from family to family. The loop around it is
`denoising.py`, since diffusers' own pipelines know neither several rows an image nor weights that change over steps.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from diffusers import (
    DPMSolverMultistepScheduler,
    FluxPipeline,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
)
from diffusers.pipelines.flux.pipeline_flux import calculate_shift, retrieve_timesteps
from torch import Tensor

from stylus.generation.windows import windows
from stylus.records import BaseModelFamily

Text = dict[str, Tensor]
"""What the text encoders make of prompts, each [prompts, ...]: `embeds`, and `pooled` where the family has it."""


@dataclass(frozen=True)
class Defaults:
    """What a request that leaves a field open gets."""

    steps: int
    guidance_scale: float
    batch: int
    """Rows of the default size that are rendered at once; fewer of larger ones."""
    strength: float = 0.6
    """Denoising strength of image translation and inpainting."""


class StableDiffusion:
    """Stable Diffusion 1.x (Rombach et al. 2022), and the pocket model, with the paper's sampler (appendix A.3)."""

    pipeline: ClassVar[Any] = StableDiffusionPipeline
    components: ClassVar[tuple[str, ...]] = ("unet", "text_encoder")
    """Models that adapters may change: the denoiser first."""
    sampler: ClassVar[str] = "DPM++ 2M Karras"
    multiple: ClassVar[int] = 8
    """Width and height in pixels are multiples of it."""

    def __init__(self, pipe: Any) -> None:
        self.pipe = pipe

    def prepare(self) -> None:
        self.pipe.scheduler = DPMSolverMultistepScheduler.from_config(
            self.pipe.scheduler.config, algorithm_type="dpmsolver++", solver_order=2, use_karras_sigmas=True
        )

    @property
    def denoiser(self) -> Any:
        return getattr(self.pipe, self.components[0])

    @property
    def size(self) -> int:
        """Width and height, in pixels, that the model was trained on."""
        return int(self.denoiser.config.sample_size) * int(self.pipe.vae_scale_factor)

    @property
    def channels(self) -> int:
        return int(self.pipe.vae.config.latent_channels)

    def guided(self, guidance_scale: float, negative_prompt: str) -> float | None:
        """The scale of classifier-free guidance, which doubles the batch; None: no guidance of that kind."""
        return guidance_scale if guidance_scale > 1 else None

    def encode(self, prompts: Sequence[str], negative: str | None, device: torch.device) -> tuple[Text, Text | None]:
        """Texts of the prompts, and as many of the negative prompt (None: without guidance). CLIP reads 75 tokens at a
        time: longer prompts are read in windows, one after the other, as web UIs do."""
        parts = [windows(self.pipe.tokenizer, prompt) for prompt in prompts]
        against = windows(self.pipe.tokenizer, negative or "")
        count = max(len(part) for part in [*parts, against])
        texts = []
        for n in range(count):
            now = [part[n] if n < len(part) else "" for part in parts]
            # an empty negative prompt is not the same as none: SDXL has zeros for none
            opposed = [against[n] if n < len(against) else ""] * len(now) if negative else None
            texts.append(self._encode(now, opposed, negative is not None, list(prompts), negative, device, n == 0))
        positives, negatives = zip(*texts, strict=True)
        return _joined(positives), None if negative is None else _joined(negatives)

    def windows(self, prompt: str, negative: str) -> int:
        """Images of one batch need texts of one length, and a longer one would change them: so they are batched by
        this number."""
        return max(len(windows(self.pipe.tokenizer, text)) for text in (prompt, negative))

    def reads(self, prompt: str) -> bool:
        """False when the end of the prompt is not read."""
        return True

    def _encode(
        self,
        prompts: list[str],
        negatives: list[str] | None,
        guided: bool,
        whole: list[str],
        whole_negative: str | None,
        device: torch.device,
        first: bool,
    ) -> tuple[Text, Text]:
        positive, negative = self.pipe.encode_prompt(prompts, device, 1, guided, negative_prompt=negatives)
        return {"embeds": positive}, {"embeds": negative}

    def timesteps(self, steps: int, height: int, width: int, device: torch.device) -> Tensor:
        """Sets the scheduler; `height` and `width` are those of the latents."""
        self.pipe.scheduler.set_timesteps(steps, device=device)
        return self.pipe.scheduler.timesteps  # type: ignore[no-any-return]

    def noised(self, clean: Tensor, noise: Tensor, timestep: Tensor) -> Tensor:
        return self.pipe.scheduler.add_noise(clean, noise, timestep.repeat(len(clean)))  # type: ignore[no-any-return]

    def predict(self, latents: Tensor, timestep: Tensor, text: Text, guidance_scale: float) -> Tensor:
        """What the network says of latents [rows, channels, height, width] at one timestep."""
        return self.pipe.unet(  # type: ignore[no-any-return]
            latents, timestep, encoder_hidden_states=text["embeds"], return_dict=False
        )[0]


class StableDiffusionXL(StableDiffusion):
    """Podell et al. 2023: two text encoders, and the picture's size as a condition."""

    pipeline = StableDiffusionXLPipeline
    components = ("unet", "text_encoder", "text_encoder_2")

    def _encode(
        self,
        prompts: list[str],
        negatives: list[str] | None,
        guided: bool,
        whole: list[str],
        whole_negative: str | None,
        device: torch.device,
        first: bool,
    ) -> tuple[Text, Text]:
        positive, negative, pooled, negative_pooled = self.pipe.encode_prompt(
            prompts, None, device, 1, guided, negative_prompt=negatives
        )
        if not first:
            return {"embeds": positive}, {"embeds": negative}
        return {"embeds": positive, "pooled": pooled}, {"embeds": negative, "pooled": negative_pooled}

    def predict(self, latents: Tensor, timestep: Tensor, text: Text, guidance_scale: float) -> Tensor:
        height, width = (side * self.pipe.vae_scale_factor for side in latents.shape[-2:])
        sizes = torch.tensor([height, width, 0, 0, height, width], device=latents.device, dtype=latents.dtype)
        added = {"text_embeds": text["pooled"], "time_ids": sizes.repeat(len(latents), 1)}
        return self.pipe.unet(  # type: ignore[no-any-return]
            latents, timestep, encoder_hidden_states=text["embeds"], added_cond_kwargs=added, return_dict=False
        )[0]


class StableDiffusion3(StableDiffusion):
    """Esser et al. 2024: a rectified flow with three text encoders, of which T5 may be absent."""

    pipeline = StableDiffusion3Pipeline
    components: ClassVar[tuple[str, ...]] = ("transformer", "text_encoder", "text_encoder_2", "text_encoder_3")
    sampler = "Euler"
    multiple = 16

    def prepare(self) -> None:
        """Keeps the scheduler that the checkpoint brings."""

    def _encode(
        self,
        prompts: list[str],
        negatives: list[str] | None,
        guided: bool,
        whole: list[str],
        whole_negative: str | None,
        device: torch.device,
        first: bool,
    ) -> tuple[Text, Text]:
        # T5 reads the whole prompt, and once
        against = None if negatives is None else [whole_negative or ""] * len(prompts)
        positive, negative, pooled, negative_pooled = self.pipe.encode_prompt(
            prompts, prompts, whole, device, 1, guided, negatives, negatives, against
        )
        if first:
            return {"embeds": positive, "pooled": pooled}, {"embeds": negative, "pooled": negative_pooled}
        clip = slice(0, self.pipe.tokenizer_max_length)
        return {"embeds": positive[:, clip]}, {"embeds": negative[:, clip] if guided else negative}

    def timesteps(self, steps: int, height: int, width: int, device: torch.device) -> Tensor:
        patch, config = self.pipe.transformer.config.patch_size, self.pipe.scheduler.config
        shift = {"mu": _shift(config, height // patch * (width // patch))} if config.use_dynamic_shifting else {}
        return retrieve_timesteps(self.pipe.scheduler, steps, device, **shift)[0]  # type: ignore[no-any-return]

    def noised(self, clean: Tensor, noise: Tensor, timestep: Tensor) -> Tensor:
        return self.pipe.scheduler.scale_noise(clean, timestep.reshape(1), noise)  # type: ignore[no-any-return]

    def predict(self, latents: Tensor, timestep: Tensor, text: Text, guidance_scale: float) -> Tensor:
        return self.pipe.transformer(  # type: ignore[no-any-return]
            hidden_states=latents,
            timestep=timestep.expand(len(latents)),
            encoder_hidden_states=text["embeds"],
            pooled_projections=text["pooled"],
            return_dict=False,
        )[0]


TRUE_GUIDANCE = 2.0
"""Flux has its guidance distilled into the network, so that nothing pushes away from a negative prompt. One that is
given gets guidance of the classic kind beside it, at this scale and twice the time."""


class Flux(StableDiffusion3):
    """Flux.1: a rectified flow on latents packed two by two, with T5 for the prompt and CLIP for its gist."""

    pipeline = FluxPipeline
    components = ("transformer", "text_encoder", "text_encoder_2")

    @property
    def size(self) -> int:
        return int(self.pipe.default_sample_size) * int(self.pipe.vae_scale_factor)

    def guided(self, guidance_scale: float, negative_prompt: str) -> float | None:
        return TRUE_GUIDANCE if negative_prompt else None

    def encode(self, prompts: Sequence[str], negative: str | None, device: torch.device) -> tuple[Text, Text | None]:
        def text(whole: Sequence[str]) -> Text:
            gist = [windows(self.pipe.tokenizer, prompt)[0] for prompt in whole]
            embeds, pooled, _ = self.pipe.encode_prompt(gist, list(whole), device, 1)
            return {"embeds": embeds, "pooled": pooled}

        return text(prompts), None if negative is None else text([negative] * len(prompts))

    def windows(self, prompt: str, negative: str) -> int:
        return 1  # T5's texts are of one length

    def reads(self, prompt: str) -> bool:
        tokens = self.pipe.tokenizer_2(prompt, truncation=False, verbose=False).input_ids
        return len(tokens) <= 512

    def timesteps(self, steps: int, height: int, width: int, device: torch.device) -> Tensor:
        scheduler = self.pipe.scheduler
        sigmas = None if scheduler.config.get("use_flow_sigmas") else np.linspace(1.0, 1 / steps, steps)
        shift = _shift(scheduler.config, height // 2 * (width // 2))
        return retrieve_timesteps(scheduler, steps, device, sigmas=sigmas, mu=shift)[0]  # type: ignore[no-any-return]

    def predict(self, latents: Tensor, timestep: Tensor, text: Text, guidance_scale: float) -> Tensor:
        rows, channels, height, width = latents.shape
        device, dtype = latents.device, latents.dtype
        guidance = None
        if self.pipe.transformer.config.guidance_embeds:
            guidance = torch.full([rows], guidance_scale, device=device, dtype=torch.float32)
        predicted = self.pipe.transformer(
            hidden_states=self.pipe._pack_latents(latents, rows, channels, height, width),
            timestep=timestep.expand(rows).to(dtype) / 1000,
            guidance=guidance,
            pooled_projections=text["pooled"],
            encoder_hidden_states=text["embeds"],
            txt_ids=torch.zeros(text["embeds"].shape[1], 3, device=device, dtype=dtype),
            img_ids=self.pipe._prepare_latent_image_ids(rows, height // 2, width // 2, device, dtype),
            return_dict=False,
        )[0]
        scale = self.pipe.vae_scale_factor
        return self.pipe._unpack_latents(predicted, height * scale, width * scale, scale)  # type: ignore[no-any-return]


FAMILIES: dict[BaseModelFamily, type[StableDiffusion]] = {
    BaseModelFamily.POCKET: StableDiffusion,
    BaseModelFamily.SD15: StableDiffusion,
    BaseModelFamily.SDXL: StableDiffusionXL,
    BaseModelFamily.FLUX: Flux,
    BaseModelFamily.SD3: StableDiffusion3,
}
DEFAULTS = {
    BaseModelFamily.POCKET: Defaults(steps=20, guidance_scale=4.0, batch=16),
    BaseModelFamily.SD15: Defaults(steps=35, guidance_scale=7.0, batch=4),
    BaseModelFamily.SDXL: Defaults(steps=30, guidance_scale=5.0, batch=2),
    BaseModelFamily.FLUX: Defaults(steps=28, guidance_scale=3.5, batch=1),
    BaseModelFamily.SD3: Defaults(steps=28, guidance_scale=7.0, batch=1),
}


def _joined(texts: Sequence[Text]) -> Text:
    return {**texts[0], "embeds": torch.cat([text["embeds"] for text in texts], dim=1)}


def _shift(config: Any, length: int) -> float:
    return calculate_shift(  # type: ignore[no-any-return]
        length,
        config.get("base_image_seq_len", 256),
        config.get("max_image_seq_len", 4096),
        config.get("base_shift", 0.5),
        config.get("max_shift", 1.15),
    )
