"""SIGKILL at random points of an ingestion, then the same command again: the catalog is as if nothing had happened."""

import json
import multiprocessing
import os
import random
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo
from safetensors.numpy import save_file

from stylus.catalog import Catalog
from stylus.database import Database
from stylus.embedded_postgres import EmbeddedPostgres
from stylus.files import Files
from stylus.ingest import IngestReport, ingest_folder
from tests.word_embedder import WordEmbedder

COUNT = 200
KILLS = 10
KEY = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k.lora_down.weight"


def make(root: Path, numbers: range) -> None:
    root.mkdir(exist_ok=True)
    for number in numbers:
        path = root / f"{number:03}.safetensors"
        save_file({KEY: np.full((1, 768), number, np.float16)}, path)
        path.with_suffix(".json").write_text(json.dumps({"description": f"the card of number {number}"}))


def change(root: Path) -> None:
    """Some files go, some move, some get another card, some come: every path of an ingestion is taken."""
    (root / "moved").mkdir()
    for number in range(0, 60):
        path = root / f"{number:03}.safetensors"
        if number % 3 == 0:
            path.unlink()
        elif number % 3 == 1:
            path.rename(root / "moved" / path.name)
            path.with_suffix(".json").rename(root / "moved" / f"{number:03}.json")
        else:
            path.with_suffix(".json").write_text(json.dumps({"description": f"number {number} in other words"}))
    make(root / "new", range(COUNT, COUNT + 60))


def ingest(url: str, root: Path) -> IngestReport:
    with Database(url) as database:
        return ingest_folder(root, Catalog(database), Files(database), WordEmbedder(), lambda *_: None)


def ingest_and_count(url: str, root: Path, most: int | None = None) -> tuple[IngestReport, int]:
    """With the number of calls (of Python's functions and of C's) that it took; the process is killed after `most`."""
    calls = 0

    def count(*_: object) -> None:
        nonlocal calls
        calls += 1
        if calls == most:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.setprofile(count)
    try:
        return ingest(url, root), calls
    finally:
        sys.setprofile(None)


def content(url: str) -> list[object]:
    """All that a person or a later run can see of the catalog, but for the times at which it was written."""
    with psycopg.connect(url) as connection:
        return [
            connection.execute(query).fetchall()
            for query in (
                "select to_jsonb(adapters) - '{added_at, updated_at}'::text[] from adapters order by id",
                "select adapter, model, chunk, embedding::text from embeddings order by 1, 2, 3",
                "select * from files order by path",
            )
        ]


@pytest.fixture
def clone(postgres: EmbeddedPostgres, database_url: str) -> Iterator[Callable[[int], str]]:
    """Makes copies of this test's database as it is at that moment."""
    copies: list[sql.Identifier] = []

    def copy(number: int) -> str:
        source = psycopg.conninfo.conninfo_to_dict(database_url)["dbname"]
        name = f"{source}_{number}"
        copies.append(sql.Identifier(name))
        with psycopg.connect(postgres.url, autocommit=True) as connection:
            query = sql.SQL("create database {} template {}")
            connection.execute(query.format(copies[-1], sql.Identifier(str(source))))
        return make_conninfo(postgres.url, dbname=name)

    yield copy
    with psycopg.connect(postgres.url, autocommit=True) as connection:
        for name in copies:
            connection.execute(sql.SQL("drop database {} with (force)").format(name))


def test_killed_at_ten_random_points_then_run_again(
    database_url: str, clone: Callable[[int], str], tmp_path: Path
) -> None:
    root = tmp_path / "loras"
    make(root, range(COUNT))
    ingest(database_url, root)
    change(root)
    untouched, undisturbed = content(database_url), clone(KILLS)
    report, calls = ingest_and_count(undisturbed, root)
    assert (report.added, report.moved, report.updated, report.missing) == (60, 20, 20, 20)
    expected = content(undisturbed)
    # A server that has read the modules once forks each victim in milliseconds.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    chance, states = random.Random(3), list[list[object]]()
    for number in range(KILLS):
        url = clone(number)
        victim = context.Process(target=ingest_and_count, args=(url, root, chance.randrange(calls)))
        victim.start()
        victim.join()
        assert victim.exitcode == -signal.SIGKILL
        states.append(content(url))
        ingest(url, root)
        assert content(url) == expected, f"kill {number}"
    assert any(state not in (untouched, expected) for state in states), "no kill left anything half done"
