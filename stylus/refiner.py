"""Card and example pictures -> description, category, weight, trigger words, by a vision model (paper, section 3.1).

Differs from the authors' code: the reply is typed, checked and mended instead of believed; a weight in the prompts of
the examples is read by us and not by the model; the card is kept, and a second refinement starts from it again.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import resources
from typing import Annotated, Any

from pydantic import BaseModel, Field, WithJsonSchema
from pydantic_ai import Agent, BinaryContent, ModelRetry, RunContext
from pydantic_ai.capabilities import AbstractCapability
from pydantic_ai.exceptions import AgentRunError
from pydantic_ai.messages import UserContent
from pydantic_ai.models import Model, infer_model
from pydantic_ai.settings import ModelSettings
from pydantic_ai.usage import RunUsage

from stylus.errors import SettingsError
from stylus.example_images import Picture
from stylus.example_prompts import MOST_WEIGHT, positive
from stylus.example_prompts import weight as weight_in_prompts
from stylus.records import DEFAULT_WEIGHT, Adapter, Category, Rating
from stylus.refinements import Refinement, TriggerWord
from stylus.settings import Settings
from stylus.text import clean, clean_line

MOST_DESCRIPTION = 4000
"""Characters, that is 1000 tokens of English (paper, section 3.1)."""
_WORDS = 150
"""Asked for; what is a little longer is kept."""
LEAST_WEIGHT = 0.1
_MOST_TRIGGERS = 20
_MOST_TRIGGER = 60
_NO_PROBLEM = re.compile(
    r"|null|nil|empty|ok|fine|n/?a|not applicable|none|no|nothing|(none|nothing) (wrong|found|detected|to report)|"
    r"(there (is|are) )?no (\w+ )?(problem|issue|concern|flaw|defect)s?( (was|were))?"
    r"( (found|detected|noted|seen|observed|visible))?"
)
"""How models write that they have nothing to say: taken at its word, it would bar the adapter."""


class _Trigger(BaseModel):
    word: str
    does: str = ""


class Reply(BaseModel):
    """What the adapter does."""

    # The model sees narrow types; we read wide ones, so that `mend` and not a parser decides on a slip.
    description: str
    category: Annotated[Any, WithJsonSchema({"type": "string", "enum": [category.value for category in Category]})]
    weight: Annotated[Any, WithJsonSchema({"type": "number"})] = DEFAULT_WEIGHT
    trigger_words: list[_Trigger] = Field(default_factory=list)
    rating: Annotated[Any, WithJsonSchema({"type": "string", "enum": [rating.value for rating in Rating]})] = "general"
    problem: str = ""


def mend(reply: Reply, card: Adapter) -> tuple[Refinement, list[str]]:
    """What can be used of a reply, and one sentence for each thing that was wrong with it. Pure.

    The median of the weights in the example prompts stands above the model's. A rating or quality flag that the card
    has already is never taken away: a stranger's text must not talk the model out of it.
    """
    problems: list[str] = []
    description = clean(reply.description, MOST_DESCRIPTION)
    if not description:
        problems.append("description is empty: say what the adapter draws.")
    category = str(reply.category).strip().lower()
    if category not in set(Category):
        problems.append(f"category {clean_line(category, 60)!r} is none of {', '.join(Category)}.")
        category = card.category
    shown = weight_in_prompts(card)
    weight = _number(reply.weight)
    if weight is None or not LEAST_WEIGHT <= weight <= MOST_WEIGHT:
        asked = clean_line(str(reply.weight), 60)
        problems.append(f"weight {asked!r} is no number from {LEAST_WEIGHT:g} to {MOST_WEIGHT:g}.")
        weight = card.weight if LEAST_WEIGHT <= card.weight <= MOST_WEIGHT else DEFAULT_WEIGHT
    rating = str(reply.rating).strip().lower()
    if rating not in set(Rating):
        problems.append(f"rating {clean_line(rating, 60)!r} is none of {', '.join(Rating)}.")
        rating = Rating.GENERAL
    refinement = Refinement(
        description=description or card.description,
        category=Category(category),
        weight=weight if shown is None else shown,
        trigger_words=_triggers(reply, card, problems),
        rating=Rating.MATURE if Rating.MATURE in (rating, card.rating) else Rating.GENERAL,
        quality=card.quality or _problem(reply.problem),
    )
    return refinement, problems


def _problem(text: str) -> str | None:
    """What speaks against the adapter, if anything does."""
    problem = clean_line(text, 200)
    return None if _NO_PROBLEM.fullmatch(problem.casefold().strip(" .,;:!-–—*_'\"`()[]")) else problem


def _triggers(reply: Reply, card: Adapter, problems: list[str]) -> tuple[TriggerWord, ...]:
    """Those of the reply that stand in the card; the card's own where none is left."""
    texts = [*card.trigger_words, *(positive(example.prompt) for example in card.examples), card.description]
    known = " ".join(" \n ".join(texts).casefold().split())
    found: dict[str, TriggerWord] = {}
    for trigger in reply.trigger_words[:_MOST_TRIGGERS]:
        word = clean_line(trigger.word, _MOST_TRIGGER + 1)
        if not word or len(word) > _MOST_TRIGGER or word.casefold() not in known:
            problems.append(f"trigger word {word!r} is too long, or stands neither in the card nor in its prompts.")
        else:
            found.setdefault(word.casefold(), TriggerWord(word=word, does=clean_line(trigger.does, 200)))
    return tuple(found.values()) or tuple(TriggerWord(word=word) for word in card.trigger_words)


