"""A catalog's cards through the refiner: many at once, on any number of machines, each paid for once.

A card is claimed, shown to the model, kept, embedded anew (title, refined description, tags: paper, section 3.2) and
put in use. Whatever ends a run, the next one goes on: what was kept is used without asking again, what was in flight is
asked again. A model that refuses everybody ends the run instead of failing card by card.
"""

import asyncio
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from datetime import timedelta

from pydantic_ai.capabilities import BatchModelRequests
from pydantic_ai.exceptions import AgentRunError, ModelRequestRejectedError, UserError
from pydantic_ai.models import Model
from pydantic_ai.settings import ModelSettings
from pydantic_ai.usage import RunUsage

from stylus.asking import Budget, Patience, Sleep, settings_of
from stylus.embedder import Embedder
from stylus.errors import InvalidInput, ModelUnavailable, SettingsError
from stylus.example_images import Pictures
from stylus.ingest import embedded
from stylus.pocket import ADAPTERS
from stylus.records import OnProgress, Progress, Record
from stylus.refinements import Claims, Refinement, Refinements, Scope, Work
from stylus.refiner import Refiner
from stylus.settings import Settings
from stylus.text import clean_line
from stylus.web import Web

CONCURRENCY = 4
BATCHED = 100
"""Cards at once in batch mode: pictures of all of them are in memory until the batch is on its way."""
BATCH_WAIT = 30.0
"""Seconds that a batch waits for more cards, and then until we first ask whether it is done."""
_PAGE = 100
_PICTURE_HOSTS = frozenset({"image.civitai.com", "imagecache.civitai.com"})
_REMEDY = "Check STYLUS_VISION (it must see pictures) and the provider's key and address; what was refined stays."


class Mended(Record):
    """A reply with which something was wrong."""

    id: str
    what: tuple[str, ...]


class Failure(Record):
    """A card that was not refined."""

    id: str
    reason: str


class RefineReport(Record):
    """What became of the cards, and what it cost."""

    model: str
    refined: int = 0
    kept: int = 0
    """Put in use from a reply that an earlier run had paid for."""
    unchanged: int = 0
    """Refined with this model before, and the same since."""
    elsewhere: int = 0
    """Being refined by another process just now."""
    failed: tuple[Failure, ...] = ()
    mended: tuple[Mended, ...] = ()
    stopped: str | None = None
    """Why cards were left for another run."""
    requests: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cost: float | None = None
    """US dollars, as far as the model's prices are known; None where they are not."""
    seconds: float = 0.0


@dataclass(frozen=True)
class Options:
    """How a run goes."""

    only: tuple[str, ...] | None = None
    again: bool = False
    """Also what this model has refined before."""
    limit: int | None = None
    concurrency: int | None = None
    """Cards at once; None: 4, or 100 in batch mode."""
    max_cost: float | None = None
    """US dollars from which on no further card is begun; those in flight are finished."""
    batch: bool = False
    """Through the provider's batch API: half the price as a rule, and up to a day of waiting."""

    def __post_init__(self) -> None:
        for name, value in (("limit", self.limit), ("concurrency", self.concurrency), ("max_cost", self.max_cost)):
            if value is not None and not value > 0:
                raise InvalidInput(f"{name} is {value}: it must be above 0, or be left out.")


def refine(
    refinements: Refinements,
    embedder: Embedder,
    model: Model,
    pictures: Pictures,
    options: Options = Options(),
    on_progress: OnProgress | None = None,
    *,
    name: str | None = None,
    sleep: Sleep = asyncio.sleep,
) -> RefineReport:
    """Refines what `options` say, under the name of the model (`name`, if it goes by another one than its own).

    Not to be called where an event loop runs. Raises ModelUnavailable when the model refuses everybody,
    DatabaseUnavailable, InvalidInput, SettingsError (no batch API), and what `on_progress` raises (errors.Cancelled):
    whatever was refined until then stays.
    """
    if options.batch and model.batch_max_requests is None:
        raise SettingsError(
            f"The model {model.model_name!r} has no batch API that pydantic-ai knows: leave out --batch, or set "
            "STYLUS_VISION to a model of `openai:`, `anthropic:` or `google:`."
        )
    since = refinements.now() if options.again else None
    scope = Scope(name or model.model_name, options.only, since)
    return asyncio.run(_Run(refinements, embedder, model, pictures, options, scope, on_progress, sleep).run())


def open_pictures(settings: Settings) -> Pictures:
    """The pictures of this machine's folders and of the sources we know. Civitai keeps its pictures on other hosts than
    its API, which get no key."""
    # imported late: the hub's client takes a while
    from stylus.sources import civitai, hub

    return Pictures([Web("Civitai", settings.civitai_url, hosts=civitai.HOSTS | _PICTURE_HOSTS), hub.open_web()])


