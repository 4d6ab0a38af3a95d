"""Weights at first use: catalogued from a remote source, fetched when a picture needs them, from that source only."""

import multiprocessing
import random
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from stylus.catalog import Catalog
from stylus.database import Database
from stylus.embedder import Embedder
from stylus.errors import AdapterFileError, Cancelled, SourceUnavailable
from stylus.fetching import Fetcher
from stylus.gathering import ingest_pages, ingest_stylusdocs
from stylus.ingest import IngestReport, ingest, settle
from stylus.pocket import ADAPTERS
from stylus.records import Adapter, Card, Pick, Progress
from stylus.settings import Settings
from stylus.sources import stylusdocs
from stylus.sources.civitai import Civitai
from stylus.stylus import Stylus
from tests.pretend import Fault, Pretend, sha256, weights
from tests.test_civitai import add_model


@pytest.fixture
def server() -> Iterator[Pretend]:
    with Pretend() as server:
        yield server


@pytest.fixture
def settings(settings: Settings, server: Pretend) -> Settings:
    return settings.model_copy(update={"civitai_url": server.url})


@pytest.fixture
def catalog(database: Database) -> Catalog:
    return Catalog(database)


@pytest.fixture
def fetcher(settings: Settings, catalog: Catalog) -> Fetcher:
    return Fetcher(settings, catalog, sleep=lambda _: None)


class Hashing(Embedder):
    """Vectors that cost nothing: directions drawn from the text."""

    def __init__(self) -> None:
        self.name = "hashing"

    def documents(self, texts: Sequence[str]) -> np.ndarray:
        rows = [np.random.default_rng(list(text.encode())).standard_normal(8) for text in texts]
        return np.array([row / np.linalg.norm(row) for row in rows], np.float32).reshape(-1, 8)


def catalogued(settings: Settings, catalog: Catalog, what: str = "ink") -> list[Adapter]:
    pages = _pages(settings, what)
    ingest_pages(pages, catalog, Hashing())
    return list(catalog.get([card.id for page in pages for card in page]).values())


def test_weights_come_once_and_the_catalog_knows(
    server: Pretend, settings: Settings, catalog: Catalog, fetcher: Fetcher
) -> None:
    add_model(server, 1)
    add_model(server, 2)
    adapters = catalogued(settings, catalog)
    assert all(adapter.file is None and adapter.download for adapter in adapters)
    progress: list[Progress] = []
    first, second = fetcher.fetch(adapters, progress.append)
    assert Path(first.file or "").read_bytes() == weights(10)
    assert Path(first.file or "").parent == settings.data.absolute() / "adapters"
    total = len(weights(10)) + len(weights(20))
    assert (progress[-1].stage, progress[-1].done, progress[-1].total) == ("download", total, total)
    assert catalog.get([second.id])[second.id] == second
    asked = len(server.asked)
    assert fetcher.fetch([first, second]) == [first, second]
    assert fetcher.fetch(adapters) == [first, second]
    assert len(server.asked) == asked
    # Reading the source again, which knows nothing of files, loses none; a replaced file does not pass for the old one.
    assert ingest(_cards(settings), catalog, Hashing()) == IngestReport(unchanged=2)
    assert catalog.get([first.id])[first.id].file == first.file
    server.models[0]["modelVersions"][0]["files"][0]["hashes"]["SHA256"] = "AB" * 32
    assert ingest(_cards(settings), catalog, Hashing()).moved == 1
    assert catalog.get([first.id])[first.id].file is None
    Path(second.file or "").unlink()
    assert fetcher.fetch([second]) == [second]
    assert Path(second.file or "").is_file()


def _pages(settings: Settings, what: str = "ink") -> list[list[Card]]:
    with Civitai.open(settings) as civitai:
        return list(civitai.pages(what, on_problem=lambda *_: None))


def _cards(settings: Settings) -> list[Card]:
    return [card for page in _pages(settings) for card in page]


