"""Vector drawings of the base shapes and of the subjects, in a square from -1 to 1 with y pointing down.

Each is a function on a `Pen`. Tones: 128 is the thing's own colour, lower is darker, higher is nearer to white.
"""

import math
from collections.abc import Callable, Sequence

from PIL import Image, ImageDraw

Point = tuple[float, float]
BODY, DARK, DEEP, LIGHT, PALE = 128, 84, 34, 190, 245
SCALE = 4
"""Supersampling: pens draw at four times the size of the picture."""


class Pen:
    """Draws one thing into a coverage mask and a tone map, both supersampled."""

    def __init__(self, size: int, x: float, y: float, radius: float, turn: float = 0.0) -> None:
        self.cover = Image.new("L", (size * SCALE, size * SCALE), 0)
        self.tone = Image.new("L", (size * SCALE, size * SCALE), BODY)
        self._cover, self._tone = ImageDraw.Draw(self.cover), ImageDraw.Draw(self.tone)
        self._x, self._y, self._r = x * SCALE, y * SCALE, radius * SCALE
        self._cos, self._sin = math.cos(turn), math.sin(turn)

    def _at(self, point: Point) -> Point:
        px, py = point
        return (
            self._x + self._r * (px * self._cos - py * self._sin),
            self._y + self._r * (px * self._sin + py * self._cos),
        )

    def poly(self, points: Sequence[Point], tone: int = BODY) -> None:
        """Fill a polygon."""
        placed = [self._at(p) for p in points]
        self._cover.polygon(placed, fill=255)
        self._tone.polygon(placed, fill=tone)

    def disc(self, cx: float, cy: float, rx: float, ry: float | None = None, tone: int = BODY) -> None:
        """Fill an ellipse."""
        ry = rx if ry is None else ry
        self.poly([(cx + rx * math.cos(a), cy + ry * math.sin(a)) for a in _angles(40)], tone)

    def box(self, x0: float, y0: float, x1: float, y1: float, tone: int = BODY) -> None:
        """Fill a rectangle."""
        self.poly([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], tone)

    def stroke(self, points: Sequence[Point], width: float, tone: int = BODY) -> None:
        """A round-ended line through the points."""
        placed = [self._at(p) for p in points]
        wide = max(1, round(width * self._r))
        for draw, fill in ((self._cover, 255), (self._tone, tone)):
            draw.line(placed, fill=fill, width=wide, joint="curve")
            for px, py in placed:
                draw.ellipse((px - wide / 2, py - wide / 2, px + wide / 2, py + wide / 2), fill=fill)

    def cut(self, cx: float, cy: float, rx: float, ry: float | None = None) -> None:
        """Take an ellipse away."""
        ry = rx if ry is None else ry
        self._cover.polygon([self._at((cx + rx * math.cos(a), cy + ry * math.sin(a))) for a in _angles(40)], fill=0)


def _angles(count: int, start: float = 0.0) -> list[float]:
    return [start + 2 * math.pi * i / count for i in range(count)]


def _regular(count: int, start: float, radius: float = 1.0) -> list[Point]:
    return [(radius * math.cos(a), radius * math.sin(a)) for a in _angles(count, start)]


def circle(p: Pen) -> None:
    p.disc(0, 0, 0.95)


def square(p: Pen) -> None:
    p.box(-0.85, -0.85, 0.85, 0.85)


def triangle(p: Pen) -> None:
    p.poly([(0, -1), (1, 0.8), (-1, 0.8)])


def diamond(p: Pen) -> None:
    p.poly([(0, -1.1), (0.75, 0), (0, 1.1), (-0.75, 0)])


def ring(p: Pen) -> None:
    p.disc(0, 0, 1)
    p.cut(0, 0, 0.52)


def oval(p: Pen) -> None:
    p.disc(0, 0, 1.2, 0.68)


def hexagon(p: Pen) -> None:
    p.poly(_regular(6, 0, 1.05))


def pill(p: Pen) -> None:
    p.stroke([(-0.72, 0), (0.72, 0)], 0.95)


