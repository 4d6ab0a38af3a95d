"""A folder that changes between runs -> the catalog follows: nothing is read or embedded twice, nothing is lost."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from stylus.catalog import Catalog
from stylus.database import Database
from stylus.errors import DatabaseUnavailable, InvalidInput
from stylus.files import Files
from stylus.ingest import IngestReport, ingest_folder
from stylus.records import Adapter, Filters, Progress
from tests.word_embedder import WordEmbedder

KEY = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"


def weights(path: Path, number: int = 0, **metadata: str) -> Path:
    """Without metadata all have one header: only their numbers differ, as trainers that write none leave them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {f"{KEY}.lora_down.weight": np.full((4, 768), number, np.float16)}
    save_file(tensors, path, metadata or None)
    return path


class Library:
    """A folder and the catalog that follows it."""

    def __init__(self, database: Database, root: Path) -> None:
        self.root, self.embedder, self.problems = root, WordEmbedder(), dict[str, str]()
        self.database, self.catalog, self.files = database, Catalog(database), Files(database)
        self.progress: list[Progress] = []
        root.mkdir(exist_ok=True)

    def ingest(self, root: Path | None = None) -> IngestReport:
        self.problems.clear()
        self.progress.clear()

        def note(path: Path, why: str) -> None:
            self.problems[path.name] = why

        return ingest_folder(root or self.root, self.catalog, self.files, self.embedder, note, self.progress.append)

    def adapters(self) -> dict[str, Adapter]:
        """By name."""
        with self.database.connection() as connection:
            ids = [row[0] for row in connection.execute("select id from adapters")]
        return {adapter.name: adapter for adapter in self.catalog.get(ids).values()}

    def found(self, has_file: bool | None = None) -> set[str]:
        vector = self.embedder.queries(["anything"])[0]
        nearest = self.catalog.nearest(vector, "words", Filters(has_file=has_file), 100)
        return {adapter.name for adapter, _ in nearest}


@pytest.fixture
def library(database: Database, tmp_path: Path) -> Library:
    return Library(database, tmp_path / "loras")


def test_files_without_metadata_are_told_apart_by_their_tensors(library: Library) -> None:
    for number in range(3):
        weights(library.root / f"{number}.safetensors", number)
    weights(library.root / "copy of 2.safetensors", 2)
    assert library.ingest() == IngestReport(added=3, duplicates=1)
    assert set(library.adapters()) == {"0", "1", "2"}


def test_a_second_run_opens_no_file_and_embeds_nothing(library: Library) -> None:
    for number in range(70):
        weights(library.root / str(number % 7) / f"{number}.safetensors", number)
    assert library.ingest() == IngestReport(added=70)
    assert [(p.done, p.total) for p in library.progress if p.stage == "ingest"] == [(64, 70), (70, 70)]
    assert library.embedder.texts == 70
    for path in library.root.rglob("*.safetensors"):
        status = path.stat()
        path.write_bytes(bytes(status.st_size))  # as it can't be read now, whoever reads it finds a problem
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert library.ingest() == IngestReport(unchanged=70)
    assert not library.problems
    assert library.embedder.texts == 70


def test_moved_and_renamed_files_keep_all_that_is_known(library: Library) -> None:
    path = weights(library.root / "old name.safetensors", 1)
    Image.new("RGB", (4, 4)).save(library.root / "old name.preview.png")
    library.ingest()
    [before] = library.adapters().values()
    refined = before.model_copy(update={"description": "by a model", "refined": True, "weight": 0.5, "hidden": True})
    with library.database.connection() as connection:
        connection.execute(
            "update adapters set description = 'by a model', refined = true, weight = 0.5, hidden = true"
        )
    path.rename(library.root / "x.safetensors")  # the order of paths must not matter
    (library.root / "deep").mkdir()
    for file in ("x.safetensors", "old name.preview.png"):
        (library.root / file).rename(library.root / "deep" / file.replace("old name", "x"))
    assert library.ingest() == IngestReport(moved=1)
    [after] = library.adapters().values()
    moved = {"file": str(library.root / "deep" / "x.safetensors")}
    assert after == refined.model_copy(update={**moved, "examples": after.examples})
    assert [example.image for example in after.examples] == [str(library.root / "deep" / "x.preview.png")]
    assert library.embedder.texts == 1
    assert library.ingest() == IngestReport(unchanged=1)


