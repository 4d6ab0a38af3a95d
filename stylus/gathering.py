"""Collections from elsewhere -> catalog: what comes page by page or brings its vectors along; and the way out."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from stylus.catalog import Catalog
from stylus.embedder import Embedder
from stylus.ingest import IngestReport, ingest
from stylus.records import Card, OnProgress, Progress
from stylus.sources import cards, stylusdocs


def ingest_pages(
    pages: Iterable[list[Card]], catalog: Catalog, embedder: Embedder, on_progress: OnProgress | None = None
) -> IngestReport:
    """Keeps each page before the next one is asked for: a source may then keep its place. Raises as `ingest`, and what
    the source raises; what was kept until then stays."""
    total = IngestReport()
    for page in pages:
        more = ingest(page, catalog, embedder)
        total = IngestReport(**{name: count + getattr(more, name) for name, count in total})
        if on_progress is not None:
            on_progress(Progress(stage="ingest", done=total.total))
    return total


def ingest_stylusdocs(
    path: Path,
    catalog: Catalog,
    embedder: Embedder,
    on_problem: stylusdocs.OnProblem,
    on_progress: OnProgress | None = None,
    made_with: str = stylusdocs.EMBEDDER,
) -> IngestReport:
    """Keeps StylusDocs; its vectors too if they were `made_with` the catalog's embedding model, else all is embedded
    anew. Raises InvalidInput as `stylusdocs.read`, and as `ingest`."""
    vectors: dict[str, Float32[np.ndarray, "1 d"]] = {}

    def read() -> Iterator[Card]:
        for entry in stylusdocs.read(path, on_problem):
            if entry.vector is not None and made_with == embedder.name:
                row = np.asarray(entry.vector, np.float32)[None]
                length = float(np.linalg.norm(row))
                if np.isfinite(length) and length > 0:
                    vectors[entry.card.id] = row / length
            yield entry.card

    return ingest(read(), catalog, embedder, on_progress, lambda card: vectors.pop(card.id, None))


def export(catalog: Catalog, path: Path) -> int:
    """Writes the whole catalog as JSON lines that `ingest cards` reads back; returns how many. Raises StorageError."""
    return cards.write(catalog.all(), path)
