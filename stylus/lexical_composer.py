"""The composer that needs no language model: the paper's section 3.3 as rules over words and cosine similarities.

The paper asks a model that an adapter's main purpose match the task, be neither broader nor narrower, that characters
come only when named, that styles stay below three. Here each of these is computed from the card's name, trigger words
and tags (`evidence.py`), and from how similar the card is to the keyword.

One adapter a task by default, unlike the paper's up to five: averaging three adapters for one concept gives a third of
each, and the best one alone draws it better. A second adapter is chosen for a keyword only when it covers words that
the first leaves uncovered, and the keyword is two tasks then ("golden corgi": one for corgi, one for golden).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from stylus.evidence import Evidence, about, alike, detail, doubts, is_named, word_evidence
from stylus.keywords import core, keywords, parts
from stylus.records import BaseModelFamily, Category, Choice, Match, OnProgress, Task, Usage
from stylus.trigger_words import serving
from stylus.words import content_words, purpose_words


@dataclass(frozen=True)
class Limits:
    """Most adapters in a task, in a composition, and of category style in a composition (paper: 2)."""

    per_task: int = 3
    total: int = 8
    styles: int = 2
    apart: Mapping[tuple[str, str], str] = field(default_factory=dict)
    """Pairs of adapter ids, the lesser first, that must not meet, and why."""


@dataclass(frozen=True)
class Draft:
    """What a composer decided: tasks in prompt order, who decided, and notes on fallbacks and repairs."""

    tasks: tuple[Task, ...]
    composer: str
    notes: tuple[str, ...] = ()
    usage: Usage = field(default_factory=Usage)


class Composer(Protocol):
    """Splits a prompt into tasks and gives each the adapters that fit, from `matches` and within `limits`.

    At temperature 0 the same arguments give the same draft; above, `seed` tells which of the likely ones. Where it
    takes a while, `on_progress` is called, and what it raises ends the work."""

    @property
    def name(self) -> str: ...

    def compose(
        self,
        prompt: str,
        matches: Sequence[Match],
        limits: Limits,
        temperature: float = 0.0,
        seed: int | None = None,
        on_progress: OnProgress | None = None,
    ) -> Draft: ...


@dataclass(frozen=True)
class Thresholds:
    """Cosine similarities of all-MiniLM-L6-v2, tuned on the published picks and on general synonyms (README, log)."""

    words: float = 0.5
    """Least evidence by words on which an adapter is chosen."""
    floor: float = 0.25
    """Below this similarity nothing is chosen on similarity alone."""
    similar: float = 0.39
    """Similarity plus its lead over other things, which chooses without any word in common."""
    sure: float = 0.99
    """Evidence by words that chooses whatever else is true: the card says what the keyword says."""
    score: float = 2.45
    """Score that chooses on less: of a card that says much, or that the whole prompt is about."""
    fused: float = 0.7
    """What the retriever's fused score, in [0, 1], counts."""
    behind: float = 0.4
    """How far behind the prompt's best candidate others may be where all cards say little."""


SYNONYM = 0.6
"""Strength of similarity without a word in common: that of weak evidence by words."""

NEAR = 0.15
"""How much less similar than the nearest one another adapter of the same thing may be."""


