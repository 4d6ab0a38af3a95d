"""Properties of schedules: the merge averages within a task and sums across tasks, switch and composite let one adapter
act at a time, a budget bounds all of them, and nothing of what is masked takes part."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stylus.errors import InvalidInput
from stylus.masks import sample_masks
from stylus.records import BaseModelFamily, Choice, Composition, MaskMode, Method, Task
from stylus.weights import effective_weights, normalised, reweighed, schedule


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
        survivors = [weight for weight in survivors if weight]
        expected = np.mean(survivors) if survivors else 0.0
        np.testing.assert_allclose(weights[start:end].sum(), expected, atol=1e-5)
        start = end


@given(compositions, st.integers(1, 5), st.integers(1, 6))
def test_the_schedule_is_constant_over_steps_with_a_row_per_image(
    composition: Composition, count: int, steps: int
) -> None:
    masks = sample_masks(task_sizes(composition), count, MaskMode.SAMPLE, seed=3)
    made = schedule(composition, masks, steps)
    assert made.adapters == tuple(choice.adapter_id for choice in composition.choices)
    assert made.weights.shape == (count, len(made.adapters), steps)
    assert made.weights.dtype == np.float32
    assert made.image_of_row.tolist() == list(range(count))
    for row, mask in zip(made.weights, masks, strict=True):
        for step in range(steps):
            np.testing.assert_array_equal(row[:, step], effective_weights(composition, mask))


def test_known_weights() -> None:
    composition = composition_of([[0.8, 0.4], [1.0]])
    np.testing.assert_allclose(effective_weights(composition, (True, True, True)), [0.4, 0.2, 1.0])
    np.testing.assert_allclose(effective_weights(composition, (False, True, True)), [0.0, 0.4, 1.0])
    np.testing.assert_allclose(effective_weights(composition, (False, False, False)), [0, 0, 0])
    off = composition_of([[0.8, 0.0], [1.0]])
    np.testing.assert_allclose(effective_weights(off, (True, True, True)), [0.8, 0, 1.0])
    for method in (Method.SWITCH, Method.COMPOSITE):
        assert schedule(off, [(True, True, True)], 4, method=method, switch_every=1).weights.any(axis=1).all()


def test_a_mask_of_another_length_is_refused() -> None:
    with pytest.raises(InvalidInput, match="1 places"):
        effective_weights(composition_of([[0.8, 0.4]]), (True,))


def test_an_adapter_chosen_twice_is_refused() -> None:
    choice = Choice(adapter_id="test:same")
    composition = composition_of([]).model_copy(
        update={"tasks": (Task(keyword="a", choices=(choice,)), Task(keyword="b", choices=(choice,)))}
    )
    with pytest.raises(InvalidInput, match="test:same"):
        schedule(composition, [(True, True)], steps=2)


def kept(composition: Composition, mask: tuple[bool, ...]) -> dict[int, np.float32]:
    """Position -> whole weight of each adapter in the mask that has one."""
    return {
        n: np.float32(composition.choices[n].weight)
        for n, on in enumerate(mask)
        if on and composition.choices[n].weight
    }


@given(compositions, st.integers(0, 1000), st.integers(1, 12), st.integers(1, 5))
def test_switch_lets_each_adapter_act_alone_in_turn(
    composition: Composition, seed: int, steps: int, switch_every: int
) -> None:
    masks = sample_masks(task_sizes(composition), 3, MaskMode.SAMPLE, seed)
    made = schedule(composition, masks, steps, method=Method.SWITCH, switch_every=switch_every)
    assert made.image_of_row.tolist() == [0, 1, 2]
    for row, mask in zip(made.weights, masks, strict=True):
        on = kept(composition, mask)
        for step in range(steps):
            expected = np.zeros(len(made.adapters), np.float32)
            if on:
                turn = list(on)[step // switch_every % len(on)]
                expected[turn] = on[turn]
            np.testing.assert_array_equal(row[:, step], expected)


@given(compositions, st.integers(0, 1000), st.integers(1, 4))
def test_composite_gives_each_adapter_a_row_of_its_image(composition: Composition, seed: int, steps: int) -> None:
    masks = sample_masks(task_sizes(composition), 3, MaskMode.SAMPLE, seed)
    made = schedule(composition, masks, steps, method=Method.COMPOSITE)
    assert made.image_of_row.tolist() == [n for n, mask in enumerate(masks) for _ in kept(composition, mask) or [0]]
    for image, mask in enumerate(masks):
        rows = made.weights[made.image_of_row == image]
        on = kept(composition, mask)
        assert ((rows != 0).sum(axis=1) <= 1).all()
        expected = np.zeros(len(made.adapters), np.float32)
        for place, weight in on.items():
            expected[place] = weight
        np.testing.assert_array_equal(rows.sum(axis=0), np.repeat(expected[:, None], steps, axis=1))


@given(compositions, st.integers(0, 1000), st.sampled_from(Method), st.floats(0.1, 10))
def test_a_budget_bounds_every_step_and_keeps_the_proportions(
    composition: Composition, seed: int, method: Method, budget: float
) -> None:
    masks = sample_masks(task_sizes(composition), 3, MaskMode.SAMPLE, seed)
    free = schedule(composition, masks, 6, method=method, switch_every=2)
    bound = schedule(composition, masks, 6, method=method, switch_every=2, budget=budget)
    before, after = np.abs(free.weights).sum(axis=1), np.abs(bound.weights).sum(axis=1)
    assert (after <= budget * (1 + 1e-5)).all()
    np.testing.assert_allclose(after, np.minimum(before, budget), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(bound.weights * before[:, None], free.weights * after[:, None], rtol=1e-3, atol=1e-6)


def test_no_images_and_no_adapters_are_fine() -> None:
    for method in Method:
        assert schedule(composition_of([[0.8]]), [], 4, method=method).weights.shape == (0, 1, 4)
        assert schedule(composition_of([]), [()], 4, method=method).weights.shape == (1, 0, 4)


@given(strengths, st.floats(0, 1e6), st.floats(0, 1e6))
def test_normalising_stays_within_its_bounds(weight: float, norm: float, median: float) -> None:
    result = normalised(weight, norm, median)
    assert -4 <= result <= 4
    assert abs(result) <= 2 * abs(weight)
    assert abs(result) >= 0.5 * abs(weight)
    assert result * weight >= 0


def test_a_loud_adapter_is_turned_down_to_the_median() -> None:
    assert normalised(0.8, norm=15.0, median=10.0) == pytest.approx(0.8 * 10 / 15)
    assert normalised(0.8, norm=1000.0, median=10.0) == pytest.approx(0.4)
    assert normalised(0.8, norm=0.0, median=10.0) == 0.8


def test_other_weights_make_a_composition_that_is_the_same_each_time() -> None:
    composition = composition_of([[0.8, 0.4], [1.0]])
    changed = reweighed(composition, {"test:0-1": 0.6, "test:1-0": -1.0})
    assert [choice.weight for choice in changed.choices] == [0.8, 0.6, -1.0]
    assert changed.id != composition.id
    assert reweighed(composition, {"test:1-0": -1.0, "test:0-1": 0.6, "test:0-0": 0.8}) == changed
    assert reweighed(composition, {"test:0-1": 0.61}).id != changed.id
    assert reweighed(composition, {"test:0-1": 0.4}) == reweighed(composition, {}) == composition


def test_an_adapter_at_weight_0_leaves_its_task_to_the_others() -> None:
    changed = reweighed(composition_of([[0.8, 0.4], [1.0]]), {"test:0-0": 0.0, "test:1-0": 0.0})
    assert [choice.adapter_id for choice in changed.choices] == ["test:0-1"]
    assert changed.uncovered == ("task 1",)
    np.testing.assert_allclose(effective_weights(changed, (True,)), [0.4])


def test_weights_are_for_adapters_that_are_there() -> None:
    with pytest.raises(InvalidInput, match=r"no adapter 'test:x'.*It has: test:0-0"):
        reweighed(composition_of([[0.8]]), {"test:x": 1.0})
