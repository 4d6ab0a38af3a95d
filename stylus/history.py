"""Compositions and images that were made: what a client's ids refer to."""

from collections.abc import Mapping, Sequence
from typing import Any, LiteralString

from psycopg.types.json import Jsonb

from stylus.database import Database
from stylus.errors import InvalidInput, NotFound
from stylus.records import Composition, ImageRecord, Pick
from stylus.weights import reweighed

_OWNED: LiteralString = """
from images left join jobs on jobs.id = images.job_id
where (%(owner)s::text is null or coalesce(jobs.owner, '') = %(owner)s)
"""
_IMAGE: LiteralString = "select record || jsonb_build_object('deleted_at', deleted_at)" + _OWNED
_IMAGES: LiteralString = "select record" + _OWNED + "and deleted_at is null "
_AFTER: LiteralString = """
and (images.created_at < %(created_at)s
     or images.created_at = %(created_at)s and (images.index, images.id) > (%(index)s, %(id)s))
"""
_OF_ADAPTERS = (
    *("composition", "masks", "repeat_masks", "control", "method", "switch_every", "budget"),
    *("count", "seed"),  # which each image has of its own
)
"""Fields of a Request that say which adapters act, and how."""
_ALIKE: LiteralString = """
and images.id <> %(id)s and record ->> 'seed' = %(seed)s
and record #>> '{provenance,request,composition,prompt}' = %(prompt)s
and (record #> '{provenance,request}') - %(of_adapters)s::text[] = %(settings)s
"""
_NEWEST: LiteralString = "order by images.created_at desc, images.index, images.id limit %(limit)s"


