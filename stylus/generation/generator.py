"""From a request to pictures. Where we differ from running diffusers one image after the other: every image of a batch
has its own composition (`adapters`), prompt (trigger words of masked adapters leave it) and noise (drawn on the CPU
from its own seed), so that an image does not depend on the batch that it is rendered in, nor its noise on the device.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from stylus.errors import GenerationError, NotFound
from stylus.generation.checkpoints import Checkpoints, LoadedPipeline
from stylus.generation.device_lock import Turns, lock_path
from stylus.generation.inputs import Inputs
from stylus.generation.memory import out_of_memory, return_memory
from stylus.generation.provenance import provenance
from stylus.generation.rendering import Rendering
from stylus.generation.settling import Settled, settle
from stylus.records import Adapter, BaseModelFamily, Mask, OnProgress, Progress, Request
from stylus.telemetry import CACHE_BYTES, stage


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
    """Adapter id -> effective weight (mean over rows and steps), of those that took part."""
    provenance: Mapping[str, Any]
    seconds: Mapping[str, float]
    """Of the whole request, the same in each of its images: `checkpoint` (0 when already in memory), `load` (waiting
    for adapters and attaching them) and `generate` (the rest). Waiting for the device is not counted."""
    notes: tuple[str, ...] = ()
    """What was done otherwise than asked."""


class Generator:
    """Renders requests. Safe to share between threads, and a GPU between processes: they take turns on the device."""

    def __init__(self, checkpoints: Checkpoints) -> None:
        self._checkpoints = checkpoints
        self._turns = Turns(lock_path(checkpoints.device))

    def checkpoint(self, family: BaseModelFamily, name: str | None = None) -> LoadedPipeline:
        """What `render` would draw with, loaded now if it isn't. Raises CheckpointError."""
        return self._checkpoints.open(family, name)

    def render(
        self,
        request: Request,
        adapters: Mapping[str, Adapter],
        on_progress: OnProgress | None = None,
        *,
        inputs: Inputs | None = None,
        at_once: int | None = None,
        preview: Path | None = None,
    ) -> list[Rendered]:
        """The images of `request`, in order: image i uses seed + i. `adapters` holds every chosen adapter by id,
        `inputs` the pictures that `request.image` and `request.mask` name.

        Reports the stages waiting, loading, generating and decoding; an exception that `on_progress` raises
        (errors.Cancelled) ends the work within a step and leaves everything fit for the next request. Adapters of a
        method that can't be applied are left out, and the images' notes name them. `at_once` rows are rendered together
        (None: what suits the family); with `preview`, a rough picture is written there now and then. Raises NotFound,
        CheckpointError, AdapterFileError (before the first step) and GenerationError."""
        report = on_progress or _ignore
        checkpoints = self._checkpoints
        family = request.composition.base_model
        checkpoints.check(family, request.checkpoint)
        with self._turns.taken(report):
            start = time.perf_counter()
            with stage("load_checkpoint"):
                loaded = checkpoints.open(family, request.checkpoint)
            opened = time.perf_counter()
            settled = settle(request, loaded, inputs)
            missing = [id for id in settled.used if id not in adapters]
            if missing:
                raise NotFound(f"adapter {missing[0]} is not in the catalog; call search_adapters (`stylus search`).")
            total = len(settled.used)

            def on_loaded(done: int) -> None:
                report(Progress(stage="loading", done=done, total=total))

            on_loaded(0)
            try:
                # files are read while the text is encoded and the first steps run, as far as these don't need them
                with loaded.adapters.loading([adapters[id] for id in settled.used], on_loaded) as loading:
                    rendering = Rendering(request, settled, loaded, loading, report, at_once, preview)
                    with stage("encode"):
                        rendering.encode()
                    pictures = rendering.pictures()
            except RuntimeError as error:
                if not out_of_memory(error):
                    raise
                return_memory(loaded.device)
                raise GenerationError(
                    f"not enough memory for the prompt and {total} adapters ({str(error).splitlines()[0]}): choose "
                    "fewer adapters, or set STYLUS_OFFLOAD=1 or a smaller STYLUS_ADAPTER_CACHE_GB."
                ) from error
            finally:
                loaded.adapters.all_off()
                held = [pipeline.adapters for pipeline in checkpoints.loaded()]
                CACHE_BYTES.labels("device").set(sum(adapters.size for adapters in held))
                CACHE_BYTES.labels("memory").set(sum(adapters.files.size for adapters in held))
            rest = time.perf_counter() - opened - loading.seconds
        spent = {"checkpoint": opened - start, "load": loading.seconds, "generate": rest}
        rendered = []
        for index, picture in enumerate(pictures):
            used = {id: weight for id, weight in settled.weights(index).items() if id in loading.ready}
            left_out = [note for id, note in loading.left_out.items() if settled.weights(index).get(id)]
            notes = (*settled.notes[index], *_without_turn(request, settled, index), *left_out, *picture.notes)
            record = provenance(
                request=request,
                index=index,
                settled=settled,
                adapters={id: (loading.ready[id].sha256, weight) for id, weight in used.items()},
                size=picture.image.size,
                loaded=loaded,
                notes=notes,
                drawn=picture.drawn,
            )
            rendered.append(
                Rendered(
                    image=picture.image,
                    index=index,
                    seed=request.seed + index,
                    prompt=settled.prompts[index],
                    mask=settled.masks[index],
                    adapters=used,
                    provenance=record,
                    seconds=spent,
                    notes=notes,
                )
            )
        return rendered

    def forget_adapters(self) -> None:
        """Lets go of all adapters in memory, as after a fresh start: for measurements, and to give memory back."""
        with self._turns.taken(_ignore):
            for loaded in self._checkpoints.loaded():
                loaded.adapters.forget()


def _without_turn(request: Request, settled: Settled, image: int) -> list[str]:
    """A note that names the adapters that are on in the image and in no step of it, if there are any."""
    used, choices = settled.weights(image), zip(request.composition.choices, settled.masks[image], strict=True)
    idle = [choice.adapter_id for choice, on in choices if on and choice.weight and choice.adapter_id not in used]
    if not idle:
        return []
    steps = f"{max(settled.passes)} steps are run, with a turn of {request.switch_every} for each adapter"
    return [f"No turn came for {', '.join(idle)}: {steps}. Ask for more steps, or set a smaller switch_every."]


def _ignore(_progress: Progress) -> None:
    pass
