"""The formulas against closed forms and simulation: nothing here is computed the way that the code computes it."""

import math

import numpy as np
import pytest

from stylus.evaluation.metrics import (
    Moments,
    blocked,
    bootstrapped,
    clip_score,
    cosines,
    dfid,
    fid,
    kid,
    moments,
    share,
    slope,
    win_tie_lose,
)


def test_fid_of_gaussians_with_one_basis() -> None:
    one = Moments(np.array([1.0, 2.0, 0.0]), np.diag([4.0, 1.0, 9.0]))
    other = Moments(np.array([0.0, 0.0, 0.0]), np.diag([1.0, 1.0, 16.0]))
    assert fid(one, other) == pytest.approx(1 + 4 + (2 - 1) ** 2 + 0 + (3 - 4) ** 2)
    assert fid(one, one) == pytest.approx(0, abs=1e-6)


def test_fid_of_gaussians_that_lie_askew() -> None:
    first, second = np.array([[2.0, 0.6], [0.6, 1.0]]), np.array([[1.5, -0.4], [-0.4, 0.8]])
    # for 2 x 2 the trace of a root is known: sqrt(trace + 2 sqrt(determinant))
    product = first @ second
    root = math.sqrt(np.trace(product) + 2 * math.sqrt(np.linalg.det(product)))
    wanted = 0.25 + np.trace(first) + np.trace(second) - 2 * root
    assert fid(Moments(np.array([0.5, 0.0]), first), Moments(np.zeros(2), second)) == pytest.approx(wanted)


def test_fid_of_fewer_pictures_than_dimensions() -> None:
    # all of it on one line: the distance of two normal distributions
    line = np.outer([0.6, 0.8, 0.0], [0.6, 0.8, 0.0])
    assert fid(Moments(np.zeros(3), 4 * line), Moments(np.ones(3), 9 * line)) == pytest.approx(3 + 1)


def test_fid_of_samples_comes_near_and_is_too_large_for_few() -> None:
    rng = np.random.default_rng(0)
    same = [fid(moments(rng.normal(size=(n, 8))), moments(rng.normal(size=(n, 8)))) for n in (20, 200, 20_000)]
    assert same[0] > same[1] > same[2]
    assert same[2] < 0.01
    far = fid(moments(rng.normal(size=(20_000, 8))), moments(2 + 3 * rng.normal(size=(20_000, 8))))
    assert far == pytest.approx(8 * (2**2 + (3 - 1) ** 2), rel=0.03)


def test_kid_is_unbiased_however_few_pictures() -> None:
    # in one dimension the cubic kernel makes it 3 (m1 - n1)^2 + 3 (m2 - n2)^2 + (m3 - n3)^2 over the raw moments
    mean, spread = 0.4, 0.7
    ours = (mean, mean**2 + spread**2, mean**3 + 3 * mean * spread**2)
    theirs = (0.0, 0.25, 0.0)
    wanted = sum(factor * (a - b) ** 2 for factor, a, b in zip((3, 3, 1), ours, theirs, strict=True))
    rng = np.random.default_rng(1)
    found = [kid(rng.normal(mean, spread, (8, 1)), rng.normal(0, 0.5, (8, 1))) for _ in range(20_000)]
    assert np.mean(found) == pytest.approx(wanted, abs=4 * float(np.std(found)) / math.sqrt(len(found)))
    nothing = [kid(rng.normal(size=(6, 3)), rng.normal(size=(6, 3))) for _ in range(5000)]
    assert np.mean(nothing) == pytest.approx(0, abs=4 * float(np.std(nothing)) / math.sqrt(len(nothing)))


def test_dfid_is_the_trace_of_the_covariance_and_unbiased_for_four_pictures() -> None:
    rng = np.random.default_rng(2)
    spreads = np.array([0.5, 1.0, 2.0])
    found = [dfid(5 + rng.normal(size=(4, 3)) * spreads) for _ in range(20_000)]
    assert np.mean(found) == pytest.approx((spreads**2).sum(), rel=0.02)
    assert dfid(np.ones((4, 3))) == 0


