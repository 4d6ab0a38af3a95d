"""Properties of the merge: mean within a task, sum across tasks, nothing of what is masked."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stylus.errors import InvalidInput
from stylus.masks import sample_masks
from stylus.records import BaseModelFamily, Choice, Composition, MaskMode, Task
from stylus.weights import effective_weights, merge_schedule


def composition_of(weights_by_task: list[list[float]]) -> Composition:
    tasks = tuple(
        Task(
            keyword=f"task {t}",
            choices=tuple(Choice(adapter_id=f"test:{t}-{i}", weight=weight) for i, weight in enumerate(weights)),
        )
        for t, weights in enumerate(weights_by_task)
    )
    return Composition(id="c", prompt="p", base_model=BaseModelFamily.POCKET, tasks=tasks, composer="test")


strengths = st.floats(-4, 4, width=32)
compositions = st.lists(st.lists(strengths, max_size=4), max_size=4).map(composition_of)


def task_sizes(composition: Composition) -> list[int]:
    return [len(task.choices) for task in composition.tasks]


@given(compositions, st.integers(0, 1000))
def test_a_task_weighs_the_mean_of_its_survivors(composition: Composition, seed: int) -> None:
    (mask,) = sample_masks(task_sizes(composition), 1, MaskMode.SAMPLE, seed)
    weights = effective_weights(composition, mask)
    assert not weights[~np.array(mask, dtype=bool)].any()
    start = 0
    for task in composition.tasks:
        end = start + len(task.choices)
        survivors = [choice.weight for choice, on in zip(task.choices, mask[start:end], strict=True) if on]
        expected = np.mean(survivors) if survivors else 0.0
        np.testing.assert_allclose(weights[start:end].sum(), expected, atol=1e-5)
        start = end


@given(compositions, st.integers(1, 5), st.integers(1, 6))
def test_the_schedule_is_constant_over_steps_with_a_row_per_image(
    composition: Composition, count: int, steps: int
) -> None:
    masks = sample_masks(task_sizes(composition), count, MaskMode.SAMPLE, seed=3)
    schedule = merge_schedule(composition, masks, steps)
    assert schedule.adapters == tuple(choice.adapter_id for choice in composition.choices)
    assert schedule.weights.shape == (count, len(schedule.adapters), steps)
    assert schedule.weights.dtype == np.float32
    assert schedule.image_of_row.tolist() == list(range(count))
    for row, mask in zip(schedule.weights, masks, strict=True):
        for step in range(steps):
            np.testing.assert_array_equal(row[:, step], effective_weights(composition, mask))


def test_known_weights() -> None:
    composition = composition_of([[0.8, 0.4], [1.0]])
    np.testing.assert_allclose(effective_weights(composition, (True, True, True)), [0.4, 0.2, 1.0])
    np.testing.assert_allclose(effective_weights(composition, (False, True, True)), [0.0, 0.4, 1.0])
    np.testing.assert_allclose(effective_weights(composition, (False, False, False)), [0, 0, 0])


def test_a_mask_of_another_length_is_refused() -> None:
    with pytest.raises(InvalidInput, match="1 places"):
        effective_weights(composition_of([[0.8, 0.4]]), (True,))


def test_an_adapter_chosen_twice_is_refused() -> None:
    choice = Choice(adapter_id="test:same")
    composition = composition_of([]).model_copy(
        update={"tasks": (Task(keyword="a", choices=(choice,)), Task(keyword="b", choices=(choice,)))}
    )
    with pytest.raises(InvalidInput, match="test:same"):
        merge_schedule(composition, [(True, True)], steps=2)
