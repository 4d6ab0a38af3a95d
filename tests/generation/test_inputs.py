"""Pictures and masks as people and agents send them: a clear error, or a correction that is told."""

import io
import resource
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image

from stylus.errors import InvalidInput
from stylus.generation.inputs import Inputs, clean_mask, clean_picture, fitted, kept, mask_latents


def file(image: Image.Image, format: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=format, **options)
    return buffer.getvalue()


def halves(mode: str = "RGB", size: tuple[int, int] = (40, 20)) -> Image.Image:
    """Left red, right blue."""
    image = Image.new("RGB", size, "blue")
    image.paste("red", (0, 0, size[0] // 2, size[1]))
    return image.convert(mode)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "L", "1", "CMYK", "I;16", "LAB"])
def test_all_modes_become_rgb(mode: str) -> None:
    image = Image.fromarray(np.full((20, 40), 40_000, np.uint16)) if mode == "I;16" else None
    image = image or (Image.new("LAB", (40, 20), (255, 128, 128)) if mode == "LAB" else halves(mode))
    data = file(image, "TIFF" if mode in ("CMYK", "LAB") else "PNG")
    cleaned = kept(clean_picture(data))
    assert (cleaned.mode, cleaned.size) == ("RGB", (40, 20))
    if mode == "LAB":
        assert kept(clean_mask(data)).getextrema() == (255, 255)


def test_sixteen_bits_of_grey_keep_their_shades() -> None:
    """A ramp from black to white stays one, and a mask of it is white in its brighter half."""
    ramp = file(Image.fromarray(np.tile(np.linspace(0, 65535, 40), (20, 1)).astype(np.uint16)))
    shades = np.asarray(kept(clean_picture(ramp)))[0, :, 0]
    assert (shades[0], shades[-1]) == (0, 255)
    assert np.allclose(shades, np.linspace(0, 255, 40), atol=1)
    assert np.array_equal(np.asarray(kept(clean_mask(ramp)))[0], np.repeat([0, 255], 20))


def test_a_camera_that_was_held_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # stored on its side
    exif[0x010E] = "at home"
    data = file(halves(), "JPEG", exif=exif, quality=95)
    png = clean_picture(data)
    cleaned = kept(png)
    assert cleaned.size == (20, 40)
    top, bottom = cleaned.getpixel((10, 2)), cleaned.getpixel((10, 37))
    assert isinstance(top, tuple)
    assert isinstance(bottom, tuple)
    assert top[0] > 200 > bottom[0]
    assert b"at home" not in png
    assert not cleaned.getexif()


@pytest.mark.parametrize("exif", [b"MM\0*", b"no TIFF at all", b"MM\0*\0\0\0\x08\0\x05short"])
@pytest.mark.filterwarnings("error")
def test_broken_exif_costs_no_picture(exif: bytes) -> None:
    data = file(halves(), exif=exif)
    assert kept(clean_picture(data)).getpixel((5, 5)) == (255, 0, 0)
    assert kept(clean_mask(file(halves("L").point(lambda value: 255), exif=exif))).size == (40, 20)


def test_what_is_transparent_is_white_in_pictures_and_kept_in_masks() -> None:
    image = halves("RGBA")
    image.putalpha(Image.new("L", image.size, 0))
    assert kept(clean_picture(file(image))).getpixel((5, 5)) == (255, 255, 255)
    white = Image.new("RGBA", (40, 20), (255, 255, 255, 255))
    white.paste((255, 255, 255, 0), (0, 0, 20, 20))
    mask = kept(clean_mask(file(white)))
    assert (mask.mode, mask.getpixel((5, 5)), mask.getpixel((30, 5))) == ("L", 0, 255)


def truncated() -> bytes:
    return file(Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)))[:2000]


