"""A vision model as judge of two arms' pictures of one prompt (paper, section 4.3 and its appendix).

Differs from the authors' way: every pair is asked in both orders and what depends on the order is a tie; replies are
typed; the model learns neither arm, file name nor metadata; a reply is kept by the content of its question, so that it
is paid for once, whatever ends a run.
"""

import asyncio
import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Literal

from pydantic import BaseModel
from pydantic_ai import Agent, BinaryContent
from pydantic_ai.exceptions import AgentRunError, UserError
from pydantic_ai.messages import UserContent
from pydantic_ai.models import Model
from pydantic_ai.usage import RunUsage

from stylus.asking import Budget, Patience, Sleep, settings_of
from stylus.composer import as_usage
from stylus.errors import InvalidInput, ModelUnavailable
from stylus.evaluation.judgements import Judgements
from stylus.evaluation.metrics import Interval, share
from stylus.evaluation.pairs import Pair
from stylus.evaluation.preference import Outcome, Tally
from stylus.example_images import shrink
from stylus.records import OnProgress, Progress, Record, Usage
from stylus.text import clean_line

CONCURRENCY = 4
"""Pairs at once."""
MOST_PICTURES = 4
"""Of an arm that one question shows: providers charge for each, and take so many."""
_MOST_REASON = 300
_DIVERSITY = """\
- diversity: which set has more different pictures, in subject, pose, composition, colour and background; never by
  pictures that are broken or show something else than the prompt.
"""
_REMEDY = "Check STYLUS_VISION or --model (it must see pictures) and the provider's key and address; replies stay."


class _Verdict(BaseModel):
    # the reason first: a model that has looked decides better
    reason: str
    better: Literal["first", "second", "tie"]


class Reply(BaseModel):
    """Which set is better."""

    alignment: _Verdict
    quality: _Verdict


class ReplyOnSets(Reply):
    """Which set is better."""

    diversity: _Verdict


class Opinion(Record):
    """What came of both orders on one aspect."""

    outcome: Outcome
    """Of the first arm; a tie where the orders disagree."""
    agreed: bool
    reasons: tuple[str, ...]
    """With the first arm shown first, then second; none where the pictures were the same."""


class Judged(Record):
    """One prompt."""

    prompt: str
    opinions: Mapping[str, Opinion]
    """By aspect: alignment, quality and, of several pictures, diversity."""


class Unjudged(Record):
    prompt: str
    reason: str


class Verdicts(Record):
    """One aspect over all prompts; shares have Wilson intervals."""

    tally: Tally
    win: Interval
    tie: Interval
    lose: Interval
    preferred: Interval | None
    """Wins among what was decided."""
    agreed: Interval
    """On how many pairs both orders said the same."""
    first: Interval | None
    """How often the set that was shown first won, of the replies that were no tie: a half where order says nothing."""


class JudgeReport(Record):
    """What a model says of two arms, and what it cost."""

    model: str
    arms: tuple[str, str]
    aspects: Mapping[str, Verdicts] = {}
    judged: tuple[Judged, ...] = ()
    identical: int = 0
    """Prompts on which both arms made the same pictures: ties, and nobody was asked."""
    kept: int = 0
    """Replies that an earlier run had paid for."""
    failed: tuple[Unjudged, ...] = ()
    stopped: str | None = None
    """Why pairs were left for another run."""
    usage: Usage = Usage()
    """Of this run."""


@dataclass(frozen=True)
class Options:
    """How a run goes."""

    concurrency: int = CONCURRENCY
    max_cost: float | None = None
    """US dollars from which on no further pair is begun; those in flight are finished."""

    def __post_init__(self) -> None:
        for name, value in (("concurrency", self.concurrency), ("max_cost", self.max_cost)):
            if value is not None and not value > 0:
                raise InvalidInput(f"{name} is {value}: it must be above 0, or be left out.")


