"""History on a real Postgres."""

from datetime import UTC, datetime, timedelta

import pytest

from stylus.database import Database
from stylus.errors import NotFound
from stylus.history import History
from stylus.records import BaseModelFamily, Choice, Composition, ImageRecord, Task

NOW = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)


def image(id: str, index: int = 0, job_id: str | None = None, minutes: int = 0) -> ImageRecord:
    return ImageRecord(
        id=id,
        uri=f"stylus://images/{id}",
        location=f"/store/{id}.png",
        index=index,
        seed=2**63 - 1,
        prompt="a 'red' star\nwith ⭐",
        width=64,
        height=64,
        adapters={"pocket:star": 0.8},
        job_id=job_id,
        created_at=NOW + timedelta(minutes=minutes),
        provenance={"schedule": [[0.1, 0.2]], "none": None},
    )


@pytest.fixture
def history(database: Database) -> History:
    return History(database)


def test_a_composition_comes_back_as_it_was(history: History) -> None:
    choice = Choice(adapter_id="pocket:star", weight=0.35, reason="tag 'star'", trigger_words=("star",))
    composition = Composition(
        id="c1",
        prompt="a star",
        base_model=BaseModelFamily.POCKET,
        tasks=(Task(keyword="star", choices=(choice,)), Task(keyword="snow")),
        composer="lexical",
        notes=("one",),
    )
    history.save_composition(composition)
    history.save_composition(composition)
    assert history.composition("c1") == composition


@pytest.mark.parametrize("id", ["", "absent", "nul\0", "x" * 10_000])
def test_unknown_ids_say_where_ids_come_from(history: History, id: str) -> None:
    with pytest.raises(NotFound, match="compose_adapters"):
        history.composition(id)
    with pytest.raises(NotFound, match="generate_image"):
        history.image(id)


def test_images_come_back_newest_first(history: History) -> None:
    old, new = [image("a", 0, "j1"), image("b", 1, "j1")], [image("d", 1, "j2", 5), image("c", 0, "j2", 5)]
    history.save_images(old)
    history.save_images(new)
    assert history.image("b") == old[1]
    assert [record.id for record in history.recent_images(3)] == ["c", "d", "a"]


def test_a_job_that_runs_twice_keeps_the_images_of_the_first_run(history: History) -> None:
    history.save_images([image("a", 0, "j"), image("b", 1, "j")])
    kept = history.save_images([image("x", 0, "j"), image("y", 1, "j"), image("z", 2, "j")])
    assert [record.id for record in kept] == ["a", "b", "z"]
    assert {record.id for record in history.recent_images(10)} == {"a", "b", "z"}


def test_images_without_a_job_do_not_exclude_each_other(history: History) -> None:
    assert len(history.save_images([image("a", 0), image("b", 0)])) == 2
    assert history.save_images([]) == ()
