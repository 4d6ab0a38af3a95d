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
        """Keeps a composition; saving the same id again changes nothing."""
        with self._database.connection() as connection:
            connection.execute(
                "insert into compositions (id, prompt, base_model, record) values (%s, %s, %s, %s) "
                "on conflict do nothing",
                [composition.id, composition.prompt, composition.base_model, _json(composition)],
            )

    def composition(self, id: str) -> Composition:
        """Raises NotFound."""
        record = self._record("select record from compositions where id = %s", id)
        if record is None:
            raise NotFound(f"No composition has the id {id!r}. Call compose_adapters for a new one.")
        return Composition.model_validate(record)

    def save_images(self, images: Sequence[ImageRecord]) -> tuple[ImageRecord, ...]:
        """Keeps images, all or none, and returns what is kept now: where a job runs a second time, the first run's
        records stand, since each (job, index) is kept once."""
        with self._database.connection() as connection:
            return tuple(_save(connection, image) for image in images)

    def image(self, id: str) -> ImageRecord:
        """Raises NotFound."""
        record = self._record("select record from images where id = %s", id)
        if record is None:
            raise NotFound(f"No image has the id {id!r}. Ids come with the results of generate_image.")
        return ImageRecord.model_validate(record)

    def recent_images(self, limit: int) -> list[ImageRecord]:
        """The newest first, images of one generation in their order."""
        query = "select record from images order by created_at desc, job_id, index, id limit %s"
        with self._database.connection() as connection:
            return [ImageRecord.model_validate(row[0]) for row in connection.execute(query, [limit])]

    def _record(self, query: str, id: str) -> Any:
        if "\0" in id:
            return None
        with self._database.connection() as connection:
            row = connection.execute(query, [id]).fetchone()
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
