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


def test_with_repetition_each_draw_is_uniform_and_for_itself() -> None:
    """4,000 draws of one seed; two draws of two masks agree half of the time, where sampling without never does."""
    draws = sample_masks([2, 1], 4_000, MaskMode.SAMPLE, seed=1, repeat=True)
    seen, total = Counter(draws), count_masks([2, 1])
    deviation = math.sqrt(4_000 / total * (1 - 1 / total))
    assert len(seen) == total
    assert all(abs(times - 4_000 / total) < 5 * deviation for times in seen.values())
    agreed = sum(len(set(sample_masks([1], 2, MaskMode.SAMPLE, seed, repeat=True))) == 1 for seed in range(1_000))
    assert 420 < agreed < 580


@given(sizes, seeds, st.integers(0, 12), st.sampled_from(MaskMode), st.booleans())
def test_the_control_comes_first_and_changes_no_other_rule(
    task_sizes: list[int], seed: int, count: int, mode: MaskMode, repeat: bool
) -> None:
    drawn = sample_masks(task_sizes, count, mode, seed, repeat=repeat, control=True)
    assert len(drawn) == count
    assert not any(place for mask in drawn[:1] for place in mask)
    if mode is MaskMode.SAMPLE and not repeat:
        first_round = drawn[: count_masks(task_sizes)]
        assert len(set(first_round)) == len(first_round)
    assert set(drawn) <= papers_masks(task_sizes)
    assert drawn == sample_masks(task_sizes, count + 3, mode, seed, repeat=repeat, control=True)[:count]


def test_fifty_one_adapters_cost_nothing() -> None:
    """The authors' code builds 2^51 masks for such a prompt; 2^200 distinct masks are beyond any machine integer."""
    assert len(set(sample_masks([17, 17, 17], 64, MaskMode.SAMPLE, seed=1))) == 64
    assert len(set(sample_masks([1] * 200, 64, MaskMode.SAMPLE, seed=1))) == 64
    assert len(sample_masks([26] * 200, 64, MaskMode.SAMPLE, seed=1, repeat=True)) == 64


def test_nonsense_is_refused() -> None:
    with pytest.raises(InvalidInput, match="-1"):
        sample_masks([2], -1, MaskMode.ALL, seed=0)
    with pytest.raises(InvalidInput, match="-2"):
        sample_masks([1, -2], 1, MaskMode.SAMPLE, seed=0)
