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


def test_older_images_follow_the_last_one_seen(history: History, database: Database) -> None:
    history.save_images([image("a", 0, "j1"), image("b", 1, "j1"), image("c", 0, "j2", 5), image("d", 0, minutes=9)])
    everything = [record.id for record in history.recent_images(10)]
    assert everything == ["d", "c", "a", "b"]
    for at, id in enumerate(everything):
        assert [record.id for record in history.recent_images(10, before=id)] == everything[at + 1 :]
    with pytest.raises(NotFound):
        history.recent_images(10, before="absent")
    with database.connection() as connection:  # while somebody looks at the list
        connection.execute("update images set deleted_at = now() where id = 'c'")
    assert [record.id for record in history.recent_images(10, before="c")] == ["a", "b"]


def drawn(id: str, minutes: int, seed: int = 7, **request: object) -> ImageRecord:
    """An image with the record of its request."""
    composition = {"id": "c", "prompt": "a star", "tasks": []}
    provenance = {"request": {"composition": composition, "steps": 8, "count": 1, "masks": "all", **request}}
    return image(id, minutes=minutes).model_copy(update={"seed": seed, "provenance": provenance})


def test_images_of_one_seed_differ_in_adapters_only(history: History) -> None:
    other = {"id": "d", "prompt": "a star", "tasks": [{"keyword": "star"}]}
    history.save_images(
        [
            drawn("first", 0),
            drawn("control", 1, masks="none", count=4, control=True),
            drawn("weights", 2, composition=other, method="switch"),
            drawn("seed", 3, seed=8),
            drawn("steps", 4, steps=9),
            drawn("prompt", 5, composition=other | {"prompt": "a moon"}),
            image("unrecorded"),
        ]
    )
    assert [record.id for record in history.same_seed("first", 10)] == ["first", "weights", "control"]
    assert [record.id for record in history.same_seed("control", 2)] == ["control", "weights"]
    assert [record.id for record in history.same_seed("unrecorded", 10)] == ["unrecorded"]


def test_lists_hold_what_is_the_owners(history: History, database: Database) -> None:
    with database.connection() as connection:
        for owner in ("anna", ""):
            connection.execute(
                "insert into jobs (id, owner, request, progress) values (%s, %s, '{}', '{}')", [f"of {owner}", owner]
            )
    hers = drawn("hers", 0).model_copy(update={"job_id": "of anna"})
    mine = drawn("mine", 1).model_copy(update={"job_id": "of "})
    history.save_images([hers, mine, drawn("library", 2)])
    assert [record.id for record in history.recent_images(10, "anna")] == ["hers"]
    assert [record.id for record in history.recent_images(10, "")] == ["library", "mine"]
    assert [record.id for record in history.same_seed("hers", 10, "anna")] == ["hers"]
    assert [record.id for record in history.same_seed("mine", 10, "")] == ["mine", "library"]
    for list_ in (history.same_seed, lambda id, limit, owner: history.recent_images(limit, owner, before=id)):
        with pytest.raises(NotFound):
            list_("hers", 10, "")
