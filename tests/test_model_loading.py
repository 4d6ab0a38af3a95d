"""Models that threads load side by side, as a server does at its start: it warms up while a queued job begins."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from stylus.embedder import Embedder
from stylus.evaluation.features import open_features
from stylus.generation.checkpoints import Checkpoints
from stylus.records import BaseModelFamily
from stylus.settings import Settings


def test_no_load_spoils_another(settings: Settings) -> None:
    """Without turns, a quarter of the embedder's loads found tensors without data."""
    whole = Embedder.open(settings).queries(["a red star"])

    def embedder() -> None:
        assert np.allclose(Embedder.open(settings).queries(["a red star"]), whole, atol=1e-5)

    def checkpoint() -> None:
        pipeline = Checkpoints(settings).open(BaseModelFamily.POCKET).pipeline
        assert not any(tensor.is_meta for tensor in pipeline.unet.parameters())

    def features() -> None:
        open_features()

    def often(load: Callable[[], None]) -> None:
        for _ in range(8):
            load()

    with ThreadPoolExecutor(3) as pool:
        for done in [pool.submit(often, load) for load in (embedder, checkpoint, features)]:
            done.result()