def _number(value: object) -> float | None:
    """A number; the middle of a range, as [0.6, 0.8] or "0.6-0.8"."""
    if isinstance(value, str):
        value = [float(number) for number in re.findall(r"\d{1,3}(?:\.\d{1,6})?", value[:100])]
    numbers = value if isinstance(value, list) else [value]
    if not numbers or not all(isinstance(one, int | float) and not isinstance(one, bool) for one in numbers):
        return None
    return round(sum(numbers) / len(numbers), 3)


@dataclass
class _Asked:
    """What a run validates against; `last` keeps the last reply of the right form, should the retry go wrong."""

    card: Adapter
    last: Reply | None = None


@dataclass(frozen=True)
class Refiner:
    """Any pydantic-ai model that sees pictures. Keeps to one event loop."""

    model: Model
    settings: ModelSettings
    capability: AbstractCapability[Any]
    """How requests are sent: with patience, or in batches."""

    @cached_property
    def _agent(self) -> Agent[_Asked, Reply]:
        agent = Agent(
            self.model,
            deps_type=_Asked,
            output_type=Reply,
            instructions=_instructions(),
            model_settings=self.settings,
            capabilities=[self.capability],
            retries=1,
        )
        agent.output_validator(_must_be_right)
        return agent

    async def refine(self, card: Adapter, pictures: Sequence[Picture], usage: RunUsage) -> tuple[Refinement, list[str]]:
        """What the model makes of the card, and what had to be mended. A reply that breaks a rule goes back once, with
        the reasons. Adds to `usage`, also when it raises (AgentRunError, UserError)."""
        asked = _Asked(card)
        try:
            result = await self._agent.run(render(card, pictures), deps=asked, usage=usage)
            reply, notes = result.output, []
        except AgentRunError as error:
            if asked.last is None:
                raise
            reply, notes = asked.last, [f"asked to mend its reply, the model failed ({type(error).__name__})."]
        refinement, problems = mend(reply, card)
        return refinement, notes + problems


def _must_be_right(context: RunContext[_Asked], reply: Reply) -> Reply:
    context.deps.last = reply
    _, problems = mend(reply, context.deps.card)
    if problems and not context.last_attempt:
        raise ModelRetry("Some rules are broken. Mend these and answer again in full:\n- " + "\n- ".join(problems))
    return reply


def _instructions() -> str:
    text = resources.files("stylus").joinpath("prompts/refine.md").read_text(encoding="utf-8")
    categories = ", ".join(Category)
    return text.format(
        words=_WORDS, categories=categories, least=LEAST_WEIGHT, most=MOST_WEIGHT, default=DEFAULT_WEIGHT
    )


def render(card: Adapter, pictures: Sequence[Picture]) -> list[UserContent]:
    """What the model reads after the instructions. Text of the card is cut and can't close its field."""
    fields = {
        "title": card.name,
        "category": card.category,
        "weight": card.weight,
        "tags": list(card.tags[:30]),
        "trigger words": list(card.trigger_words[:_MOST_TRIGGERS]),
        "description": card.description[:MOST_DESCRIPTION],
        "prompts of the pictures": [positive(picture.prompt)[:600] for picture in pictures],
    }
    if not pictures:
        fields["prompts of the pictures"] = [positive(example.prompt)[:600] for example in card.examples[:10]]
    text = json.dumps({name: value for name, value in fields.items() if value}, ensure_ascii=False, indent=0)
    content: list[UserContent] = [f"<card>\n{text.translate(str.maketrans('<>', '‹›'))}\n</card>"]
    for number, picture in enumerate(pictures, start=1):
        content += [f"Picture {number}:", BinaryContent(picture.jpeg, media_type="image/jpeg")]
    return content


def open_vision(settings: Settings) -> Model:
    """The model that STYLUS_VISION names. Raises SettingsError if there is none, or if it can't be built here or is
    known not to see pictures."""
    name = (settings.vision or "").strip()
    examples = "such as `anthropic:claude-sonnet-4-5`, `openai:gpt-5`, `google:gemini-2.5-flash` or `ollama:qwen3-vl`"
    if not name:
        raise SettingsError(f"STYLUS_VISION is not set: name a pydantic-ai model that sees pictures, {examples}.")
    try:
        model = infer_model(name)
    except ImportError as error:
        extra = name.partition(":")[0].partition("-")[0]
        raise SettingsError(
            f"STYLUS_VISION is {name!r}, whose client library is not installed ({error}). "
            f"Install it with `pip install 'pydantic-ai-slim[{extra}]'`."
        ) from error
    except (RuntimeError, ValueError) as error:  # pydantic-ai's UserError is a RuntimeError
        raise SettingsError(
            f"STYLUS_VISION is {name!r}: {error} Name a model that sees pictures, {examples}."
        ) from error
    if not model.profile.get("supports_image_input", True):
        raise SettingsError(f"STYLUS_VISION is {name!r}, which sees no pictures. Name one that does, {examples}.")
    return model
