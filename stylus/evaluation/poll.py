"""A blind comparison by people (paper, section 4.2): who sees which pair when, on which side, and what came of it.

Differs from the paper's: a tie may be said; every voter sees the pairs in one order, so that those who stop early have
judged the same ones and can be compared; of one prompt all pairs are far apart.
"""

import csv
import hashlib
import io
import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from random import Random

from PIL import Image

from stylus.errors import InvalidInput, NotFound
from stylus.evaluation.metrics import Interval, share
from stylus.evaluation.pairs import Pair
from stylus.evaluation.preference import Outcome, Tally, agreement, majority, same_opinion
from stylus.evaluation.votes import Vote
from stylus.generation.provenance import load
from stylus.records import OnProgress, Progress, Record


@dataclass(frozen=True)
class Ballot:
    """Two pictures of one prompt and seed."""

    id: str
    """Tells neither arm: a hash of prompt, arms and pixels."""
    prompt: str
    arms: tuple[str, str]
    pictures: tuple[Path, Path]


class Standing(Record):
    """How the first of two arms did."""

    arms: tuple[str, str]
    votes: Tally
    pairs: Tally
    """Each pair once, by most of its voters."""
    preferred: Interval | None
    """The share of pairs won among those decided."""


class Standings(Record):
    """What came of the votes so far."""

    standings: tuple[Standing, ...]
    voters: tuple[tuple[str, int], ...]
    """Name and number of votes, skips included."""
    skipped: int
    agreement: float | None
    """Krippendorff's alpha between voters."""
    same: float | None
    """The share of two voters' votes on one pair that are the same."""
    left: Interval | None
    """How often the left picture won, of the votes that are no tie: a half where the side says nothing."""


@dataclass(frozen=True)
class Poll:
    """The pairs in the order in which they are shown."""

    ballots: tuple[Ballot, ...]
    identical: int
    """Pairs of the same pixels, which are shown to nobody and count nowhere."""
    seed: int

    @classmethod
    def of(cls, pairs: Sequence[Pair], seed: int, on_progress: OnProgress | None = None) -> "Poll":
        """Looks at all pictures. Raises NotFound and StorageError for one that can't be read, InvalidInput where there
        is nothing to choose between."""
        rounds: dict[int, list[Ballot]] = defaultdict(list)
        identical = 0
        for done, pair in enumerate(pairs):
            if on_progress is not None:
                on_progress(Progress(stage="pictures", done=done, total=len(pairs)))
            for number, one in enumerate(pair.each()):
                (left,), (right,) = one.pictures
                pixels = [_digest(path) for path in (left, right)]
                if pixels[0] == pixels[1]:
                    identical += 1
                    continue
                content = [one.prompt, *sorted(zip(one.arms, pixels, strict=True))]
                id = hashlib.sha256(json.dumps(content).encode()).hexdigest()[:32]
                rounds[number].append(Ballot(id, one.prompt, one.arms, (left, right)))
        if not rounds:
            raise InvalidInput(
                f"There is nothing to vote on: {identical} pairs have the same pixels in both arms, and no other "
                "prompt is drawn whole in both. `stylus evaluate` goes on drawing."
            )
        chance = Random(seed)
        ordered = [chance.sample(ballots, len(ballots)) for _, ballots in sorted(rounds.items())]
        return cls(tuple(ballot for ballots in ordered for ballot in ballots), identical, seed)

    @cached_property
    def by_id(self) -> dict[str, Ballot]:
        return {ballot.id: ballot for ballot in self.ballots}

    def require(self, id: str) -> Ballot:
        """Raises NotFound."""
        if id not in self.by_id:
            raise NotFound("There is no such pair: load the page anew.")
        return self.by_id[id]

    def left_first(self, voter: str, ballot: Ballot) -> bool:
        """Whether the picture of the pair's first arm stands left for this voter: by the toss of a coin."""
        first, _ = sorted(ballot.arms)
        heads = Random(f"{self.seed} {ballot.id} {voter.casefold()}").random() < 0.5
        return heads == (ballot.arms[0] == first)

    def sides(self, voter: str, ballot: Ballot) -> tuple[tuple[str, Path], tuple[str, Path]]:
        """Arm and picture on the left, and on the right."""
        one, other = zip(ballot.arms, ballot.pictures, strict=True)
        return (one, other) if self.left_first(voter, ballot) else (other, one)

    def standings(self, votes: Iterable[Vote]) -> Standings:
        """Of votes on these pairs."""
        given = list(votes)
        said = [vote for vote in given if vote.choice != "skip"]
        outcomes: dict[str, list[Outcome]] = defaultdict(list)
        for vote in said:
            outcomes[vote.ballot].append(_outcome(vote, self.by_id[vote.ballot].arms[0]))
        groups: dict[tuple[str, str], list[list[Outcome]]] = {ballot.arms: [] for ballot in self.ballots}
        for id, found in outcomes.items():
            groups[self.by_id[id].arms].append(found)
        decided = [vote.choice for vote in said if vote.choice != "tie"]
        names: dict[str, tuple[str, int]] = {}
        for vote in given:
            name, count = names.get(vote.voter.casefold(), (vote.voter, 0))
            names[vote.voter.casefold()] = name, count + 1
        return Standings(
            standings=tuple(_standing(arms, units) for arms, units in sorted(groups.items())),
            voters=tuple(names.values()),
            skipped=len(given) - len(said),
            agreement=agreement(list(outcomes.values())),
            same=same_opinion(list(outcomes.values())),
            left=share(decided.count("left"), len(decided)) if decided else None,
        )


def _standing(arms: tuple[str, str], units: Sequence[Sequence[Outcome]]) -> Standing:
    pairs = Tally.of(majority(unit) for unit in units)
    votes = Tally.of(outcome for unit in units for outcome in unit)
    return Standing(arms=arms, votes=votes, pairs=pairs, preferred=pairs.preferred)


def _outcome(vote: Vote, arm: str) -> Outcome:
    if vote.winner is None:
        return Outcome.TIE
    return Outcome.WIN if vote.winner == arm else Outcome.LOSS


def _digest(path: Path) -> str:
    image = load(str(path)).convert("RGB")
    return hashlib.sha256(f"{image.size}".encode() + image.tobytes()).hexdigest()


def bare(path: Path) -> bytes:
    """The picture as a PNG of its pixels and nothing else. Raises NotFound and StorageError."""
    image = load(str(path)).convert("RGB")
    buffer = io.BytesIO()
    Image.frombytes("RGB", image.size, image.tobytes()).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def as_csv(votes: Iterable[Vote]) -> str:
    """One line a vote, for spreadsheets, in which no text becomes a formula (OWASP, CSV injection)."""
    buffer = io.StringIO()
    writer = csv.writer(buffer)
    writer.writerow(["voter", "prompt", "left", "right", "choice", "winner", "ballot", "at"])
    for vote in votes:
        winner = "" if vote.choice == "skip" else vote.winner or "tie"
        at = vote.at.isoformat() if vote.at else ""
        cells = [vote.voter, vote.prompt, vote.left, vote.right, vote.choice, winner, vote.ballot, at]
        writer.writerow([f"'{cell}" if cell.startswith(("=", "+", "-", "@", "\t", "\r")) else cell for cell in cells])
    return buffer.getvalue()
