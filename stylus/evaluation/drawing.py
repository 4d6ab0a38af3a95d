"""Draws what a plan asks for and looks at it, from wherever it was stopped: each unit is there whole or not at all."""

import io
import shutil
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image, ImageDraw

from stylus.errors import StorageError
from stylus.evaluation.features import Features
from stylus.evaluation.ledger import Drawn, Ledger, write_whole
from stylus.evaluation.protocol import BASE, Mode, Unit
from stylus.generation.provenance import load, png
from stylus.generation.store import reason
from stylus.records import Composition, OnProgress, Progress, Request

if TYPE_CHECKING:
    from stylus.stylus import Stylus

SeesConcepts = Callable[[list[Image.Image]], Sequence[frozenset[str]]]
"""An independent judge: which concepts it sees in each picture."""
AT_ONCE = 64
"""Pictures that are opened and looked at together."""


def draw(stylus: "Stylus", ledger: Ledger, on_progress: OnProgress) -> int:
    """Draws the pictures that are missing and returns how many. What `on_progress` raises ends the work within a step;
    all units before it are kept. Raises Busy if another process draws them, and what composing and generating raise."""
    with ledger.alone():
        units = list(ledger.plan.units())
        missing, images = ledger.missing(units), ledger.plan.images
        before, drawn = (len(units) - len(missing)) * images, 0

        def report(done: int, _step: Progress | None = None) -> None:
            on_progress(Progress(stage="drawing", done=done, total=len(units) * images))

        for place, unit in enumerate(missing):
            done = before + place * images
            report(done)
            request = _request(stylus, ledger, unit)
            if ledger.take_in(unit, request):
                continue
            rendered = stylus.pictures.render(request, partial(report, done))
            _keep(ledger.folder / unit.path(0).parent, [png(image.image, image.provenance) for image in rendered])
            ledger.take_in(unit, request)
            drawn += images
        report(len(units) * images)
    return drawn


def look(ledger: Ledger, models: Sequence[Features], judge: SeesConcepts | None, on_progress: OnProgress) -> None:
    """Keeps what each model sees in every picture, and which of its prompt's concepts the judge sees; what was looked
    at before is left alone."""
    pictures = ledger.pictures()
    for model in models:
        seen = ledger.vectors(model.name).keys()
        for part in _parts([one for one in pictures if one.id not in seen], f"looking: {model.name}", on_progress):
            vectors = model.images(_opened(part))
            ledger.keep_vectors(model.name, {one.id: vector for one, vector in zip(part, vectors, strict=True)})
    if judge is not None:
        wanted = [set(prompt.concepts) for prompt in ledger.plan.prompts]
        unjudged = [one for one in pictures if wanted[one.prompt] and "concepts" not in one.measures]
        for part in _parts(unjudged, "judging", on_progress):
            found = zip(part, judge(_opened(part)), strict=True)
            ledger.keep_measures({one.id: {"concepts": sorted(seen & wanted[one.prompt])} for one, seen in found})


def composition(stylus: "Stylus", ledger: Ledger, unit: Unit) -> Composition:
    """What the unit's policy chooses for its prompt: asked once, shared by all arms of the policy, kept."""
    kept = ledger.composition(unit.arm.policy, unit.prompt)
    if kept is not None:
        return kept
    plan = ledger.plan
    chosen = stylus.compose(
        plan.prompts[unit.prompt].text,
        base_model=plan.base_model,
        policy=unit.arm.policy,
        seed=plan.seed + unit.prompt,
    )
    ledger.keep_composition(unit.arm.policy, unit.prompt, chosen)
    return chosen


def _keep(folder: Path, pictures: Sequence[bytes]) -> None:
    """Makes the folder of a unit appear with all of its pictures: a picture that is there is never drawn again."""
    temporary = folder.with_name(f".{folder.name}.tmp")
    try:
        for leftover in (temporary, folder):  # of a killed process; of other requests
            if leftover.exists():
                shutil.rmtree(leftover)
        for index, picture in enumerate(pictures):
            write_whole(temporary / f"{index}.png", picture)
        temporary.replace(folder)
    except OSError as error:
        raise StorageError(f"the pictures can't be kept in {folder}: {reason(error)}") from error


def _request(stylus: "Stylus", ledger: Ledger, unit: Unit) -> Request:
    chosen = composition(stylus, ledger, unit)
    if unit.mode is Mode.TEXT:
        return ledger.plan.request(unit, chosen)
    start = Unit(mode=Mode.TEXT, arm=BASE, prompt=unit.prompt, guidance=ledger.plan.guidance).path(0)
    data = (ledger.folder / start).read_bytes()
    image = stylus.pictures.keep_image(data)
    mask = None
    if unit.mode is Mode.INPAINTING:
        mask = stylus.pictures.keep_mask(_middle(Image.open(io.BytesIO(data)).size))
    return ledger.plan.request(unit, chosen, image, mask)


def _middle(size: tuple[int, int]) -> bytes:
    """A mask as PNG: the middle half of each side is drawn anew."""
    width, height = size
    mask = Image.new("L", size, 0)
    ImageDraw.Draw(mask).rectangle((width // 4, height // 4, width * 3 // 4 - 1, height * 3 // 4 - 1), 255)
    buffer = io.BytesIO()
    mask.save(buffer, format="PNG")
    return buffer.getvalue()


def _opened(pictures: Sequence[Drawn]) -> list[Image.Image]:
    return [load(str(one.path)).convert("RGB") for one in pictures]


def _parts(pictures: Sequence[Drawn], stage: str, on_progress: OnProgress) -> Iterator[Sequence[Drawn]]:
    for start in range(0, len(pictures), AT_ONCE):
        on_progress(Progress(stage=stage, done=start, total=len(pictures)))
        yield pictures[start : start + AT_ONCE]
    if pictures:
        on_progress(Progress(stage=stage, done=len(pictures), total=len(pictures)))
