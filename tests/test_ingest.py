"""Cards -> catalog with the real embedder: nothing is embedded twice, what was stopped goes on."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from stylus.catalog import Catalog
from stylus.database import Database
from stylus.embedder import Embedder
from stylus.errors import ModelUnavailable
from stylus.ingest import CHUNK, IngestReport, chunks, ingest, ingest_pocket, settle
from stylus.pocket import ADAPTERS, truth
from stylus.records import Card, Category, Filters, Progress


class Counting(Embedder):
    """The embedder that counts, and fails when told to."""

    def __init__(self, real: Embedder, fail_at: int | None = None) -> None:
        self.name, self.real, self.texts, self.fail_at = real.name, real, 0, fail_at

    def documents(self, texts: Sequence[str]) -> np.ndarray:
        if self.fail_at is not None and self.texts + len(texts) > self.fail_at:
            raise ModelUnavailable("out of order")
        self.texts += len(texts)
        return self.real.documents(texts)


def card(number: int, **fields: object) -> Card:
    return Card.model_validate({"id": f"file:{number}", "name": f"card {number}", **fields})


@pytest.fixture
def catalog(database: Database) -> Catalog:
    return Catalog(database)


def test_added_then_unchanged_then_updated(catalog: Catalog, embedder: Embedder) -> None:
    counting, progress = Counting(embedder), list[Progress]()
    cards = [card(i) for i in range(70)]
    assert ingest(cards, catalog, counting, progress.append) == IngestReport(added=70)
    assert [p.done for p in progress] == [64, 70]
    assert counting.texts == 70
    assert ingest(cards, catalog, counting) == IngestReport(unchanged=70)
    assert counting.texts == 70
    cards[3] = card(3, description="now with words")
    cards[4] = card(4, file="/moved/there.safetensors")
    assert ingest(cards, catalog, counting) == IngestReport(updated=1, moved=1, unchanged=68)
    assert counting.texts == 72  # what the one says now, and its name by itself
    assert catalog.get(["file:4"])["file:4"].file == "/moved/there.safetensors"
    assert ingest(cards, catalog, counting) == IngestReport(unchanged=70)
    assert ingest([], catalog, counting) == IngestReport()


def test_copies_of_one_file_count_once_and_the_first_stands(catalog: Catalog, embedder: Embedder) -> None:
    copies = [card(1, file="/a"), card(2), card(1, file="/b")]
    assert ingest(copies, catalog, embedder) == IngestReport(added=2, duplicates=1)
    assert catalog.get(["file:1"])["file:1"].file == "/a"
    assert ingest(copies, catalog, embedder) == IngestReport(unchanged=2, duplicates=1)


def test_another_embedding_model_embeds_all_again_beside_the_first(catalog: Catalog, embedder: Embedder) -> None:
    ingest([card(1)], catalog, embedder)
    other = Counting(embedder)
    other.name = "other"
    assert ingest([card(1)], catalog, other).updated == 1
    vector = embedder.queries(["card 1"])[0]
    assert catalog.nearest(vector, "other", Filters(), 5)
    assert catalog.nearest(vector, embedder.name, Filters(), 5)


def test_what_was_stopped_goes_on(catalog: Catalog, embedder: Embedder) -> None:
    cards = [card(i) for i in range(100)]
    with pytest.raises(ModelUnavailable):
        ingest(cards, catalog, Counting(embedder, fail_at=70))
    assert sum(catalog.count().values()) == 64
    counting = Counting(embedder)
    assert ingest(cards, catalog, counting) == IngestReport(added=36, unchanged=64)
    assert counting.texts == 36


def test_a_hidden_adapter_stays_hidden_when_its_card_changes(catalog: Catalog, embedder: Embedder) -> None:
    catalog.add([settle(card(1), hidden=True)])
    ingest([card(1, description="new")], catalog, embedder)
    assert catalog.get(["file:1"])["file:1"].hidden


def test_a_long_card_is_found_by_what_stands_at_its_end(catalog: Catalog, embedder: Embedder) -> None:
    filler = "Install it in the models folder and restart the program. " * 60
    ingest([card(1, description=f"{filler} It draws lighthouses on cliffs."), card(2)], catalog, embedder)
    [(first, score), _] = catalog.nearest(embedder.queries(["a lighthouse on a cliff"])[0], embedder.name, Filters(), 2)
    assert first.id == "file:1"
    assert score > 0.25


def test_chunks_hold_name_tags_and_the_whole_text_within_the_length() -> None:
    short = settle(card(1, tags=("a", "b"), trigger_words=("b", "c")))
    assert chunks(short) == ["card 1. a, b, c"]
    words = [f"word{i}" for i in range(900)]
    pieces = chunks(settle(card(2, description=" ".join(words), tags=("tag",) * 5)))
    assert len(pieces) > 5
    assert all(piece.startswith("card 2. tag. ") and len(piece) <= CHUNK + 20 for piece in pieces)
    assert set(words) - set(" ".join(pieces).split()) == set()


def test_settle_takes_category_from_tags_and_the_default_weight() -> None:
    assert settle(card(1, tags=("ink", "Style"))).category == Category.STYLE
    assert (settle(card(1)).category, settle(card(1)).weight) == (Category.CONCEPT, 0.8)
    assert settle(card(1, category="pose", tags=("style",), weight=0.0)).weight == 0.0


def test_the_pocket_adapters_come_in_whole_and_are_judged_by_their_shapes(catalog: Catalog, embedder: Embedder) -> None:
    report = ingest_pocket(catalog, embedder)
    assert report == IngestReport(added=len(list(ADAPTERS.glob("*.safetensors"))))
    assert ingest_pocket(catalog, embedder) == IngestReport(unchanged=report.added)
    adapters = catalog.get(f"pocket:{path.stem}" for path in ADAPTERS.glob("*.safetensors"))
    flaws = {id: what.quality for id, what in truth().items()}
    assert {id for id, a in adapters.items() if a.base_model != "pocket"} == {
        id for id, flaw in flaws.items() if flaw == "wrong_base"
    }
    assert {id for id, a in adapters.items() if a.rating == "mature"} == {id for id, t in truth().items() if t.mature}
    assert all(Path(a.file or "").is_file() for a in adapters.values())