@dataclass(frozen=True)
class LexicalComposer:
    """Deterministic and in milliseconds. Each choice says which evidence it rests on."""

    thresholds: Thresholds = field(default_factory=Thresholds)
    name: str = "lexical"

    def compose(
        self,
        prompt: str,
        matches: Sequence[Match],
        limits: Limits,
        temperature: float = 0.0,
        seed: int | None = None,
        on_progress: OnProgress | None = None,
    ) -> Draft:
        """Tasks for all keywords of the prompt, in order; those without a fitting adapter stay empty.

        Never raises on account of the prompt or the matches. `temperature` has no effect beyond a note.
        """
        asked = keywords(prompt)
        usable = [match for match in matches if match.adapter.quality is None and not match.adapter.hidden]
        doubted = {match.adapter.id: doubts(match.adapter) for match in usable}
        # a card that says something, and nothing against itself, can stand out by similarity
        sound = (match.adapter for match in usable if match.adapter.description or match.adapter.tags)
        purposes = {adapter.id: about(adapter) for adapter in sound if not doubted[adapter.id]}
        scored = [self._judge(number, keyword, usable, purposes, doubted) for number, keyword in enumerate(asked)]
        worthy = self._worth([candidate for of_task in scored for candidate in of_task])
        tasks = tuple(_assign(worthy, asked, limits))
        notes = ["The lexical composer is deterministic: temperature has no effect."] if temperature > 0 else []
        if without := _without(worthy, asked, tasks, limits):
            caps = f"at most {limits.total} adapters and {limits.styles} styles are chosen"
            notes.append(f"Without an adapter, since {caps}: {', '.join(without)}.")
        return Draft(tasks, self.name, tuple(notes))

    def _judge(
        self,
        task: int,
        keyword: str,
        matches: Sequence[Match],
        purposes: Mapping[str, frozenset[str]],
        doubted: Mapping[str, float],
    ) -> list["_Candidate"]:
        """The adapters that fit the keyword or a part of it, each with what speaks for it."""
        whole = self._alike(core(keyword), matches, purposes)
        # A synonym for a part: a style is named by the modifier, a thing by the head ("gilded crown").
        modifier, head = (
            ({}, {}) if (cut := parts(keyword)) is None else (self._alike(part, matches, purposes) for part in cut)
        )
        found: list[_Candidate] = []
        for match in matches:
            adapter, similarity = match.adapter, similarity_to(keyword, match)
            if adapter.category in {Category.CHARACTER, Category.CELEBRITY} and not is_named(adapter, keyword):
                continue
            evidence = word_evidence(keyword, adapter)
            if evidence is None or evidence.strength < self.thresholds.words:
                part = modifier if adapter.category is Category.STYLE else head
                evidence = part.get(adapter.id) or whole.get(adapter.id)  # the narrower leaves room for another
            if evidence is not None:
                # Among equals wins the card that says more, then the one that is nearer to the prompt, by meaning
                # and by all that the retriever knows.
                score = evidence.strength + 1.2 * detail(adapter) - doubted[adapter.id]
                score += match.prompt_score + 0.3 * similarity + self.thresholds.fused * match.score
                found.append(_Candidate(task, match, evidence, score))
        return found

    def _worth(self, candidates: list["_Candidate"]) -> list["_Candidate"]:
        """Without those that are much weaker than what the prompt can have: fewer adapters leave each more effect."""
        best = max((candidate.score for candidate in candidates), default=0.0)
        least = min(self.thresholds.score, best - self.thresholds.behind)
        return [c for c in candidates if c.evidence.strength >= self.thresholds.sure or c.score >= least]

    def _alike(
        self, term: str, matches: Sequence[Match], purposes: Mapping[str, frozenset[str]]
    ) -> dict[str, Evidence]:
        """Synonyms, by adapter id: no word in common, yet similar, and more so than adapters for anything else.

        A word that no adapter is about ("circle") is about as similar to many; a synonym ("kitty") stands out for the
        adapters of one thing. So similarity and its lead over the nearest adapter for another thing count. The other
        adapters for that thing, a little less similar, come along, so that the best card among them can be chosen.
        A card that speaks against itself or says nothing neither stands out nor hides another, since its few words are
        similar by chance.
        """
        if not purpose_words(term):
            return {}
        sound = ((similarity_to(term, match), match.adapter.id) for match in matches if match.adapter.id in purposes)
        ranked = sorted(sound, key=lambda pair: (-pair[0], pair[1]))
        if not ranked or ranked[0][0] < self.thresholds.floor:
            return {}
        nearest, first = ranked[0]
        same = {id for _, id in ranked if id == first or alike(purposes[id], purposes[first])}
        rival = next((score for score, id in ranked if id not in same), 0.0)
        if 2 * nearest - rival < self.thresholds.similar:
            return {}
        covers = frozenset(content_words(term))
        return {
            id: Evidence(SYNONYM, f"similar to {term!r} ({score:.2f})", covers)
            for score, id in ranked
            if id in same and score >= nearest - NEAR
        }


