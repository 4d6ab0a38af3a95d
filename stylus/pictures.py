"""From a request to saved pictures, and back: what is checked before work is queued, the pictures to start from, the
content filter, the store and the history, and making a picture again from its own record."""

import base64
import hashlib
import secrets
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from stylus.catalog import Catalog
from stylus.checkpoint_names import source_of
from stylus.errors import AdapterFileError, GenerationError, InvalidInput, NotFound
from stylus.history import History
from stylus.records import Adapter, ContentFilter, ImageRecord, MaskMode, OnProgress, Rating, Request
from stylus.safetensors_header import read_header
from stylus.settings import Settings
from stylus.telemetry import stage

if TYPE_CHECKING:
    # torch and diffusers take seconds to import: a client that only searches should not wait for them
    from PIL import Image

    from stylus.generation.generator import Generator, Rendered
    from stylus.generation.inputs import Inputs

Judge = Callable[["Image.Image"], str | None]
"""Why a picture is unfit to be shown, or None: a filter of the owner's."""


@dataclass(frozen=True)
class Replay:
    """A picture made again."""

    same: bool
    """To the bit."""
    largest: int
    """Largest difference of a channel, of 255."""
    differences: tuple[str, ...]
    """What is not as it was when the picture was made, for people."""
    image: "Image.Image"


