"""The pictures of one settled request: texts, batches, passes, and what is done when memory runs out or numbers break
down."""

import io
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from stylus.errors import BrokenDown, GenerationError, StorageError
from stylus.generation.checkpoints import LoadedPipeline
from stylus.generation.codec import decoded, encoded, is_black
from stylus.generation.denoising import Start, Texts, denoise
from stylus.generation.families import Text
from stylus.generation.inputs import mask_latents
from stylus.generation.loading import Loading
from stylus.generation.memory import out_of_memory, return_memory
from stylus.generation.settling import HIRES_SCALE, HIRES_STRENGTH, Settled
from stylus.generation.store import write_whole
from stylus.records import OnProgress, Progress, Request

FUSE_FROM = 8
"""Passes through the network from which on fusing pays."""
PREVIEW_EVERY, PREVIEW_SIDE = 5, 32
"""Steps between previews, and the longest side of the latents that are decoded for one."""


@dataclass(frozen=True)
class Picture:
    """An image with what happened on the way to it."""

    image: Image.Image
    notes: Sequence[str]
    drawn: Mapping[str, Any]
    """How: `at_once` (rows that were rendered together), `fused`, `vae_tiling`."""


class Rendering:
    """First `encode`, then `pictures`, once. `at_once`: rows that are rendered together; None: the family's default."""

    def __init__(
        self,
        request: Request,
        settled: Settled,
        loaded: LoadedPipeline,
        loading: Loading,
        report: OnProgress,
        at_once: int | None = None,
        preview: Path | None = None,
    ) -> None:
        self.request, self.settled, self.loaded, self.loading = request, settled, loaded, loading
        self.report, self.preview = report, preview
        area = max(1, settled.width * settled.height // loaded.size**2)
        self.at_once = at_once or max(1, loaded.defaults.batch // area)
        self.tiled = False
        """Memory ran out, so that pictures were decoded in tiles."""
        self._texts: dict[int, Texts] = {}
        self._notes: list[str] = []
        self._left: deque[list[int]] = deque(settled.batches(self.at_once))
        self._batches_done = self._steps_done = 0
        self._fused = False

    def encode(self) -> None:
        """Texts of all images."""
        settled, loaded = self.settled, self.loaded
        residents = self.loading.of_text()
        negative = self.request.negative_prompt
        scale = loaded.kind.guided(settled.guidance_scale, negative)
        for batch in self._left:
            means = [[settled.weights(image).get(id, 0.0) for id in residents] for image in batch]
            weights = np.array(means, dtype=np.float32).reshape(len(batch), len(residents))
            for component in loaded.adapters.components & set(loaded.kind.components[1:]):
                loaded.adapters.switch(component, list(residents.values()), weights)
            with torch.no_grad():
                positive, against = loaded.kind.encode(
                    [settled.prompts[image] for image in batch], None if scale is None else negative, loaded.device
                )
            for n, image in enumerate(batch):
                self._texts[image] = Texts(_one(positive, n), against and _one(against, n), scale or 0.0)

    def pictures(self) -> list[Picture]:
        """All images, in order. Raises AdapterFileError, GenerationError, and what `report` raises."""
        found: dict[int, Picture] = {}
        try:
            with torch.no_grad(), ExitStack() as until_done:
                if self.settled.static and sum(self.settled.passes) * len(self._left) >= FUSE_FROM:
                    self._fuse(until_done)
                while self._left:
                    batch = self._left.popleft()
                    if (reason := self._tried(batch, found)) is not None:
                        self._relieve(batch, reason)
        finally:
            if self.tiled:
                self.loaded.pipeline.vae.disable_tiling()
        return [found[image] for image in range(self.request.count)]

    def _fuse(self, until_done: ExitStack) -> None:
        """All rows of a static schedule are alike: they share one set of fused weights. Without the memory to keep the
        base weights meanwhile, they stay gated."""
        row = dict(zip(self.settled.schedule.adapters, self.settled.schedule.weights[0, :, 0], strict=True))
        residents = self.loading.all()
        weights = np.array([row[id] for id in residents], dtype=np.float32)
        component = self.loaded.kind.components[0]
        try:
            until_done.enter_context(self.loaded.adapters.fused(component, list(residents.values()), weights))
            self._fused = True
        except RuntimeError as error:
            if not out_of_memory(error):
                raise

    def _tried(self, batch: list[int], found: dict[int, Picture]) -> str | None:
        """Renders the batch into `found`, or says how memory ran out; the exception would hold what fills it."""
        try:
            found |= self._batch(batch)
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            return str(error).splitlines()[0]
        self._batches_done += 1
        return None

    def _relieve(self, batch: list[int], reason: str) -> None:
        """Puts the batch back with more room for it. Raises GenerationError when there is no more."""
        return_memory(self.loaded.device)
        if len(batch) > 1:
            half = (len(batch) + 1) // 2
            smaller = [part[n : n + half] for part in (batch, *self._left) for n in range(0, len(part), half)]
            self._left = deque(smaller)
            self.at_once = max(len(self._image_of_row(part)) for part in smaller)
            self._notes = [f"Memory ran out: images were rendered {half} at a time."]
            return
        self._left.appendleft(batch)
        if not self.tiled and not self.loaded.pipeline.vae.use_tiling:
            self.loaded.pipeline.vae.enable_tiling()
            self.tiled = True
            self._notes = ["Memory ran out: images were rendered one at a time and decoded in tiles."]
        elif self.loaded.device.type == "cuda" and not hasattr(self.loaded.kind.denoiser, "_hf_hook"):
            self.loaded.pipeline.enable_model_cpu_offload(device=self.loaded.device)
            self._notes = [*self._notes, "Models that were not at work were moved to main memory."]
        else:
            raise GenerationError(
                f"not enough memory for one image of {self.settled.width}x{self.settled.height} ({reason}): "
                "ask for smaller images, or for fewer adapters at once."
            )

    def _batch(self, batch: list[int]) -> dict[int, Picture]:
        images = self._drawn(batch)
        notes = {image: list(self._notes) for image in batch}
        broken = [n for n, image in enumerate(images) if image is None or is_black(image)]
        if broken and self.loaded.dtype is not torch.float32:
            with self._exact() as was:
                for n, image in zip(broken, self._drawn([batch[n] for n in broken]), strict=True):
                    images[n] = image
                    notes[batch[n]].append(f"It broke down in {was} and was drawn again in float32.")
        pictures = {}
        for number, image in zip(batch, images, strict=True):
            if image is None:
                raise self._broken(number)
            if is_black(image):
                notes[number].append("It is black all over.")
            tiled = self.loaded.pipeline.vae.use_tiling
            drawn = {"at_once": self.at_once, "fused": self._fused, "vae_tiling": tiled}
            pictures[number] = Picture(self._kept_outside(image), notes[number], drawn)
        return pictures

    @contextmanager
    def _exact(self) -> Iterator[str]:
        """The models that draw in float32 meanwhile."""
        before = self.loaded
        try:
            with before.exact() as self.loaded:
                yield str(before.dtype).removeprefix("torch.")
        finally:
            self.loaded = before

    def _drawn(self, batch: list[int]) -> list[Image.Image | None]:
        """The pictures of a batch; None where one broke down to NaN or infinity."""
        settled, factor = self.settled, self.loaded.pixels_per_latent
        self._steps_done = 0
        self._report_steps()
        start = self._start(len(batch))
        latents = self._pass(batch, settled.height // factor, settled.width // factor, start)
        if settled.hires:
            latents = torch.nn.functional.interpolate(latents, scale_factor=HIRES_SCALE, mode="bilinear")
            mask = None if start is None else start.mask
            if mask is not None:
                mask = torch.nn.functional.interpolate(mask, scale_factor=HIRES_SCALE)
            height, width = latents.shape[-2:]
            latents = self._pass(batch, height, width, Start(latents, HIRES_STRENGTH, mask))
        self.report(Progress(stage="decoding", done=max(batch) + 1, total=self.request.count))
        return [decoded(self.loaded, latent) for latent in torch.split(latents, 1)]

    def _start(self, images: int) -> Start | None:
        if (inputs := self.settled.inputs) is None:
            return None
        latents = encoded(self.loaded, inputs.image)
        mask = None
        if inputs.mask is not None:
            mask = mask_latents(inputs.mask, *latents.shape[-2:]).to(latents)
        return Start(latents.expand(images, -1, -1, -1), self.settled.strength, mask)

    def _image_of_row(self, batch: list[int]) -> list[int]:
        """For each row of a batch, the place of its image in the batch."""
        return [place for place, image in enumerate(batch) for _ in self.settled.rows(image)]

    def _pass(self, batch: list[int], height: int, width: int, start: Start | None) -> Tensor:
        """Latents after one denoising pass at that size of the latents."""
        settled, loaded = self.settled, self.loaded
        ids, component = settled.schedule.adapters, loaded.kind.components[0]
        weights = np.concatenate([settled.rows(image) for image in batch])
        texts = self._texts_of(batch)
        switched: list[int] = []

        def before_step(step: int) -> None:
            now = weights[:, :, step]
            if self._fused or (switched and np.array_equal(now, weights[:, :, switched[-1]])):
                return
            residents = self.loading.those([id for id, column in zip(ids, now.T, strict=True) if column.any()])
            chosen = now[:, [ids.index(id) for id in residents]]
            # guidance doubles the rows
            doubled = np.concatenate([chosen, chosen]) if texts.negative else chosen
            loaded.adapters.switch(component, list(residents.values()), doubled)
            switched.append(step)

        def after_step(step: int, latents: Tensor) -> None:
            self._steps_done += 1
            self._report_steps(self._previewed(latents))

        return denoise(
            loaded,
            texts,
            self._noise(batch, height, width),
            self._image_of_row(batch),
            settled.steps,
            settled.guidance_scale,
            start,
            before_step,
            after_step,
        )

    def _texts_of(self, batch: list[int]) -> Texts:
        texts = [self._texts[image] for image in batch]
        positive = _stacked([text.positive for text in texts], self.loaded.dtype)
        against = [text.negative for text in texts if text.negative is not None]
        return Texts(positive, _stacked(against, self.loaded.dtype) if against else None, texts[0].scale)

    def _noise(self, batch: list[int], height: int, width: int) -> Tensor:
        """Standard normal latents, image by image on the CPU: the same on every device and in every batch."""
        shape = (self.loaded.kind.channels, height, width)
        seeds = [self.request.seed + image for image in batch]
        noise = [torch.randn(shape, generator=torch.Generator("cpu").manual_seed(seed)) for seed in seeds]
        return torch.stack(noise).to(device=self.loaded.device, dtype=self.loaded.dtype)

    def _report_steps(self, preview: str | None = None) -> None:
        each = sum(self.settled.passes)
        done, total = self._batches_done * each + self._steps_done, (self._batches_done + 1 + len(self._left)) * each
        self.report(Progress(stage="generating", done=done, total=total, preview=preview))

    def _previewed(self, latents: Tensor) -> str | None:
        """Where a rough picture of the first image of the batch was written, if it is time for one."""
        if self.preview is None or self._steps_done % PREVIEW_EVERY:
            return None
        side = max(latents.shape[-2:])
        small = torch.nn.functional.avg_pool2d(latents[:1], -(-side // PREVIEW_SIDE))
        if (image := decoded(self.loaded, small)) is None:
            return None
        file = io.BytesIO()
        image.save(file, format="PNG")
        try:
            write_whole(self.preview, file.getvalue())
        except OSError as error:
            raise StorageError(
                f"the preview can't be written to {self.preview} ({error.strerror}): name a .png file in a folder that "
                "this user may write."
            ) from error
        return str(self.preview)

    def _kept_outside(self, image: Image.Image) -> Image.Image:
        """Inpainting: what the mask keeps is the original's own pixels, and not what became of them in the VAE."""
        inputs = self.settled.inputs
        if inputs is None or inputs.mask is None:
            return image
        original = inputs.image.resize(image.size, Image.Resampling.LANCZOS)
        return Image.composite(image, original, inputs.mask.resize(image.size, Image.Resampling.NEAREST))

    def _broken(self, image: int) -> BrokenDown:
        used = {id: round(weight, 2) for id, weight in self.settled.weights(image).items()}
        return BrokenDown(
            f"image {image} (seed {self.request.seed + image}) broke down to NaN or infinity with the adapters {used} "
            f"at guidance scale {self.settled.guidance_scale}: lower their weights or the guidance scale."
        )


def _one(text: Text, number: int) -> Text:
    return {name: tensor[number : number + 1] for name, tensor in text.items()}


def _stacked(texts: Sequence[Text], dtype: torch.dtype) -> Text:
    return {name: torch.cat([text[name] for text in texts]).to(dtype) for name in texts[0]}
