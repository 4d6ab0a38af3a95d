"""Making a picture again: the record that it carries, read with distrust, and what differs from then."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from stylus.errors import InvalidInput
from stylus.generation.generator import Rendered
from stylus.records import Request
from stylus.text import clean_line

MOST_TOLD = 500
"""Characters of a difference; a terminal obeys what a stranger's record may hold, so that it is cleaned too."""


class _Hashed(BaseModel):
    id: str = ""
    name: str = ""
    sha256: str


class Recorded(BaseModel):
    """What a replay needs of a picture's record. Pictures come from strangers: all of it is checked."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    request: Request
    index: int = Field(ge=0, le=63)
    at_once: int | None = Field(None, ge=1, le=10_000)
    adapters: tuple[_Hashed, ...]
    checkpoint: _Hashed
    device: str
    dtype: str
    hardware: str | None = None
    compiled: bool | None = None
    fused: bool | None = None
    vae_tiling: bool | None = None
    width: int
    height: int
    versions: Mapping[str, str]
    notes: tuple[str, ...] = ()


def followed(location: str, record: Mapping[str, Any]) -> Recorded:
    """The record as checked fields. Raises InvalidInput where it can't be followed."""
    try:
        recorded = Recorded.model_validate(record)
    except ValidationError as error:
        first = error.errors()[0]
        told = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
        raise InvalidInput(
            f"the record in {location} can't be followed ({clean_line(told, MOST_TOLD)}): "
            "it was edited, or written by another version of Stylus."
        ) from error
    if recorded.index >= recorded.request.count:
        raise InvalidInput(
            f"the record in {location} names image {recorded.index} of {recorded.request.count}: it was edited."
        )
    return recorded


def compare(record: Recorded, before: Image.Image, again: Rendered) -> tuple[int, list[str]]:
    """Largest difference of a channel (of 255; 255 for another size or mode), and what is not as it was, for people."""
    differences = [clean_line(told, MOST_TOLD) for told in _differences(record, again)]
    if before.size != again.image.size:
        return 255, [*differences, f"the size was {before.size}, now it is {again.image.size}"]
    if before.mode != again.image.mode or before.has_transparency_data:
        how = "transparent" * before.has_transparency_data or before.mode
        return 255, [*differences, f"the picture is {how}, now it is {again.image.mode}: it was edited since"]
    first, second = (np.asarray(image, dtype=np.int16) for image in (before, again.image))
    largest = int(np.abs(first - second).max())
    if largest and not differences:
        differences.append("the pixels, though all that is recorded is as it was: the picture was edited since")
    return largest, differences


def _differences(record: Recorded, again: Rendered) -> Iterator[str]:
    """What the records say differently, in a stranger's words."""
    now = Recorded.model_validate(again.provenance)
    if now.checkpoint.sha256 != record.checkpoint.sha256:
        yield (
            f"the checkpoint was {record.checkpoint.name} ({record.checkpoint.sha256[:12]}), "
            f"now it is {now.checkpoint.name} ({now.checkpoint.sha256[:12]})"
        )
    hashes = {adapter.id: adapter.sha256 for adapter in now.adapters}
    for adapter in record.adapters:
        if adapter.id not in hashes:
            yield f"adapter {adapter.id} took part and could not be applied now"
        elif hashes[adapter.id] != adapter.sha256:
            yield f"the file of adapter {adapter.id} has changed ({adapter.sha256[:12]})"
    for what in ("device", "hardware", "dtype", "compiled", "at_once", "fused", "vae_tiling"):
        was, is_now = getattr(record, what), getattr(now, what)
        if was != is_now:
            yield f"{what} was {was}, now it is {is_now}"
    for package, version in record.versions.items():
        if now.versions.get(package) != version:
            yield f"{package} was {version}, now it is {now.versions.get(package, 'absent')}"
    for when, notes, others in (("then", record.notes, now.notes), ("now", now.notes, record.notes)):
        yield from (f"only {when}: {note}" for note in notes if note not in others)
