"""The composer that asks a language model: one call, typed output, every rule enforced (paper, section 3.3).

Differs from the authors' code where PAPER.md finds it short: one call instead of two; a short list of compact cards
instead of 150 long ones; a reply that breaks a rule goes back once with the reason, and what is still wrong is
repaired by `rules.settle` and told; a model that can't answer hands over to the lexical composer, with a note why.
"""

import asyncio
import threading
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

from pydantic import BaseModel, Field
from pydantic_ai import Agent, ModelRetry, RunContext
from pydantic_ai.exceptions import AgentRunError, UserError
from pydantic_ai.models import Model, infer_model
from pydantic_ai.settings import ModelSettings

from stylus.errors import ModelUnavailable, SettingsError
from stylus.keywords import keywords
from stylus.lexical_composer import Composer, Draft, LexicalComposer, Limits, similarity_to
from stylus.records import Adapter, Match
from stylus.rules import Nominee, Proposal, clean, settle
from stylus.settings import Settings

MOST_CANDIDATES = 48
"""Cards that the model sees: the best of each keyword, then the best of the whole prompt."""
PER_KEYWORD = 6
TIMEOUT = 60.0
"""Seconds for everything that a composition asks of a model, retries included."""


class _Choice(BaseModel):
    candidate: int = Field(description="number of the candidate")
    reason: str = Field("", description="one short sentence: what in its card fits the keyword")


class _Task(BaseModel):
    keyword: str = Field(description="copied from the prompt, one to four words")
    adapters: list[_Choice] = Field(default_factory=list, description="candidates that draw it; empty is fine")


class Reply(BaseModel):
    """The tasks of the prompt, in its order."""

    tasks: list[_Task]

    def proposals(self) -> list[Proposal]:
        return [
            Proposal(task.keyword, tuple(Nominee(choice.candidate, choice.reason) for choice in task.adapters))
            for task in self.tasks
        ]


@dataclass
class _Asked:
    """What a run validates against; `last` keeps the last reply of the right form, should the retry go wrong."""

    prompt: str
    candidates: list[Adapter]
    limits: Limits
    last: Reply | None = None


@dataclass(frozen=True)
class ModelComposer:
    """Any pydantic-ai model by name (`openai-chat:...`, `anthropic:...`), or a Model. Safe to call from any thread."""

    model: Model | str
    timeout: float = TIMEOUT
    fallback: Composer = field(default_factory=LexicalComposer)

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
    ) -> Draft:
        """A valid draft in at most `timeout` seconds: the model's, repaired where it broke a rule and says so in the
        notes; or the lexical composer's, with a note why, when the model gave no usable answer."""
        candidates = short_list(prompt, matches)
        try:
            reply, notes = self._ask(_Asked(prompt, candidates, limits), temperature)
        except ModelUnavailable as error:
            draft = self.fallback.compose(prompt, matches, limits)
            return Draft(draft.tasks, draft.composer, (f"{error} The {draft.composer} composer chose.", *draft.notes))
        tasks, problems = settle(reply.proposals(), prompt, candidates, limits)
        return Draft(tasks, self.name, (*notes, *(f"Left out: {problem}" for problem in problems)))

    def _ask(self, asked: _Asked, temperature: float) -> tuple[Reply, tuple[str, ...]]:
        """The model's reply and notes. Raises ModelUnavailable."""
        try:
            return _in_own_loop(self._run(asked, temperature), self.timeout + 5), ()
        except (AgentRunError, UserError, ImportError, OSError) as error:
            reason = f"{type(error).__name__}: {clean(str(error), 200)}"
            if asked.last is not None:
                return asked.last, (
                    f"The model {self.name!r} answered wrongly when asked to mend its reply ({reason}).",
                )
            raise ModelUnavailable(f"The model {self.name!r} gave no usable answer ({reason}).") from error

    async def _run(self, asked: _Asked, temperature: float) -> Reply:
        # A model of its own for each call: providers keep connections, which belong to one event loop.
        model = infer_model(self.model) if isinstance(self.model, str) else self.model
        limits = asked.limits
        agent = Agent(
            model,
            deps_type=_Asked,
            output_type=Reply,
            instructions=_instructions(limits),
            model_settings=ModelSettings(temperature=temperature),
            retries=1,
        )
        agent.output_validator(_must_keep_the_rules)
        async with model:
            result = await agent.run(render(asked.prompt, asked.candidates), deps=asked, timeout=self.timeout)
        return result.output


