"""Brings a database to the newest revision of `migrations/` (Alembic), one process at a time.

Alembic and SQLAlchemy take most of a second to import, so they are left alone when there is nothing to do: revisions
are named by the number that their file starts with, and the highest is the newest.
"""

from pathlib import Path
from typing import Any

import psycopg

from stylus.errors import DatabaseUnavailable

_LOCK = 0x5374796C7573
"""Key of the advisory lock: 'Stylus' in ASCII."""

_VECTOR_NEEDED = (0, 8)
"""The first pgvector with iterative index scans, which keep K results under a filter."""


def folder() -> Path:
    """Where the revisions lie: inside the package when installed from a wheel, beside it in a checkout."""
    packaged = Path(__file__).parent / "migrations"
    return packaged if packaged.is_dir() else Path(__file__).parent.parent / "migrations"


def newest() -> str:
    """The newest revision's name, as `0002`."""
    return max(path.name.split("_", 1)[0] for path in (folder() / "versions").glob("[0-9]*.py"))


def migrate(url: str) -> None:
    """Applies the missing revisions, all of them or none. Raises DatabaseUnavailable: no rights for the vector
    extension, none installed, too old, or a database of a newer Stylus."""
    head = newest()
    with psycopg.connect(url, autocommit=True) as connection:
        if _revision(connection) == head:
            return
        connection.execute("select pg_advisory_lock(%s)", [_LOCK])
        try:
            revision = _revision(connection)
            if revision is not None and revision > head:
                raise DatabaseUnavailable(
                    f"The database is at revision {revision}, this Stylus knows {head}: a newer Stylus has used it. "
                    "Update this one, or give it another database by STYLUS_DATABASE_URL."
                )
            if revision != head:
                _ensure_vector(connection)
                _upgrade(url)
        finally:
            connection.execute("select pg_advisory_unlock(%s)", [_LOCK])


def _revision(connection: psycopg.Connection) -> str | None:
    try:
        row = connection.execute("select version_num from alembic_version").fetchone()
    except psycopg.errors.UndefinedTable:
        return None
    return str(row[0]) if row else None


def _ensure_vector(connection: psycopg.Connection) -> None:
    find = "select extversion from pg_extension where extname = 'vector'"
    row = connection.execute(find).fetchone()
    if row is None:
        try:
            connection.execute("create extension if not exists vector")
        except psycopg.errors.InsufficientPrivilege as error:
            raise DatabaseUnavailable(
                f"The user {connection.info.user!r} may not create the extension vector in {connection.info.dbname!r}. "
                "Have an administrator run `create extension vector` there, then start Stylus again."
            ) from error
        except (psycopg.errors.FeatureNotSupported, psycopg.errors.UndefinedFile) as error:
            raise DatabaseUnavailable(
                "This Postgres has no pgvector. Install pgvector on it, or unset STYLUS_DATABASE_URL to use the "
                "embedded Postgres."
            ) from error
        row = connection.execute(find).fetchone()
    version = str(row[0]) if row else "none"
    if tuple(int(part) for part in version.split(".")[:2] if part.isdigit()) < _VECTOR_NEEDED:
        wanted = ".".join(map(str, _VECTOR_NEEDED))
        raise DatabaseUnavailable(
            f"The extension vector is at version {version}, Stylus needs {wanted}. Install a newer pgvector, then run "
            f"`alter extension vector update` in {connection.info.dbname!r}."
        )


def _upgrade(url: str) -> None:
    import sqlalchemy
    from alembic import command
    from alembic.config import Config

    def connect() -> psycopg.Connection[Any]:
        return psycopg.connect(url)

    engine = sqlalchemy.create_engine("postgresql+psycopg://", creator=connect, poolclass=sqlalchemy.NullPool)
    with engine.begin() as connection:
        config = Config()
        config.set_main_option("script_location", str(folder()).replace("%", "%%"))
        config.set_main_option("path_separator", "os")
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
