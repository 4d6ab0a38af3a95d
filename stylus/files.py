"""All SQL on the files behind adapters: which were read from folders and how they looked then, to tell what changed."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from stylus.database import Database
from stylus.records import BaseModelFamily


@dataclass(frozen=True)
class Seen:
    """A file as it was when it was last read."""

    path: str
    adapter: str
    bytes: int
    modified: int
    """Nanoseconds since 1970."""
    beside: str
    """Which cards and pictures lay beside it, their sizes and times."""
    claimed: BaseModelFamily | None
    """The base model that the card names where the tensors are of another."""


@dataclass(frozen=True)
class Shelved:
    """A file with what became of its adapter."""

    seen: Seen
    stands_at: str | None
    """Where the adapter's file is by the catalog: elsewhere for the copies of one file."""
    current: bool
    """Whether the adapter has vectors of the model that was asked for, and is not missing."""


class Files:
    """The files of a database. Safe to share between threads."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def under(self, root: Path, model: str) -> dict[str, Shelved]:
        """Path -> what is known of each file under `root`."""
        query = """
            select path, adapter, files.bytes, modified, beside, claimed, file,
                   not missing and exists (select from embeddings where embeddings.adapter = id and model = %s)
            from files join adapters on id = files.adapter where starts_with(path, %s)
        """
        with self._database.connection() as connection:
            return {
                path: Shelved(Seen(path, adapter, size, modified, beside, _family(claimed)), stands_at, current)
                for path, adapter, size, modified, beside, claimed, stands_at, current in connection.execute(
                    query, [model, _inside(root)]
                )
            }

    def keep(self, files: Iterable[Seen]) -> None:
        """Remembers files as they are now; their adapters must be in the catalog."""
        query = """
            insert into files (path, adapter, bytes, modified, beside, claimed) values (%s, %s, %s, %s, %s, %s)
            on conflict (path) do update set adapter = excluded.adapter, bytes = excluded.bytes,
                modified = excluded.modified, beside = excluded.beside, claimed = excluded.claimed
        """
        with self._database.connection() as connection, connection.cursor() as cursor:
            cursor.executemany(query, [(f.path, f.adapter, f.bytes, f.modified, f.beside, f.claimed) for f in files])

    def standing(self, root: Path) -> dict[str, str]:
        """Id -> path of the adapters of folders that are said to lie under `root`."""
        query = "select id, file from adapters where id like 'file:%%' and not missing and starts_with(file, %s)"
        with self._database.connection() as connection:
            return dict(connection.execute(query, [_inside(root)]).fetchall())

    def gone(self, paths: Sequence[str], adapters: Sequence[str]) -> None:
        """Forgets files, and marks adapters as missing."""
        with self._database.connection() as connection:
            connection.execute("delete from files where path = any(%s)", [list(paths)])
            connection.execute(
                "update adapters set missing = true, updated_at = now() where id = any(%s)", [list(adapters)]
            )


def _family(name: str | None) -> BaseModelFamily | None:
    return None if name is None else BaseModelFamily(name)


def _inside(root: Path) -> str:
    return f"{str(root).rstrip('/')}/"
