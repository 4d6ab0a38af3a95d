"""Properties of the masks: the paper's set, each once, uniform, and never listed in full."""

import itertools
import math
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stylus.errors import InvalidInput
from stylus.masks import count_masks, mask_at, sample_masks
from stylus.records import Mask, MaskMode

sizes = st.lists(st.integers(0, 4), max_size=4)
seeds = st.integers(0, 2**63 - 1)


def papers_masks(task_sizes: list[int]) -> set[Mask]:
    """The definition, listed: per task none, one-hot or all; crossed over the tasks; each once."""
    options = [
        {(False,) * size, (True,) * size} | {tuple(i == hot for i in range(size)) for hot in range(size)}
        for size in task_sizes
    ]
    return {tuple(itertools.chain(*crossed)) for crossed in itertools.product(*options)}


@given(sizes)
def test_numbers_and_masks_are_one_to_one(task_sizes: list[int]) -> None:
    expected = papers_masks(task_sizes)
    assert count_masks(task_sizes) == len(expected)
    assert {mask_at(task_sizes, index) for index in range(len(expected))} == expected


@given(sizes, seeds)
def test_sampling_uses_each_mask_once_before_any_twice(task_sizes: list[int], seed: int) -> None:
    expected = papers_masks(task_sizes)
    drawn = sample_masks(task_sizes, 2 * len(expected), MaskMode.SAMPLE, seed)
    assert set(drawn[: len(expected)]) == expected
    assert set(drawn[len(expected) :]) == expected


@given(sizes, seeds, st.integers(0, 20), st.integers(0, 20))
def test_the_mask_of_an_image_does_not_depend_on_the_count(task_sizes: list[int], seed: int, a: int, b: int) -> None:
    short, long = (sample_masks(task_sizes, count, MaskMode.SAMPLE, seed) for count in sorted((a, b)))
    assert long[: len(short)] == short


@given(sizes, seeds, st.integers(0, 8))
def test_all_and_none(task_sizes: list[int], seed: int, count: int) -> None:
    assert sample_masks(task_sizes, count, MaskMode.ALL, seed) == [(True,) * sum(task_sizes)] * count
    assert sample_masks(task_sizes, count, MaskMode.NONE, seed) == [(False,) * sum(task_sizes)] * count


@pytest.mark.parametrize("task_sizes", [[2, 1], [3], [1, 1, 0]])
def test_sampling_is_uniform(task_sizes: list[int]) -> None:
    """The first mask over 4,000 seeds: each of the n masks within 5 standard deviations of 4,000 / n."""
    draws, total = 4_000, count_masks(task_sizes)
    seen = Counter(sample_masks(task_sizes, 1, MaskMode.SAMPLE, seed)[0] for seed in range(draws))
    deviation = math.sqrt(draws / total * (1 - 1 / total))
    assert len(seen) == total
    assert all(abs(times - draws / total) < 5 * deviation for times in seen.values())


def test_fifty_one_adapters_cost_nothing() -> None:
    """The authors' code builds 2^51 masks for such a prompt; 2^200 distinct masks are beyond any machine integer."""
    assert len(set(sample_masks([17, 17, 17], 64, MaskMode.SAMPLE, seed=1))) == 64
    assert len(set(sample_masks([1] * 200, 64, MaskMode.SAMPLE, seed=1))) == 64


def test_nonsense_is_refused() -> None:
    with pytest.raises(InvalidInput, match="-1"):
        sample_masks([2], -1, MaskMode.ALL, seed=0)
    with pytest.raises(InvalidInput, match="-2"):
        sample_masks([1, -2], 1, MaskMode.SAMPLE, seed=0)
