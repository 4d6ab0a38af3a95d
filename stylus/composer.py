"""The composer that asks a language model: one call, typed output, every rule enforced (paper, section 3.3).

Differs from the authors' code where PAPER.md finds it short: one call instead of two; a short list of compact cards
instead of 150 long ones; a reply that breaks a rule goes back once with the reason, and what is still wrong is
repaired by `rules.settle` and told; a model that can't answer hands over to the next one, the last of which is the
lexical composer, with a note why. Temperature and seed diversify; at temperature 0 an answer is kept and asked once.
"""

import asyncio
import contextlib
import hashlib
import json
import threading
import time
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, field
from importlib import resources
from typing import Any, TypeVar

from pydantic import BaseModel, Field, TypeAdapter, ValidationError
from pydantic_ai import Agent, ModelRetry, RunContext, TextOutput
from pydantic_ai.exceptions import UserError
from pydantic_ai.models import Model, infer_model
from pydantic_ai.settings import ModelSettings
from pydantic_ai.usage import RunUsage

from stylus.composition_cache import CompositionCache
from stylus.errors import ModelUnavailable, SettingsError, StylusError
from stylus.lexical_composer import Composer, Draft, LexicalComposer, Limits
from stylus.records import Adapter, Match, OnProgress, Progress, Usage
from stylus.rules import Nominee, Proposal, clean, settle
from stylus.settings import Settings
from stylus.short_list import render, short_list

T = TypeVar("T")

TIMEOUT = 60.0
"""Seconds for everything that a composition asks of models: retries and all of a fallback chain included."""
GRACE = 5.0
"""Seconds after its timeout in which a request may still end by itself, before its thread is left behind."""
MOST_ANSWER = 8192
"""Tokens, those of a thinking model's thoughts included: 32 tasks with reasons take some 2,000."""
_LOOK = 0.1
"""Seconds between two looks at whether the caller still wants the answer."""


# What the fields mean stands in the instructions: a description in the schema would be paid for twice.
class _Choice(BaseModel):
    candidate: int
    reason: str = ""


class _Task(BaseModel):
    keyword: str
    adapters: list[_Choice] = Field(default_factory=list)


class Reply(BaseModel):
    """The tasks of the prompt, in its order."""

    tasks: list[_Task]

    def proposals(self) -> list[Proposal]:
        return [
            Proposal(task.keyword, tuple(Nominee(choice.candidate, choice.reason) for choice in task.adapters))
            for task in self.tasks
        ]


@dataclass
class Asked:
    """What a run validates against, and what came of it. `last` keeps the last reply of the right form, should the
    retry go wrong; `usage` counts also when the run fails."""

    prompt: str
    candidates: list[Adapter]
    limits: Limits
    temperature: float = 0.0
    seed: int | None = None
    last: Reply | None = None
    usage: RunUsage = field(default_factory=RunUsage)


