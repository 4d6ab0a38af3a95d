"""What is deleted and what never is, with real files and real Postgres."""

import threading
from pathlib import Path

import pytest

import stylus.worker
from stylus.database import Database
from stylus.errors import NotFound, StorageError
from stylus.history import History
from stylus.jobs import Jobs
from stylus.pictures import Pictures
from stylus.records import ImageRecord, JobStatus
from stylus.retention import AT_ONCE, Retention
from stylus.settings import Settings
from tests.test_jobs import Painter, request, until, worker
from tests.test_pictures import png

WEEK = 7 * 86_400


class Store:
    """A store with its database, in which time passes by `age`."""

    def __init__(self, database: Database, settings: Settings) -> None:
        self.database, self.settings, self.history = database, settings, History(database)
        self.folder = Path(settings.store_url)
        (self.folder / "inputs").mkdir(parents=True)

    def image(self, id: str, size: int = 1000, age: float = 0) -> Path:
        path = self.folder / f"{id}.png"
        path.write_bytes(b"x" * size)
        made = ImageRecord.model_validate(
            {"id": id, "uri": f"stylus://images/{id}", "location": str(path), "index": 0, "seed": 7, "prompt": "a star",
             "width": 64, "height": 64, "adapters": {}, "composition_id": "c", "created_at": "2026-01-01T00:00:00Z"}
        )  # fmt: skip
        self.history.save_images([made])
        self._age("update images set created_at = now() - make_interval(secs => %s) where id = %s", age, id)
        return path

    def picture(self, letter: str, size: int = 1000, age: float = 0, owner: str = "anna") -> Path:
        id = letter * 64
        path = self.folder / "inputs" / f"{id}.png"
        path.write_bytes(b"x" * size)
        self.history.save_picture(id, owner, size)
        query = "update pictures set used_at = now() - make_interval(secs => %s) where id = %s and owner = %s"
        self._age(query, age, id, owner)
        return path

    def _age(self, query: str, *values: object) -> None:
        with self.database.connection() as connection:
            connection.execute(query, values)

    def retention(self, **limits: float) -> Retention:
        return Retention(self.database, self.settings.model_copy(update=limits))


@pytest.fixture
def store(database: Database, settings: Settings) -> Store:
    return Store(database, settings)


def test_by_default_everything_stays(store: Store) -> None:
    path = store.image("old", age=1000 * WEEK)
    assert store.retention().overdue() == store.retention().apply() == []
    assert path.exists()


def test_what_is_older_goes_and_says_so(store: Store) -> None:
    old, new = store.image("old", age=2 * WEEK), store.image("new", age=WEEK / 2)
    brought, used = store.picture("a", age=2 * WEEK), store.picture("b", age=WEEK / 2)
    retention = store.retention(keep_days=7.0)
    expected = [("picture", "a" * 64, 1000), ("image", "old", 1000)]
    told = [(one.kind, one.id, one.bytes) for one in retention.overdue()]
    assert sorted(told) == sorted(expected)
    assert old.exists()  # asking deletes nothing
    assert [(one.kind, one.id, one.bytes) for one in retention.apply()] == told
    assert not old.exists()
    assert not brought.exists()
    assert new.exists()
    assert used.exists()
    with pytest.raises(NotFound, match=r"deleted on .* composition_id='c' and seed=7"):
        store.history.image("old")
    with pytest.raises(NotFound, match="pass the picture again"):
        store.history.require_picture("a" * 64, "anna")
    assert store.history.image("new").id == "new"
    assert [image.id for image in store.history.recent_images(10)] == ["new"]
    assert retention.apply() == []


def test_the_oldest_beyond_so_many_bytes_go(store: Store) -> None:
    for number in range(5):
        store.image(f"image{number}", size=300, age=WEEK + number)
    store.picture("a", size=300, age=WEEK + 0.5)
    gone = store.retention(keep_gb=1000e-9).apply()
    assert [one.id for one in gone] == ["image4", "image3", "image2"]
    assert sum(path.stat().st_size for path in store.folder.rglob("*.png")) == 900


def test_what_is_fresh_stays_whatever_its_size(store: Store) -> None:
    path = store.image("fresh", size=10_000, age=60)
    assert store.retention(keep_gb=1e-9, keep_days=1e-6).apply() == []
    assert path.exists()


