"""Which pictures are kept: by age and by bytes (STYLUS_KEEP_DAYS, STYLUS_KEEP_GB; both off by default).

Images and the pictures that clients brought count together, the oldest go first. What is younger than an hour stays,
since whoever asked for it may still be fetching it, and so does what an unfinished job starts from. Who brings or names
a picture writes its row, and deleting holds the table: so nothing is deleted in the moment in which it is asked for.
"""

import logging
from functools import cache
from typing import Any, Literal

import fsspec
import psycopg

from stylus.database import Database
from stylus.errors import StorageError
from stylus.generation.store import location, reason
from stylus.records import Record
from stylus.settings import Settings

logger = logging.getLogger(__name__)

FRESH = "1 hour"
AT_ONCE = 100
"""Pictures that are deleted in one transaction: uploads wait for it."""

_UNMEASURED = """
select id, record ->> 'location' from images where bytes is null and deleted_at is null and id > %s
order by id limit 1000
"""
_OVERDUE = f"""
with kept as (
    select 'image' as kind, id, bytes, created_at as at from images where deleted_at is null and bytes is not null
    union all
    select 'picture', id, max(bytes), max(used_at) from pictures group by id
), ranked as (
    select *, sum(bytes) over (order by at desc, kind, id) as up_to_here from kept
)
select kind, id, bytes from ranked
where at < now() - interval '{FRESH}' and (at < now() - make_interval(secs => %(seconds)s) or up_to_here > %(bytes)s)
    and not (kind = 'picture' and exists (
        select from jobs where status in ('queued', 'running')
            and ranked.id in (request ->> 'image', request ->> 'mask')))
order by at, kind, id limit %(limit)s
"""  # noqa: S608


class Doomed(Record):
    """A picture that is deleted, or would be."""

    kind: Literal["image", "picture"]
    """`image`: made here; `picture`: brought by a client to start from."""
    id: str
    bytes: int


class Retention:
    """The pictures of one store and its database."""

    def __init__(self, database: Database, settings: Settings) -> None:
        self._database, self._store = database, settings.store_url
        self.days, self.gigabytes = settings.keep_days, settings.keep_gb

    @property
    def on(self) -> bool:
        """Whether anything is ever deleted."""
        return self.days is not None or self.gigabytes is not None

    def overdue(self) -> list[Doomed]:
        """What `apply` would delete now, oldest first. Raises StorageError, DatabaseUnavailable."""
        self._measure()
        with self._database.connection() as connection:
            return self._overdue(connection, None)

    def apply(self) -> list[Doomed]:
        """Deletes files, then says so in their records; returns what is gone. What could not be deleted is tried again
        the next time. Raises StorageError, DatabaseUnavailable."""
        gone: list[Doomed] = []
        if not self.on:
            return gone
        self._measure()
        while True:
            with self._database.connection() as connection:
                connection.execute("lock table pictures in exclusive mode")
                doomed = self._overdue(connection, AT_ONCE)
                for one in doomed:
                    self._delete(connection, one)
            gone += doomed
            if len(doomed) < AT_ONCE:
                return gone

    def _overdue(self, connection: psycopg.Connection[Any], limit: int | None) -> list[Doomed]:
        most = {
            "seconds": 86_400 * self.days if self.days is not None else 1e11,
            "bytes": int(self.gigabytes * 1e9) if self.gigabytes is not None else 2**62,
            "limit": limit,
        }
        rows = connection.execute(_OVERDUE, most)
        return [Doomed(kind=kind, id=id, bytes=size) for kind, id, size in rows]

    def _delete(self, connection: psycopg.Connection[Any], one: Doomed) -> None:
        if one.kind == "picture":
            _remove(location(self._store, f"inputs/{one.id}.png"))
            connection.execute("delete from pictures where id = %s", [one.id])
            return
        query = "update images set deleted_at = now() where id = %s returning record ->> 'location'"
        (where,) = connection.execute(query, [one.id]).fetchone() or ("",)
        _remove(where)

    def _measure(self) -> None:
        """Looks once how large each image's file is; one whose file somebody else took away is gone. Where nothing at
        all lies in its folder, as if the disk is not mounted, it is looked at again the next time."""
        last = ""
        there = cache(_holds_files)
        while True:
            with self._database.connection() as connection:
                rows = connection.execute(_UNMEASURED, [last]).fetchall()
                for id, where in rows:
                    query = "update images set bytes = %s, deleted_at = case when %s then now() end where id = %s"
                    size = _size(where)
                    if size is not None or there(where.rpartition("/")[0]):
                        connection.execute(query, [size or 0, size is None, id])
            if not rows:
                return
            last = rows[-1][0]


def _size(where: str) -> int | None:
    """Bytes of a file; None if there is none."""
    filesystem, path = fsspec.core.url_to_fs(where)
    try:
        return int(filesystem.size(path))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StorageError(f"the size of {where} can't be read: {reason(error)}") from error


def _holds_files(folder: str) -> bool:
    filesystem, path = fsspec.core.url_to_fs(folder)
    try:
        return bool(filesystem.ls(path, detail=False))
    except FileNotFoundError:
        return False
    except OSError as error:
        raise StorageError(f"{folder} can't be looked at: {reason(error)}") from error


def _remove(where: str) -> None:
    filesystem, path = fsspec.core.url_to_fs(where)
    try:
        filesystem.rm_file(path)
    except FileNotFoundError:
        logger.info("%s was gone already", where)
    except OSError as error:
        raise StorageError(f"{where} can't be deleted: {reason(error)}") from error