def test_clip_score_of_known_angles() -> None:
    images = np.array([[1.0, 0.0], [0.6, 0.8], [-1.0, 0.0]])
    assert clip_score(images, np.array([[1.0, 0.0]] * 3)).tolist() == pytest.approx([100, 60, 0])
    assert cosines(3 * images, images[:, ::-1]).tolist() == pytest.approx([0, 0.96, 0])


def test_a_keyword_is_blocked_when_it_falls_by_more_than_the_controls_spread() -> None:
    control = np.array([[20.0, 30.0, 10.0], [22.0, 30.0, 14.0]])  # spreads 1.41, 0 and 2.83
    assert blocked(control - np.array([1.0, 1.0, 3.0]), control) == 2
    assert blocked(control + 1, control) == 0
    assert blocked(control[:1] - 1, control[:1]) == 3


@pytest.mark.parametrize("weighted", [False, True])
def test_bootstrap_intervals_hold_the_truth_as_often_as_they_say(weighted: bool) -> None:
    rng = np.random.default_rng(3)
    held = 0
    for _ in range(200):
        weights = rng.integers(1, 4, 50).astype(float) if weighted else None
        interval = bootstrapped(rng.gamma(4, 0.5, 50), weights)
        held += interval.low <= 2 <= interval.high
    assert 0.88 <= held / 200 <= 0.99


def test_paired_differences_are_narrower_than_the_arms_apart() -> None:
    rng = np.random.default_rng(4)
    prompts = rng.normal(25, 5, 60)
    base, ours = prompts + rng.normal(0, 0.5, 60), prompts + 1 + rng.normal(0, 0.5, 60)
    apart, paired = bootstrapped(ours), bootstrapped(ours - base)
    assert paired.high - paired.low < (apart.high - apart.low) / 5
    assert paired.clear
    assert paired.value == pytest.approx(1, abs=0.3)


def test_a_weighted_mean_counts_images_and_not_prompts() -> None:
    assert bootstrapped(np.array([1.0, 0.0]), np.array([3.0, 1.0])).value == 0.75
    assert bootstrapped(np.full(9, 0.3)).high == pytest.approx(0.3)


def test_wilson_intervals_by_the_textbook_and_by_simulation() -> None:
    z = 1.959963984540054
    for hits, of in ((0, 10), (3, 10), (45, 60), (60, 60)):
        p = hits / of
        middle = (p + z * z / (2 * of)) / (1 + z * z / of)
        half = z / (1 + z * z / of) * math.sqrt(p * (1 - p) / of + z * z / (4 * of * of))
        found = share(hits, of)
        assert (found.low, found.high) == pytest.approx((max(0, middle - half), min(1, middle + half)), abs=1e-9)
    rng = np.random.default_rng(5)
    held = [(i := share(int(rng.binomial(60, 0.7)), 60)).low <= 0.7 <= i.high for _ in range(400)]
    assert 0.92 <= np.mean(held) <= 0.985


def test_wins_ties_and_losses_are_all_there_is() -> None:
    ours, theirs = np.array([3.0, 2.0, 1.0, 5.0]), np.array([1.0, 2.0, 2.0, 4.6])
    assert {how: found.value for how, found in win_tie_lose(ours, theirs).items()} == {
        "win": 0.5,
        "tie": 0.25,
        "lose": 0.25,
    }
    assert win_tie_lose(ours, theirs, margin=0.5)["tie"].value == 0.5


def test_slopes_are_told_with_their_doubt() -> None:
    rng = np.random.default_rng(6)
    x = np.arange(40.0)
    found = slope(x.tolist(), (0.3 * x + rng.normal(0, 1, 40)).tolist())
    assert found.low < 0.3 < found.high
    assert found.clear
    assert not slope(x.tolist(), rng.normal(0, 1, 40).tolist()).clear
