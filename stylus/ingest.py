"""Cards -> catalog: settle what the card leaves open, split, embed, keep (paper, section 3.1 without the vision model).

What was done is kept batch by batch, so that an ingestion that was stopped goes on where it stopped: a card whose
content hash is known and that has vectors of the embedder is not embedded again.
"""

from collections.abc import Iterable, Sequence
from itertools import islice

import numpy as np

from stylus.catalog import Catalog, Entry, location
from stylus.embedder import Embedder
from stylus.errors import StorageError
from stylus.pocket import ADAPTERS
from stylus.records import DEFAULT_WEIGHT, Adapter, Card, Category, OnProgress, Progress, Record
from stylus.sources.folder import cards as folder_cards
from stylus.sources.sidecar import category_of

_BATCH = 64

CHUNK = 800
"""Characters of a piece of a long card. The default embedder reads 256 tokens; a token has three to four."""
_OVERLAP = 80
_MOST_CHUNKS = 12
"""Later pieces of a card are installation notes and thanks."""


class IngestReport(Record):
    """What became of the cards."""

    added: int = 0
    updated: int = 0
    """Content or place of the file changed."""
    unchanged: int = 0
    duplicates: int = 0
    """Cards with the id of an earlier one of the same run, as copies of one file: the first stands."""

    @property
    def total(self) -> int:
        return self.added + self.updated + self.unchanged + self.duplicates


def ingest(
    cards: Iterable[Card], catalog: Catalog, embedder: Embedder, on_progress: OnProgress | None = None
) -> IngestReport:
    """Keeps the cards and their vectors. Raises DatabaseUnavailable, StorageError and ModelUnavailable; what was kept
    until then stays, and the same call goes on from there."""
    report, seen = IngestReport(), set[str]()
    stream = iter(cards)
    while batch := list(islice(stream, _BATCH)):
        fresh = [card for card in {card.id: card for card in reversed(batch)}.values() if card.id not in seen]
        fresh.reverse()
        seen.update(card.id for card in fresh)
        report = _add(report, _ingest_batch(fresh, catalog, embedder), duplicates=len(batch) - len(fresh))
        if on_progress is not None:
            on_progress(Progress(stage="ingest", done=report.total))
    catalog.index(embedder.name)
    return report


def ingest_pocket(catalog: Catalog, embedder: Embedder, on_progress: OnProgress | None = None) -> IngestReport:
    """Keeps the adapters that come with Stylus. Raises StorageError when their files are damaged, and as `ingest`."""
    problems: list[str] = []
    cards = folder_cards(ADAPTERS, prefix="pocket", on_problem=lambda path, why: problems.append(f"{path.name}: {why}"))
    report = ingest(cards, catalog, embedder, on_progress)
    if problems or not report.total:
        raise StorageError(
            f"The pocket adapters in {ADAPTERS} are damaged ({'; '.join(problems) or 'none found'}). Reinstall Stylus."
        )
    return report


def _ingest_batch(cards: Sequence[Card], catalog: Catalog, embedder: Embedder) -> IngestReport:
    known = catalog.known([card.id for card in cards], embedder.name)
    changed: list[tuple[Adapter, str]] = []
    moved: list[Adapter] = []
    for card in cards:
        digest, before = card.content_hash(), known.get(card.id)
        adapter = settle(card, hidden=before is not None and before.hidden)
        if before is None or before.content_hash != digest or not before.embedded:
            changed.append((adapter, digest))
        elif before.location != location(card):
            moved.append(adapter)
    texts = [chunks(adapter) for adapter, _ in changed]
    vectors = iter(embedder.documents([text for pieces in texts for text in pieces]))
    entries = [
        Entry(adapter, digest, np.stack(list(islice(vectors, len(pieces)))))
        for (adapter, digest), pieces in zip(changed, texts, strict=True)
    ]
    catalog.add_embedded(entries, embedder.name)
    catalog.move(moved)
    added = sum(adapter.id not in known for adapter, _ in changed)
    return IngestReport(
        added=added, updated=len(changed) - added + len(moved), unchanged=len(cards) - len(changed) - len(moved)
    )


def settle(card: Card, *, hidden: bool = False) -> Adapter:
    """The adapter that a card describes, where no vision model has looked at it."""
    values = card.model_dump()
    values["category"] = card.category or category_of(card.tags) or Category.CONCEPT
    values["weight"] = DEFAULT_WEIGHT if card.weight is None else card.weight
    return Adapter.model_validate({**values, "hidden": hidden})


def chunks(adapter: Adapter) -> list[str]:
    """What is embedded: title, tags, trigger words and description (paper, section 3.2); a long description in pieces,
    each under the same head, so that a piece says what it is a piece of."""
    labels = list(dict.fromkeys([*adapter.tags, *adapter.trigger_words]))
    head = ". ".join([adapter.name, *([", ".join(labels)] if labels else [])])[: CHUNK // 2]
    room = CHUNK - len(head)
    if len(adapter.description) <= room:
        return [f"{head}. {adapter.description}" if adapter.description else head]
    # Imported late: most cards are short, and the package takes a while.
    from langchain_text_splitters import RecursiveCharacterTextSplitter

    pieces = RecursiveCharacterTextSplitter(chunk_size=room, chunk_overlap=_OVERLAP).split_text(adapter.description)
    return [f"{head}. {piece}" for piece in pieces[:_MOST_CHUNKS]]


def _add(report: IngestReport, more: IngestReport, duplicates: int) -> IngestReport:
    return IngestReport(
        added=report.added + more.added,
        updated=report.updated + more.updated,
        unchanged=report.unchanged + more.unchanged,
        duplicates=report.duplicates + duplicates,
    )
