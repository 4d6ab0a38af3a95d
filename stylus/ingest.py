"""Cards -> catalog: settle what the card leaves open, split, embed, keep (paper, section 3.1 without the vision model).

What was done is kept batch by batch, so that an ingestion that was stopped goes on where it stopped: a card whose
content hash is known and that has vectors of the embedder is not embedded again.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from types import MappingProxyType

import numpy as np
from jaxtyping import Float32

from stylus import example_prompts
from stylus.catalog import Catalog, Entry, Known, location
from stylus.embedder import Embedder
from stylus.errors import AdapterFileError, StorageError
from stylus.files import Files, Seen, Shelved
from stylus.pocket import ADAPTERS
from stylus.records import DEFAULT_WEIGHT, Adapter, BaseModelFamily, Card, Category, OnProgress, Progress, Record
from stylus.sources.cards import Exported, Lost
from stylus.sources.folder import OnProblem, Walk, WeightFile, file_name, read_card, walk
from stylus.sources.folder import cards as folder_cards
from stylus.sources.sidecar import category_of

_BATCH = 64

CHUNK = 800
"""Characters of a piece of a long card. The default embedder reads 256 tokens; a token has three to four."""
_OVERLAP = 80
_MOST_CHUNKS = 12
"""Later pieces of a card are installation notes and thanks."""

VectorOf = Callable[[Card], Float32[np.ndarray, "chunks d"] | None]
"""Vectors that a source brings along, of the catalog's embedding model and of unit length."""

_PLACE = ("file", "url", "sha256", "bytes", "rank", "download", "group", "examples")
"""What may change of a card whose content is the same."""


class IngestReport(Record):
    """What became of the cards."""

    added: int = 0
    updated: int = 0
    """The card changed, or a file that was missing came back."""
    moved: int = 0
    """The file lies elsewhere; all that was known of it is kept."""
    unchanged: int = 0
    missing: int = 0
    """Adapters whose file is gone since the last time, or of another machine: marked, not dropped."""
    duplicates: int = 0
    """Cards with the id of an earlier one of the same run, as copies of one file: the first stands."""

    @property
    def total(self) -> int:
        """Files or cards that were looked at."""
        return self.added + self.updated + self.moved + self.unchanged + self.duplicates


def ingest(
    cards: Iterable[Card],
    catalog: Catalog,
    embedder: Embedder,
    on_progress: OnProgress | None = None,
    vector_of: VectorOf = lambda card: None,
) -> IngestReport:
    """Keeps the cards and their vectors. Raises DatabaseUnavailable, StorageError and ModelUnavailable; what was kept
    until then stays, and the same call goes on from there."""
    report, seen = IngestReport(), set[str]()
    stream = iter(cards)
    while batch := list(islice(stream, _BATCH)):
        fresh = [card for card in {card.id: card for card in reversed(batch)}.values() if card.id not in seen]
        fresh.reverse()
        seen.update(card.id for card in fresh)
        report = _add(report, _ingest_batch(fresh, catalog, embedder, vector_of), duplicates=len(batch) - len(fresh))
        if on_progress is not None:
            on_progress(Progress(stage="ingest", done=report.total))
    catalog.index(embedder.name)
    return report


def ingest_folder(
    root: Path,
    catalog: Catalog,
    files: Files,
    embedder: Embedder,
    on_problem: OnProblem,
    on_progress: OnProgress | None = None,
) -> IngestReport:
    """Brings the catalog up to date with the files under `root`; what did not change since the last time isn't opened.

    A file that was moved or renamed keeps its adapter with all that is known of it. One that is gone leaves its adapter
    marked as missing, unless the folder it lay in can't be looked at. Raises as `ingest`, and InvalidInput where there
    is no such folder.
    """
    found = walk(root, on_problem, on_progress)
    before = files.under(found.root, embedder.name)
    if before and not found.files:
        on_problem(
            found.root,
            f"There is no safetensors file here, where the catalog knows {len(before):,}: is the disk mounted? Nothing "
            "was marked as missing. If they were deleted, ingest the folder above it.",
        )
        return IngestReport()
    shelf = _Shelf(found, before)
    report = IngestReport(unchanged=len(shelf.standing), duplicates=len(shelf.holds) - len(shelf.standing))
    for start in range(0, len(shelf.work), _BATCH):
        batch = shelf.work[start : start + _BATCH]
        read = list(_read(batch, shelf, on_problem))
        known = catalog.known([card.id for _, card, _ in read], embedder.name)
        fresh = [_named(card, known) for file, card, _ in read if shelf.stands(file, card, known.get(card.id))]
        report = _add(report, _ingest_batch(fresh, catalog, embedder), duplicates=len(read) - len(fresh))
        files.keep(Seen(str(f.path), card.id, f.bytes, f.modified, f.beside, claimed) for f, card, claimed in read)
        if on_progress is not None:
            done = len(found.files) - len(shelf.work) + start + len(batch)
            on_progress(Progress(stage="ingest", done=done, total=len(found.files)))
    missing = [id for id, path in files.standing(found.root).items() if shelf.lacks(path, id)]
    files.gone([path for path, shelved in before.items() if shelf.lacks(path, shelved.seen.adapter)], missing)
    catalog.index(embedder.name)
    return report.model_copy(update={"missing": len(missing)})


