"""Filtered nearest-neighbour search through Postgres at the size of the paper's catalog and beyond, beside numpy.

`python -m tests.benchmarks.scale --cards 100000 --cards 400000 --json OUT`. Dense only, query vector given. The vectors
are synthetic: topics of very uneven popularity inside areas, with a spread whose spectrum falls like that of embedded
text, so that the cosine of a query's 1st, 10th, 150th and 1000th neighbour of 20,000 is about 0.76, 0.67, 0.48 and
0.30. Queries are drawn anew from the same topics. Families keep 50% (sd15) and 5% (flux). numpy's exact search is over
float32 in RAM, of the filtered vectors alone (gathered before the clock starts), twenty queries in turn with twenty of
ours: what drifts on the machine meets both, and neither finds the caches full of the other's work each time.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil  # type: ignore[import-untyped]
from pgvector import HalfVector
from pgvector.psycopg import register_vector

from stylus import search_index
from stylus.catalog import Catalog
from stylus.database import Database
from stylus.embedder import DEFAULT
from stylus.records import BaseModelFamily, Filters
from stylus.settings import Settings
from tests.benchmarks import data_folder

DIMENSION, TOPICS, AREAS = 384, 2000, 40
K = 150
QUERIES = 200
TURN = 20
BATCH = 10_000
FAMILIES = {"sd15": 0.50, "sdxl": 0.45, "flux": 0.05}
FILTERS = {"none": None, "0.5": BaseModelFamily.SD15, "0.05": BaseModelFamily.FLUX}


class World:
    """Draws cards' vectors and queries from one set of topics."""

    def __init__(self, seed: int = 0) -> None:
        self._random = np.random.default_rng(seed)
        spectrum = np.arange(1, DIMENSION + 1) ** -0.5
        self._spectrum = (spectrum / np.linalg.norm(spectrum)).astype(np.float32)
        areas = self._spread(AREAS)
        self._topics = areas[self._random.integers(AREAS, size=TOPICS)] + self._spread(TOPICS)
        popularity = 1 / np.arange(10, TOPICS + 10)
        self._popularity = popularity / popularity.sum()

    def vectors(self, count: int) -> np.ndarray:
        """float32 [count, 384], of unit length."""
        topics = self._random.choice(TOPICS, size=count, p=self._popularity)
        points = self._topics[topics] + self._spread(count)
        return np.asarray(points / np.linalg.norm(points, axis=1, keepdims=True), np.float32)

    def families(self, count: int) -> np.ndarray:
        return self._random.choice(list(FAMILIES), size=count, p=list(FAMILIES.values()))

    def _spread(self, count: int) -> np.ndarray:
        drawn = self._random.standard_normal((count, DIMENSION), np.float32)
        return np.asarray(drawn * self._spectrum, np.float32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cards", type=int, action="append", required=True, help="may be given several times")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    arguments = parser.parse_args()
    results = {}
    for count in arguments.cards:
        with data_folder() as folder, Database.open(Settings(data=folder)) as database:
            results[str(count)] = measure(database, count)
        print(json.dumps({count: results[str(count)]}, indent=2), flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2) + "\n")


def measure(database: Database, count: int) -> dict[str, Any]:
    world, catalog = World(), Catalog(database)
    vectors, families, queries = world.vectors(count), world.families(count), world.vectors(QUERIES)
    start = time.perf_counter()
    load(database, vectors, families, ((f"card {number}", "") for number in range(count)))
    loaded = time.perf_counter()
    catalog.index(DEFAULT)
    indexed = time.perf_counter()
    result: dict[str, Any] = {"load_per_s": round(count / (loaded - start)), "index_s": round(indexed - loaded, 1)}
    for name, family in FILTERS.items():
        rows = np.flatnonzero(families == family) if family else np.arange(count)
        result[name] = compare(catalog, queries, family, vectors[rows] if family else vectors, rows)
    result["numpy_p50_ms"] = result["none"]["numpy_p50_ms"]
    return result


def load(database: Database, vectors: np.ndarray, families: np.ndarray, texts: Iterable[tuple[str, str]]) -> None:
    """Adapters, each with its name and description, then their vectors; by COPY, in batches. Triggers give each its
    facet, as in any ingestion."""
    columns = "id, name, description, base_model, kind, category, rating, tags, trigger_words, examples, weight, "
    columns += "refined, hidden, missing, content_hash"
    plain = ("lora", "concept", "general", "{}", "{}", "[]", 0.8, False, False, False, "")
    stream = iter(texts)
    for first in range(0, len(vectors), BATCH):
        places = range(first, min(first + BATCH, len(vectors)))
        with database.connection() as connection:
            register_vector(connection)
            cursor = connection.cursor()
            with cursor.copy(f"copy adapters ({columns}) from stdin") as copy:
                for i in places:
                    copy.write_row((f"scale:{i}", *next(stream), str(families[i]), *plain))
            with cursor.copy("copy embeddings (adapter, model, chunk, embedding) from stdin (format binary)") as copy:
                copy.set_types(["text", "text", "int4", "halfvec"])
                for i in places:
                    copy.write_row((f"scale:{i}", DEFAULT, 0, HalfVector(vectors[i])))


def compare(
    catalog: Catalog, queries: np.ndarray, family: BaseModelFamily | None, vectors: np.ndarray, rows: np.ndarray
) -> dict[str, float]:
    """Ours and numpy's exact search of `vectors`, which are those of the cards `rows`. `server_cpu_ms` is what Postgres
    worked for a query: on a busy machine the rest of p50 is waiting for a core."""

    def ours(query: np.ndarray) -> set[str]:
        with catalog.reading() as connection:
            among = search_index.facets(connection, Filters(base_model=family))
            [found] = search_index.nearest(connection, query[None], DEFAULT, among, K)
        return set(found.scores)

    def exact(query: np.ndarray) -> set[str]:
        similarities = vectors @ query
        best = np.argpartition(-similarities, K)[:K]
        best = best[np.argsort(-similarities[best])]
        return {f"scale:{row}" for row in rows[best]}

    ours(queries[0])  # to warm up
    with catalog.reading() as connection:
        server = psutil.Process(connection.info.backend_pid)
    worked = sum(server.cpu_times()[:2])
    seconds: dict[str, list[float]] = {"ours": [], "exact": []}
    recalls = []
    for start in range(0, len(queries), TURN):
        turn = queries[start : start + TURN]
        pairs = zip(_timed(ours, turn, seconds["ours"]), _timed(exact, turn, seconds["exact"]), strict=True)
        recalls += [len(found & best) / K for found, best in pairs]
    return {
        "p50_ms": milliseconds(seconds["ours"], 50),
        "p95_ms": milliseconds(seconds["ours"], 95),
        "recall": round(float(np.mean(recalls)), 4),
        "numpy_p50_ms": milliseconds(seconds["exact"], 50),
        "server_cpu_ms": round(1000 * (sum(server.cpu_times()[:2]) - worked) / len(queries), 2),
    }


def _timed(search: Callable[[np.ndarray], set[str]], queries: np.ndarray, seconds: list[float]) -> list[set[str]]:
    found = []
    for query in queries:
        start = time.perf_counter()
        found.append(search(query))
        seconds.append(time.perf_counter() - start)
    return found


def milliseconds(seconds: Sequence[float], percentile: int) -> float:
    """A percentile of durations."""
    return round(1000 * float(np.percentile(seconds, percentile)), 2)


if __name__ == "__main__":
    main()
