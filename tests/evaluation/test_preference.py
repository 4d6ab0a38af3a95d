"""The mathematics of preferences against published values and simulation."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stylus.evaluation.metrics import share
from stylus.evaluation.preference import Outcome, Tally, agreement, majority, same_opinion

WIN, TIE, LOSS = Outcome.WIN, Outcome.TIE, Outcome.LOSS


def test_intervals_cover_the_truth_as_often_as_they_say() -> None:
    chance, n, runs = random.Random(5), 40, 4000
    covered = 0
    for _ in range(runs):
        truth = chance.random()
        found = share(sum(chance.random() < truth for _ in range(n)), n)
        covered += found.low <= truth <= found.high
    assert 0.94 < covered / runs < 0.96


def test_of_nothing_nothing_is_known() -> None:
    assert (Tally().win, Tally().preferred, Tally(ties=3).preferred) == (None, None, None)


def test_a_tally_counts_and_leaves_ties_out_of_the_preference() -> None:
    tally = Tally.of([WIN, WIN, TIE, LOSS, WIN])
    assert (tally.wins, tally.ties, tally.losses, tally.n) == (3, 1, 1, 5)
    assert tally.preferred is not None
    assert tally.win is not None
    assert (tally.preferred.value, tally.win.value) == (0.75, 0.6)
    assert tally.preferred == share(3, 4)


@given(st.lists(st.sampled_from(Outcome)))
def test_both_arms_see_the_same(outcomes: list[Outcome]) -> None:
    seen, reverse = Tally.of(outcomes), Tally.of(outcome.reverse() for outcome in outcomes)
    assert (seen.wins, seen.ties, seen.losses) == (reverse.losses, reverse.ties, reverse.wins)
    assert majority(outcome.reverse() for outcome in outcomes) == majority(outcomes).reverse()


def test_majority_of_one_pair() -> None:
    assert majority([WIN, WIN, LOSS]) == WIN
    assert majority([WIN, LOSS, TIE]) == TIE
    assert majority([LOSS, TIE, TIE]) == LOSS


# Krippendorff (2011), section C: twelve units, four observers, some values missing.
_OBSERVERS = [
    [1, 2, 3, 3, 2, 1, 4, 1, 2, None, None, None],
    [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, None, 3],
    [None, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, None],
    [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, None],
]


def test_agreement_is_that_of_the_published_example() -> None:
    units = [[value for value in unit if value is not None] for unit in zip(*_OBSERVERS, strict=True)]
    alpha = agreement(units)
    assert alpha == pytest.approx(0.849, abs=5e-4)
    assert agreement([[3 * value + 7 for value in unit] for unit in units]) == pytest.approx(alpha)


def test_agreement_from_perfect_over_chance_to_opposed() -> None:
    assert agreement([[1, 1], [0, 0], [-1, -1, -1]]) == 1
    chance = random.Random(3)
    at_random = [[chance.choice([-1, 0, 1]) for _ in range(3)] for _ in range(3000)]
    assert agreement(at_random) == pytest.approx(0, abs=0.04)
    opposed = agreement([[1, -1]] * 20)
    assert opposed is not None
    assert opposed < -0.9
    tie_against_win, loss_against_win = agreement([[1, 0], [-1, -1]]), agreement([[1, -1], [-1, -1]])
    assert tie_against_win is not None
    assert loss_against_win is not None
    assert tie_against_win > loss_against_win


def test_agreement_needs_two_judges_and_two_opinions() -> None:
    assert agreement([]) is None
    assert agreement([[1], [0]]) is None
    assert agreement([[1, 1], [1, 1]]) is None
    assert same_opinion([[1], [0]]) is None
    assert same_opinion([[1, 1, 0], [0, 0]]) == pytest.approx(2 / 4)
