"""A labelled contact sheet: one row per prompt, what was chosen on the left, pictures of equal size on the right."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont, ImageOps

CELL, GAP, TEXT_WIDTH, LINE = 128, 6, 400, 17
"""Pixels: longer edge of a picture, space between things, width of the text column, height of a line."""
COLUMNS = 58
"""Characters in a line of the text column."""
PAPER, INK, FAINT = "#fbfaf7", "#1b1b1f", "#6d6d75"


@dataclass(frozen=True)
class Row:
    title: str
    lines: Sequence[str]
    groups: Sequence[Sequence[Image.Image]]
    """Pictures, in groups set apart by a wider gap: one group per column heading."""


def contact_sheet(headings: Sequence[str], rows: Sequence[Row]) -> Image.Image:
    """RGB picture of all `rows`; `headings` name the groups and must be as many as each row has."""
    if not rows:
        raise ValueError("a contact sheet needs at least one row")
    wrapped = [[*textwrap.wrap(row.title, COLUMNS - 6), *_wrap_all(row.lines)] for row in rows]
    heights = [max(CELL, LINE * len(lines)) + 3 * GAP for lines in wrapped]
    starts = _group_starts(rows[0].groups)
    sheet = Image.new("RGB", (starts[-1] + GAP, sum(heights) + LINE + 3 * GAP), PAPER)
    draw = ImageDraw.Draw(sheet)
    for heading, x in zip(headings, starts[:-1], strict=True):
        draw.text((x, GAP), heading, INK, _font(15))
    top = LINE + 3 * GAP
    for row, lines, height in zip(rows, wrapped, heights, strict=True):
        title_lines = len(textwrap.wrap(row.title, COLUMNS - 6))
        for i, line in enumerate(lines):
            is_title = i < title_lines
            draw.text((GAP, top + i * LINE), line, INK if is_title else FAINT, _font(15 if is_title else 13))
        for group, x in zip(row.groups, starts, strict=False):
            for i, picture in enumerate(group):
                sheet.paste(_fit(picture), (x + i * (CELL + GAP), top))
        top += height
    return sheet


def _wrap_all(lines: Sequence[str]) -> list[str]:
    return [part for line in lines for part in textwrap.wrap(line, COLUMNS, subsequent_indent="  ")]


def _group_starts(groups: Sequence[Sequence[Image.Image]]) -> list[int]:
    starts = [TEXT_WIDTH]
    for group in groups:
        starts.append(starts[-1] + len(group) * (CELL + GAP) + 3 * GAP)
    return starts


def _fit(picture: Image.Image) -> Image.Image:
    return ImageOps.pad(picture.convert("RGB"), (CELL, CELL), Image.Resampling.LANCZOS, PAPER)


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
