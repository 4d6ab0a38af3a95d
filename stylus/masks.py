"""Masks: which chosen adapters each image of a batch uses (paper, section 3.4; PAPER.md's algorithm, step 5).

Each task contributes none of its adapters, exactly one, or all of them; the tasks' options are crossed, and every image
draws one crossed mask. Unlike the authors' code, which lists the power set, nothing is ever listed: a crossed mask is a
number written in mixed radix (one digit a task), so 51 adapters in one prompt cost no more than three.
"""

import math
from collections.abc import Iterator, Sequence
from itertools import chain, islice
from random import Random

from stylus.errors import InvalidInput
from stylus.records import Mask, MaskMode


def task_options(size: int) -> int:
    """How many distinct masks a task of `size` adapters has: none, one-hot each, all (which coincide when size < 2)."""
    return size + 1 if size < 2 else size + 2


def task_mask(size: int, option: int) -> Mask:
    """Option 0 is none, 1..size is one-hot, size + 1 is all."""
    if option == size + 1:
        return (True,) * size
    return tuple(position + 1 == option for position in range(size))


def count_masks(task_sizes: Sequence[int]) -> int:
    """How many distinct crossed masks there are: at least 1 (no adapters: the empty mask)."""
    return math.prod(map(task_options, task_sizes))


def mask_at(task_sizes: Sequence[int], index: int) -> Mask:
    """The crossed mask of that number, 0 <= index < count_masks(task_sizes); different numbers give different masks."""
    mask: list[bool] = []
    for size in task_sizes:
        index, option = divmod(index, task_options(size))
        mask.extend(task_mask(size, option))
    return tuple(mask)


def shuffled(total: int, random: Random) -> Iterator[int]:
    """The numbers 0..total-1 in random order, without a list of them: Fisher-Yates that stores only what it moved.

    Memory grows with the numbers taken, not with `total`, which may exceed any machine integer."""
    moved: dict[int, int] = {}
    for first in range(total):
        swapped = random.randrange(first, total)
        yield moved.get(swapped, swapped)
        moved[swapped] = moved.pop(first, first)


def sample_masks(
    task_sizes: Sequence[int],
    count: int,
    mode: MaskMode,
    seed: int,
    *,
    repeat: bool = False,
    control: bool = False,
) -> list[Mask]:
    """One mask per image, for `count` images; each has sum(task_sizes) places, in the order of Composition.choices.

    `sample` draws uniformly from the distinct crossed masks: without repetition until all have been used, then again;
    or, with `repeat`, each draw for itself. With `control` the first image has no adapter, whatever the mode, and
    counts as the first draw. The mask of image i depends on the seed and i, not on `count`. Raises InvalidInput on
    negative sizes or counts."""
    if count < 0 or any(size < 0 for size in task_sizes):
        raise InvalidInput(
            f"count {count} and task sizes {list(task_sizes)} must not be negative; "
            "pass the number of images and the number of choices of each task."
        )
    first = [(False,) * sum(task_sizes)][:count] if control else []
    if mode is not MaskMode.SAMPLE:
        return [*first, *[(mode is MaskMode.ALL,) * sum(task_sizes)] * (count - len(first))]
    random = Random(seed)
    total = count_masks(task_sizes)
    if repeat:
        return [*first, *(mask_at(task_sizes, random.randrange(total)) for _ in range(count - len(first)))]
    return list(islice(chain(first, _rounds(task_sizes, total, random, without_none=control)), count))


def _rounds(task_sizes: Sequence[int], total: int, random: Random, *, without_none: bool) -> Iterator[Mask]:
    """All masks in random order, again and again; the first round leaves out number 0, the mask of nothing, if it was
    drawn already."""
    left_out = int(without_none)
    while True:
        yield from (mask_at(task_sizes, left_out + index) for index in shuffled(total - left_out, random))
        left_out = 0
