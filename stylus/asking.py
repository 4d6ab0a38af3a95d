"""Many requests to one model: which are tried again, when a run gives up, and what it may cost.

Retries are ours and not those of the providers' clients, which give up where one asks for more than a minute.
"""

import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from pydantic_ai import RunContext
from pydantic_ai.capabilities import AbstractCapability
from pydantic_ai.exceptions import (
    ModelAPIError,
    ModelAuthenticationError,
    ModelConnectionError,
    ModelNotFoundError,
    ModelQuotaExceededError,
    ModelRateLimitError,
    ModelRequestTimeout,
    ModelServerError,
    ModelUnavailableError,
    RetryModelRequest,
    UserError,
)
from pydantic_ai.messages import ModelResponse
from pydantic_ai.models import Model, ModelRequestContext
from pydantic_ai.settings import ModelSettings
from pydantic_ai.usage import RunUsage

from stylus.errors import InvalidInput

ATTEMPTS = 5
"""Tries of one request in all."""
TIMEOUT = 120.0
"""Seconds for one try."""
LONGEST_WAIT = 300.0
"""Seconds that we wait at most because a provider asks us to (Retry-After)."""
MOST_FAILURES = 5
"""Refusals in a row before a run ends: then it is not what was asked."""

_PASSING = (ModelRateLimitError, ModelUnavailableError, ModelServerError, ModelConnectionError, ModelRequestTimeout)
_HOPELESS = (ModelAuthenticationError, ModelNotFoundError, ModelQuotaExceededError, UserError)

Sleep = Callable[[float], Awaitable[None]]


@dataclass
class Patience(AbstractCapability[Any]):
    """Tries a request again when that may help. Where a provider asks to be left alone for a while, all wait."""

    sleep: Sleep
    until: float = 0.0
    """On the clock of `time.monotonic`."""
    refused: int = 0
    """Requests in a row."""

    async def ready(self) -> None:
        await self.sleep(max(0.0, self.until - time.monotonic()))

    async def on_model_request_error(
        self, ctx: RunContext[Any], *, request_context: ModelRequestContext, error: Exception
    ) -> ModelResponse:
        if not isinstance(error, _PASSING) or request_context.attempt >= ATTEMPTS:
            raise error
        asked = getattr(error, "retry_after", None)
        wait = random.uniform(0.5, 1.5) * 2 ** (request_context.attempt - 1) if asked is None else asked
        if wait > LONGEST_WAIT:
            raise error
        if isinstance(error, ModelRateLimitError):
            self.until = max(self.until, time.monotonic() + wait)
        await self.sleep(wait)
        raise RetryModelRequest

    def is_hopeless(self, error: Exception) -> bool:
        """Whether a request that failed for good leaves no hope for others."""
        self.refused += isinstance(error, ModelAPIError)
        return isinstance(error, _HOPELESS) or self.refused >= MOST_FAILURES

    def answered(self) -> None:
        self.refused = 0


@dataclass
class Budget:
    """What a run has spent, and may."""

    model: str
    most: float | None = None
    """US dollars from which on nothing more is begun; what is in flight is finished."""
    spent: RunUsage = field(default_factory=RunUsage)

    @property
    def cost(self) -> float | None:
        """US dollars, as far as the model's prices are known; None where they are not."""
        return None if self.spent.cost is None else float(self.spent.cost)

    def why_stop(self) -> str | None:
        """None as long as something more may be begun. Raises InvalidInput if there is a limit and nobody knows the
        prices."""
        if self.most is None or not self.spent.requests:
            return None
        if self.cost is None:
            raise InvalidInput(
                f"Nobody here knows the prices of {self.model}, so --max-cost can't be kept: leave it out, and use "
                f"--limit. So far: {self.spent.input_tokens:,} tokens in, {self.spent.output_tokens:,} out."
            )
        return f"{self.cost:.4f} US dollars spent of {self.most:g}" if self.cost >= self.most else None


def settings_of(model: Model) -> ModelSettings:
    """How the model is asked: no dice, and no retries of its client's own."""
    settings = ModelSettings(temperature=0.0, request_timeout=TIMEOUT)
    return settings if "max_retries" in model.unsupported_settings else ModelSettings(**settings, max_retries=0)