BAD: dict[str, tuple[Callable[[], bytes], str]] = {
    "nothing": (lambda: b"", "can't be read"),
    "a web page": (lambda: b"<html>no</html>", "can't be read"),
    "half a file": (truncated, "can't be read"),
    "one pixel": (lambda: file(Image.new("RGB", (1, 1))), "at least 16 a side"),
    "a thin line": (lambda: file(Image.new("RGB", (5000, 3))), "at least 16 a side"),
    "100 megapixels": (lambda: file(Image.new("1", (10_000, 10_000))), "at most 64,000,000"),
    "a bomb": (lambda: file(Image.new("1", (20_000, 20_000))), r"too large, .*400000000.*: at most 64,000,000"),
    "a vector drawing": (lambda: b"<svg xmlns='http://www.w3.org/2000/svg'/>", "can't be read"),
    "numbers without a scale": (lambda: file(Image.new("F", (20, 20)), "TIFF"), "32 bits"),
    "another format": (lambda: file(halves(), "PPM"), "PNG, JPEG, WEBP"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_can_not_be_taken(name: str) -> None:
    make, words = BAD[name]
    data = make()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for clean, what in ((clean_picture, "picture"), (clean_mask, "mask")):
        with pytest.raises(InvalidInput, match=words) as caught:
            clean(data)
        assert what in str(caught.value)
        assert "BytesIO" not in str(caught.value)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kilobytes: nothing was unpacked


def test_a_mask_of_nothing() -> None:
    with pytest.raises(InvalidInput, match="black all over"):
        clean_mask(file(Image.new("L", (40, 20), 100)))


@pytest.mark.parametrize(
    ("size", "asked", "multiple", "expected"),
    [
        ((64, 64), (None, None), 8, (64, 64)),
        ((70, 45), (None, None), 8, (64, 40)),
        ((70, 45), (None, None), 16, (64, 32)),
        ((4096, 1024), (None, None), 8, (2048, 512)),
        ((17, 2000), (None, None), 16, (16, 2000)),
        ((100, 50), (64, None), 8, (64, 32)),
        ((100, 50), (None, 64), 8, (128, 64)),
        ((100, 50), (64, 64), 8, (64, 64)),
    ],
)
def test_sizes(
    size: tuple[int, int], asked: tuple[int | None, int | None], multiple: int, expected: tuple[int, int]
) -> None:
    mask = Image.new("L", (size[0] // 2, size[1] // 2), 255) if min(size) > 40 else None
    found, note = fitted(Inputs(halves(size=size), mask), *asked, multiple)
    assert found.image.size == expected
    assert found.mask is None or found.mask.size == expected
    assert (note is None) == (size == expected)


def test_a_mask_of_other_proportions() -> None:
    with pytest.raises(InvalidInput, match=r"20x20.*40x20.*proportions"):
        Inputs(halves(), Image.new("L", (20, 20), 255))


def test_what_is_white_is_not_lost_in_silence() -> None:
    """Both masks came out black, so that nothing was drawn and nobody told."""
    line = Image.new("L", (64, 64), 0)
    line.paste(255, (10, 0, 14, 64))
    assert mask_latents(line, 8, 8)[0, 0, 0].tolist() == [0, 1, 0, 0, 0, 0, 0, 0]
    edge = Image.new("L", (102, 70), 0)
    edge.paste(255, (0, 69, 102, 70))
    with pytest.raises(InvalidInput, match="left at 96x64"):
        fitted(Inputs(Image.new("RGB", (102, 70)), edge), None, None, 8)


def test_mask_and_picture_are_cut_alike() -> None:
    """The mask marks the red half, and does so after both were cut to a square."""
    mask = Image.new("L", (40, 20))
    mask.paste(255, (0, 0, 20, 20))
    found, _ = fitted(Inputs(halves(), mask), 16, 16, 8)
    assert found.mask is not None
    red = np.asarray(found.image)[:, :, 0] > 127
    assert np.array_equal(red, np.asarray(found.mask) > 127)
    assert mask_latents(found.mask, 2, 2).tolist() == [[[[1.0, 0.0], [1.0, 0.0]]]]
