"""Who chooses the adapters: the composer, or one of its stages alone, for the paper's ablation (section 4.5) and for
people. Every policy gives the same kind of draft, so that masks, weights and prompt suffix are the same for all; the
paper's own baselines get no masks and no suffix, which is not a comparison.

A policy without a composer gives the prompt its three best adapters, each for the keyword that it is most similar to.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from stylus.errors import InvalidInput, ModelUnavailable
from stylus.keywords import MOST_WORDS, keywords
from stylus.lexical_composer import Composer, Draft, Limits, similarity_to
from stylus.records import Choice, Match, OnProgress, Policy, Task, Usage
from stylus.reranker import LOCAL, LocalReranker, Reranker
from stylus.trigger_words import serving

TOP = 3
"""Adapters of a policy without a composer (the paper's baselines merge the top 3)."""
KEPT = 80
"""Candidates that a cross-encoder hands on to the composer: about half, so that only clear misfits leave."""


@dataclass(frozen=True)
class RerankedComposer:
    """A composer that sees the better half of the matches, as a reranker judges them, best first: where the paper
    reranks too. A reranker that can't be asked changes nothing but a note."""

    reranker: Reranker
    composer: Composer

    @property
    def name(self) -> str:
        return self.composer.name

    def compose(
        self,
        prompt: str,
        matches: Sequence[Match],
        limits: Limits,
        temperature: float = 0.0,
        seed: int | None = None,
        on_progress: OnProgress | None = None,
    ) -> Draft:
        if len(matches) <= KEPT:  # none would leave
            return self.composer.compose(prompt, matches, limits, temperature, seed, on_progress)
        try:
            ranked, usage = _ranked(self.reranker, prompt, matches, on_progress)
            best = ranked[:KEPT]
            note = f"{self.reranker.name} chose {len(best)} of {len(ranked)} candidates."
        except ModelUnavailable as error:
            best, usage, note = list(matches), Usage(), f"{error} The candidates were not reranked."
        draft = self.composer.compose(prompt, best, limits, temperature, seed, on_progress)
        return Draft(draft.tasks, draft.composer, (note, *draft.notes), usage + draft.usage)


@dataclass(frozen=True)
class TopPolicy:
    """The three best matches by one measure: of the retriever (similarity to the whole prompt, the paper's), of a
    reranker, or of chance."""

    policy: Policy
    reranker: Reranker | None = None

    @property
    def name(self) -> str:
        return f"{self.policy} {self.reranker.name}" if self.reranker else self.policy

    def compose(
        self,
        prompt: str,
        matches: Sequence[Match],
        limits: Limits,
        temperature: float = 0.0,
        seed: int | None = None,
        on_progress: OnProgress | None = None,
    ) -> Draft:
        """Raises ModelUnavailable where the reranker can't be asked: a stand-in would spoil the comparison."""
        usable = [match for match in matches if match.adapter.quality is None and not match.adapter.hidden]
        usage, top = Usage(), min(TOP, limits.total)
        if self.reranker is not None:
            usable, usage = _ranked(self.reranker, prompt, usable, on_progress)
        elif self.policy is Policy.RANDOM:
            Random(prompt if seed is None else seed).shuffle(usable)
        elif self.policy is Policy.RETRIEVER:
            usable.sort(key=lambda match: (-match.prompt_score, match.adapter.id))
        else:
            top = 0
        return Draft(_tasks(prompt, usable[:top], str(self.policy)), self.name, usage=usage)


def _ranked(
    reranker: Reranker, prompt: str, matches: Sequence[Match], on_progress: OnProgress | None
) -> tuple[list[Match], Usage]:
    ranking = reranker.rank(prompt, [match.adapter for match in matches], on_progress)
    order = sorted(range(len(matches)), key=lambda n: -ranking.scores[n])
    return [matches[n] for n in order], ranking.usage


def _tasks(prompt: str, chosen: Sequence[Match], why: str) -> tuple[Task, ...]:
    """Each adapter under the keyword that it is most similar to; the other keywords stay empty."""
    asked = keywords(prompt) or [" ".join(prompt.split()[:MOST_WORDS])]
    choices: dict[str, list[Choice]] = {keyword: [] for keyword in asked}
    for rank, match in enumerate(chosen, start=1):
        adapter = match.adapter
        keyword = max(asked, key=lambda keyword: similarity_to(keyword, match))
        choices[keyword].append(
            Choice(
                adapter_id=adapter.id,
                weight=adapter.weight,
                reason=f"{why}: place {rank}",
                name=adapter.name,
                category=adapter.category,
                trigger_words=serving(adapter, keyword),
            )
        )
    return tuple(Task(keyword=keyword, choices=tuple(found)) for keyword, found in choices.items())


def chooser(policy: Policy, composer: Composer, reranker: Reranker | None) -> Composer:
    """Who carries out a policy. Raises InvalidInput for the policy reranker where none is set."""
    if policy is Policy.COMPOSER:
        # An LLM would be asked twice for what one call can do.
        return RerankedComposer(reranker, composer) if isinstance(reranker, LocalReranker) else composer
    if policy is Policy.RERANKER and reranker is None:
        raise InvalidInput(
            f"policy {policy.value!r} needs a reranker: set STYLUS_RERANKER to `{LOCAL}FOLDER_OR_HUB_ID` of a "
            "cross-encoder, or to a pydantic-ai model name."
        )
    return TopPolicy(policy, reranker if policy is Policy.RERANKER else None)