class History:
    """The records as they were, by id."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def save_composition(self, composition: Composition) -> None:
        """Keeps a composition, of nobody in particular; saving the same id again changes nothing."""
        with self._database.connection() as connection:
            connection.execute(
                "insert into compositions (id, prompt, base_model, record) values (%s, %s, %s, %s) "
                "on conflict do nothing",
                [composition.id, composition.prompt, composition.base_model, _json(composition)],
            )

    def claim(self, composition_id: str, owner: str) -> None:
        """Makes a new composition its owner's, before anybody else knows its id."""
        with self._database.connection() as connection:
            connection.execute("update compositions set owner = %s where id = %s", [owner, composition_id])

    def composition(self, id: str, owner: str | None = None) -> Composition:
        """Raises NotFound, for that of another owner as for none at all. `owner` None: whose it is does not matter."""
        record = self._record(
            "select record from compositions where id = %(id)s and (%(owner)s::text is null or owner = %(owner)s)",
            id,
            owner,
        )
        if record is None:
            raise NotFound(f"No composition has the id {id!r}. Call compose_adapters (`stylus compose`) for a new one.")
        return Composition.model_validate(record)

    def reweighed(self, id: str, picks: Sequence[Pick] | None, owner: str | None = None) -> Composition:
        """The composition of that id or, with `picks`, one at their weights, where 0 leaves an adapter out; it is kept
        and becomes the owner's. Raises NotFound, and InvalidInput unless each pick is an adapter of it and a weight."""
        if picks is None:
            return self.composition(id, owner)
        if not picks:
            raise InvalidInput('adapters is empty: to draw a composition without its adapters, pass masks="none".')
        weights: dict[str, float] = {}
        for pick in picks:
            if pick.weight is None or pick.task is not None or pick.id in weights:
                raise InvalidInput(
                    f"Beside a composition, pass each once, with its new weight and no task, unlike {pick.id!r}."
                )
            weights[pick.id] = pick.weight
        composition = reweighed(self.composition(id, owner), weights)
        self.save_composition(composition)
        if owner is not None:
            self.claim(composition.id, owner)
        return composition

    def save_images(self, images: Sequence[ImageRecord]) -> tuple[ImageRecord, ...]:
        """Keeps images, all or none, and returns what is kept now: where a job runs a second time, the first run's
        records stand, since each (job, index) is kept once."""
        with self._database.connection() as connection:
            return tuple(_save(connection, image) for image in images)

    def image(self, id: str, owner: str | None = None) -> ImageRecord:
        """Raises NotFound, for that of another owner as for none at all. An image is its job's owner's."""
        record = self._kept(id, owner)
        if deleted := record.pop("deleted_at"):
            raise NotFound(
                f"Image {id} was deleted on {deleted[:10]}: this server keeps pictures for a time only. To draw it "
                f"again, pass composition_id={record['composition_id']!r} and seed={record['seed']} to generate_image."
            )
        return ImageRecord.model_validate(record)

    def save_picture(self, id: str, owner: str, size: int) -> None:
        """Remembers who brings a picture of `size` bytes to start from. To be called before its file is written, so
        that nobody deletes it as an old one."""
        query = (
            "insert into pictures (owner, id, bytes) values (%s, %s, %s) "
            "on conflict (owner, id) do update set used_at = now(), bytes = excluded.bytes"
        )
        with self._database.connection() as connection:
            connection.execute(query, [owner, id, size])

    def require_picture(self, id: str, owner: str) -> None:
        """Marks a picture as used. Raises NotFound if this owner never brought it, or so long ago that it is gone."""
        with self._database.connection() as connection:
            query = "update pictures set used_at = now() where owner = %s and id = %s returning 1"
            if connection.execute(query, [owner, id]).fetchone() is None:
                raise NotFound(
                    f"No picture has the id {id!r}. Ids come from POST /images, and old pictures are deleted in time: "
                    "pass the picture again."
                )

    def recent_images(self, limit: int, owner: str | None = None, *, before: str | None = None) -> list[ImageRecord]:
        """The newest first, those saved at once in their order; with `before`, what comes after that image in this
        list, also where that one was deleted since. Raises NotFound if the owner never had such an image."""
        values: dict[str, Any] = {"owner": owner, "limit": limit}
        if before is None:
            return self._images(_IMAGES + _NEWEST, values)
        last = self._kept(before, owner)
        values |= {"created_at": last["created_at"], "index": last["index"], "id": before}
        return self._images(_IMAGES + _AFTER + _NEWEST, values)

    def same_seed(self, id: str, limit: int, owner: str | None = None) -> list[ImageRecord]:
        """The image of that id, then, newest first, those that differ from it in nothing but adapters and their
        weights. Raises NotFound if the owner has no such image."""
        image = self.image(id, owner)
        request = image.provenance.get("request", {})
        values = {
            "owner": owner,
            "limit": limit - 1,
            "id": id,
            "seed": str(image.seed),
            "prompt": request.get("composition", {}).get("prompt"),
            "of_adapters": list(_OF_ADAPTERS),
            "settings": Jsonb({name: value for name, value in request.items() if name not in _OF_ADAPTERS}),
        }
        return [image, *self._images(_IMAGES + _ALIKE + _NEWEST, values)]

    def compositions(self, ids: Sequence[str | None]) -> dict[str, Composition]:
        """Those that there are, by id; whose they are does not matter."""
        with self._database.connection() as connection:
            rows = connection.execute("select record from compositions where id = any(%s)", [list(ids)])
            return {row[0]["id"]: Composition.model_validate(row[0]) for row in rows}

    def _kept(self, id: str, owner: str | None) -> dict[str, Any]:
        """The record of an image, with when its file was deleted. Raises NotFound."""
        record: dict[str, Any] | None = self._record(_IMAGE + "and images.id = %(id)s", id, owner)
        if record is None:
            raise NotFound(f"No image has the id {id!r}. Ids come with the results of generate_image.")
        return record

    def _images(self, query: LiteralString, values: Mapping[str, Any]) -> list[ImageRecord]:
        with self._database.connection() as connection:
            return [ImageRecord.model_validate(row[0]) for row in connection.execute(query, values)]

    def _record(self, query: str, id: str, owner: str | None) -> Any:
        if "\0" in id:
            return None
        with self._database.connection() as connection:
            row = connection.execute(query, {"id": id, "owner": owner}).fetchone()
        return row[0] if row else None


def _save(connection: Any, image: ImageRecord) -> ImageRecord:
    connection.execute(
        "insert into images (id, job_id, index, composition_id, record, created_at) values (%s, %s, %s, %s, %s, %s) "
        "on conflict do nothing",
        [image.id, image.job_id, image.index, image.composition_id, _json(image), image.created_at],
    )
    row = connection.execute(
        "select record from images where id = %s or (job_id = %s and index = %s)", [image.id, image.job_id, image.index]
    ).fetchone()
    return ImageRecord.model_validate(row[0])


def _json(record: Composition | ImageRecord) -> Jsonb:
    return Jsonb(record.model_dump(mode="json"))
