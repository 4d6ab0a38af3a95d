"""A request with every open field decided: what is drawn, at which weights, in which batches."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float32

from stylus.generation.checkpoints import LoadedPipeline
from stylus.generation.denoising import steps_run
from stylus.generation.inputs import Inputs, fitted
from stylus.masks import sample_masks
from stylus.records import Mask, Request, Schedule
from stylus.trigger_words import wording
from stylus.weights import schedule

HIRES_SCALE, HIRES_STRENGTH = 2, 0.7
"""Hi-res fix (paper, appendix A.3): latents upscaled by two, denoising strength of the second pass."""


@dataclass(frozen=True)
class Settled:
    """What `settle` makes of a request."""

    width: int
    height: int
    """Pixels of the first pass."""
    steps: int
    guidance_scale: float
    strength: float
    masks: Sequence[Mask]
    schedule: Schedule
    prompts: Sequence[str]
    """Of each image, trigger words included."""
    windows: Sequence[int]
    """Of each image: images of one number can be rendered together."""
    inputs: Inputs | None
    """At `width` x `height`."""
    hires: bool
    notes: Sequence[Sequence[str]]
    """Of each image: what was corrected or is not read."""

    def rows(self, image: int) -> Float32[np.ndarray, "rows adapters steps"]:
        """The weights of one image."""
        rows: Float32[np.ndarray, "rows adapters steps"] = self.schedule.weights[self.schedule.image_of_row == image]
        return rows

    def weights(self, image: int) -> dict[str, float]:
        """Adapter id -> mean over rows and the steps that are run, of those that take part."""
        means = self.rows(image)[:, :, self.first_step :].mean(axis=(0, 2))
        return {id: float(mean) for id, mean in zip(self.schedule.adapters, means, strict=True) if mean}

    @property
    def used(self) -> list[str]:
        """Ids of the adapters with a weight in any image."""
        weights = self.schedule.weights[:, :, self.first_step :]
        return [id for n, id in enumerate(self.schedule.adapters) if weights[:, n].any()]

    @property
    def static(self) -> bool:
        """True when all rows have one composition, all the way, and it is not the empty one."""
        weights = self.schedule.weights
        return bool(weights.any() and (weights == weights[:1, :, :1]).all())

    @property
    def passes(self) -> list[int]:
        """Steps of each pass: the last ones of the schedule."""
        first = self.steps if self.inputs is None else steps_run(self.steps, self.strength)
        return [first, steps_run(self.steps, HIRES_STRENGTH)] if self.hires else [first]

    @property
    def first_step(self) -> int:
        """Those before it are not run in any pass."""
        return self.steps - max(self.passes)

    @property
    def second_pass(self) -> dict[str, float] | None:
        return {"scale": HIRES_SCALE, "strength": HIRES_STRENGTH} if self.hires else None

    def batches(self, at_once: int) -> Iterator[list[int]]:
        """Image numbers, in order as far as possible, of at most `at_once` rows (but at least one image)."""
        for number in sorted(set(self.windows)):
            batch: list[int] = []
            taken = 0
            for image in (image for image, windows in enumerate(self.windows) if windows == number):
                rows = len(self.rows(image))
                if batch and taken + rows > at_once:
                    yield batch
                    batch, taken = [], 0
                batch.append(image)
                taken += rows
            yield batch


def settle(request: Request, loaded: LoadedPipeline, inputs: Inputs | None = None) -> Settled:
    """Fills the open fields from the checkpoint's defaults; draws the masks; writes each image's prompt."""
    composition, kind = request.composition, loaded.kind
    steps = request.steps or loaded.defaults.steps
    masks = sample_masks(
        [len(task.choices) for task in composition.tasks],
        request.count,
        request.masks,
        request.seed,
        repeat=request.repeat_masks,
        control=request.control,
    )
    planned = schedule(
        composition, masks, steps, method=request.method, switch_every=request.switch_every, budget=request.budget
    )
    width, height, notes = _size(request, loaded)
    if inputs is not None:
        inputs, note = fitted(inputs, request.width and width, request.height and height, kind.multiple)
        width, height = inputs.image.size
        notes += [note] if note else []
    guidance = loaded.defaults.guidance_scale if request.guidance_scale is None else request.guidance_scale
    if request.negative_prompt and kind.guided(guidance, request.negative_prompt) is None:
        notes += [f"The negative prompt is not read at a guidance scale of {guidance:g}: ask for more than 1."]
    settled = Settled(
        width=width,
        height=height,
        steps=steps,
        guidance_scale=guidance,
        strength=request.strength or loaded.defaults.strength,
        masks=masks,
        schedule=planned,
        prompts=(),
        windows=(),
        inputs=inputs,
        hires=request.hires,
        notes=(),
    )
    emphasised = composition.uncovered if request.emphasise else ()
    words = []
    for image in range(request.count):
        weights = settled.weights(image)  # without those whose turn comes in no step that is run
        # a negative weight takes away what the trigger words would ask for
        chosen = [choice for choice in composition.choices if weights.get(choice.adapter_id, 0) > 0]
        words.append(wording(composition.prompt, chosen, kind.reads, emphasised))
    return replace(
        settled,
        prompts=[word.text for word in words],
        windows=[kind.windows(word.text, request.negative_prompt) for word in words],
        notes=[[*notes, word.note] if word.note else notes for word in words],
    )


def _size(request: Request, loaded: LoadedPipeline) -> tuple[int, int, list[str]]:
    multiple = loaded.kind.multiple
    asked = request.width or loaded.size, request.height or loaded.size
    width, height = (max(multiple, side // multiple * multiple) for side in asked)
    if (width, height) == asked:
        return width, height, []
    note = f"{asked[0]}x{asked[1]} became {width}x{height}: {loaded.family} draws multiples of {multiple} pixels."
    return width, height, [note]
