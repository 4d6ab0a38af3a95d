"""The contact sheet puts each picture where its heading says."""

import numpy as np
import pytest
from PIL import Image

from stylus.contact_sheet import CELL, TEXT_WIDTH, Row, contact_sheet


def square(colour: str) -> Image.Image:
    return Image.new("RGB", (64, 64), colour)


def test_pictures_stand_in_their_groups() -> None:
    row = Row("a title", ["a line " * 40], [[square("red"), square("lime")], [square("blue")]])
    sheet = contact_sheet(["left", "right"], [row, row])
    colours = {sheet.getpixel((x, y)) for x in range(TEXT_WIDTH, sheet.width, 9) for y in range(0, sheet.height, 9)}
    assert {(255, 0, 0), (0, 255, 0), (0, 0, 255)} <= colours
    assert sheet.height > 2 * CELL
    text_column = np.asarray(sheet.crop((0, 30, TEXT_WIDTH - 20, sheet.height)).convert("L"))
    assert text_column.min() < 80


def test_each_group_has_one_heading() -> None:
    """One more would be cut off at the edge."""
    with pytest.raises(ValueError, match="argument"):
        contact_sheet(["left", "right"], [Row("a title", [], [[square("red")]])])


def test_a_wide_picture_stays_wide() -> None:
    sheet = contact_sheet(["left"], [Row("a title", [], [[Image.new("RGB", (64, 32), "red")]])])
    red = (np.asarray(sheet) == (255, 0, 0)).all(axis=2)
    assert (red.any(axis=0).sum(), red.any(axis=1).sum()) == (CELL, CELL // 2)


def test_no_rows_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one row"):
        contact_sheet(["left"], [])
