"""Draws captioned 64x64 pictures: things of a colour on a background, in a style."""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from examples.pocket.backgrounds import COLUMNS, PATTERNS, ROWS, SIZE, Picture, Random, mix, plain, rgb
from examples.pocket.shapes import DRAWINGS, UPRIGHT, Pen
from examples.pocket.styles import LOOKS, Layers, blur
from examples.pocket.words import COLOURS


@dataclass(frozen=True)
class Thing:
    """One drawn thing; x, y and radius in pixels."""

    shape: str
    colour: str
    x: float
    y: float
    radius: float


@dataclass(frozen=True)
class Scene:
    """All that a picture shows; `pattern` and `style` are concepts of adapters, None in base pictures."""

    things: tuple[Thing, ...]
    ground: str
    pattern: str | None = None
    style: str | None = None

    @property
    def labels(self) -> frozenset[str]:
        """What the judge should find."""
        return frozenset([t.shape for t in self.things] + [c for c in (self.pattern, self.style) if c])


def place(rng: Random, shapes: list[str], colours: list[str], size: str | None = None) -> tuple[Thing, ...]:
    """Put one thing near the middle, or two side by side."""
    if len(shapes) == 1:
        low, high = {"small": (10.5, 13.0), "large": (22.5, 25.0), None: (17.0, 21.5)}[size]
        radius = rng.uniform(low, high)
        slack = max(1.0, 27 - 1.15 * radius) * 0.7
        x, y = 32 + rng.uniform(-slack, slack), 32 + rng.uniform(-slack, slack)
        return (Thing(shapes[0], colours[0], x, y, radius),)
    things = []
    for i, (shape, colour) in enumerate(zip(shapes, colours, strict=True)):
        things.append(
            Thing(shape, colour, (17, 47)[i] + rng.uniform(-2, 2), 32 + rng.uniform(-7, 7), rng.uniform(10.5, 12.8))
        )
    return tuple(things)


def _draw(thing: Thing, rng: Random) -> tuple[Picture, Picture, Picture]:
    turn = 0.0 if thing.shape in UPRIGHT else rng.uniform(-0.16, 0.16)
    pen = Pen(SIZE, thing.x, thing.y, thing.radius, turn)
    DRAWINGS[thing.shape](pen)
    cover = np.asarray(pen.cover.reduce(4), np.float32) / 255
    tone = np.asarray(pen.tone.reduce(4), np.float32) / 128
    u, v = (COLUMNS - thing.x) / thing.radius, (ROWS - thing.y) / thing.radius
    light = 1 - 0.13 * (u + v)
    gleam = 0.5 * np.exp(-(((u + 0.38) / 0.3) ** 2) - ((v + 0.42) / 0.26) ** 2)
    own = rgb(COLOURS[thing.colour])
    darker = own * np.clip(np.minimum(tone, 1) * light, 0, 1.25)[..., None]
    paint = mix(darker, np.ones(3, np.float32), np.clip(np.maximum(tone - 1, 0) + gleam * 0.55, 0, 1))
    return cover, tone, np.clip(paint, 0, 1).astype(np.float32)


def draw(scene: Scene, rng: Random) -> Picture:
    """The picture of a scene, float32 in 0..1; texture details come from `rng`."""
    colour = rgb(COLOURS[scene.ground])
    background = PATTERNS[scene.pattern](colour, rng) if scene.pattern else plain(colour, rng)
    background = np.ascontiguousarray(background)
    picture, cover, tone = background, np.zeros((SIZE, SIZE), np.float32), np.ones((SIZE, SIZE), np.float32)
    paint = np.broadcast_to(rgb(COLOURS[scene.things[-1].colour]), (SIZE, SIZE, 3)).astype(np.float32)
    middle = np.mean([t.x for t in scene.things])
    for thing in scene.things:
        mask, own_tone, own_paint = _draw(thing, rng)
        shadow = np.roll(blur(mask, 2.4), (3, 2), (0, 1)) * 0.34
        picture = mix(mix(picture, rgb((20, 20, 34)), shadow), own_paint, mask)
        side = (middle > COLUMNS) if thing.x < middle else (middle <= COLUMNS)
        near = np.ones_like(mask) if len(scene.things) == 1 else side.astype(np.float32)
        cover, tone = np.maximum(cover, mask), np.where(mask > 0.5, own_tone, tone)
        paint = mix(paint, np.broadcast_to(rgb(COLOURS[thing.colour]), paint.shape), near)
    if scene.style:
        picture = LOOKS[scene.style](Layers(picture, background, paint, cover, tone), rng)
    return np.clip(picture, 0, 1).astype(np.float32)


def to_image(picture: Picture) -> Image.Image:
    """A PIL image of a picture in 0..1."""
    return Image.fromarray((np.clip(picture, 0, 1) * 255 + 0.5).astype(np.uint8))


def sheet(pictures: list[Image.Image], columns: int, scale: int = 2, gap: int = 4) -> Image.Image:
    """A contact sheet."""
    cell = SIZE * scale + gap
    rows = -(-len(pictures) // columns)
    page = Image.new("RGB", (columns * cell + gap, rows * cell + gap), (255, 255, 255))
    for i, picture in enumerate(pictures):
        big = picture.resize((SIZE * scale, SIZE * scale), Image.Resampling.BICUBIC)
        page.paste(big, (gap + i % columns * cell, gap + i // columns * cell))
    return page