def judge(
    judgements: Judgements,
    model: Model,
    pairs: Sequence[Pair],
    options: Options = Options(),
    on_progress: OnProgress | None = None,
    *,
    name: str | None = None,
    sleep: Sleep = asyncio.sleep,
) -> JudgeReport:
    """Asks the model about pairs of the same two arms, under its `name`, if it goes by another one than its own.

    Not to be called where an event loop runs. Raises InvalidInput for no pair, ModelUnavailable when the model refuses
    everybody, DatabaseUnavailable, and what `on_progress` raises: what was answered until then stays.
    """
    if not pairs:
        raise InvalidInput("There is no prompt that both arms have drawn whole: `stylus evaluate` goes on drawing.")
    run = _Run(judgements, model, name or model.model_name, pairs, options, on_progress, sleep)
    return asyncio.run(run.run())


@dataclass
class _Run:
    judgements: Judgements
    model: Model
    name: str
    pairs: Sequence[Pair]
    options: Options
    on_progress: OnProgress | None
    sleep: Sleep
    replies: dict[int, tuple[Reply, ...]] = field(default_factory=dict)
    """Place of a pair -> what was said in both orders; nothing where its pictures are the same."""
    failed: dict[int, str] = field(default_factory=dict)
    begun: int = 0
    kept: int = 0
    stopped: str | None = None

    def __post_init__(self) -> None:
        self.patience = Patience(self.sleep)
        self.budget = Budget(self.name, self.options.max_cost)

    async def run(self) -> JudgeReport:
        start = time.monotonic()
        self._show()
        async with self.model:
            count = min(self.options.concurrency, len(self.pairs))
            workers = [asyncio.create_task(self._work()) for _ in range(count)]
            try:
                await asyncio.gather(*workers)
            finally:
                for worker in workers:
                    worker.cancel()
                await asyncio.gather(*workers, return_exceptions=True)
        return self._report(time.monotonic() - start)

    async def _work(self) -> None:
        while self.begun < len(self.pairs) and not self._is_too_dear():
            place, self.begun = self.begun, self.begun + 1
            try:
                self.replies[place] = await self._judge(self.pairs[place])
            except (AgentRunError, UserError, OSError, ValueError, SyntaxError) as error:
                reason = f"{type(error).__name__}: {clean_line(str(error), 300)}"
                if self.patience.is_hopeless(error):
                    raise ModelUnavailable(f"The model {self.name} refuses: {reason} {_REMEDY}") from error
                self.failed[place] = reason
            self._show()

    def _is_too_dear(self) -> bool:
        self.stopped = self.stopped or self.budget.why_stop()
        return self.stopped is not None

    async def _judge(self, pair: Pair) -> tuple[Reply, ...]:
        """What the model says in both orders. Raises AgentRunError and UserError (the model), OSError, ValueError and
        SyntaxError (the pictures)."""
        one, other = await asyncio.to_thread(lambda: [_shown(paths) for paths in pair.pictures])
        if one == other:
            return ()
        form = ReplyOnSets if len(one) > 1 else Reply
        questions = [(one, other), (other, one)]
        keys = [_key(self.name, form, pair.prompt, first, second) for first, second in questions]
        found = await asyncio.to_thread(self.judgements.get, keys)
        self.kept += len(found)
        return tuple(
            [
                form.model_validate(found[key]) if key in found else await self._ask(key, form, pair.prompt, *question)
                for key, question in zip(keys, questions, strict=True)
            ]
        )

    async def _ask(self, key: str, form: type[Reply], prompt: str, first: list[bytes], second: list[bytes]) -> Reply:
        await self.patience.ready()
        usage = RunUsage()
        try:
            result = await self._agent.run(
                _question(prompt, first, second), output_type=form, instructions=_instructions(form), usage=usage
            )
        finally:
            self.budget.spent.incr(usage)
        self.patience.answered()
        reply: Reply = result.output
        await asyncio.to_thread(
            self.judgements.keep,
            key,
            self.name,
            reply.model_dump(mode="json"),
            tokens=(usage.input_tokens, usage.output_tokens),
            cost=None if usage.cost is None else float(usage.cost),
        )
        return reply

    @cached_property
    def _agent(self) -> Agent[None, Reply]:
        settings = settings_of(self.model)
        return Agent(self.model, output_type=Reply, model_settings=settings, capabilities=[self.patience], retries=1)

    def _report(self, seconds: float) -> JudgeReport:
        several = any(len(pair.pictures[0]) > 1 for pair in self.pairs)
        aspects = list((ReplyOnSets if several else Reply).model_fields)
        judged = [_opinions(self.pairs[place].prompt, aspects, replies) for place, replies in self.replies.items()]
        return JudgeReport(
            model=self.name,
            arms=self.pairs[0].arms,
            aspects={aspect: self._verdicts(aspect, judged) for aspect in aspects} if judged else {},
            judged=tuple(judged),
            identical=sum(not replies for replies in self.replies.values()),
            kept=self.kept,
            failed=tuple(Unjudged(prompt=self.pairs[place].prompt, reason=why) for place, why in self.failed.items()),
            stopped=self.stopped,
            usage=as_usage(self.budget.spent, seconds),
        )

    def _verdicts(self, aspect: str, judged: Sequence[Judged]) -> Verdicts:
        opinions = [one.opinions[aspect] for one in judged]
        tally = Tally.of(opinion.outcome for opinion in opinions)
        said = [getattr(reply, aspect).better for replies in self.replies.values() for reply in replies]
        decided = len(said) - said.count("tie")
        return Verdicts(
            tally=tally,
            win=share(tally.wins, tally.n),
            tie=share(tally.ties, tally.n),
            lose=share(tally.losses, tally.n),
            preferred=tally.preferred,
            agreed=share(sum(opinion.agreed for opinion in opinions), tally.n),
            first=share(said.count("first"), decided) if decided else None,
        )

    def _show(self) -> None:
        if self.on_progress is not None:
            done = len(self.replies) + len(self.failed)
            self.on_progress(Progress(stage="judge", done=done, total=len(self.pairs)))