class Pictures:
    """Safe to share between threads; generations take turns on the device."""

    def __init__(self, settings: Settings, catalog: Catalog, history: History, judge: Judge | None = None) -> None:
        self.settings, self.catalog, self.history = settings, catalog, history
        self._judge = judge
        self._opening = threading.Lock()

    @cached_property
    def _generator(self) -> "Generator":
        from stylus.generation.checkpoints import Checkpoints
        from stylus.generation.generator import Generator

        return Generator(Checkpoints(self.settings))

    @property
    def generator(self) -> "Generator":
        with self._opening:
            return self._generator

    def keep_image(self, data: bytes, owner: str = "") -> str:
        """Keeps a picture to start from; its id is for `Request.image`. Raises InvalidInput and StorageError."""
        from stylus.generation.inputs import clean_picture

        return self._keep_input(clean_picture(data), owner)

    def keep_mask(self, data: bytes, owner: str = "") -> str:
        """Keeps a mask; its id is for `Request.mask`. Raises InvalidInput and StorageError."""
        from stylus.generation.inputs import clean_mask

        return self._keep_input(clean_mask(data), owner)

    def _keep_input(self, png: bytes, owner: str) -> str:
        from stylus.generation.store import write

        id = hashlib.sha256(png).hexdigest()
        self.history.save_picture(id, owner, len(png))
        write(self.settings.store_url, f"inputs/{id}.png", png)
        return id

    def check(self, request: Request) -> None:
        """Finds cheaply, before work is queued, what would fail later: a checkpoint that is not configured, adapters
        that are unknown, whose file is gone or damaged or never was, that the content filter bars, and pictures that
        were never kept. Raises what the work would."""
        source_of(self.settings.checkpoints, request.composition.base_model, request.checkpoint)
        for adapter in self._adapters(request):
            if adapter.file is not None:
                path = Path(adapter.file)
                if path.is_file():
                    try:
                        read_header(path)
                    except AdapterFileError as error:
                        raise AdapterFileError(f"adapter {adapter.id} can't be used: {error}") from error
                elif adapter.download is None:
                    raise NotFound(
                        f"the file of adapter {adapter.id}, {adapter.file}, is gone. Put it back, ingest its folder "
                        "again, or leave this adapter out: `stylus hide ID` does for all that is composed from now on."
                    )
            elif adapter.download is None and request.masks is not MaskMode.NONE:
                raise NotFound(
                    f"adapter {adapter.id} is a card without weights, nor does it say where these are. Leave it out, "
                    "or have its file's folder ingested."
                )
        self._inputs(request)

    def generate(
        self,
        request: Request,
        on_progress: OnProgress | None = None,
        job_id: str | None = None,
        preview: Path | None = None,
    ) -> list[ImageRecord]:
        """Renders here and now, saves the PNG files and their history, and returns the records, in image order. Weights
        that are not here yet are fetched from their source before; with `preview`, a rough picture is written there
        now and then."""
        from stylus.generation.store import check

        check(self.settings.store_url)
        rendered, adapters = self._render(request, on_progress, preview)
        # one moment for all: lists of pictures show those saved at once in their order
        now = datetime.now(UTC)
        records = [self._keep(image, request, adapters, job_id, now) for image in rendered]
        self.history.save_images(records)
        return records

    def render(self, request: Request, on_progress: OnProgress | None = None) -> "list[Rendered]":
        """As `generate`, for a caller that keeps the pictures itself."""
        return self._render(request, on_progress, None)[0]

    def _render(
        self, request: Request, on_progress: OnProgress | None, preview: Path | None
    ) -> "tuple[list[Rendered], dict[str, Adapter]]":
        adapters = self._fetched(request, on_progress)
        inputs = self._inputs(request)
        family = request.composition.base_model.value
        with stage("generate", base_model=family, images=request.count, adapters=len(adapters)):
            rendered = self.generator.render(request, adapters, on_progress, inputs=inputs, preview=preview)
        return rendered, adapters

    def replay(self, location: str, on_progress: OnProgress | None = None) -> Replay:
        """Makes the picture at `location` again from the record inside it, with all the images it was rendered beside;
        the content filter holds as for new pictures.

        Raises InvalidInput where it holds no record that can be followed, and what `generate` raises."""
        from stylus.generation.provenance import load, read
        from stylus.generation.replay import compare, followed

        record = followed(location, read(location))
        adapters = self._fetched(record.request, on_progress)
        inputs = self._inputs(record.request)
        drawn = self.generator.render(record.request, adapters, on_progress, inputs=inputs, at_once=record.at_once)
        again, _, _ = self._filtered(drawn[record.index], adapters)
        largest, differences = compare(record, load(location), again)
        return Replay(largest == 0, largest, tuple(differences), again.image)

    def _fetched(self, request: Request, on_progress: OnProgress | None) -> dict[str, Adapter]:
        """The adapters by id, fetched from their source where their weights are not here yet."""
        adapters = self._adapters(request)
        if request.masks is not MaskMode.NONE and any(adapter.download for adapter in adapters):
            from stylus.fetching import Fetcher  # it brings an HTTP client along, which most runs don't need

            adapters = Fetcher(self.settings, self.catalog).fetch(adapters, on_progress)
        return {adapter.id: adapter for adapter in adapters}

    def _adapters(self, request: Request) -> list[Adapter]:
        adapters = self.catalog.require([choice.adapter_id for choice in request.composition.choices])
        if self.settings.content_filter is ContentFilter.BLOCK and request.masks is not MaskMode.NONE:
            for adapter in adapters:
                if adapter.rating is not Rating.GENERAL:
                    raise GenerationError(
                        f"adapter {adapter.id} is rated {adapter.rating}, and STYLUS_CONTENT_FILTER is block: "
                        "leave it out, now or with `stylus hide ID` from now on."
                    )
        return adapters

    def _inputs(self, request: Request) -> "Inputs | None":
        if request.image is None:
            return None
        from stylus.generation.inputs import Inputs, as_mask

        # an id tells nothing of what it was kept as
        image = self._input(request.image).convert("RGB")
        return Inputs(image, as_mask(self._input(request.mask)) if request.mask else None)

    def _input(self, id: str) -> "Image.Image":
        from stylus.generation.inputs import kept
        from stylus.generation.store import location, read_bytes

        try:
            data = read_bytes(location(self.settings.store_url, f"inputs/{id}.png"))
        except NotFound as error:
            raise NotFound(
                f"no picture {id[:16]}… is kept here: pass the picture itself again. To replay what was made from it, "
                "set STYLUS_STORE to the store that it was made in."
            ) from error
        if hashlib.sha256(data).hexdigest() != id:
            raise InvalidInput(f"the picture {id[:16]}… was changed in the store: pass the picture itself again.")
        return kept(data)

    def _keep(
        self,
        rendered: "Rendered",
        request: Request,
        adapters: Mapping[str, Adapter],
        job_id: str | None,
        created_at: datetime,
    ) -> ImageRecord:
        from stylus.generation.provenance import save

        rendered, rating, unfit = self._filtered(rendered, adapters)
        id = image_id(job_id, rendered.index)
        return ImageRecord(
            id=id,
            uri=f"stylus://images/{id}",
            location=save(rendered, self.settings.store_url, id),
            index=rendered.index,
            seed=rendered.seed,
            prompt=rendered.prompt,
            width=rendered.image.width,
            height=rendered.image.height,
            adapters=rendered.adapters,
            composition_id=request.composition.id,
            job_id=job_id,
            created_at=created_at,
            seconds=rendered.seconds,
            notes=rendered.notes,
            rating=rating,
            flagged=unfit,
            provenance=rendered.provenance,
        )

    def _filtered(self, rendered: "Rendered", adapters: Mapping[str, Adapter]) -> tuple["Rendered", Rating, bool]:
        """The picture as it may be shown, its rating, and whether it is unfit; its record says why."""
        from stylus.generation.provenance import blank, noted

        ratings = (adapters[id].rating for id in rendered.adapters)
        rating = max(ratings, key=list(Rating).index, default=Rating.GENERAL)
        if self.settings.content_filter is ContentFilter.OFF:
            return rendered, rating, False
        reason = None if rating is Rating.GENERAL else f"made with adapters rated {rating}"
        reason = reason or (self._judge and self._judge(rendered.image))
        if reason is None:
            return rendered, rating, False
        if self.settings.content_filter is ContentFilter.BLOCK:
            return blank(noted(rendered, f"Blocked by the content filter: {reason}.")), rating, True
        return noted(rendered, f"Flagged by the content filter: {reason}."), rating, True


def image_id(job_id: str | None, index: int) -> str:
    """Unguessable. A job that runs again after a crash finds its images under the same ids, so that nothing doubles."""
    if job_id is None:
        return secrets.token_urlsafe(16)
    digest = hashlib.sha256(f"{job_id}:{index}".encode()).digest()[:16]
    return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()