def test_what_is_removed_is_marked_and_found_no_more_until_it_comes_back(library: Library, tmp_path: Path) -> None:
    for number in range(3):
        weights(library.root / "sub" / f"{number}.safetensors", number)
    library.ingest()
    away = tmp_path / "elsewhere.safetensors"
    (library.root / "sub" / "1.safetensors").rename(away)
    assert library.ingest() == IngestReport(unchanged=2, missing=1)
    assert {name for name, adapter in library.adapters().items() if adapter.missing} == {"1"}
    assert library.found(has_file=True) == {"0", "2"}
    assert library.found(has_file=False) == {"1"}
    assert library.found() == {"0", "1", "2"}
    assert library.ingest() == IngestReport(unchanged=2)
    away.rename(library.root / "sub" / "1.safetensors")
    assert library.ingest() == IngestReport(updated=1, unchanged=2)
    (library.root / "sub" / "2.safetensors").unlink()
    library.ingest()
    weights(library.root / "2 again.safetensors", 2)
    assert library.ingest() == IngestReport(moved=1, unchanged=2)
    assert library.found(has_file=True) == {"0", "1", "2"}
    assert library.embedder.texts == 3


def test_of_copies_the_catalog_knows_one_and_takes_another_when_that_is_gone(library: Library) -> None:
    first, second = (weights(library.root / name, 5) for name in ("a.safetensors", "b.safetensors"))
    assert library.ingest() == IngestReport(added=1, duplicates=1)
    assert library.ingest() == IngestReport(unchanged=1, duplicates=1)
    second.with_suffix(".json").write_text('{"description": "the copy says otherwise"}')
    assert library.ingest() == IngestReport(unchanged=1, duplicates=1)
    assert library.adapters()["a"].description == ""
    first.unlink()
    assert library.ingest().updated == 1
    assert library.adapters()["a"].file == str(second)
    assert library.ingest() == IngestReport(unchanged=1)


def test_a_copy_under_another_root_changes_nothing(library: Library, tmp_path: Path) -> None:
    one = weights(library.root / "one.safetensors", 5)
    weights(tmp_path / "other" / "two.safetensors", 5)
    library.ingest()
    assert library.ingest(tmp_path / "other") == IngestReport(duplicates=1)
    assert library.ingest(tmp_path / "other") == IngestReport(duplicates=1)
    assert library.adapters()["one"].file == str(one)
    one.unlink()
    assert library.ingest(tmp_path / "other") == IngestReport(moved=1)
    assert library.adapters()["one"].file == str(tmp_path / "other" / "two.safetensors")
    weights(library.root / "three.safetensors", 3)
    assert library.ingest() == IngestReport(added=1)


def test_two_files_that_change_places_are_both_followed(library: Library) -> None:
    a, b = weights(library.root / "a.safetensors", 1), weights(library.root / "b.safetensors", 2)
    library.ingest()
    for source, target in ((a, "spare"), (b, a.name), (library.root / "spare", b.name)):
        source.rename(library.root / target)
    assert library.ingest().missing == 0
    assert {name: adapter.file for name, adapter in library.adapters().items()} == {"a": str(b), "b": str(a)}


@pytest.mark.parametrize(
    "change",
    [
        lambda path: path.with_suffix(".json").write_text('{"description": "new"}'),
        lambda path: path.with_suffix(".txt").write_text("new"),
        lambda path: Image.new("RGB", (4, 4)).save(path.with_suffix(".preview.webp")),
    ],
)
def test_a_new_card_or_picture_is_noticed_and_its_loss_too(library: Library, change: Callable[[Path], object]) -> None:
    path = weights(library.root / "x.safetensors", 1)
    weights(library.root / "y.safetensors", 2)
    library.ingest()
    before = library.adapters()["x"]
    change(path)
    assert library.ingest() == IngestReport(updated=1, unchanged=1)
    assert library.adapters()["x"] != before
    next(p for p in library.root.iterdir() if p.suffix != ".safetensors").unlink()
    assert library.ingest() == IngestReport(updated=1, unchanged=1)
    assert library.adapters()["x"] == before


def test_a_file_that_is_replaced_or_spoilt_takes_its_adapter_away(library: Library) -> None:
    path = weights(library.root / "x.safetensors", 1)
    keeps = weights(library.root / "y.safetensors", 2)
    library.ingest()
    weights(path, 3, ss_output_name="new")
    assert library.ingest() == IngestReport(added=1, unchanged=1, missing=1)
    assert library.found(has_file=True) == {"new", "y"}
    keeps.write_bytes(keeps.read_bytes()[:-1])
    assert library.ingest() == IngestReport(unchanged=1, missing=1)
    assert "truncated" in library.problems["y.safetensors"]


def test_an_empty_or_absent_root_marks_nothing(library: Library, tmp_path: Path) -> None:
    weights(library.root / "x.safetensors")
    library.ingest()
    library.root.rename(tmp_path / "unmounted")
    with pytest.raises(InvalidInput, match="mounted"):
        library.ingest()
    library.root.mkdir()
    assert library.ingest() == IngestReport()
    assert "mounted" in library.problems["loras"]
    assert library.found(has_file=True) == {"x"}
    assert library.ingest(tmp_path) == IngestReport(moved=1)