def _must_keep_the_rules(context: RunContext[_Asked], reply: Reply) -> Reply:
    asked = context.deps
    asked.last = reply
    _, problems = settle(reply.proposals(), asked.prompt, asked.candidates, asked.limits)
    if problems and not context.last_attempt:
        raise ModelRetry("Some rules are broken. Mend these and answer again in full:\n- " + "\n- ".join(problems[:20]))
    return reply


def _instructions(limits: Limits) -> str:
    text = resources.files("stylus").joinpath("prompts/compose.md").read_text(encoding="utf-8")
    return text.format(per_task=limits.per_task, total=limits.total, styles=limits.styles)


def short_list(prompt: str, matches: Sequence[Match]) -> list[Adapter]:
    """At most 48 candidates, in a fixed order: the six most similar to each keyword, then the retriever's best."""
    usable = [match for match in matches if match.adapter.quality is None and not match.adapter.hidden]
    rounds = [
        sorted(usable, key=lambda match: -similarity_to(keyword, match))[:PER_KEYWORD] for keyword in keywords(prompt)
    ]
    turns = [ranked[place] for place in range(PER_KEYWORD) for ranked in rounds if place < len(ranked)]
    chosen = {match.adapter.id: match.adapter for match in (*turns, *usable)}
    return list(chosen.values())[:MOST_CANDIDATES]


def render(prompt: str, candidates: Sequence[Adapter]) -> str:
    """What the model reads after the instructions. Text of cards is cut, on one line, and can't close its field."""
    lines = [f"{number}. {card(adapter)}" for number, adapter in enumerate(candidates, start=1)]
    shown = prompt.replace("</prompt>", "")
    return "\n".join(("<candidates>", *lines, "</candidates>", f"<prompt>{shown}</prompt>"))


def card(adapter: Adapter) -> str:
    """A card in one line: name, category, tags, trigger words, the start of the description."""
    fields = {
        "tags": ", ".join(_field(tag, 30) for tag in adapter.tags[:8]),
        "trigger": ", ".join(_field(word, 30) for word in adapter.trigger_words[:3]),
        "says": _field(adapter.description, 160),
    }
    rest = "".join(f" | {name}: {text}" for name, text in fields.items() if text)
    return f"{_field(adapter.name, 60)} | {adapter.category}{rest}"


def _field(text: str, most: int) -> str:
    return clean(text, most).translate(str.maketrans("<>|", "‹›/"))


def _in_own_loop(work: Coroutine[Any, Any, Reply], most: float) -> Reply:
    """Runs `work` in a thread with an event loop of its own: the caller may be any thread, one that runs a loop too.

    Raises what `work` raises, and TimeoutError when it is still stuck after `most` seconds (a hanging name server).
    """
    outcome: list[Reply] = []
    failure: list[BaseException] = []

    def run() -> None:
        try:
            outcome.append(asyncio.run(work))
        except BaseException as error:  # carried to the caller's thread
            failure.append(error)

    thread = threading.Thread(target=run, name="stylus-composer", daemon=True)
    thread.start()
    thread.join(most)
    if thread.is_alive():
        raise TimeoutError(f"nothing came back within {most:g} s")
    if failure:
        raise failure[0]
    return outcome[0]


def open_composer(settings: Settings) -> Composer:
    """The composer that STYLUS_COMPOSER names. Raises SettingsError if no such model can be built here."""
    name = settings.composer.strip()
    if name in {"", "lexical"}:
        return LexicalComposer()
    try:
        infer_model(name)
    except ImportError as error:
        extra = name.partition(":")[0].partition("-")[0]
        raise SettingsError(
            f"STYLUS_COMPOSER is {name!r}, whose client library is not installed ({error}). "
            f"Install it with `pip install 'pydantic-ai-slim[{extra}]'`, or set STYLUS_COMPOSER=lexical."
        ) from error
    except (UserError, ValueError) as error:
        raise SettingsError(
            f"STYLUS_COMPOSER is {name!r}: {error} It may be `lexical` or a pydantic-ai model name of the form "
            "provider:model, such as `anthropic:claude-sonnet-4-5`, `openai:gpt-5`, `ollama:qwen3`, or "
            "`openai-chat:NAME` for an OpenAI-compatible server at OPENAI_BASE_URL."
        ) from error
    return ModelComposer(name)