class _Shelf:
    """Which path holds which adapter, as far as it is known in the course of a run."""

    def __init__(self, found: Walk, before: Mapping[str, Shelved]) -> None:
        self._root = found.root
        self._unseen = list(found.unseen)
        self.holds = {
            str(file.path): before[str(file.path)].seen.adapter for file in found.files if _same(file, before)
        }
        """Path -> adapter id."""
        for path in list(self.holds):
            stands_at, adapter = before[path].stands_at, self.holds[path]
            if stands_at is not None and stands_at != path and not self._is_held(stands_at, adapter):
                del self.holds[path]  # a copy, of which the first is gone
        self.standing = {id: path for path, id in self.holds.items() if before[path].stands_at == path}
        """Adapter id -> the one of its files that its card is read from."""
        # Files that stand come first: only then is it known which of the others are copies. Of new copies one with a
        # card shall stand.
        work = (file for file in found.files if str(file.path) not in self.holds)
        stood = {path for path, shelved in before.items() if shelved.stands_at == path}
        self.work = sorted(work, key=lambda file: (str(file.path) not in stood, file.bare))

    def stands(self, file: WeightFile, card: Card, known: Known | None) -> bool:
        """Takes note that `file` holds the adapter of `card`; False if the catalog knows that from another file."""
        path = str(file.path)
        self.holds[path] = card.id
        elsewhere = known.location[0] if known is not None else None
        if card.id not in self.standing and elsewhere is not None and not self._is_inside(elsewhere):
            self.standing[card.id] = elsewhere if Path(elsewhere).is_file() else path
        return self.standing.setdefault(card.id, path) == path

    def lacks(self, path: str, adapter: str) -> bool:
        """Whether `path` was looked at and holds another adapter, or none."""
        hidden = any(Path(path).is_relative_to(unseen) for unseen in self._unseen)
        return self.holds.get(path) != adapter and not hidden

    def leave(self, path: Path) -> None:
        """Takes note of a file that is there but can't be read."""
        self._unseen.append(path)

    def _is_held(self, path: str, adapter: str) -> bool:
        return self.holds.get(path) == adapter if self._is_inside(path) else Path(path).is_file()

    def _is_inside(self, path: str) -> bool:
        return Path(path).is_relative_to(self._root)


def _same(file: WeightFile, before: Mapping[str, Shelved]) -> bool:
    known = before.get(str(file.path))
    if known is None or not known.current:
        return False
    return (known.seen.bytes, known.seen.modified, known.seen.beside) == (file.bytes, file.modified, file.beside)


def _read(
    batch: Sequence[WeightFile], shelf: _Shelf, on_problem: OnProblem
) -> Iterator[tuple[WeightFile, Card, BaseModelFamily | None]]:
    for file in batch:
        try:
            yield file, *read_card(file.path, on_problem=on_problem)
        except (AdapterFileError, ValueError) as error:
            on_problem(file.path, str(error).removeprefix(f"{file.path} "))
            if isinstance(error.__cause__, OSError):
                shelf.leave(file.path)


def _named(card: Card, known: Mapping[str, Known]) -> Card:
    """An adapter that has no name but its file's keeps the name under which it came: its vectors and what a model wrote
    of it go by that."""
    before = known.get(card.id)
    if before is None or card.file is None or card.name != file_name(Path(card.file)):
        return card
    return card.model_copy(update={"name": before.name})


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


