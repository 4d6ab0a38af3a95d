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

from stylus.evidence import Evidence, about, doubts, is_named, word_evidence
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
    similar: float = 0.45
    """Similarity plus twice its lead over other purposes that chooses without any word in common."""


MOST_SIMILAR = 20
"""Adapters that can be chosen for a term on similarity alone: the nearest ones."""


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
        purposes = {match.adapter.id: about(match.adapter) for match in usable}
        scored = [self._judge(number, keyword, usable, purposes) for number, keyword in enumerate(asked)]
        chosen = _assign([evidence for of_task in scored for evidence in of_task], asked, limits)
        tasks = tuple(
            task for keyword, of_keyword in zip(asked, chosen, strict=True) for task in _split(keyword, of_keyword)
        )
        notes = ("The lexical composer is deterministic: temperature has no effect.",) if temperature > 0 else ()
        return Draft(tasks, self.name, notes)

    def _judge(
        self, task: int, keyword: str, matches: Sequence[Match], purposes: Mapping[str, frozenset[str]]
    ) -> list["_Candidate"]:
        """The adapters that fit the keyword or a part of it, each with what speaks for it."""
        alike = self._alike(core(keyword), matches, purposes)
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
                evidence = part.get(adapter.id) or alike.get(adapter.id)  # the narrower leaves room for another
            if evidence is not None:
                # Among equals the card that says the same in most of its phrases wins, then the more similar one.
                score = evidence.strength + 0.3 * evidence.agreement + 0.5 * similarity + 0.1 * match.prompt_score
                found.append(_Candidate(task, match, evidence, score - doubts(adapter)))
        return found

    def _alike(
        self, term: str, matches: Sequence[Match], purposes: Mapping[str, frozenset[str]]
    ) -> dict[str, Evidence]:
        """Synonyms, by adapter id: no word in common, yet similar, and more so than adapters for anything else.

        A word that no adapter is about ("circle") is about as similar to many; a synonym ("kitty") stands out for the
        adapters of one concept. So similarity and, twice, its lead over the best adapter of another purpose count.
        The other adapters of that concept, a little less similar, come along, so that the best card among them can be
        chosen. Strength is below that of any evidence by words: [0, 0.3].
        """
        found: dict[str, Evidence] = {}
        if not purpose_words(term):
            return found
        ranked = sorted(((similarity_to(term, m), m.adapter.id) for m in matches), key=lambda p: (-p[0], p[1]))
        for similarity, id in ranked[:MOST_SIMILAR]:
            rival = next((score for score, other in ranked if not purposes[other] & purposes[id]), 0.0)
            distinct = similarity + 2 * (similarity - rival)
            if similarity < self.thresholds.floor or distinct < self.thresholds.similar:
                continue
            strength, covers = 0.3 * min(1.0, max(0.0, distinct)), frozenset(content_words(term))
            for score, other in ranked[:MOST_SIMILAR]:
                shared = len(purposes[other] & purposes[id])
                if other == id or (score >= similarity - 0.1 and shared and 2 * shared >= len(purposes[other])):
                    found.setdefault(other, Evidence(strength, f"similar to {term!r} ({score:.2f})", covers))
        return found


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


_Chosen = tuple[Choice, frozenset[str]]
"""A choice and the words of its keyword that it covers."""


def _split(keyword: str, chosen: Sequence[_Chosen]) -> Iterator[Task]:
    """A keyword about two things ("golden crown") that got an adapter for each is two tasks: in one task they would be
    averaged like rivals for one concept, and each would come out at half its weight."""
    halves = parts(keyword)
    if len(chosen) < 2 or halves is None:
        yield Task(keyword=keyword, choices=tuple(choice for choice, _ in chosen))
        return
    modifier = set(content_words(halves[0]))
    for half, about_modifier in zip(halves, (True, False), strict=True):
        mine = tuple(choice for choice, covers in chosen if bool(covers & modifier) is about_modifier)
        yield Task(keyword=half, choices=mine)


def _assign(candidates: Sequence[_Candidate], asked: Sequence[str], limits: Limits) -> list[list[_Chosen]]:
    """Best evidence first, over all tasks together, so that an adapter serves the task that it fits best."""
    chosen: list[list[_Chosen]] = [[] for _ in asked]
    covered: list[set[str]] = [set() for _ in asked]
    used: set[str] = set()
    styles = 0
    family: BaseModelFamily | None = None
    for candidate in sorted(candidates, key=lambda c: (-c.score, c.match.adapter.id)):
        adapter, task = candidate.match.adapter, candidate.task
        is_style = adapter.category is Category.STYLE
        if (
            len(used) >= limits.total
            or len(chosen[task]) >= limits.per_task
            or (is_style and styles >= limits.styles)
            or adapter.id in used
            or candidate.evidence.covers & covered[task]
            or (family and adapter.base_model not in (None, family))
        ):
            continue
        used.add(adapter.id)
        covered[task] |= candidate.evidence.covers
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
        chosen[task].append((choice, candidate.evidence.covers))
    return chosen