def star(p: Pen) -> None:
    outer, inner = _regular(5, -math.pi / 2, 1.15), _regular(5, -math.pi / 2 + math.pi / 5, 0.48)
    p.poly([q for pair in zip(outer, inner, strict=True) for q in pair])


def heart(p: Pen) -> None:
    points = []
    for a in _angles(60):
        hx = 16 * math.sin(a) ** 3
        hy = 13 * math.cos(a) - 5 * math.cos(2 * a) - 2 * math.cos(3 * a) - math.cos(4 * a)
        points.append((hx / 15, -hy / 15))
    p.poly(points)


def moon(p: Pen) -> None:
    p.disc(0, 0, 1.08)
    p.cut(0.46, -0.16, 0.86)


def cross(p: Pen) -> None:
    p.box(-0.34, -1.05, 0.34, 1.05)
    p.box(-1.05, -0.34, 1.05, 0.34)


def arrow(p: Pen) -> None:
    p.poly([(-1.1, -0.28), (0.1, -0.28), (0.1, -0.85), (1.15, 0), (0.1, 0.85), (0.1, 0.28), (-1.1, 0.28)])


def spiral(p: Pen) -> None:
    turns = 2.2
    points = []
    for i in range(90):
        a = turns * 2 * math.pi * i / 89
        r = 0.06 + 0.98 * i / 89
        points.append((r * math.cos(a), r * math.sin(a)))
    p.stroke(points, 0.24)


def house(p: Pen) -> None:
    p.box(-0.75, -0.15, 0.75, 1)
    p.poly([(0, -1.1), (1.1, -0.1), (-1.1, -0.1)], DARK)
    p.box(-0.2, 0.4, 0.2, 1, DEEP)
    p.box(0.38, 0.1, 0.62, 0.34, PALE)
    p.box(-0.62, 0.1, -0.38, 0.34, PALE)


def tree(p: Pen) -> None:
    p.box(-0.16, 0.6, 0.16, 1.15, DEEP)
    for top, bottom, half, tone in ((-0.1, 0.75, 0.95, DARK), (-0.62, 0.22, 0.75, BODY), (-1.15, -0.3, 0.55, LIGHT)):
        p.poly([(0, top - 0.1), (half, bottom), (-half, bottom)], tone)


def fish(p: Pen) -> None:
    p.poly([(0.45, 0), (1.25, -0.62), (1.1, 0), (1.25, 0.62)], DARK)
    p.disc(-0.2, 0, 0.95, 0.6)
    p.poly([(-0.3, -0.5), (0.25, -0.92), (0.3, -0.45)], DARK)
    p.disc(-0.68, -0.12, 0.16, tone=PALE)
    p.disc(-0.7, -0.12, 0.08, tone=10)


def cat(p: Pen) -> None:
    for side in (-1, 1):
        p.poly([(side * 0.92, -1.15), (side * 0.95, 0), (side * 0.12, -0.55)], DARK)
    p.disc(0, 0.1, 1, 0.85)
    for side in (-1, 1):
        p.disc(side * 0.4, -0.05, 0.2, 0.24, tone=PALE)
        p.disc(side * 0.4, -0.03, 0.1, 0.2, tone=10)
    p.poly([(-0.14, 0.3), (0.14, 0.3), (0, 0.46)], DEEP)
    p.stroke([(-0.26, 0.62), (0, 0.48), (0.26, 0.62)], 0.08, DEEP)


def flower(p: Pen) -> None:
    for px, py in _regular(6, 0.3, 0.66):
        p.disc(px, py, 0.42)
    p.disc(0, 0, 0.38, tone=PALE)
    p.disc(0, 0, 0.2, tone=DARK)


def cup(p: Pen) -> None:
    p.stroke([(0.55, -0.1), (1.0, -0.05), (1.0, 0.4), (0.5, 0.55)], 0.2)
    p.poly([(-0.8, -0.4), (0.66, -0.4), (0.5, 1), (-0.64, 1)])
    p.disc(-0.07, -0.4, 0.73, 0.2, tone=DEEP)
    for sx in (-0.32, 0.18):
        p.stroke([(sx, -0.75), (sx + 0.1, -0.92), (sx, -1.1)], 0.13, PALE)


