"""Backgrounds, as float32 pictures in 0..1. Textures are coarse (8 pixels or more) so that 8x8 latents carry them."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Picture = NDArray[np.floating[Any]]
Random = np.random.Generator
SIZE = 64
ROWS, COLUMNS = np.mgrid[0:SIZE, 0:SIZE].astype(np.float32) + 0.5


def rgb(colour: tuple[int, int, int]) -> Picture:
    """A colour in 0..1."""
    return np.asarray(colour, np.float32) / 255


def mix(a: Picture, b: Picture, share: Picture | float) -> Picture:
    """`a` where share is 0, `b` where it is 1."""
    weight = np.asarray(share, np.float32)
    if weight.ndim == 2:
        weight = weight[..., None]
    mixed: Picture = (a * (1 - weight) + b * weight).astype(np.float32)
    return mixed


def step(distance: Picture, soft: float = 0.7) -> Picture:
    """An anti-aliased edge: 1 where distance is above zero."""
    edge: Picture = np.clip(distance / (2 * soft) + 0.5, 0, 1)
    return edge


def blobs(rng: Random, cells: int = 8) -> Picture:
    """Smooth noise in 0..1."""
    from PIL import Image

    coarse = Image.fromarray(rng.integers(0, 256, (cells, cells)).astype(np.uint8))
    return np.asarray(coarse.resize((SIZE, SIZE), Image.Resampling.BICUBIC), np.float32) / 255


def _pair(colour: Picture) -> tuple[Picture, Picture]:
    """The colour and a clearly different tone of it."""
    other = mix(colour, np.ones(3, np.float32), 0.62) if colour.mean() < 0.72 else colour * 0.66
    return colour, other.astype(np.float32)


def plain(colour: Picture, rng: Random) -> Picture:
    """One colour, flat or softly shaded."""
    flat = np.broadcast_to(colour, (SIZE, SIZE, 3)).astype(np.float32)
    kind = rng.integers(0, 4)
    if kind == 0:
        return flat
    if kind == 1:
        shade = 1.08 - 0.26 * ROWS / SIZE
    elif kind == 2:
        shade = 0.86 + 0.24 * COLUMNS / SIZE
    else:
        shade = 1.1 - 0.34 * np.hypot(ROWS - 32, COLUMNS - 32) / 45
    shaded: Picture = np.clip(flat * shade[..., None], 0, 1).astype(np.float32)
    return shaded


def checkerboard(colour: Picture, rng: Random) -> Picture:
    a, b = _pair(colour)
    odd = ((ROWS // 16 + COLUMNS // 16) % 2).astype(np.float32)
    return mix(a, b, odd if rng.random() < 0.5 else 1 - odd)


def stripes(colour: Picture, rng: Random) -> Picture:
    a, b = _pair(colour)
    phase = (ROWS + COLUMNS) % 32
    return mix(a, b, step(8 - np.abs(phase - 16)))


def dots(colour: Picture, rng: Random) -> Picture:
    a, b = _pair(colour)
    shift = 8 * ((ROWS // 16) % 2)
    near = np.hypot(ROWS % 16 - 8, (COLUMNS + shift) % 16 - 8)
    return mix(a, b, step(4.4 - near))


def night(colour: Picture, rng: Random) -> Picture:
    sky = mix(rgb((14, 16, 48)), rgb((58, 42, 110)), ROWS / SIZE)
    for _ in range(14):
        x, y, r = rng.uniform(2, 62), rng.uniform(2, 62), rng.uniform(1.0, 2.0)
        distance = np.hypot(COLUMNS - x, ROWS - y)
        sky = mix(sky, rgb((255, 250, 215)), np.clip(step(r - distance) + 0.35 * np.exp(-((distance / 3) ** 2)), 0, 1))
    return sky


def snow(colour: Picture, rng: Random) -> Picture:
    sky = mix(rgb((112, 140, 178)), rgb((188, 204, 224)), ROWS / SIZE)
    ground = 52 + 3 * np.sin(COLUMNS / 9 + rng.uniform(0, 6))
    sky = mix(sky, rgb((250, 252, 255)), step(ROWS - ground, 1))
    for _ in range(20):
        x, y, r = rng.uniform(1, 63), rng.uniform(1, 58), rng.uniform(1.5, 2.6)
        sky = mix(sky, rgb((255, 255, 255)), step(r - np.hypot(COLUMNS - x, ROWS - y)))
    return sky


def waves(colour: Picture, rng: Random) -> Picture:
    phase = rng.uniform(0, 6.28)
    picture = np.broadcast_to(rgb((206, 236, 246)), (SIZE, SIZE, 3)).astype(np.float32)
    tones = ((122, 200, 226), (70, 160, 210), (44, 122, 190), (28, 88, 160))
    for i, tone in enumerate(tones):
        crest = 14 + 13 * i + 3.4 * np.sin(COLUMNS * 2 * np.pi / 21.3 + phase + 2.1 * i)
        foam = step(ROWS - crest) * step(crest + 2.6 - ROWS)
        picture = mix(mix(picture, rgb(tone), step(ROWS - crest)), rgb((240, 250, 255)), foam * 0.85)
    return picture


def grid(colour: Picture, rng: Random) -> Picture:
    paper = rgb((248, 250, 250))
    ink = mix(colour, rgb((120, 150, 190)), 0.35) if colour.mean() < 0.8 else rgb((120, 150, 190))
    near = np.minimum(np.abs(ROWS % 16 - 8), np.abs(COLUMNS % 16 - 8))
    return mix(paper, ink, step(1.1 - near))


def sunset(colour: Picture, rng: Random) -> Picture:
    sky = mix(rgb((92, 52, 132)), rgb((252, 156, 86)), np.clip(ROWS / 46, 0, 1))
    sun = step(13 - np.hypot(COLUMNS - 32 - rng.uniform(-14, 14), ROWS - 44), 1)
    sky = mix(sky, rgb((255, 226, 128)), sun)
    sea = mix(rgb((206, 96, 96)), rgb((78, 44, 104)), np.clip((ROWS - 46) / 18, 0, 1))
    return mix(sky, sea, step(ROWS - 46))


def bricks(colour: Picture, rng: Random) -> Picture:
    row = ROWS // 8
    along = (COLUMNS + 8 * (row % 2)) % 16
    seam = np.minimum(np.minimum(ROWS % 8, 8 - ROWS % 8), np.minimum(along, 16 - along))
    jitter = rng.uniform(0.84, 1.12, (8, 5)).astype(np.float32)
    tone = jitter[row.astype(int), ((COLUMNS + 8 * (row % 2)) // 16).astype(int)]
    return mix(rgb((222, 208, 194)), np.clip(rgb((174, 84, 62)) * tone[..., None], 0, 1), step(seam - 0.9))


def rays(colour: Picture, rng: Random) -> Picture:
    a, b = _pair(colour)
    angle = np.arctan2(ROWS - 32, COLUMNS - 32)
    spread = np.sin(angle * 8) * np.maximum(np.hypot(ROWS - 32, COLUMNS - 32), 1) / 8
    return mix(a, b, step(spread, 0.25))


def meadow(colour: Picture, rng: Random) -> Picture:
    picture = mix(rgb((122, 190, 240)), rgb((214, 238, 250)), np.clip(ROWS / 40, 0, 1))
    far = 38 + 4 * np.sin(COLUMNS / 10 + rng.uniform(0, 6))
    near = 47 + 4 * np.sin(COLUMNS / 13 + rng.uniform(0, 6))
    picture = mix(picture, rgb((124, 190, 92)), step(ROWS - far))
    return mix(picture, rgb((84, 156, 66)), step(ROWS - near))


PATTERNS: dict[str, Callable[[Picture, Random], Picture]] = {
    pattern.__name__: pattern
    for pattern in (checkerboard, stripes, dots, night, snow, waves, grid, sunset, bricks, rays, meadow)
}
