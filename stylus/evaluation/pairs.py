"""What judges compare: the pictures that two arms of an evaluation made for one prompt, from the same seeds."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from stylus.errors import InvalidInput
from stylus.evaluation.ledger import Ledger
from stylus.evaluation.protocol import Mode


@dataclass(frozen=True)
class Pair:
    """Two arms and their pictures of one prompt, seed by seed."""

    prompt: str
    """As the person wrote it: with suffix and trigger words it would tell the arm."""
    arms: tuple[str, str]
    pictures: tuple[tuple[Path, ...], tuple[Path, ...]]
    """As many of one arm as of the other."""

    def each(self) -> "list[Pair]":
        """One pair for each seed."""
        return [Pair(self.prompt, self.arms, ((one,), (other,))) for one, other in zip(*self.pictures, strict=True)]


def pairs_of(ledger: Ledger, arms: Sequence[str]) -> list[Pair]:
    """All pairs of `arms` over the prompts of the evaluation, drawn from text at the plan's guidance; a prompt counts
    where both arms' pictures are in. Raises InvalidInput for less than two arms, or one that was not drawn."""
    plan = ledger.plan
    known = [arm.name for arm in plan.arms]
    if len(arms) < 2 or len(set(arms)) < len(arms) or not set(arms) <= set(known):
        raise InvalidInput(f"arms are {','.join(arms)!r}: name two or more of {', '.join(known)}, each once.")
    drawn: dict[tuple[str, int], list[Path]] = defaultdict(list)
    for picture in ledger.pictures():
        if picture.mode is Mode.TEXT and picture.guidance == plan.guidance:
            drawn[picture.arm, picture.prompt].append(picture.path)
    return [
        Pair(prompt.text, (one, other), (tuple(drawn[one, place]), tuple(drawn[other, place])))
        for number, one in enumerate(arms)
        for other in arms[number + 1 :]
        for place, prompt in enumerate(plan.prompts)
        if len(drawn[one, place]) == len(drawn[other, place]) == plan.images
    ]
