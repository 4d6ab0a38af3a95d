"""From a request to pictures: text to image by Stable Diffusion (Rombach et al. 2022) with a weight schedule.

Where we differ from running diffusers one image after the other: every image of a batch has its own composition
(`adapters`), prompt (trigger words of masked adapters leave it) and noise (drawn on the CPU from its own seed), so that
an image does not depend on the batch it is rendered in, nor on the kind of device its noise is used on.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32
from PIL import Image
from torch import Tensor

from stylus.errors import GenerationError, NotFound
from stylus.generation.adapters import Resident
from stylus.generation.checkpoints import Checkpoints, LoadedPipeline
from stylus.generation.device_lock import device_lock, lock_path
from stylus.generation.provenance import provenance
from stylus.masks import sample_masks
from stylus.records import Adapter, Mask, OnProgress, Progress, Request, Schedule
from stylus.trigger_words import with_trigger_words
from stylus.weights import merge_schedule


@dataclass(frozen=True)
class Rendered:
    """An image in memory, with what made it."""

    image: Image.Image
    index: int
    """Position in its request, from 0."""
    seed: int
    prompt: str
    """As sent to the text encoder, trigger words included."""
    mask: Mask
    adapters: Mapping[str, float]
    """Adapter id -> effective weight (mean over steps), of those that took part."""
    provenance: Mapping[str, Any]
    seconds: Mapping[str, float]
    """Of the whole request, the same in each of its images: `checkpoint` (0 when already in memory), `load` (adapters)
    and `generate`. Waiting for the device is not counted."""


@dataclass(frozen=True)
class Settled:
    """A request with every open field decided."""

    width: int
    height: int
    steps: int
    guidance_scale: float
    masks: Sequence[Mask]
    schedule: Schedule
    prompts: Sequence[str]


class Generator:
    """Renders requests. Safe to share between threads and processes: they take turns on the device."""

    def __init__(self, checkpoints: Checkpoints) -> None:
        self._checkpoints = checkpoints

    def render(
        self, request: Request, adapters: Mapping[str, Adapter], on_progress: OnProgress | None = None
    ) -> list[Rendered]:
        """The images of `request`, in order: image i uses seed + i. `adapters` holds every chosen adapter by id.

        Reports the stages waiting, loading, generating and decoding; an exception that `on_progress` raises
        (errors.Cancelled) ends the work within a step and leaves everything fit for the next request. Raises NotFound,
        CheckpointError, AdapterFileError (before the first step) and GenerationError."""
        report = on_progress or _ignore
        checkpoints = self._checkpoints
        family = request.composition.base_model
        checkpoints.check(family)
        with device_lock(lock_path(checkpoints.device, checkpoints.settings.data), report):
            seconds = {"checkpoint": time.perf_counter()}
            loaded = checkpoints.open(family)
            seconds["load"] = time.perf_counter()
            settled = settle(request, loaded)
            residents = _load(settled.schedule, adapters, loaded, report)
            seconds["generate"] = time.perf_counter()
            try:
                images = self._render_all(request, settled, residents, loaded, report)
            except torch.OutOfMemoryError as error:
                raise _out_of_memory(request, settled, error) from error
            except RuntimeError as error:
                # the CPU allocator raises plain RuntimeError
                if "can't allocate memory" in str(error) or "not enough memory" in str(error):
                    raise _out_of_memory(request, settled, error) from error
                raise
            finally:
                loaded.adapters.all_off()
            ends = [*seconds.values(), time.perf_counter()]
        spent = {stage: end - start for stage, start, end in zip(seconds, ends, ends[1:], strict=False)}
        return [
            self._rendered(image, index, request, settled, residents, loaded, spent)
            for index, image in enumerate(images)
        ]

    def forget_adapters(self) -> None:
        """Lets go of all adapters in memory, as after a fresh start: for measurements, and to give memory back."""
        checkpoints = self._checkpoints
        with device_lock(lock_path(checkpoints.device, checkpoints.settings.data), _ignore):
            for loaded in checkpoints.loaded():
                loaded.adapters.forget()

    def _render_all(
        self,
        request: Request,
        settled: Settled,
        residents: Mapping[str, Resident],
        loaded: LoadedPipeline,
        report: OnProgress,
    ) -> list[Image.Image]:
        area = max(1, settled.width * settled.height // loaded.size**2)
        at_once = max(1, loaded.defaults.batch // area)
        starts = range(0, request.count, at_once)
        images: list[Image.Image] = []
        for batch, start in enumerate(starts):
            rows = slice(start, min(start + at_once, request.count))
            first, total = batch * settled.steps, len(starts) * settled.steps

            def on_step(done: int, first: int = first, total: int = total) -> None:
                report(Progress(stage="generating", done=first + done, total=total))

            latents = _denoised(request, settled, rows, residents, loaded, on_step)
            report(Progress(stage="decoding", done=rows.stop, total=request.count))
            images += _decoded(latents, request, rows, settled, loaded)
        return images

    def _rendered(
        self,
        image: Image.Image,
        index: int,
        request: Request,
        settled: Settled,
        residents: Mapping[str, Resident],
        loaded: LoadedPipeline,
        seconds: Mapping[str, float],
    ) -> Rendered:
        weights = settled.schedule.weights[index].mean(axis=1)
        used = {id: float(weight) for id, weight in zip(settled.schedule.adapters, weights, strict=True) if weight}
        return Rendered(
            image=image,
            index=index,
            seed=request.seed + index,
            prompt=settled.prompts[index],
            mask=settled.masks[index],
            adapters=used,
            provenance=provenance(
                request=request,
                index=index,
                prompt=settled.prompts[index],
                mask=settled.masks[index],
                adapters={id: (residents[id].sha256, weight) for id, weight in used.items()},
                steps=settled.steps,
                guidance_scale=settled.guidance_scale,
                size=image.size,
                loaded=loaded,
            ),
            seconds=seconds,
        )


def settle(request: Request, loaded: LoadedPipeline) -> Settled:
    """Fills the open fields from the checkpoint's defaults; draws the masks; writes each image's prompt."""
    composition = request.composition
    steps = request.steps or loaded.defaults.steps
    masks = sample_masks([len(task.choices) for task in composition.tasks], request.count, request.masks, request.seed)
    schedule = merge_schedule(composition, masks, steps)
    prompts = [
        with_trigger_words(
            composition.prompt,
            [choice for choice, weight in zip(composition.choices, row, strict=True) if weight.any()],
        )
        for row in schedule.weights
    ]
    return Settled(
        width=request.width or loaded.size,
        height=request.height or loaded.size,
        steps=steps,
        guidance_scale=loaded.defaults.guidance_scale if request.guidance_scale is None else request.guidance_scale,
        masks=masks,
        schedule=schedule,
        prompts=prompts,
    )


def _load(
    schedule: Schedule, adapters: Mapping[str, Adapter], loaded: LoadedPipeline, report: OnProgress
) -> dict[str, Resident]:
    """Makes every adapter with a weight in any image resident; the others are not even opened."""
    used = [id for n, id in enumerate(schedule.adapters) if schedule.weights[:, n].any()]
    missing = [id for id in used if id not in adapters]
    if missing:
        raise NotFound(f"adapter {missing[0]} of the composition is not in the catalog; call search_adapters.")
    report(Progress(stage="loading", done=0, total=len(used)))
    return loaded.adapters.load(
        [adapters[id] for id in used],
        lambda done: report(Progress(stage="loading", done=done, total=len(used))),
    )


def _denoised(
    request: Request,
    settled: Settled,
    rows: slice,
    residents: Mapping[str, Resident],
    loaded: LoadedPipeline,
    on_step: Any,
) -> Tensor:
    """Latents [images, channels, height, width] of those images. Raises GenerationError where one isn't finite."""
    places = [settled.schedule.adapters.index(id) for id in residents]
    weights: Float32[np.ndarray, "images n steps"] = settled.schedule.weights[rows][:, places]
    present = list(residents.values())
    pipeline, adapters = loaded.pipeline, loaded.adapters
    guided = settled.guidance_scale > 1
    prompts = list(settled.prompts[rows])

    def switch(step: int) -> None:
        now = weights[:, :, step]
        # guidance doubles the batch: first all images with the negative prompt, then all with theirs
        adapters.switch("unet", present, np.concatenate([now, now]) if guided else now)

    def after_step(_pipeline: Any, step: int, _timestep: Any, _tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        if step + 1 < settled.steps and not np.array_equal(weights[:, :, step], weights[:, :, step + 1]):
            switch(step + 1)
        on_step(step + 1)
        return {}

    with torch.no_grad():
        adapters.switch("text_encoder", present, weights.mean(axis=2))
        positive, negative = pipeline.encode_prompt(
            prompts, loaded.device, 1, guided, negative_prompt=[request.negative_prompt] * len(prompts)
        )
        switch(0)
        on_step(0)
        latents: Tensor = pipeline(
            prompt_embeds=positive,
            negative_prompt_embeds=negative,
            latents=_noise(request.seed, rows, settled, loaded),
            width=settled.width,
            height=settled.height,
            num_inference_steps=settled.steps,
            guidance_scale=settled.guidance_scale,
            callback_on_step_end=after_step,
            callback_on_step_end_tensor_inputs=[],
            output_type="latent",
        ).images
    _check_finite(latents, request, rows, settled)
    return latents


def _noise(seed: int, rows: slice, settled: Settled, loaded: LoadedPipeline) -> Tensor:
    """Standard normal latents, image by image on the CPU: the same on every device and in every batch."""
    shape = (
        loaded.pipeline.unet.config.in_channels,
        settled.height // loaded.pixels_per_latent,
        settled.width // loaded.pixels_per_latent,
    )
    noise = [
        torch.randn(shape, generator=torch.Generator("cpu").manual_seed(seed + index))
        for index in range(rows.start, rows.stop)
    ]
    return torch.stack(noise).to(device=loaded.device, dtype=loaded.dtype)


def _decoded(
    latents: Tensor, request: Request, rows: slice, settled: Settled, loaded: LoadedPipeline
) -> list[Image.Image]:
    """Pictures of latents, one at a time: an image's pixels then don't depend on its neighbours in the decoder."""
    pipeline = loaded.pipeline
    with torch.no_grad():
        pixels = torch.cat(
            [
                pipeline.vae.decode(latent / pipeline.vae.config.scaling_factor, return_dict=False)[0]
                for latent in torch.split(latents, 1)
            ]
        )
    _check_finite(pixels, request, rows, settled)
    images: list[Image.Image] = pipeline.image_processor.postprocess(pixels, output_type="pil")
    return images


def _check_finite(values: Tensor, request: Request, rows: slice, settled: Settled) -> None:
    finite = torch.isfinite(values).flatten(1).all(dim=1).tolist()
    for index, fine in zip(range(rows.start, rows.stop), finite, strict=True):
        if not fine:
            weights = settled.schedule.weights[index].mean(axis=1)
            used = {id: round(float(w), 2) for id, w in zip(settled.schedule.adapters, weights, strict=True) if w}
            raise GenerationError(
                f"image {index} (seed {request.seed + index}) broke down to NaN or infinity with the adapters {used} "
                f"at guidance scale {settled.guidance_scale}: lower their weights or the guidance scale, "
                "or set STYLUS_DTYPE=float32."
            )


def _out_of_memory(request: Request, settled: Settled, error: Exception) -> GenerationError:
    return GenerationError(
        f"not enough memory for {request.count} images of {settled.width}x{settled.height} "
        f"({str(error).splitlines()[0]}): ask for fewer or smaller images."
    )


def _ignore(_progress: Progress) -> None:
    pass
