"""Which embedding model answers: the configured one as soon as it covers the catalog as well as any other, until then
the one that covers most. So a changed setting never makes a search return nothing, and the switch is one comparison.
"""

import logging
import threading
import time

import numpy as np
from jaxtyping import Float32

from stylus.catalog import Catalog
from stylus.embedder import Embedder
from stylus.errors import ModelUnavailable, SettingsError

_LOOK_AGAIN = 10.0
"""Seconds between looks at what is embedded, while the configured model lags behind."""

logger = logging.getLogger(__name__)


class Serving:
    """Embeds queries by the model whose vectors shall be searched. Safe to share between threads."""

    def __init__(self, catalog: Catalog, embedder: Embedder) -> None:
        self._catalog = catalog
        self._configured = embedder
        self._current: Embedder | None = None
        self._until = 0.0
        self._lock = threading.Lock()

    def queries(self, texts: list[str]) -> tuple[str, Float32[np.ndarray, "n d"]]:
        """The model's name and a unit vector for each text. Raises ModelUnavailable."""
        embedder = self._embedder()
        try:
            return embedder.name, embedder.queries(texts)
        except ModelUnavailable as error:
            if embedder is self._configured:
                raise
            logger.warning("The embedding model of before is away; what is embedded anew is searched: %s", error)
            return self._configured.name, self._configured.queries(texts)

    def _embedder(self) -> Embedder:
        with self._lock:
            if self._current is self._configured or (self._current and time.monotonic() < self._until):
                return self._current
            _, covered = self._catalog.coverage()
            most = max(covered.values(), default=0)
            if covered.get(self._configured.name, 0) == most:
                # Stays: whoever ingests from now on embeds by this model.
                self._current = self._configured
            else:
                name = next(name for name, count in covered.items() if count == most)
                if self._current is None or self._current.name != name:
                    self._current = self._named(name)
                self._until = time.monotonic() + _LOOK_AGAIN
            return self._current

    def _named(self, name: str) -> Embedder:
        try:
            return Embedder.named(name, self._configured.device)
        except SettingsError as error:
            logger.warning("Vectors of %s are in the catalog and can't be searched: %s", name, error)
            return self._configured