@dataclass
class _Run:
    refinements: Refinements
    embedder: Embedder
    model: Model
    pictures: Pictures
    options: Options
    scope: Scope
    on_progress: OnProgress | None
    sleep: Sleep
    report: RefineReport = field(init=False)
    patience: Patience = field(init=False)
    budget: Budget = field(init=False)
    total: int = 0
    begun: int = 0
    ids: list[str] = field(default_factory=list)
    after: str = ""

    async def run(self) -> RefineReport:
        start = time.monotonic()
        total, done = await asyncio.to_thread(self.refinements.count, self.scope)
        self.report = RefineReport(model=self.scope.model, unchanged=done)
        self.patience = Patience(self.sleep)
        self.budget = Budget(self.scope.model, self.options.max_cost)
        self.total = min(total - done, self.options.limit or total)
        self._show()
        async with AsyncExitStack() as stack:
            claims = stack.enter_context(self.refinements.claims())
            if self.total:
                await stack.enter_async_context(self.model)
            if self.options.batch:
                wait = timedelta(seconds=BATCH_WAIT)
                batching = await stack.enter_async_context(BatchModelRequests(max_wait=wait, poll_interval=wait))
                refiner = Refiner(self.model, ModelSettings(temperature=0.0), batching)
            else:
                refiner = Refiner(self.model, settings_of(self.model), self.patience)
            turn = asyncio.Lock()
            count = self.options.concurrency or (BATCHED if self.options.batch else CONCURRENCY)
            workers = [asyncio.create_task(self._work(refiner, claims, turn)) for _ in range(min(count, self.total))]
            try:
                await asyncio.gather(*workers)
            finally:
                for worker in workers:
                    worker.cancel()
                await asyncio.gather(*workers, return_exceptions=True)
        return self.report.model_copy(update={"seconds": round(time.monotonic() - start, 2)})

    async def _work(self, refiner: Refiner, claims: Claims, turn: asyncio.Lock) -> None:
        while True:
            async with turn:
                work = await self._next(claims)
            if work is None:
                return
            try:
                await self.patience.ready()
                await self._one(refiner, work)
            finally:
                claims.give_back(work.card.id)
            self._show()

    async def _next(self, claims: Claims) -> Work | None:
        """The next card that is ours to do."""
        while self.begun < self.total and not self._is_too_dear():
            if not self.ids:
                self.ids = await asyncio.to_thread(self.refinements.next, self.scope, self.after, _PAGE)
            if not self.ids:
                return None
            self.after = self.ids.pop(0)
            self.begun += 1
            if claims.take(self.after):
                # looked at anew: whoever had it until now may have done it
                work = await asyncio.to_thread(self.refinements.work, self.scope, self.after)
                if work is not None:
                    return work
                claims.give_back(self.after)
            self._count("elsewhere")
        return None

    def _is_too_dear(self) -> bool:
        stopped = self.budget.why_stop()
        if stopped is not None:
            self.report = self.report.model_copy(update={"stopped": stopped})
        return stopped is not None

    async def _one(self, refiner: Refiner, work: Work) -> None:
        refinement = work.paid
        if refinement is None and (refinement := await self._ask(refiner, work)) is None:
            return
        await asyncio.to_thread(self._use, work, refinement)
        self._count("refined" if work.paid is None else "kept")

    async def _ask(self, refiner: Refiner, work: Work) -> Refinement | None:
        """The model's answer, kept; None if there is none, which the report says."""
        id = work.card.id
        folders = work.folders | ({ADAPTERS} if work.card.source == "pocket" else set())
        pictures, missed = await asyncio.to_thread(self.pictures.of, work.card, folders)
        usage = RunUsage()
        try:
            refinement, repairs = await refiner.refine(work.card, pictures, usage)
        except (AgentRunError, UserError, OSError) as error:
            reason = f"{type(error).__name__}: {clean_line(str(error), 300)}"
            if pictures and isinstance(error, ModelRequestRejectedError):
                reason += " If the model sees no pictures, set STYLUS_VISION to one that does."
            if self.patience.is_hopeless(error):
                raise ModelUnavailable(f"The model {self.scope.model} refuses: {reason} {_REMEDY}") from error
            self.report = self.report.model_copy(
                update={"failed": (*self.report.failed, Failure(id=id, reason=reason))}
            )
            return None
        finally:
            self._spend(usage)
        self.patience.answered()
        repairs += [f"{missed} of its pictures could not be read."] if missed else []
        if repairs:
            mended = Mended(id=id, what=tuple(repairs))
            self.report = self.report.model_copy(update={"mended": (*self.report.mended, mended)})
        await asyncio.to_thread(
            self.refinements.keep,
            work,
            self.scope.model,
            refinement,
            repairs=repairs,
            tokens=(usage.input_tokens, usage.output_tokens),
            cost=None if usage.cost is None else float(usage.cost),
        )
        return refinement

    def _use(self, work: Work, refinement: Refinement) -> None:
        adapter = refinement.of(work.card)
        [entry] = embedded([(adapter, work.content_hash)], self.embedder)
        self.refinements.apply(entry, self.embedder.name)

    def _spend(self, usage: RunUsage) -> None:
        spent = self.budget.spent
        spent.incr(usage)
        self.report = self.report.model_copy(
            update={
                "requests": spent.requests,
                "input_tokens": spent.input_tokens,
                "output_tokens": spent.output_tokens,
                "cost": self.budget.cost,
            }
        )

    def _count(self, what: str) -> None:
        self.report = self.report.model_copy(update={what: getattr(self.report, what) + 1})

    def _show(self) -> None:
        if self.on_progress is not None:
            report = self.report
            done = report.refined + report.kept + report.elsewhere + len(report.failed)
            self.on_progress(Progress(stage="refine", done=done, total=self.total))
