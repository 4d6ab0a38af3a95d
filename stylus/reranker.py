"""Rerankers: they read the prompt and a card together, which a retriever can't, whose vectors are made before the
prompt is known. The paper puts one between retriever and composer; here it is a setting, and a policy of its own.
"""

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import resources
from typing import TYPE_CHECKING, Protocol

from pydantic import BaseModel, Field
from pydantic_ai import Agent, ModelRetry, RunContext
from pydantic_ai.models import Model, infer_model
from pydantic_ai.settings import ModelSettings
from pydantic_ai.usage import RunUsage

from stylus.composer import GRACE, MOST_ANSWER, TIMEOUT, as_usage, check_model, in_own_loop
from stylus.errors import ModelUnavailable, StylusError
from stylus.model_loading import model_loading, pick_device
from stylus.records import Adapter, OnProgress, Usage
from stylus.rules import clean
from stylus.settings import Settings
from stylus.short_list import card, render

if TYPE_CHECKING:
    from sentence_transformers import CrossEncoder

LOCAL = "sentence-transformers:"


@dataclass(frozen=True)
class Ranking:
    """A score for each adapter, higher is better, and what asking cost."""

    scores: Sequence[float]
    usage: Usage = field(default_factory=Usage)


class Reranker(Protocol):
    """Says how well each adapter fits a prompt."""

    @property
    def name(self) -> str: ...

    def rank(self, prompt: str, adapters: Sequence[Adapter], on_progress: OnProgress | None = None) -> Ranking:
        """Raises ModelUnavailable."""
        ...


class LocalReranker:
    """A cross-encoder of sentence-transformers, by folder or hub id. Loaded at the first call. Safe to share between
    threads: they take turns."""

    def __init__(self, name: str, device: str | None = None) -> None:
        """`device`: None means the best there is."""
        self.name = name
        self._device = device
        self._lock = threading.Lock()
        self._model: CrossEncoder | None = None

    def rank(self, prompt: str, adapters: Sequence[Adapter], on_progress: OnProgress | None = None) -> Ranking:
        """Raises ModelUnavailable if the model can't be loaded or doesn't give one score for a pair, SettingsError for
        a device that can't be used."""
        if not adapters:
            return Ranking([])
        pairs = [(prompt, card(adapter)) for adapter in adapters]
        with self._lock:
            try:
                # pickle could run code: only safetensors are read
                if self._model is None:
                    from sentence_transformers import CrossEncoder

                    with model_loading():
                        self._model = CrossEncoder(
                            self.name.removeprefix(LOCAL),
                            num_labels=1,
                            device=str(pick_device(self._device)),
                            model_kwargs={"use_safetensors": True},
                        )
                scores = self._model.predict(pairs, show_progress_bar=False)
            except (OSError, ValueError, RuntimeError) as error:
                raise ModelUnavailable(
                    f"The cross-encoder {self.name!r} gave no scores ({clean(str(error), 200)}). Set STYLUS_RERANKER "
                    f"to `{LOCAL}FOLDER_OR_HUB_ID` of a cross-encoder with one label in safetensors, or unset it."
                ) from error
        return Ranking([float(score) for score in scores])


class _Order(BaseModel):
    """The candidates that fit the prompt, best first."""

    candidates: list[int] = Field(description="numbers of the candidates")


@dataclass(frozen=True)
class ModelReranker:
    """A language model that orders the candidates: one call, each number at most once and among those shown."""

    model: Model | str
    timeout: float = TIMEOUT

    @property
    def name(self) -> str:
        return self.model if isinstance(self.model, str) else self.model.model_name

    def rank(self, prompt: str, adapters: Sequence[Adapter], on_progress: OnProgress | None = None) -> Ranking:
        """Candidates that the model doesn't name get 0, the others 1 at best. Raises ModelUnavailable."""
        if not adapters:
            return Ranking([])
        usage = RunUsage()
        try:
            order = in_own_loop(self._run(prompt, adapters, usage), self.timeout + GRACE, on_progress)
        except StylusError:
            raise  # from on_progress
        except Exception as error:  # on a body that isn't theirs, provider clients fail in any way
            raise ModelUnavailable(
                f"The model {self.name!r} gave no usable order ({type(error).__name__}: {clean(str(error), 200)}). "
                "Check STYLUS_RERANKER and the provider's key and address."
            ) from error
        known = [number for number in dict.fromkeys(order.candidates) if 1 <= number <= len(adapters)]
        place = {number - 1: 1 - rank / len(adapters) for rank, number in enumerate(known)}
        return Ranking([place.get(n, 0.0) for n in range(len(adapters))], as_usage(usage))

    async def _run(self, prompt: str, adapters: Sequence[Adapter], usage: RunUsage) -> _Order:
        model = infer_model(self.model) if isinstance(self.model, str) else self.model
        agent = Agent[int, _Order](
            model,
            deps_type=int,
            output_type=_Order,
            instructions=resources.files("stylus").joinpath("prompts/rerank.md").read_text(encoding="utf-8"),
            model_settings=ModelSettings(temperature=0, max_tokens=MOST_ANSWER, cache={"messages": False}),
            retries=1,
        )
        agent.output_validator(_must_name_candidates)
        async with model:
            text = render(prompt, adapters)
            result = await agent.run(text, deps=len(adapters), timeout=self.timeout, usage=usage)
        return result.output


def _must_name_candidates(context: RunContext[int], order: _Order) -> _Order:
    wrong = [number for number in order.candidates if not 1 <= number <= context.deps]
    if wrong and not context.last_attempt:
        raise ModelRetry(f"Candidates {wrong[:10]} do not exist: the numbers go from 1 to {context.deps}.")
    return order


def open_reranker(settings: Settings) -> Reranker | None:
    """The reranker that STYLUS_RERANKER names; None if it is not set. Raises SettingsError for a model that can't be
    built; loads and asks nothing."""
    name = (settings.reranker or "").strip()
    if not name:
        return None
    if name.startswith(LOCAL):
        return LocalReranker(name, settings.device)
    check_model(name, "STYLUS_RERANKER")
    return ModelReranker(name)
