"""Gives every adapter what a search needs of it: its words, and vectors of the configured embedding model.

After that setting was changed, searches go on with the vectors of before (`serving`) until all are made anew. Any
number of machines may do this at once: each batch is claimed, and a claim ends with its holder.
"""

import threading
from collections.abc import Sequence

from stylus.catalog import Catalog, Entry
from stylus.embedder import Embedder
from stylus.ingest import embedded
from stylus.records import Adapter, OnProgress, Progress

_BATCH = 16
"""Adapters: a search in this process waits for the batch before it, for a local model serves one at a time."""


def embed_all(
    catalog: Catalog,
    embedder: Embedder,
    on_progress: OnProgress | None = None,
    stop: threading.Event | None = None,
) -> int:
    """How many adapters got vectors, until all have some or `stop` is set; what was made stays. Raises ModelUnavailable
    and DatabaseUnavailable."""
    done, last = 0, ""

    def make(adapters: Sequence[Adapter]) -> list[Entry]:
        nonlocal done
        done += len(adapters)
        return embedded([(adapter, adapter.content_hash()) for adapter in adapters], embedder)

    def stopped() -> bool:
        return stop is not None and stop.is_set()

    def tell() -> None:
        if on_progress is not None:
            total, covered = catalog.coverage()
            on_progress(Progress(stage="embed", done=covered.get(embedder.name, 0), total=total))

    while not stopped() and catalog.read_words():
        pass
    while not stopped():
        tell()
        found = catalog.embed_missing(embedder.name, make, last, _BATCH)
        if found is None and not last:
            catalog.index(embedder.name)
            break
        last = found or ""  # once more from the start: for what others had claimed and not done
    return done