@dataclass(frozen=True)
class ModelComposer:
    """Any pydantic-ai model by name (`openai-chat:...`, `anthropic:...`), or a Model. Safe to call from any thread."""

    model: Model | str
    timeout: float = TIMEOUT
    fallback: Composer = field(default_factory=LexicalComposer)
    cache: CompositionCache | None = None

    @property
    def name(self) -> str:
        return self.model if isinstance(self.model, str) else self.model.model_name

    def compose(
        self,
        prompt: str,
        matches: Sequence[Match],
        limits: Limits,
        temperature: float = 0.0,
        seed: int | None = None,
        on_progress: OnProgress | None = None,
    ) -> Draft:
        """A valid draft in at most `timeout` seconds (and those of the fallback): the model's, repaired where it broke
        a rule and says so in the notes; or the fallback's, with a note why, when the model gave no usable answer.

        `on_progress` is called about ten times a second; what it raises ends the request and comes out here."""
        start = time.monotonic()
        asked = Asked(prompt, short_list(prompt, matches), limits, temperature, seed)
        key = _key(self.name, asked) if self.cache and temperature == 0 else None
        if self.cache and key and (kept := _kept(self.cache, key)):
            return kept
        revision = self.cache.revision() if self.cache else 0
        try:
            reply, trouble = self._ask(asked, on_progress)
            tasks, problems = settle(reply.proposals(), prompt, asked.candidates, limits)
            if problems and not tasks:  # that is no composition, and without the note it would look like a wanted one
                raise ModelUnavailable(f"The model {self.name!r} gave no usable answer ({problems[0]}).")
        except ModelUnavailable as error:
            usage = as_usage(asked.usage, time.monotonic() - start)
            draft = self.fallback.compose(prompt, matches, limits, temperature, seed, on_progress)
            notes = (f"{error} The {draft.composer} composer chose.", *draft.notes)
            return Draft(draft.tasks, draft.composer, notes, usage + draft.usage)
        notes = (*trouble, *(f"Left out: {problem}" for problem in problems))
        draft = Draft(tasks, self.name, notes, as_usage(asked.usage, time.monotonic() - start))
        if self.cache and key and not trouble:  # another time it may go better
            self.cache.put(key, _DRAFTS.dump_json(draft).decode(), revision)
        return draft

    def _ask(self, asked: Asked, on_progress: OnProgress | None) -> tuple[Reply, tuple[str, ...]]:
        """The model's reply and notes. Raises ModelUnavailable."""
        try:
            return in_own_loop(self._run(asked), self.timeout + GRACE, on_progress), ()
        except StylusError:
            raise  # from on_progress
        except Exception as error:  # on a body that isn't theirs, provider clients fail in any way
            reason = f"{type(error).__name__}: {clean(str(error), 200)}"
            if asked.last is not None:
                return asked.last, (
                    f"The model {self.name!r} answered wrongly when asked to mend its reply ({reason}).",
                )
            raise ModelUnavailable(f"The model {self.name!r} gave no usable answer ({reason}).") from error

    async def _run(self, asked: Asked) -> Reply:
        # A model of its own for each call: providers keep connections, which belong to one event loop.
        model = infer_model(self.model) if isinstance(self.model, str) else self.model
        # What all prompts have in common comes first and is marked for the providers that cache only what is marked.
        settings = ModelSettings(temperature=asked.temperature, max_tokens=MOST_ANSWER, cache={"messages": False})
        if asked.seed is not None:
            settings["seed"] = asked.seed
        agent = Agent[Asked, Reply](
            model,
            deps_type=Asked,
            output_type=[Reply, TextOutput(_from_text)],
            instructions=instructions(asked.limits),
            model_settings=settings,
            retries=1,
        )
        agent.output_validator(_must_keep_the_rules)
        async with model:
            text = render(asked.prompt, asked.candidates)
            result = await agent.run(text, deps=asked, timeout=self.timeout, usage=asked.usage)
        return result.output


def _from_text(text: str) -> Reply:
    """The reply of a model that writes JSON instead of calling the tool, as small local ones do."""
    # no regular expression: for one of a megabyte of "{" it would hold the whole process for minutes
    _, brace, rest = text.partition("{")
    inside, end, _ = rest.rpartition("}")
    try:
        return Reply.model_validate_json(brace + inside + end if end else text)
    except ValidationError as error:
        raise ModelRetry("Answer by calling the tool, with `tasks` and nothing else.") from error


def _must_keep_the_rules(context: RunContext[Asked], reply: Reply) -> Reply:
    asked = context.deps
    asked.last = reply
    _, problems = settle(reply.proposals(), asked.prompt, asked.candidates, asked.limits)
    if problems and not context.last_attempt:
        raise ModelRetry("Some rules are broken. Mend these and answer again in full:\n- " + "\n- ".join(problems[:20]))
    return reply


def instructions(limits: Limits) -> str:
    """The stable text, the same for all prompts with the same limits."""
    text = resources.files("stylus").joinpath("prompts/compose.md").read_text(encoding="utf-8")
    return text.format(per_task=limits.per_task, total=limits.total, styles=limits.styles)


_DRAFTS = TypeAdapter(Draft)