@dataclass(frozen=True)
class _Candidate:
    task: int
    match: Match
    evidence: Evidence
    score: float


def similarity_to(keyword: str, match: Match) -> float:
    """Cosine similarity of the card to the keyword: to its core where the retriever searched for that. Unknown: 0."""
    scores = match.keyword_scores
    return scores.get(core(keyword), scores.get(keyword, 0.0))


def _side(keyword: str, covers: frozenset[str]) -> int:
    """Which half of a keyword about two things a choice serves: 0 the modifier, 1 the head. Of one thing: always 1."""
    halves = parts(keyword)
    return 1 if halves is None or covers.isdisjoint(content_words(halves[0])) else 0


def _split(keyword: str, chosen: Sequence[Choice], sides: Sequence[int]) -> Iterator[Task]:
    """A keyword about two things ("golden crown") that got an adapter for each is two tasks: in one task they would be
    averaged like rivals for one concept, and each would come out at half its weight."""
    halves = parts(keyword)
    if len(chosen) < 2 or halves is None:
        yield Task(keyword=keyword, choices=tuple(chosen))
        return
    for half, keyword_half in enumerate(halves):
        mine = tuple(choice for choice, side in zip(chosen, sides, strict=True) if side == half)
        yield Task(keyword=keyword_half, choices=mine)


def _without(
    candidates: Sequence[_Candidate], asked: Sequence[str], tasks: Sequence[Task], limits: Limits
) -> list[str]:
    """The keywords that would have an adapter but for the caps."""
    chosen = {choice.adapter_id: choice.category for task in tasks for choice in task.choices}
    full = len(chosen) >= limits.total
    styled = sum(category is Category.STYLE for category in chosen.values()) >= limits.styles
    turned_away = {
        asked[candidate.task]
        for candidate in candidates
        if candidate.match.adapter.id not in chosen
        and (full or (styled and candidate.match.adapter.category is Category.STYLE))
    }
    return [task.keyword for task in tasks if not task.choices and task.keyword in turned_away]


def _assign(candidates: Sequence[_Candidate], asked: Sequence[str], limits: Limits) -> Iterator[Task]:
    """Best evidence first, over all tasks together, so that an adapter serves the task that it fits best."""
    chosen: list[list[Choice]] = [[] for _ in asked]
    sides: list[list[int]] = [[] for _ in asked]
    covered: list[set[str]] = [set() for _ in asked]
    used: set[str] = set()
    styles = 0
    family: BaseModelFamily | None = None
    for candidate in sorted(candidates, key=lambda c: (-c.score, c.match.adapter.id)):
        adapter, task, covers = candidate.match.adapter, candidate.task, candidate.evidence.covers
        is_style = adapter.category is Category.STYLE
        if (
            len(used) >= limits.total
            or sum(side == _side(asked[task], covers) for side in sides[task]) >= limits.per_task
            or (is_style and styles >= limits.styles)
            or adapter.id in used
            or covers & covered[task]
            or (family and adapter.base_model not in (None, family))
        ):
            continue
        used.add(adapter.id)
        covered[task] |= covers
        sides[task].append(_side(asked[task], covers))
        styles += is_style
        family = family or adapter.base_model
        choice = Choice(
            adapter_id=adapter.id,
            weight=adapter.weight,
            reason=candidate.evidence.reason,
            name=adapter.name,
            category=adapter.category,
            trigger_words=serving(adapter, asked[task]),
        )
        chosen[task].append(choice)
    for keyword, of_keyword, its_sides in zip(asked, chosen, sides, strict=True):
        yield from _split(keyword, of_keyword, its_sides)