def test_what_cant_be_read_is_reported_and_nothing_of_it_is_marked(database: Database, reachable: Path) -> None:
    library = Library(database, reachable / "loras")
    inside = weights(library.root / "closed" / "x.safetensors", 1)
    shut = weights(library.root / "y.safetensors", 2)
    weights(library.root / "z.safetensors", 3)
    library.ingest()
    inside.parent.chmod(0)
    shut.chmod(0)
    os.utime(shut)
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        report = library.ingest()
    finally:
        os.seteuid(user)
        inside.parent.chmod(0o755)
    assert report == IngestReport(unchanged=1)
    assert set(library.problems) == {"closed", "y.safetensors"}
    assert all("can't be read" in why for why in library.problems.values())
    assert library.found(has_file=True) == {"x", "y", "z"}


def test_links_are_followed_once_and_never_in_a_circle(library: Library, tmp_path: Path) -> None:
    weights(library.root / "a" / "x.safetensors", 1)
    weights(tmp_path / "nas" / "y.safetensors", 2)
    (tmp_path / "nas" / "back").symlink_to(library.root)
    (library.root / "0").symlink_to(library.root / "a")
    (library.root / "a" / "up").symlink_to("..")
    (library.root / "nas").symlink_to(tmp_path / "nas")
    (library.root / "self.safetensors").symlink_to("self.safetensors")
    (library.root / "dangling.safetensors").symlink_to("nowhere")
    assert library.ingest() == IngestReport(added=2)
    assert set(library.problems) == {"self.safetensors", "dangling.safetensors"}
    assert {adapter.file for adapter in library.adapters().values()} == {
        str(library.root / "a" / "x.safetensors"),
        str(library.root / "nas" / "y.safetensors"),
    }


def test_a_link_whose_disk_is_away_marks_nothing(library: Library, tmp_path: Path) -> None:
    weights(tmp_path / "nas" / "x.safetensors", 1)
    weights(tmp_path / "nas" / "more" / "y.safetensors", 2)
    weights(library.root / "z.safetensors", 3)
    (library.root / "x.safetensors").symlink_to(tmp_path / "nas" / "x.safetensors")
    (library.root / "more").symlink_to(tmp_path / "nas" / "more")
    assert library.ingest() == IngestReport(added=3)
    (tmp_path / "nas").rename(tmp_path / "away")
    assert library.ingest() == IngestReport(unchanged=1)
    assert set(library.problems) == {"x.safetensors"}
    (library.root / "x.safetensors").unlink()
    (library.root / "more").unlink()
    assert library.ingest() == IngestReport(unchanged=1, missing=2)


def test_a_root_that_is_a_link_to_itself_is_refused(library: Library, tmp_path: Path) -> None:
    (tmp_path / "self").symlink_to("self")
    for root in (tmp_path / "self", tmp_path / ("x" * 300)):
        with pytest.raises(InvalidInput, match="can't be looked at"):
            library.ingest(root)


def test_times_and_paths_beyond_what_postgres_holds(library: Library) -> None:
    os.utime(weights(library.root / "x.safetensors", 1), (2**33, 2**34))  # of the year 2514
    weights(library.root.joinpath(*["d" * 250] * 10) / "far.safetensors", 2)
    assert library.ingest() == IngestReport(added=1)
    assert "more than 2,000 bytes" in library.problems["far.safetensors"]
    assert library.ingest() == IngestReport(unchanged=1)


def test_a_name_that_is_not_utf8_is_reported(library: Library) -> None:
    weights(library.root / "good.safetensors")
    weights(Path(os.fsdecode(os.fsencode(library.root) + b"/caf\xe9.safetensors")), 2)
    assert library.ingest() == IngestReport(added=1)
    [(name, why)] = library.problems.items()
    assert "UTF-8" in why
    json.dumps(name).encode()
    name.encode()


@pytest.mark.parametrize("place", [b"/caf\xe9", b"/caf\xe9/x.safetensors"])
def test_a_folder_whose_own_name_is_not_utf8_is_refused(library: Library, place: bytes) -> None:
    root = os.fsencode(library.root)
    weights(Path(os.fsdecode(root + b"/caf\xe9/x.safetensors")))
    with pytest.raises(InvalidInput, match="not UTF-8") as caught:
        library.ingest(Path(os.fsdecode(root + place)))
    str(caught.value).encode()


def test_a_database_that_goes_away_midway_is_named_and_the_next_run_goes_on(library: Library) -> None:
    for number in range(130):
        weights(library.root / f"{number:03}.safetensors", number)

    def cut(progress: Progress) -> None:
        if progress.stage != "ingest":
            return
        with library.database.connection() as connection:
            connection.execute("select pg_terminate_backend(pg_backend_pid())")

    with pytest.raises(DatabaseUnavailable, match="Try again"):
        ingest_folder(library.root, library.catalog, library.files, library.embedder, lambda *_: None, cut)
    assert library.ingest() == IngestReport(added=66, unchanged=64)
    assert library.embedder.texts == 130
