"""Civitai's `nsfwLevel`, of versions and of pictures, as a rating: its own answers have it, and the files that helpers
keep beside weights. Any value may be of another type than it should be."""

from collections.abc import Mapping
from typing import Any

from stylus.records import Rating

_MILD = 1 | 2
"""Bits of `nsfwLevel` for PG and PG-13; 4, 8 and 16 are R, X and XXX."""


def rating(model: Mapping[str, Any], version: Mapping[str, Any]) -> Rating:
    """`nsfwLevel` of a version is the union of its pictures' levels: mature is what shows nothing milder."""
    level = version.get("nsfwLevel", model.get("nsfwLevel"))
    only_mature = isinstance(level, int) and level > 0 and not level & _MILD
    return Rating.MATURE if model.get("nsfw") is True or only_mature else Rating.GENERAL


def is_mild(level: object) -> bool:
    """Of a picture; older answers say None, Soft, Mature or X."""
    return level in (None, "None", "Soft") or (isinstance(level, int) and not level & ~_MILD)