def _key(model: str, asked: Asked) -> str:
    """SHA-256 of all that the model's answer at temperature 0 depends on."""
    limits = asked.limits
    content = [
        model,
        asked.prompt,
        [[adapter.id, adapter.content_hash(), adapter.weight] for adapter in asked.candidates],
        [limits.per_task, limits.total, limits.styles, sorted((*pair, why) for pair, why in limits.apart.items())],
        instructions(limits),
        asked.seed,
    ]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _kept(cache: CompositionCache, key: str) -> Draft | None:
    found = cache.get(key)
    if found is None:
        return None
    try:
        draft = _DRAFTS.validate_python(found)
    except ValidationError:
        return None  # an older version of Stylus kept it in another form
    return Draft(draft.tasks, draft.composer, draft.notes, Usage(from_cache=True))


def as_usage(usage: RunUsage, seconds: float = 0.0) -> Usage:
    """What pydantic-ai counted, as our record."""
    return Usage(
        requests=usage.requests,
        input_tokens=usage.input_tokens,
        output_tokens=usage.output_tokens,
        seconds=round(seconds, 3),
        cost=None if usage.cost is None else float(usage.cost),
    )


def in_own_loop(work: Coroutine[Any, Any, T], most: float, on_progress: OnProgress | None = None) -> T:
    """Runs `work` in a thread with an event loop of its own: the caller may be any thread, one that runs a loop too.

    Raises what `work` raises; what `on_progress` raises, and KeyboardInterrupt, after cancelling the work; and
    TimeoutError when it is still stuck after `most` seconds (a hanging name server)."""
    outcome: list[T] = []
    failure: list[BaseException] = []
    running: list[tuple[asyncio.AbstractEventLoop, asyncio.Task[Any] | None]] = []

    async def held() -> T:
        running.append((asyncio.get_running_loop(), asyncio.current_task()))
        return await work

    def run() -> None:
        try:
            outcome.append(asyncio.run(held()))
        except BaseException as error:  # carried to the caller's thread
            failure.append(error)

    thread = threading.Thread(target=run, name="stylus-composer", daemon=True)
    thread.start()
    end = time.monotonic() + most
    try:
        while thread.is_alive() and time.monotonic() < end:
            thread.join(_LOOK)
            if on_progress is not None:
                on_progress(Progress(stage="composing"))
    except BaseException:
        for loop, task in running:
            with contextlib.suppress(RuntimeError):  # it ended in the meantime
                loop.call_soon_threadsafe(task.cancel if task else loop.stop)
        raise
    if thread.is_alive():
        raise TimeoutError(f"nothing came back within {most:g} s")
    if failure:
        raise failure[0]
    return outcome[0]


def open_composer(settings: Settings, cache: CompositionCache | None = None) -> Composer:
    """The composer that STYLUS_COMPOSER names: a model, or several separated by commas, each of which is asked when the
    ones before it give no usable answer, and in the end the lexical one. They share TIMEOUT evenly. Raises
    SettingsError if one of them can't be built here."""
    names = [name.strip() for name in settings.composer.split(",") if name.strip()]
    if "lexical" in names[:-1]:
        raise SettingsError(
            f"STYLUS_COMPOSER is {settings.composer!r}: `lexical` always answers, so nothing may come after it."
        )
    models = [name for name in names if name != "lexical"]
    composer: Composer = LexicalComposer()
    for name in reversed(models):
        check_model(name, "STYLUS_COMPOSER")
        composer = ModelComposer(name, TIMEOUT / len(models), composer, cache)
    return composer


def check_model(name: str, variable: str) -> None:
    """Raises SettingsError if pydantic-ai can't build the model of that name here; asks nothing."""
    try:
        infer_model(name)
    except ImportError as error:
        extra = name.partition(":")[0].partition("-")[0]
        raise SettingsError(
            f"{variable} is {name!r}, whose client library is not installed ({error}). "
            f"Install it with `pip install 'pydantic-ai-slim[{extra}]'`, or unset {variable}."
        ) from error
    except (UserError, ValueError) as error:
        raise SettingsError(
            f"{variable} is {name!r}: {error} It may be pydantic-ai model names of the form provider:model (or "
            "`lexical`, for the composer), such as `anthropic:claude-sonnet-5-5`, `openai:gpt-5.6-terra`, "
            "`ollama:qwen3`, or `openai-chat:NAME` for an OpenAI-compatible server at OPENAI_BASE_URL."
        ) from error
