"""Pictures of one prompt with and without an adapter, from the same seeds, kept so that none is ever made twice.

What they are measured with (which CLIP, which thresholds) may change; the pictures are made anew only if what they show
does. They are kept small: image models look at 224 to 384 pixels.
"""

import hashlib
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from stylus.errors import AdapterFileError, BrokenDown
from stylus.evaluation.ledger import write_whole
from stylus.generation.checkpoints import LoadedPipeline
from stylus.generation.generator import Generator
from stylus.records import Adapter, Choice, Composition, OnProgress, Request, Task

SIDE = 384
"""Most pixels of a side."""


@dataclass(frozen=True)
class Subject:
    """An adapter as it is measured: its file's content at one weight."""

    adapter: Adapter
    sha256: str
    weight: float


class Shots:
    """Makes pictures or takes them from its folder. One process may use it beside others: files appear whole."""

    def __init__(self, generator: Generator, loaded: LoadedPipeline, folder: Path) -> None:
        self._generator, self._loaded, self._folder = generator, loaded, folder

    def take(
        self, text: str, count: int, seed: int, subject: Subject | None, on_progress: OnProgress
    ) -> list[Image.Image]:
        """`count` pictures of the prompt `text`, picture i from seed + i; without `subject` the checkpoint's own.

        Raises BrokenDown if their numbers became NaN or infinite, AdapterFileError where the adapter can't be applied,
        StorageError, and what the generator raises."""
        path = self._path(text, count, seed, subject)
        if not path.exists():
            try:
                write_whole(path, _strip(self._drawn(text, count, seed, subject, on_progress)))
            except BrokenDown:
                write_whole(path, b"")
                raise
        if path.stat().st_size == 0:
            raise BrokenDown(f"the pictures of {text!r} broke down to NaN or infinity.")
        with Image.open(path) as file:
            strip = file.convert("RGB")
        width = strip.width // count
        return [strip.crop((n * width, 0, (n + 1) * width, strip.height)) for n in range(count)]

    def _path(self, text: str, count: int, seed: int, subject: Subject | None) -> Path:
        made_from = {
            "checkpoint": self._loaded.sha256,
            "text": text,
            "count": count,
            "seed": seed,
            "settings": [self._loaded.defaults.steps, self._loaded.defaults.guidance_scale, self._loaded.size],
            "adapter": None if subject is None else [subject.sha256, subject.weight],
        }
        return self._folder / f"{hashlib.sha256(json.dumps(made_from).encode()).hexdigest()[:40]}.jpg"

    def _drawn(
        self, text: str, count: int, seed: int, subject: Subject | None, on_progress: OnProgress
    ) -> list[Image.Image]:
        tasks: tuple[Task, ...] = ()
        if subject is not None:
            choice = Choice(adapter_id=subject.adapter.id, weight=subject.weight)
            tasks = (Task(keyword=subject.adapter.name, choices=(choice,)),)
        composition = Composition(
            id="report-card", prompt=text, base_model=self._loaded.family, tasks=tasks, composer="report card"
        )
        adapters = {} if subject is None else {subject.adapter.id: subject.adapter}
        request = Request(composition=composition, count=count, seed=seed)
        rendered = self._generator.render(request, adapters, on_progress)
        if subject is not None and subject.weight and not rendered[0].adapters:
            raise AdapterFileError(" ".join(rendered[0].notes))
        return [picture.image for picture in rendered]


def _strip(pictures: Sequence[Image.Image]) -> bytes:
    """Side by side in one JPEG."""
    small = [picture.convert("RGB") for picture in pictures]
    for picture in small:
        picture.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    width, height = small[0].size
    strip = Image.new("RGB", (width * len(small), height))
    for n, picture in enumerate(small):
        strip.paste(picture, (n * width, 0))
    file = io.BytesIO()
    strip.save(file, "JPEG", quality=95, subsampling=0)
    return file.getvalue()
