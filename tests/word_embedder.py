"""An embedder without a model, for tests that embed much or start many processes."""

import zlib
from collections.abc import Sequence

import numpy as np

from stylus.embedder import Embedder


class WordEmbedder(Embedder):
    """An embedder without a model: each word of a text adds to one of 64 numbers. `texts` counts what was embedded."""

    def __init__(self) -> None:
        super().__init__("words", "tests:words")
        self.texts = 0

    def documents(self, texts: Sequence[str]) -> np.ndarray:
        self.texts += len(texts)
        return self.queries(texts)

    def queries(self, texts: Sequence[str]) -> np.ndarray:
        rows = np.zeros((len(texts), 64), np.float32)
        for row, text in zip(rows, texts, strict=True):
            for word in text.lower().split():
                row[zlib.crc32(word.encode()) % 64] += 1
        lengths: np.ndarray = np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1)
        unit: np.ndarray = rows / lengths
        return unit
