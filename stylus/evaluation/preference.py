"""Which of two arms is preferred, how sure that is, and whether those who judged agree. Pure.

Agreement is Krippendorff's alpha with squared differences (K. Krippendorff, "Computing Krippendorff's
alpha-reliability", 2011): any number of judges, who need not have judged everything.
"""

from collections.abc import Iterable, Sequence
from enum import IntEnum
from itertools import combinations
from statistics import fmean, variance

from stylus.evaluation.metrics import Interval, share
from stylus.records import Record


class Outcome(IntEnum):
    """How the first of two arms did. Ordered: a win is further from a loss than from a tie."""

    LOSS = -1
    TIE = 0
    WIN = 1

    def reverse(self) -> "Outcome":
        """The same, as the second arm sees it."""
        return Outcome(-self)


class Tally(Record):
    """How often the first arm won, tied and lost."""

    wins: int = 0
    ties: int = 0
    losses: int = 0

    @classmethod
    def of(cls, outcomes: Iterable[Outcome]) -> "Tally":
        given = list(outcomes)
        return cls(wins=given.count(Outcome.WIN), ties=given.count(Outcome.TIE), losses=given.count(Outcome.LOSS))

    @property
    def n(self) -> int:
        return self.wins + self.ties + self.losses

    @property
    def win(self) -> Interval | None:
        return share(self.wins, self.n) if self.n else None

    @property
    def tie(self) -> Interval | None:
        return share(self.ties, self.n) if self.n else None

    @property
    def lose(self) -> Interval | None:
        return share(self.losses, self.n) if self.n else None

    @property
    def preferred(self) -> Interval | None:
        """Wins among what was decided, the paper's human preference: a half where nobody could tell the arms apart."""
        decided = self.wins + self.losses
        return share(self.wins, decided) if decided else None


def majority(outcomes: Iterable[Outcome]) -> Outcome:
    """What most judges of one pair say: a win weighs as much as a loss, and a tie nothing.

    Judges of one pair see the same pictures and are no independent sample, so that intervals go by pairs."""
    total = sum(outcomes)
    return Outcome((total > 0) - (total < 0))


def agreement(units: Iterable[Sequence[float]]) -> float | None:
    """Krippendorff's alpha of what several judges said of each unit: 1 they agree, 0 as chance would, below 0 worse.

    None where it is not defined: no unit that two have judged, or everybody always said the same."""
    judged = [unit for unit in units if len(unit) > 1]
    values = [value for unit in judged for value in unit]
    if len(set(values)) < 2:
        return None
    # Observed over expected squared differences of pairs, each of which is twice a sample variance.
    within = sum(len(unit) * variance(unit) for unit in judged) / len(values)
    return 1 - within / variance(values)


def same_opinion(units: Iterable[Sequence[float]]) -> float | None:
    """The share of two judges of one unit who said the same, over all such couples; None if there are none."""
    couples = [one == other for unit in units for one, other in combinations(unit, 2)]
    return fmean(couples) if couples else None
