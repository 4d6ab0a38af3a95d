"""Pictures and masks that people and agents bring: checked, put upright, without transparency, of a size that fits.

They are kept in the image store as PNG under the SHA-256 of those bytes, so that a request names them exactly, and
nothing of the original file (position, camera) is kept.
"""

import io
import struct
import warnings
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from stylus.errors import InvalidInput

SMALLEST, LARGEST = 16, 64_000_000
"""Pixels: shortest edge, and area, of what is taken. A 20,000 x 20,000 PNG can be a few kilobytes that unpack to more
than a gigabyte."""
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")
LONGEST_SIDE = 2048


@dataclass(frozen=True)
class Inputs:
    """What a request starts from."""

    image: Image.Image
    """RGB"""
    mask: Image.Image | None = None
    """L, of the image's proportions: white is drawn anew."""

    def __post_init__(self) -> None:
        """Raises InvalidInput for a mask of other proportions."""
        image, mask = self.image, self.mask
        if mask is not None and abs(mask.width / mask.height / (image.width / image.height) - 1) > 0.05:
            raise InvalidInput(
                f"the mask is {mask.width}x{mask.height}, the image {image.width}x{image.height}: "
                "a mask must have the proportions of its image."
            )


def clean_picture(data: bytes) -> bytes:
    """A picture as PNG: RGB, upright; transparent parts become white. Raises InvalidInput."""
    return _png(_flat(data, "picture", "white").convert("RGB"))


def clean_mask(data: bytes) -> bytes:
    """A mask as PNG: grey, upright, each pixel black (kept) or white (drawn anew); transparent parts become black.
    Raises InvalidInput when nothing of it is white."""
    return _png(as_mask(_flat(data, "mask", "black")))


def as_mask(image: Image.Image) -> Image.Image:
    """L, each pixel black or white. Raises InvalidInput when nothing of it is white."""
    grey = image.convert("L").point([0] * 128 + [255] * 128)
    if grey.getextrema() == (0, 0):
        raise InvalidInput("the mask is black all over, so that nothing would be drawn: paint white what may change.")
    return grey


def kept(png: bytes) -> Image.Image:
    """A picture or mask that was cleaned before."""
    return _opened(png, "picture")


def fitted(inputs: Inputs, width: int | None, height: int | None, multiple: int) -> tuple[Inputs, str | None]:
    """Picture and mask at the size that is drawn, and a note where that is not what came.

    Without a size the picture keeps its own, scaled down to at most 2048 pixels a side, and cut to multiples of
    `multiple`. Raises InvalidInput where that leaves nothing white of the mask."""
    image, mask = inputs.image, inputs.mask
    if width is None and height is None:
        shrunk = min(1.0, LONGEST_SIDE / max(image.size))
        width, height = (max(multiple, int(side * shrunk) // multiple * multiple) for side in image.size)
    elif width is None:
        width = _multiple(image.width * height / image.height, multiple)  # type: ignore[operator]
    elif height is None:
        height = _multiple(image.height * width / image.width, multiple)
    size = (width, height)
    note = None
    if size != image.size:
        note = f"The image was {image.width}x{image.height}; it was scaled and cut to {width}x{height}."
    shown = ImageOps.fit(image, size, Image.Resampling.LANCZOS)  # type: ignore[arg-type]
    if mask is not None:
        # to the image first, so that both are cut alike
        mask = ImageOps.fit(mask.resize(image.size, Image.Resampling.NEAREST), size, Image.Resampling.NEAREST)  # type: ignore[arg-type]
        if mask.getextrema() == (0, 0):
            raise InvalidInput(
                f"nothing that is white in the mask is left at {width}x{height}, to which it was scaled and cut: "
                "paint more of it white, or cut the image yourself."
            )
    return Inputs(shown, mask), note


def pixels(image: Image.Image) -> Tensor:
    """[1, 3, height, width] in -1..1."""
    array = torch.from_numpy(np.asarray(image.convert("RGB"), dtype=np.float32))
    return array.permute(2, 0, 1)[None] / 127.5 - 1


def mask_latents(mask: Image.Image, height: int, width: int) -> Tensor:
    """[1, 1, height, width] of 0 and 1, at the size of the latents; something of it is 1."""
    array = torch.from_numpy(np.asarray(mask, dtype=np.float32) / 255).round()[None, None]
    # diffusers looks at one pixel for each latent: a thin line can lie between them all
    nearest = torch.nn.functional.interpolate(array, size=(height, width))
    return nearest if nearest.any() else torch.nn.functional.adaptive_max_pool2d(array, (height, width))


def _multiple(side: float, multiple: int) -> int:
    return max(multiple, min(LONGEST_SIDE, round(side / multiple) * multiple))


def _flat(data: bytes, what: str, ground: str) -> Image.Image:
    """Upright, 8 bits a channel, and on that ground where it is transparent."""
    image = _upright(_opened(data, what))
    if image.mode == "LAB":  # Pillow makes no grey of it
        return image.convert("RGB")
    if image.mode.startswith("I;16"):
        # Pillow would cut off what is above 255, so that nearly all became white
        return image.convert("I").point(lambda value: value / 256).convert("L")
    if image.mode in ("I", "F"):
        raise InvalidInput(f"the {what} has 32 bits of grey a pixel, and no scale: save it with 8 or 16.")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, ground), image)
    return image


def _upright(image: Image.Image) -> Image.Image:
    """As its EXIF says; as it is stored where that is broken, which has nothing to do with the pixels."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # whoever sent it can't be told from here
            return ImageOps.exif_transpose(image)
    except (SyntaxError, ValueError, TypeError, LookupError, struct.error):
        return image


def _opened(data: bytes, what: str) -> Image.Image:
    try:
        with warnings.catch_warnings():
            # the size is judged below, by our own measure
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data), formats=FORMATS)
        width, height = image.size
        if width * height > LARGEST:
            raise InvalidInput(
                f"the {what} has {width}x{height} pixels: at most {LARGEST:,} in all are taken. Scale it down."
            )
        if min(width, height) < SMALLEST:
            raise InvalidInput(f"the {what} has {width}x{height} pixels: at least {SMALLEST} a side are needed.")
        image.load()
    except Image.DecompressionBombError as error:
        raise InvalidInput(
            # without Pillow's own limit, which is not ours
            f"the {what} is far too large, {str(error).partition(' exceeds')[0].lower()}: "
            f"at most {LARGEST:,} in all are taken. Scale it down."
        ) from error
    except (OSError, ValueError, SyntaxError, EOFError, MemoryError) as error:
        reason = str(error).partition("\n")[0].partition(" <_io.")[0]  # whose address tells nobody anything
        raise InvalidInput(
            f"the {what} can't be read ({reason or type(error).__name__}): "
            f"pass a whole file of the format {', '.join(FORMATS[:-1])} or {FORMATS[-1]}."
        ) from error
    return image


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.asarray(image)).save(buffer, format="PNG")
    return buffer.getvalue()
