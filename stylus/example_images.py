"""Example pictures -> small JPEGs for a vision model. What a card says of where its pictures lie is not to be trusted.

A local picture is opened only if it lies in a folder that a person had ingested, beside the adapter's own file, and is
no link; a remote one is fetched only from the hosts of a source that we know, by the code that speaks with that source.
What is sent was decoded and encoded anew: pixels, and nothing else that was in the file.
"""

import io
import stat
import warnings
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageOps

from stylus.errors import StylusError
from stylus.records import Card
from stylus.web import Web

MOST_IMAGES = 10
"""Of a card (paper, section 3.1)."""
SIDE = 512
"""Pixels of the longer side: what adapters draw is seen at that size, and providers charge by area."""
MOST_BYTES = 50_000_000
_MOST_PIXELS = 40_000_000
_FORMATS = ("PNG", "JPEG", "WEBP", "GIF")


@dataclass(frozen=True)
class Picture:
    """An example as the model gets it."""

    jpeg: bytes
    prompt: str


@dataclass(frozen=True)
class Pictures:
    """Reads the pictures of cards; remote ones only from `sources`, each from hosts of its own."""

    sources: Sequence[Web] = ()

    def of(self, card: Card, folders: Collection[Path]) -> tuple[list[Picture], int]:
        """At most ten pictures, in the card's order, and how many could not be had. `folders` are those that a person
        had ingested and that hold the adapter's file."""
        pictures: list[Picture] = []
        missed = 0
        for example in card.examples[:MOST_IMAGES]:
            try:
                remote = example.image.startswith(("https://", "http://"))
                data = self._fetch(example.image) if remote else _read(Path(example.image), folders)
                pictures.append(Picture(shrink(data), example.prompt))
            except (OSError, ValueError, SyntaxError, StylusError, Image.DecompressionBombError):
                missed += 1
        return pictures, missed

    def _fetch(self, url: str) -> bytes:
        source = next((source for source in self.sources if source.owns(url)), None)
        if source is None:
            raise ValueError("the picture lies on a host of no source")

        def read() -> bytes:
            data = b""
            with source.stream(url) as response:
                for piece in response.iter_bytes():
                    data += piece
                    if len(data) > MOST_BYTES:
                        raise ValueError(f"the picture has more than {MOST_BYTES:,} bytes")
            return data

        return source.retry(read)


def _read(path: Path, folders: Collection[Path]) -> bytes:
    if path.parent not in folders or not stat.S_ISREG((status := path.lstat()).st_mode):
        raise ValueError("the picture is no file of an ingested folder")
    if status.st_size > MOST_BYTES:
        raise ValueError(f"the picture has {status.st_size:,} bytes")
    return path.read_bytes()


def shrink(data: bytes) -> bytes:
    """A picture as JPEG with sides of at most 512 pixels. Raises ValueError, OSError or SyntaxError for others."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PIL's warnings of size and broken EXIF: the limits stand below
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            if image.width * image.height > _MOST_PIXELS:
                raise ValueError(f"the picture has {image.width} x {image.height} pixels")
            image.draft("RGB", (SIDE, SIDE))
            small = ImageOps.exif_transpose(image).convert("RGBA")
    small.thumbnail((SIDE, SIDE))
    flat = Image.new("RGB", small.size, "white")
    flat.paste(small, mask=small.getchannel("A"))
    out = io.BytesIO()
    flat.save(out, "JPEG", quality=85)
    return out.getvalue()
