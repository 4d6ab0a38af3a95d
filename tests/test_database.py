"""Database against a real server: migrations, transactions, errors, the server going away and coming back."""

import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psycopg
import pytest
from alembic.config import Config
from alembic.script import ScriptDirectory
from psycopg.conninfo import make_conninfo

from stylus import migrate as migrations
from stylus.database import Database
from stylus.embedded_postgres import EmbeddedPostgres
from stylus.errors import DatabaseUnavailable, InvalidInput, StorageError
from stylus.settings import Settings


def test_a_clone_is_at_the_newest_revision_with_all_tables(database: Database) -> None:
    with database.connection() as connection:
        names = {row[0] for row in connection.execute("select tablename from pg_tables where schemaname = 'public'")}
        revision = connection.execute("select version_num from alembic_version").fetchone()
    assert {"adapters", "embeddings", "compositions", "images", "procrastinate_jobs"} <= names
    assert revision == (migrations.newest(),)


def test_file_names_agree_with_alembic() -> None:
    config = Config()
    config.set_main_option("script_location", str(migrations.folder()))
    config.set_main_option("path_separator", "os")
    script = ScriptDirectory.from_config(config)
    assert script.get_heads() == [migrations.newest()]
    assert all(Path(revision.path).name.startswith(f"{revision.revision}_") for revision in script.walk_revisions())


def test_opening_a_migrated_database_does_not_import_alembic(settings: Settings) -> None:
    code = (
        "import sys; from stylus.database import Database; from stylus.settings import Settings\n"
        "Database.open(Settings.read()).close()\n"
        "assert 'alembic' not in sys.modules and 'sqlalchemy' not in sys.modules"
    )
    assert settings.database_url is not None
    environment = {**os.environ, "STYLUS_DATABASE_URL": settings.database_url.get_secret_value()}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)


def test_many_openers_of_an_empty_database_migrate_it_once(postgres: EmbeddedPostgres) -> None:
    with psycopg.connect(postgres.url, autocommit=True) as connection:
        connection.execute("create database opened_by_many")
    url = make_conninfo(postgres.url, dbname="opened_by_many")
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(migrations.migrate, [url] * 4))
    with psycopg.connect(url) as connection:
        assert connection.execute("select count(*) from alembic_version").fetchone() == (1,)


def test_an_index_of_names_becomes_one_of_cards_and_names(postgres: EmbeddedPostgres) -> None:
    with psycopg.connect(postgres.url, autocommit=True) as connection:
        connection.execute("create database with_old_indexes")
    url = make_conninfo(postgres.url, dbname="with_old_indexes")
    migrations.migrate(url)
    with psycopg.connect(url) as connection:
        connection.execute("update alembic_version set version_num = '0015'")
        for name, options, held in (("", "", "chunk >= 0"), ("names_", "with (m = 8)", "chunk < 0")):
            connection.execute(
                f"create index embeddings_{name}0123456789abcdef on embeddings using hnsw "
                f"((embedding::halfvec(2)) halfvec_cosine_ops) {options} where model = 'm' and {held}"
            )
    migrations.migrate(url)
    with psycopg.connect(url) as connection:
        query = "select indexname, indexdef from pg_indexes where indexdef like '%hnsw%'"
        found = {name: definition.partition("_ops) ")[2] for name, definition in connection.execute(query)}
    assert found == {
        "embeddings_0123456789abcdef": "WHERE ((model = 'm'::text) AND (chunk >= 0))",
        "embeddings_all_0123456789abcdef": "WITH (m='8') WHERE (model = 'm'::text)",
    }


def test_a_database_of_a_newer_stylus_is_refused(database: Database) -> None:
    with database.connection() as connection:
        connection.execute("update alembic_version set version_num = '9999'")
    with pytest.raises(DatabaseUnavailable, match=r"9999.*Update"):
        migrations.migrate(database.url)


def test_without_the_right_to_create_the_extension_the_error_says_whom_to_ask(postgres: EmbeddedPostgres) -> None:
    with psycopg.connect(postgres.url, autocommit=True) as connection:
        connection.execute("create role plain login")
        connection.execute("create database owned_by_plain owner plain")
    with pytest.raises(DatabaseUnavailable, match=r"'plain'.*create extension vector"):
        migrations.migrate(make_conninfo(postgres.url, dbname="owned_by_plain", user="plain"))


def test_a_block_that_raises_is_rolled_back(database: Database) -> None:
    with pytest.raises(ZeroDivisionError), database.connection() as connection:
        connection.execute("create table t (x int)")
        raise ZeroDivisionError
    with database.connection() as connection:
        assert connection.execute("select to_regclass('t')").fetchone() == (None,)