def _opinions(prompt: str, aspects: Sequence[str], replies: Sequence[Reply]) -> Judged:
    return Judged(prompt=prompt, opinions={aspect: _opinion(aspect, replies) for aspect in aspects})


def _opinion(aspect: str, replies: Sequence[Reply]) -> Opinion:
    """Of both orders: one verdict where they agree, otherwise a tie."""
    verdicts = [getattr(reply, aspect) for reply in replies]
    if not verdicts:
        return Opinion(outcome=Outcome.TIE, agreed=True, reasons=())
    forward, backward = (_SAID[verdict.better] for verdict in verdicts)
    agreed = forward is backward.reverse()
    reasons = tuple(clean_line(verdict.reason, _MOST_REASON) for verdict in verdicts)
    return Opinion(outcome=forward if agreed else Outcome.TIE, agreed=agreed, reasons=reasons)


_SAID = {"first": Outcome.WIN, "tie": Outcome.TIE, "second": Outcome.LOSS}


def _shown(paths: Sequence[Path]) -> list[bytes]:
    """Decoded and encoded anew: pixels and nothing else, so that no metadata tells the arm."""
    return [shrink(path.read_bytes()) for path in paths[:MOST_PICTURES]]


def _question(prompt: str, first: Sequence[bytes], second: Sequence[bytes]) -> list[UserContent]:
    content: list[UserContent] = [f"<prompt>{prompt.translate(str.maketrans('<>', '‹›'))}</prompt>"]
    for name, pictures in (("first", first), ("second", second)):
        content.append(f"The {name} set:")
        content += [BinaryContent(picture, media_type="image/jpeg") for picture in pictures]
    return content


def _instructions(form: type[Reply]) -> str:
    text = resources.files("stylus").joinpath("prompts/judge.md").read_text(encoding="utf-8")
    return text.format(diversity=_DIVERSITY if form is ReplyOnSets else "")


def _key(model: str, form: type[Reply], prompt: str, first: Sequence[bytes], second: Sequence[bytes]) -> str:
    """SHA-256 of all that the answer depends on."""
    sets = [[hashlib.sha256(picture).hexdigest() for picture in pictures] for pictures in (first, second)]
    content = [model, _instructions(form), form.model_json_schema(), prompt, sets]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()