def _ingest_batch(
    cards: Sequence[Card], catalog: Catalog, embedder: Embedder, vector_of: VectorOf = lambda card: None
) -> IngestReport:
    known = catalog.known([card.id for card in cards], embedder.name)
    cards = [_with_known_file(card, known.get(card.id)) for card in cards]
    # The same card for another embedding model: what was written of it since (by a vision model, a check) stays.
    same = catalog.get(
        card.id
        for card in cards
        if (of := known.get(card.id)) is not None and not of.embedded and of.content_hash == card.content_hash()
    )
    stored = catalog.get(card.id for card in cards if isinstance(card, Exported))
    changed: list[tuple[Adapter, str]] = []
    placed: list[Adapter] = []
    moved = 0
    for card in cards:
        digest, before = card.content_hash(), known.get(card.id)
        hidden = before is not None and before.hidden
        if isinstance(card, Exported):
            digest, adapter = card.card_hash, card.adapter()
            adapter = adapter.model_copy(update={"hidden": adapter.hidden or hidden})
            if before is None or before.content_hash != digest or not before.embedded or stored[card.id] != adapter:
                changed.append((adapter, digest))
            continue
        adapter = settle(card, hidden=hidden)
        if card.id in same:
            adapter = same[card.id].model_copy(
                update={name: getattr(card, name) for name in _PLACE} | {"missing": adapter.missing}
            )
        if before is None or before.content_hash != digest or not before.embedded:
            changed.append((adapter, digest))
        elif (before.location, before.missing) != (location(card), adapter.missing):
            placed.append(adapter)
            moved += before.location[0] != card.file
    brought = {adapter.id: rows for adapter, _ in changed if (rows := vector_of(adapter)) is not None}
    catalog.add_embedded(embedded(changed, embedder, brought), embedder.name)
    catalog.move(placed)
    missing = sum(isinstance(card, Exported | Lost) and card.missing for card in cards)
    added = sum(adapter.id not in known for adapter, _ in changed)
    return IngestReport(
        added=added,
        updated=len(changed) - added + len(placed) - moved,
        moved=moved,
        unchanged=len(cards) - len(changed) - len(placed),
        missing=missing,
    )


def _with_known_file(card: Card, known: Known | None) -> Card:
    """A source that brings no weights knows nothing of the file that was fetched since: it stays, as long as it is
    the file that the card tells of."""
    if card.file is not None or known is None or known.location[0] is None:
        return card
    file, _, digest, size, *_ = known.location
    if card.sha256 not in (None, digest):
        return card
    return card.model_copy(update={"file": file, "sha256": digest, "bytes": size})


def settle(card: Card, *, hidden: bool = False) -> Adapter:
    """The adapter that a card describes, where no vision model has looked at it: what the card leaves open is taken
    from its tags and from the prompts of its examples."""
    values = card.model_dump()
    values["category"] = card.category or category_of(card.tags) or Category.CONCEPT
    weights = (card.weight, example_prompts.weight(card), DEFAULT_WEIGHT)
    values["weight"] = next(weight for weight in weights if weight is not None)
    values["trigger_words"] = card.trigger_words or example_prompts.trigger_words(card)
    return Adapter.model_validate({**values, "hidden": hidden})


def embedded(
    adapters: Sequence[tuple[Adapter, str]],
    embedder: Embedder,
    brought: Mapping[str, Float32[np.ndarray, "chunks d"]] = MappingProxyType({}),
) -> list[Entry]:
    """Adapters and the content hashes of their cards with vectors: `brought` ones (by id), or new ones of their pieces,
    and of the name where it is not all the text there is. Raises ModelUnavailable."""
    pieces = {adapter.id: [] if adapter.id in brought else chunks(adapter) for adapter, _ in adapters}
    names = {adapter.id: adapter.name for adapter, _ in adapters if pieces[adapter.id] not in ([], [adapter.name])}
    texts = list(dict.fromkeys([text for some in pieces.values() for text in some] + list(names.values())))
    vectors = dict(zip(texts, embedder.documents(texts), strict=True))
    return [
        Entry(
            adapter,
            digest,
            brought[adapter.id] if adapter.id in brought else np.stack([vectors[text] for text in pieces[adapter.id]]),
            vectors[adapter.name] if adapter.id in names else None,
        )
        for adapter, digest in adapters
    ]


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
        moved=report.moved + more.moved,
        unchanged=report.unchanged + more.unchanged,
        missing=report.missing + more.missing,
        duplicates=report.duplicates + duplicates,
    )