def mushroom(p: Pen) -> None:
    p.poly([(-0.3, 0), (0.3, 0), (0.42, 1.05), (-0.42, 1.05)], PALE)
    p.poly([(1.1 * math.cos(a), 0.15 + 1.15 * math.sin(a)) for a in [math.pi + math.pi * i / 30 for i in range(31)]])
    for cx, cy, r in ((-0.5, -0.3, 0.2), (0.1, -0.62, 0.2), (0.55, -0.2, 0.17)):
        p.disc(cx, cy, r, tone=PALE)


def key(p: Pen) -> None:
    p.stroke([(-0.2, 0), (1.15, 0)], 0.24)
    p.box(0.55, 0, 0.75, 0.5)
    p.box(0.95, 0, 1.15, 0.58)
    p.disc(-0.65, 0, 0.58)
    p.cut(-0.7, 0, 0.24)


def umbrella(p: Pen) -> None:
    p.stroke([(0, -0.3), (0, 0.85), (0.14, 1.02), (0.34, 0.98), (0.38, 0.82)], 0.14, DEEP)
    arc = [math.pi + math.pi * i / 30 for i in range(31)]
    p.poly([(1.15 * math.cos(a), 0.05 + 1.05 * math.sin(a)) for a in arc])
    p.poly([(0.4 * math.cos(a), 0.05 + 1.05 * math.sin(a)) for a in arc], LIGHT)
    for cx in (-0.76, 0.0, 0.76):
        p.cut(cx, 0.1, 0.38 if cx else 0.4, 0.2)
    p.stroke([(0, -0.2), (0, 0.4)], 0.14, DEEP)


def boat(p: Pen) -> None:
    p.poly([(-1.15, 0.45), (1.15, 0.45), (0.75, 1), (-0.75, 1)], DARK)
    p.poly([(-0.06, -1.15), (-0.06, 0.32), (-0.95, 0.32)], PALE)
    p.poly([(0.1, -0.95), (0.95, 0.32), (0.1, 0.32)])


def bolt(p: Pen) -> None:
    p.poly([(0.2, -1.2), (-0.75, 0.2), (-0.08, 0.2), (-0.3, 1.2), (0.75, -0.3), (0.08, -0.3), (0.55, -1.2)])


def cloud(p: Pen) -> None:
    p.box(-0.8, 0.0, 0.8, 0.6)
    for cx, cy, r in ((-0.75, 0.22, 0.4), (0.8, 0.2, 0.42), (-0.28, -0.18, 0.5), (0.36, -0.08, 0.46)):
        p.disc(cx, cy, r)


def crown(p: Pen) -> None:
    p.poly([(-1, 0.8), (-1.1, -0.6), (-0.5, 0.05), (0, -0.9), (0.5, 0.05), (1.1, -0.6), (1, 0.8)])
    p.box(-1, 0.5, 1, 0.8, DARK)
    for cx, cy in ((-1.1, -0.65), (0, -0.95), (1.1, -0.65)):
        p.disc(cx, cy, 0.17, tone=PALE)


def rocket(p: Pen) -> None:
    p.poly([(-0.3, 0.7), (0.3, 0.7), (0, 1.35)], LIGHT)
    for side in (-1, 1):
        p.poly([(side * 0.3, 0.1), (side * 0.85, 0.85), (side * 0.3, 0.75)], DARK)
    p.poly([(0, -1.25), (0.32, -0.75), (0.44, -0.1), (0.36, 0.75), (-0.36, 0.75), (-0.44, -0.1), (-0.32, -0.75)])
    p.disc(0, -0.25, 0.22, tone=PALE)


DRAWINGS: dict[str, Callable[[Pen], None]] = {
    drawing.__name__: drawing
    for drawing in (
        circle,
        square,
        triangle,
        diamond,
        ring,
        oval,
        hexagon,
        pill,
        star,
        heart,
        moon,
        cross,
        arrow,
        spiral,
        house,
        tree,
        fish,
        cat,
        flower,
        cup,
        mushroom,
        key,
        umbrella,
        boat,
        bolt,
        cloud,
        crown,
        rocket,
    )
}
UPRIGHT = ("circle", "square", "triangle", "ring", "hexagon")