def test_of_two_that_wait_for_each_other_both_end(database: Database) -> None:
    with database.connection() as connection:
        connection.execute("create table t (x int, n int); insert into t values (1, 0), (2, 0)")
    both_hold_one = threading.Barrier(2)
    begun: list[int] = []

    def add(first: int, second: int) -> None:
        def work(connection: psycopg.Connection[Any]) -> None:
            begun.append(first)
            connection.execute("update t set n = n + 1 where x = %s", [first])
            if len(begun) <= 2:
                both_hold_one.wait(30)
            connection.execute("update t set n = n + 1 where x = %s", [second])

        database.transact(work)

    with ThreadPoolExecutor(2) as pool:
        for done in [pool.submit(add, 1, 2), pool.submit(add, 2, 1)]:
            done.result()
    with database.connection() as connection:
        assert connection.execute("select n from t").fetchall() == [(2,), (2,)]
    assert len(begun) > 2


def test_text_with_nul_is_invalid_input_and_the_connection_survives(database: Database) -> None:
    with pytest.raises(InvalidInput, match="NUL"), database.connection() as connection:
        connection.execute("select %s", ["a\0b"])
    with database.connection() as connection:
        assert connection.execute("select 1").fetchone() == (1,)


def test_a_full_disk_is_a_storage_error(database: Database) -> None:
    full = (
        "do $$ begin raise exception 'could not extend file: No space left on device' using errcode = '53100'; end $$"
    )
    with pytest.raises(StorageError, match="No space left"), database.connection() as connection:
        connection.execute(full)


def test_connections_that_the_server_ended_are_replaced(database: Database) -> None:
    with database.connection() as connection:
        pid = connection.info.backend_pid
    with psycopg.connect(database.url, autocommit=True) as other:
        other.execute("select pg_terminate_backend(%s)", [pid])
    with database.connection() as connection:
        assert connection.info.backend_pid != pid


def test_a_connection_that_dies_in_use_is_unavailable_and_the_next_works(database: Database) -> None:
    with pytest.raises(DatabaseUnavailable, match="Try again"), database.connection() as connection:
        connection.execute("select pg_terminate_backend(pg_backend_pid())")
    with database.connection() as connection:
        assert connection.execute("select 1").fetchone() == (1,)


def test_an_unreachable_server_is_told_at_once(tmp_path: Path) -> None:
    url = "postgresql://stylus:secret@127.0.0.1:1/stylus"
    began = time.monotonic()
    with pytest.raises(DatabaseUnavailable, match="STYLUS_DATABASE_URL") as caught:
        Database.open(Settings.model_validate({"database_url": url, "data": tmp_path}))
    assert time.monotonic() - began < 5
    assert "secret" not in str(caught.value)


def test_many_threads_share_few_connections(database: Database) -> None:
    def ask(number: int) -> int:
        with database.connection() as connection:
            row = connection.execute("select %s::int", [number]).fetchone()
        assert row is not None
        return int(row[0])

    with ThreadPoolExecutor(40) as pool:
        assert list(pool.map(ask, range(200))) == list(range(200))


def test_a_given_server_that_stops_and_returns_is_used_again(tmp_path: Path, home: Path) -> None:
    server = EmbeddedPostgres(home)
    url = server.url
    with Database.open(Settings.model_validate({"database_url": url, "data": tmp_path})) as database:
        with database.connection():
            pass
        server.close()
        with pytest.raises(DatabaseUnavailable, match="once the server of STYLUS_DATABASE_URL is back"):  # noqa: SIM117
            with database.connection():
                pass
        server = EmbeddedPostgres(home)
        with database.connection() as connection:
            assert connection.execute("select count(*) from adapters").fetchone() == (0,)
    server.close()


def test_an_embedded_server_killed_while_serving_is_started_again(home: Path) -> None:
    with Database.open(Settings.model_validate({"data": home.parent})) as database:
        with database.connection() as connection:
            connection.execute("create table kept (x int)")
        pid = int((home / "cluster" / "postmaster.pid").read_text().split()[0])
        os.kill(pid, signal.SIGKILL)
        time.sleep(0.5)  # its children notice and go
        with database.connection() as connection:
            assert connection.execute("select count(*) from kept").fetchone() == (0,)


def test_a_closed_database_says_so(settings: Settings) -> None:
    database = Database.open(settings)
    database.close()
    database.close()
    with pytest.raises(DatabaseUnavailable, match="closed"), database.connection():
        pass
