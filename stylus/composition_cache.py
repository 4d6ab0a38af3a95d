"""Drafts of language models that were asked for before, in Postgres: at temperature 0 the same question costs once.

The key holds everything that the answer depends on, candidates by content, so that a stale draft can't be found; the
revision of the catalog throws away what can't be asked again.
"""

from stylus.database import Database

MOST = 1000
"""Drafts that are kept: the least recently used leave first."""


class CompositionCache:
    """Of the drafts that belong to the catalog as it is now. Safe to share between threads and processes."""

    def __init__(self, database: Database, most: int = MOST) -> None:
        self._database = database
        self._most = most

    def get(self, key: str) -> object | None:
        """The draft of that key, as JSON; None if there is none, or the catalog has changed since."""
        query = (
            "update composition_cache set used_at = clock_timestamp() "
            "where key = %s and revision = (select last_value from catalog_revision) returning draft"
        )
        with self._database.connection() as connection:
            row = connection.execute(query, [key]).fetchone()
        return row[0] if row else None

    def put(self, key: str, draft: str, revision: int) -> None:
        """Keeps a draft (JSON) that was asked for at that revision, and drops those of others and those too many."""
        keep = (
            "insert into composition_cache (key, revision, draft, used_at) values (%s, %s, %s, clock_timestamp()) "
            "on conflict (key) do update set "
            "revision = excluded.revision, draft = excluded.draft, used_at = excluded.used_at"
        )
        drop = (
            "delete from composition_cache where revision <> (select last_value from catalog_revision) "
            "or key in (select key from composition_cache order by used_at desc, key offset %s)"
        )
        with self._database.connection() as connection:
            connection.execute(keep, [key, revision, draft])
            connection.execute(drop, [self._most])

    def revision(self) -> int:
        """Of the catalog: grows with every change of an adapter."""
        with self._database.connection() as connection:
            row = connection.execute("select last_value from catalog_revision").fetchone()
        return int(row[0]) if row else 0
