"""The paper's rules on a composition (section 3.3), enforced instead of asked for.

The authors ask a language model to keep them and check nothing: one published prompt has 51 adapters. Here whatever a
model proposes passes through `settle`, which keeps what is allowed and names what is not.
"""

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from stylus.evidence import is_named
from stylus.keywords import MOST_KEYWORDS, MOST_WORDS
from stylus.lexical_composer import Limits
from stylus.records import Adapter, Category, Choice, Kind, Task
from stylus.trigger_words import serving
from stylus.words import purpose_words

MOST_REASON = 200
"""Characters of a reason that are kept."""


@dataclass(frozen=True)
class Nominee:
    """A proposed adapter: its number among the candidates, from 1, and why."""

    candidate: int
    reason: str = ""


@dataclass(frozen=True)
class Proposal:
    """A proposed task."""

    keyword: str
    nominees: tuple[Nominee, ...] = ()


def clash(adapter: Adapter, other: Adapter, same_task: bool, apart: Mapping[tuple[str, str], str]) -> str | None:
    """Why two adapters must not be loaded together; None if they may.

    Two adapters of one subject may share a task, which averages them like any rivals; in two tasks they would be summed
    and draw it twice as strongly (the paper's "saturation")."""
    if reason := apart.get((min(adapter.id, other.id), max(adapter.id, other.id))):
        return f"this pair is flagged: {reason}"
    if adapter.base_model and other.base_model and adapter.base_model != other.base_model:
        return f"one is for {adapter.base_model}, the other for {other.base_model}"
    if adapter.kind is other.kind is Kind.DORA:
        return "each DoRA rescales the whole weights of its layers, which two can't do at once"
    if not same_task and _subject(adapter) and _subject(adapter) == _subject(other):
        return f"both draw {' '.join(sorted(_subject(adapter)))!r}, and would do so twice in two tasks"
    return None


def _subject(adapter: Adapter) -> frozenset[str]:
    """What an adapter's name says that it draws: the words before any bracket or comma."""
    return frozenset(purpose_words(re.split(r"[,;|()\[\]{}/:]", adapter.name, maxsplit=1)[0]))


def separate(
    tasks: Sequence[Task], adapters: Mapping[str, Adapter], apart: Mapping[tuple[str, str], str]
) -> tuple[tuple[Task, ...], tuple[str, ...]]:
    """The tasks without the adapters that clash with an earlier one, and what was left out, one sentence each.

    `adapters` holds the chosen ones by id; those that it lacks are left alone."""
    kept: list[tuple[Adapter, int]] = []
    problems: list[str] = []
    parted: list[Task] = []
    for number, task in enumerate(tasks):
        choices: list[Choice] = []
        for choice in task.choices:
            if adapter := adapters.get(choice.adapter_id):
                if found := _first_clash(adapter, kept, number, apart):
                    problems.append(f"Left out {adapter.id} beside {found[0].id}: {found[1]}.")
                    continue
                kept.append((adapter, number))
            choices.append(choice)
        parted.append(task.model_copy(update={"choices": tuple(choices)}))
    return tuple(parted), tuple(problems)


def _first_clash(
    adapter: Adapter, kept: Sequence[tuple[Adapter, int]], task: int, apart: Mapping[tuple[str, str], str]
) -> tuple[Adapter, str] | None:
    found = ((other, clash(adapter, other, task == its, apart)) for other, its in kept)
    return next(((other, reason) for other, reason in found if reason), None)


def clean(text: str, most: int) -> str:
    """One line of at most `most` characters without control, format (right-to-left overrides) and private signs."""
    kept = "".join(
        " " if c.isspace() else c for c in text[: 4 * most] if c.isspace() or unicodedata.category(c)[0] != "C"
    )
    line = " ".join(kept.split())
    return line if len(line) <= most else line[: most - 1] + "…"


def settle(
    proposals: Sequence[Proposal], prompt: str, candidates: Sequence[Adapter], limits: Limits
) -> tuple[tuple[Task, ...], tuple[str, ...]]:
    """What is allowed of `proposals`, as tasks in prompt order, and one sentence for each rule broken.

    Keywords are copied from the prompt (in its spelling), at most four words, disjoint, at most 32. Adapters exist,
    appear once, fit the caps, share one base model family, and are characters or celebrities only where named.
    Whoever comes first keeps the place.
    """
    problems: list[str] = []
    roster = _Roster(candidates, limits, problems)
    tasks = [
        (start, Task(keyword=prompt[start:end], choices=roster.choices(proposals[number].nominees, prompt[start:end])))
        for number, (start, end) in _spans(proposals, prompt, problems).items()
    ]
    return tuple(task for _, task in sorted(tasks, key=lambda pair: pair[0])), tuple(problems)