def test_only_the_source_itself_is_asked_and_only_what_can_be_verified_is_kept(
    server: Pretend, settings: Settings, catalog: Catalog, fetcher: Fetcher
) -> None:
    add_model(server, 1)
    [adapter] = catalogued(settings, catalog)
    for changes, words in (
        ({"download": "https://example.org/x.safetensors"}, "not on the host"),
        ({"download": "file:///etc/passwd"}, "not on the host"),
        ({"id": "made:1"}, "no source"),
        ({"id": "hub:o/n", "sha256": None}, "no checksum"),
        ({"sha256": "ab" * 32}, "SHA-256"),
        ({"bytes": 5}, "5 were announced"),
    ):
        with pytest.raises(AdapterFileError, match=words):
            fetcher.fetch([adapter.model_copy(update=changes)])
        assert fetcher.may_fetch(adapter.model_copy(update=changes)) == (
            "download" not in changes and "id" not in changes
        )
    assert fetcher.may_fetch(adapter)
    plain = settle(Card(id="file:1", name="no address"))
    assert fetcher.fetch([plain]) == [plain]
    server.faults = {"/api/download/models/10": [Fault(404)]}
    with pytest.raises(AdapterFileError, match="no longer offered"):
        fetcher.fetch([adapter])

    def cancel(_: Progress) -> None:
        raise Cancelled("enough")

    with pytest.raises(Cancelled):
        fetcher.fetch([adapter], cancel)
    assert not list((settings.data / "adapters").glob("*.safetensors"))


def test_a_card_without_checksum_gets_it_from_the_source(
    server: Pretend, settings: Settings, catalog: Catalog, fetcher: Fetcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_model(server, 7, versions=2)
    address = "https://civitai.com/api/download/models/71"
    entry = Card(id="civitai:7", name="Ink", base_model="sd15", download=address, group="civitai:7")
    vector = np.array([3.0, 4, 0, 0, 0, 0, 0, 0])
    monkeypatch.setattr(stylusdocs, "read", lambda *_: [stylusdocs.Entry(entry, vector)])
    report = ingest_stylusdocs(Path(), catalog, Hashing(), lambda *_: None, made_with="hashing")
    assert report == IngestReport(added=1)
    [fetched] = fetcher.fetch(catalog.require(["civitai:7"]))
    assert fetched.sha256 == sha256(weights(71))
    assert Path(fetched.file or "").read_bytes() == weights(71)
    assert catalog.require(["civitai:7"]) == [fetched]


def test_a_picture_fetches_what_it_needs(server: Pretend, settings: Settings) -> None:
    content = (ADAPTERS / "star.safetensors").read_bytes()
    version = add_model(server, 1, name="star", tags=["star"])["modelVersions"][0]
    version["baseModel"] = "Pocket"
    version["files"][0] |= {"sizeKB": len(content) / 1024, "hashes": {"SHA256": sha256(content)}}
    server.files["/files/10.safetensors"] = content
    with Stylus(settings) as stylus:
        ingest_pages(_pages(settings, "1"), stylus.catalog, stylus.embedder)
        assert [match.adapter.id for match in stylus.candidates("a star", settings.default_family)] == ["civitai:1@10"]
        composition = stylus.compose("a star", picks=[Pick(id="civitai:1@10")])
        server.faults = {"/api/download/models/10": [Fault(401, body=b'{"error": "Unauthorized"}')]}
        with pytest.raises(SourceUnavailable, match=r"civitai:1@10 \(star\).*STYLUS_CIVITAI_KEY.*stylus hide ID"):
            stylus.generate(composition, steps=1)
        progress: list[Progress] = []
        [image] = stylus.generate(composition, steps=1, on_progress=progress.append)
        assert list(image.adapters) == ["civitai:1@10"]
        stages = list(dict.fromkeys(step.stage for step in progress))
        assert stages.index("download") < stages.index("generating")


def ingest_in_a_process(settings: Settings) -> None:
    with Database.open(settings) as database, Civitai.open(settings) as civitai:
        ingest_pages(civitai.pages("ink", on_problem=lambda *_: None), Catalog(database), Hashing())


def test_killed_at_any_point_of_an_ingestion_the_next_one_completes_it(
    server: Pretend, settings: Settings, catalog: Catalog, second_database: Database
) -> None:
    for number in range(1, 13):
        add_model(server, number, versions=2)
    undisturbed = Catalog(second_database)
    ingest_pages(_pages(settings), undisturbed, Hashing())
    drawn = random.Random(8)
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["tests.test_downloads", "tests.test_fetching"])
    killed = 0
    for _ in range(10):
        process = processes.Process(target=ingest_in_a_process, args=(settings,))
        process.start()
        asked, wanted = len(server.asked), drawn.randint(1, 6)
        while process.is_alive() and len(server.asked) < asked + wanted:
            time.sleep(0.001)
        time.sleep(drawn.uniform(0.0, 0.01))
        killed += process.is_alive()
        process.kill()
        process.join()
    assert killed >= 5
    process = processes.Process(target=ingest_in_a_process, args=(settings,))
    process.start()
    process.join()
    assert process.exitcode == 0
    assert list(catalog.all()) == list(undisturbed.all())
    assert not list((settings.data / "civitai").iterdir())
