"""Compositions and images that were made: what a client's ids refer to."""

from collections.abc import Sequence
from typing import Any

from psycopg.types.json import Jsonb

from stylus.database import Database
from stylus.errors import NotFound
from stylus.records import Composition, ImageRecord


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
            raise NotFound(f"No composition has the id {id!r}. Call compose_adapters for a new one.")
        return Composition.model_validate(record)

    def save_images(self, images: Sequence[ImageRecord]) -> tuple[ImageRecord, ...]:
        """Keeps images, all or none, and returns what is kept now: where a job runs a second time, the first run's
        records stand, since each (job, index) is kept once."""
        with self._database.connection() as connection:
            return tuple(_save(connection, image) for image in images)

    def image(self, id: str, owner: str | None = None) -> ImageRecord:
        """Raises NotFound, for that of another owner as for none at all. An image is its job's owner's."""
        record = self._record(
            "select record from images left join jobs on jobs.id = images.job_id where images.id = %(id)s "
            "and (%(owner)s::text is null or coalesce(jobs.owner, '') = %(owner)s)",
            id,
            owner,
        )
        if record is None:
            raise NotFound(f"No image has the id {id!r}. Ids come with the results of generate_image.")
        return ImageRecord.model_validate(record)

    def save_picture(self, id: str, owner: str) -> None:
        """Remembers who brought a picture to start from."""
        with self._database.connection() as connection:
            connection.execute("insert into pictures (owner, id) values (%s, %s) on conflict do nothing", [owner, id])

    def require_picture(self, id: str, owner: str) -> None:
        """Raises NotFound if this owner never brought it."""
        with self._database.connection() as connection:
            query = "select 1 from pictures where owner = %s and id = %s"
            if connection.execute(query, [owner, id]).fetchone() is None:
                raise NotFound(f"No picture has the id {id!r}. Ids come from POST /images; pass the picture again.")

    def recent_images(self, limit: int) -> list[ImageRecord]:
        """The newest first, images of one generation in their order."""
        query = "select record from images order by created_at desc, job_id, index, id limit %s"
        with self._database.connection() as connection:
            return [ImageRecord.model_validate(row[0]) for row in connection.execute(query, [limit])]

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