def _spans(proposals: Sequence[Proposal], prompt: str, problems: list[str]) -> dict[int, tuple[int, int]]:
    """Where in the prompt each proposal's keyword stands, by the proposal's number; those without a place are named."""
    if len(proposals) > MOST_KEYWORDS:
        problems.append(f"There are {len(proposals)} tasks: at most {MOST_KEYWORDS} are allowed.")
    taken: dict[int, tuple[int, int]] = {}
    # Longer ones first, so that "cat" does not take the place that only "cat face" can have.
    kept = sorted(enumerate(proposals[:MOST_KEYWORDS]), key=lambda pair: -len(pair[1].keyword))
    for number, proposal in kept:
        words = proposal.keyword.split()
        shown = clean(proposal.keyword, 60)
        if not 1 <= len(words) <= MOST_WORDS or len(proposal.keyword) > 200:
            problems.append(f"Keyword {shown!r} has {len(words)} words: one to {MOST_WORDS} are allowed.")
            continue
        # A word's edge matters only where the keyword begins or ends with a word character.
        pattern = r"(?<!\w)" * bool(re.match(r"\w", words[0])) + r"\s+".join(map(re.escape, words))
        pattern += r"(?!\w)" * bool(re.search(r"\w$", words[-1]))
        places = [match.span() for match in re.finditer(pattern, prompt, re.IGNORECASE)]
        free = [(a, b) for a, b in places if all(b <= start or end <= a for start, end in taken.values())]
        if free:
            taken[number] = free[0]
        elif places:
            problems.append(f"Keyword {shown!r} overlaps another keyword: keywords must not share words.")
        else:
            problems.append(f"Keyword {shown!r} is not in the prompt: copy keywords from it letter by letter.")
    return dict(sorted(taken.items()))


class _Roster:
    """Hands out candidates, each once and within the caps."""

    def __init__(self, candidates: Sequence[Adapter], limits: Limits, problems: list[str]) -> None:
        self._candidates = candidates
        self._limits = limits
        self._problems = problems
        self._used: list[tuple[Adapter, int]] = []
        self._styles = 0
        self._task = 0

    def choices(self, nominees: Sequence[Nominee], keyword: str) -> tuple[Choice, ...]:
        self._task += 1
        chosen: list[Choice] = []
        for nominee in nominees:
            if len(chosen) == self._limits.per_task:
                self._problems.append(
                    f"Task {keyword!r} has {len(nominees)} candidates: at most {self._limits.per_task} are allowed."
                )
                break
            if problem := self._refuses(nominee, keyword):
                self._problems.append(problem)
            else:
                chosen.append(self._take(nominee, keyword))
        return tuple(chosen)

    def _refuses(self, nominee: Nominee, keyword: str) -> str | None:
        if not 1 <= nominee.candidate <= len(self._candidates):
            return f"Candidate {nominee.candidate} does not exist: the numbers go from 1 to {len(self._candidates)}."
        adapter, limits = self._candidates[nominee.candidate - 1], self._limits
        if any(adapter.id == used.id for used, _ in self._used):
            return f"Candidate {nominee.candidate} is used more than once: each serves one task."
        if len(self._used) >= limits.total:
            return f"Candidate {nominee.candidate} is one too many: at most {limits.total} are allowed in all."
        if adapter.category is Category.STYLE and self._styles >= limits.styles:
            return (
                f"Candidate {nominee.candidate} is a style too many: at most {limits.styles} styles are allowed in all."
            )
        if adapter.quality is not None or adapter.hidden:
            return f"Candidate {nominee.candidate} is flagged and must not be chosen."
        if adapter.category in {Category.CHARACTER, Category.CELEBRITY} and not is_named(adapter, keyword):
            return f"Candidate {nominee.candidate} is a {adapter.category} that keyword {keyword!r} does not name."
        if found := _first_clash(adapter, self._used, self._task, limits.apart):
            other = next(n for n, one in enumerate(self._candidates, start=1) if one.id == found[0].id)
            return f"Candidate {nominee.candidate} must not be chosen beside candidate {other}: {found[1]}."
        return None

    def _take(self, nominee: Nominee, keyword: str) -> Choice:
        adapter = self._candidates[nominee.candidate - 1]
        self._used.append((adapter, self._task))
        self._styles += adapter.category is Category.STYLE
        return Choice(
            adapter_id=adapter.id,
            weight=adapter.weight,
            reason=clean(nominee.reason, MOST_REASON),
            name=adapter.name,
            category=adapter.category,
            trigger_words=serving(adapter, keyword),
        )