def test_what_an_unfinished_job_starts_from_stays_until_it_ends(store: Store) -> None:
    image, mask, other = (store.picture(letter, age=2 * WEEK) for letter in "abc")
    start = request().model_copy(update={"image": "a" * 64, "mask": "b" * 64})
    job = Jobs(store.database).submit(start, owner="anna")
    store.retention(keep_days=7.0).apply()
    assert image.exists()
    assert mask.exists()
    assert not other.exists()
    Jobs(store.database).cancel(job.id)
    store.retention(keep_days=7.0).apply()
    assert not image.exists()
    assert not mask.exists()


def test_a_picture_is_kept_as_long_as_one_of_its_owners_uses_it(store: Store) -> None:
    path = store.picture("a", age=2 * WEEK, owner="bert")
    store.picture("a", age=2 * WEEK, owner="anna")
    store.history.require_picture("a" * 64, "anna")
    assert store.retention(keep_days=7.0).apply() == []
    assert path.exists()


def test_who_brings_a_picture_while_it_is_deleted_has_it_in_the_end(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Deleting is held up in the middle; the upload of the same picture waits for it and writes its file then."""
    pictures = Pictures(store.settings, None, store.history)  # type: ignore[arg-type]
    id = pictures.keep_image(png(), "anna")
    store._age("update pictures set used_at = now() - interval '1 year'")
    path = store.folder / "inputs" / f"{id}.png"
    uploads: list[threading.Thread] = []
    removed = stylus.retention._remove

    def slowly(where: str) -> None:
        uploads.append(threading.Thread(target=pictures.keep_image, args=(png(), "bert")))
        uploads[0].start()
        uploads[0].join(0.5)
        assert uploads[0].is_alive()
        removed(where)

    monkeypatch.setattr("stylus.retention._remove", slowly)
    assert [one.id for one in store.retention(keep_days=1.0).apply()] == [id]
    uploads[0].join(10)
    assert path.exists()
    store.history.require_picture(id, "bert")


def test_files_that_are_gone_already_are_no_obstacle_and_others_are_told(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.image("first", age=2 * WEEK).unlink()
    later = store.image("later", age=2 * WEEK)
    store.retention().overdue()  # measures
    store.retention(keep_days=7.0)
    with pytest.raises(NotFound, match="deleted"):
        store.history.image("first")
    later.unlink()
    later.mkdir()  # can't be removed as a file
    with pytest.raises(StorageError, match="can't be deleted"):
        store.retention(keep_days=7.0).apply()
    assert store.history.image("later")  # and is tried again
    later.rmdir()
    assert [one.id for one in store.retention(keep_days=7.0).apply()] == ["later"]


@pytest.mark.parametrize("left", ["no folder", "an empty folder"])
def test_nothing_is_gone_while_the_store_is_not_there(store: Store, left: str) -> None:
    """An unmounted disk made every new picture a deleted one for good, even by --dry-run."""
    store.image("new")
    store.image("old", age=2 * WEEK)
    store.folder.rename(store.folder.with_name("elsewhere"))
    if left == "an empty folder":
        store.folder.mkdir()
    retention = store.retention(keep_days=7.0)
    assert retention.overdue() == retention.apply() == []
    if left == "an empty folder":
        store.folder.rmdir()
    store.folder.with_name("elsewhere").rename(store.folder)
    assert store.history.image("new").id == "new"
    assert [one.id for one in retention.apply()] == ["old"]


def test_many_go_in_steps(store: Store) -> None:
    for number in range(AT_ONCE + 5):
        store.image(f"image{number}", age=2 * WEEK)
    assert len(store.retention(keep_days=7.0).apply()) == AT_ONCE + 5


def test_one_worker_does_it_now_and_then_beside_its_jobs(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stylus.worker, "PRUNE_AT", "* * * * * *")
    path = store.image("old", age=2 * WEEK)
    painter, idle = Painter(store.database), Painter(store.database)
    painter.retention = idle.retention = store.retention(keep_days=7.0)
    with worker(painter), worker(idle):
        until(lambda: not path.exists())
        jobs = Jobs(store.database)
        done = jobs.wait(jobs.submit(request()).id, 10)
    assert done.status is JobStatus.DONE
