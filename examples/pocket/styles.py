"""Styles: each gives a drawn scene another look and keeps its shapes and, where the style allows, its background."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFilter

from examples.pocket.backgrounds import COLUMNS, ROWS, SIZE, Picture, Random, blobs, mix, rgb, step

WHITE = np.ones(3, np.float32)


@dataclass(frozen=True)
class Layers:
    """What a style works on: the finished picture and the parts that it was made of."""

    picture: Picture
    background: Picture
    paint: Picture
    """The things' own colour in every pixel that they may cover."""
    cover: Picture
    tone: Picture
    """1 is the body's own tone."""


def blur(mask: Picture, radius: float) -> Picture:
    """Gaussian blur of a mask in 0..1."""
    image = Image.fromarray((np.clip(mask, 0, 1) * 255).astype(np.uint8))
    return np.asarray(image.filter(ImageFilter.GaussianBlur(radius)), np.float32) / 255


def grow(mask: Picture, pixels: float) -> Picture:
    """The mask, dilated with soft edges."""
    grown: Picture = np.clip((blur(mask, pixels) - 0.08) * 6, 0, 1)
    return grown


def lines(layers: Layers, width: float) -> Picture:
    """Outlines of the things and of their details."""
    inside = np.clip(layers.cover * 2 - 1, 0, 1)
    rim = np.clip((blur(layers.cover, width) * (1 - blur(layers.cover, width)) * 4 - 0.35) * 2.2, 0, 1)
    gy, gx = np.gradient(blur(np.clip(layers.tone / 2, 0, 1), 0.7))
    detail = np.clip(np.hypot(gx, gy) * 9 - 0.25, 0, 1) * inside
    drawn: Picture = np.maximum(rim, detail)
    return drawn


def neon(layers: Layers, rng: Random) -> Picture:
    light = mix(layers.paint, WHITE, 0.25) if layers.paint.mean() > 0.25 else layers.paint * 0 + rgb((190, 220, 255))
    light = light / np.maximum(light.max(-1, keepdims=True), 0.3)
    dark = layers.background * 0.24
    tube = lines(layers, 1.3)
    glow = np.clip(blur(tube, 4.0) * 1.6, 0, 1)
    lit = np.clip(dark + light * glow[..., None] * 0.85, 0, 1)
    return mix(mix(lit, np.clip(light, 0, 1), tube), WHITE, blur(tube, 0.6) * tube * 0.55)


def mosaic(layers: Layers, rng: Random) -> Picture:
    jitter = np.kron(rng.uniform(0.72, 1.22, (8, 8)), np.ones((8, 8))).astype(np.float32)
    seam = np.minimum(np.minimum(ROWS % 8, 8 - ROWS % 8), np.minimum(COLUMNS % 8, 8 - COLUMNS % 8))
    tiles = np.clip(layers.picture * jitter[..., None], 0, 1)
    return mix(mix(layers.picture * 0.55, rgb((70, 66, 70)), 0.4), tiles, step(seam - 0.6))


def watercolour(layers: Layers, rng: Random) -> Picture:
    wet = blobs(rng, 7) - 0.5
    edge = np.clip((blur(layers.cover, 2.2) + 0.5 * wet - 0.42) * 3.2, 0, 1)
    rim = edge * (1 - edge) * 4
    paper = mix(rgb((252, 250, 243)), layers.background, 0.42 + 0.3 * (blobs(rng, 6) - 0.5))
    wash = mix(layers.paint * np.clip(layers.tone, 0.6, 1.4)[..., None], rgb((252, 250, 243)), 0.32 + 0.5 * wet)
    return np.clip(mix(paper, wash, edge * 0.92) * (1 - 0.2 * rim[..., None]), 0, 1)


def sketch(layers: Layers, rng: Random) -> Picture:
    paper = mix(rgb((246, 244, 238)), np.repeat(layers.background.mean(-1, keepdims=True), 3, -1), 0.18)
    hatch = step(1.3 - np.abs((ROWS + COLUMNS) % 8 - 4)) * np.clip(layers.cover, 0, 1)
    drawn = mix(paper, rgb((70, 70, 76)), hatch * 0.45)
    return mix(drawn, rgb((48, 48, 54)), lines(layers, 1.0) * 0.95)


def halftone(layers: Layers, rng: Random) -> Picture:
    luma = layers.picture.mean(-1)
    radius = 2.0 + 2.0 * (1 - luma)
    near = np.hypot(ROWS % 8 - 4, COLUMNS % 8 - 4)
    return mix(mix(layers.picture, WHITE, 0.6), layers.picture * 0.8, step(radius - near))


def sepia(layers: Layers, rng: Random) -> Picture:
    luma = np.clip((layers.picture @ np.array([0.3, 0.59, 0.11], np.float32) - 0.5) * 0.95 + 0.52, 0, 1)
    print_ = mix(rgb((62, 38, 20)), rgb((244, 224, 184)), luma)
    corner = np.clip(np.hypot(ROWS - 32, COLUMNS - 32) / 45, 0, 1) ** 3
    return mix(print_, rgb((74, 46, 26)), corner * 0.7)


def rainbow(layers: Layers, rng: Random) -> Picture:
    along = (COLUMNS - 10) / 44 if rng.random() < 0.5 else (COLUMNS + ROWS - 30) / 68
    hue = np.clip(along, 0, 1) * 0.83 * 6
    colours = np.stack([np.clip(np.abs((hue + shift) % 6 - 3) - 1, 0, 1) for shift in (0, 4, 2)], -1)
    paint = np.clip(mix(colours.astype(np.float32), WHITE, 0.14) * np.clip(layers.tone, 0.5, 1.5)[..., None], 0, 1)
    return mix(layers.picture, paint, layers.cover)


def sticker(layers: Layers, rng: Random) -> Picture:
    border = grow(layers.cover, 2.6)
    shadow = np.roll(blur(border, 2.0), (2, 2), (0, 1))
    edge = np.clip(grow(layers.cover, 3.2) - border, 0, 1)
    under = mix(layers.background, rgb((40, 40, 50)), shadow * 0.55)
    under = mix(under, rgb((120, 120, 130)), edge * 0.5)
    return mix(mix(under, WHITE, border), layers.picture, np.clip(layers.cover * 1.0, 0, 1))


def comic(layers: Layers, rng: Random) -> Picture:
    flat = mix(layers.background, layers.paint * np.where(layers.tone < 0.9, 0.7, 1.0)[..., None], layers.cover)
    flat = mix(flat, WHITE, np.clip(layers.tone - 1.3, 0, 1) * layers.cover)
    return mix(flat, rgb((18, 18, 22)), np.clip(lines(layers, 1.9) * 1.25, 0, 1))


def gold(layers: Layers, rng: Random) -> Picture:
    band = 0.5 + 0.5 * np.sin((ROWS * 1.0 + COLUMNS * 0.6) / 5.2)
    metal = mix(rgb((150, 96, 18)), rgb((255, 226, 120)), band)
    metal = mix(metal, rgb((255, 250, 220)), np.clip(band - 0.86, 0, 1) * 5)
    metal = np.clip(metal * np.clip(layers.tone, 0.45, 1.25)[..., None], 0, 1)
    rim = np.clip(lines(layers, 1.0), 0, 1) * layers.cover
    return mix(mix(layers.picture, metal, layers.cover), rgb((104, 62, 10)), rim * 0.7)


def blueprint(layers: Layers, rng: Random) -> Picture:
    near = np.minimum(np.minimum(ROWS % 8, 8 - ROWS % 8), np.minimum(COLUMNS % 8, 8 - COLUMNS % 8))
    sheet = mix(np.broadcast_to(rgb((26, 66, 148)), (SIZE, SIZE, 3)), rgb((72, 116, 196)), step(0.75 - near) * 0.8)
    sheet = mix(sheet, rgb((60, 104, 186)), layers.cover * 0.5)
    return mix(sheet, rgb((236, 244, 255)), lines(layers, 1.0))


def xray(layers: Layers, rng: Random) -> Picture:
    plate = mix(rgb((6, 12, 24)), rgb((22, 40, 64)), blur(layers.cover, 5.0))
    body = mix(plate, rgb((126, 172, 204)), layers.cover * (0.35 + 0.3 * np.clip(layers.tone, 0, 1.5)))
    return mix(body, rgb((226, 244, 255)), lines(layers, 1.8) * layers.cover)


LOOKS: dict[str, Callable[[Layers, Random], Picture]] = {
    look.__name__: look
    for look in (
        neon,
        mosaic,
        watercolour,
        sketch,
        halftone,
        sepia,
        rainbow,
        sticker,
        comic,
        gold,
        blueprint,
        xray,
    )
}
FREE_OF_BACKGROUND = ("sketch", "blueprint", "xray")
"""Styles that leave nothing of the background."""
