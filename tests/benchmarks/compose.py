"""A lexical composition, retrieval included, at the size of the paper's catalog, beside one pocket image in one run.

`python -m tests.benchmarks.compose --cards 100000 --json OUT`. The cards are made up: each is of one of 2,000 things
("brass telescope"), of very uneven popularity, with that name, 25 words and two vectors, of the card and of the name,
scattered around that of the thing. What is timed is `Stylus.compose` as anyone calls it, over prompts that are all
different; their words are not, and the vectors of those are kept. `cpu_ms` is what this process and Postgres worked for
one: beside other work the rest is waiting for a core.
"""

import argparse
import json
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random

import numpy as np
import psutil  # type: ignore[import-untyped]
from pgvector import HalfVector
from pgvector.psycopg import register_vector

from stylus.database import Database
from stylus.embedder import DEFAULT
from stylus.ingest import ingest_pocket
from stylus.keywords import search_terms
from stylus.pocket import prompts
from stylus.records import BaseModelFamily
from stylus.settings import Settings
from stylus.stylus import Stylus
from tests.benchmarks import data_folder
from tests.benchmarks.scale import BATCH, DIMENSION, FAMILIES, load, milliseconds

_LISTS = {
    "looks": """
        brass wooden knitted glass velvet rusty marble paper golden frozen striped mossy neon ceramic woven
        polished ancient painted folded stormy dusty crystal leather floral copper quilted foggy sunlit carved
        silver plaid bamboo porcelain gothic baroque pastel chrome origami tribal nautical""",
    "things": """
        telescope fox greenhouse robot pier dragon lantern bicycle teapot owl castle lighthouse piano scarf
        umbrella train orchid violin sailboat corgi clock bridge helmet windmill bakery mermaid raven canyon
        throne balloon typewriter lemon waterfall knight carousel pumpkin wolf library astronaut tulip market
        whale cottage mushroom chessboard harp tiger diner snowman temple""",
}
LOOKS, THINGS = (text.split() for text in _LISTS.values())
FORMS = (
    "a {} beside a {}, oil painting",
    "two children with a {} and a {} in front of a {}",
    "{} on a table next to a {}, watercolour, soft light",
    "an old man holding a {} in a {} at dawn, {} in the distance",
    "a photo of a {} made of {}",
)
PROMPTS, IMAGES = 60, 5
NEAR, NAMED = 0.7, 0.35
"""How far a card's vector and its name's lie from the thing's, of length 1."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cards", type=int, default=100_000)
    parser.add_argument("--json", type=Path, help="where to write the figures")
    parser.add_argument("--data", type=Path, help="a folder to fill, or that an earlier run has filled")
    arguments = parser.parse_args()
    with data_folder() as folder, Stylus(Settings(data=arguments.data or folder)) as stylus:
        if not stylus.catalog.count().get(BaseModelFamily.SD15):
            fill(stylus, arguments.cards)
        result = {"cards": sum(stylus.catalog.count().values()), **measure(stylus)}
    text = json.dumps(result, indent=2)
    print(text)
    if arguments.json:
        arguments.json.write_text(text + "\n")


def fill(stylus: Stylus, count: int) -> None:
    """The pocket world and `count` made-up cards, with vectors, words and indexes."""
    ingest_pocket(stylus.catalog, stylus.embedder)
    random = np.random.default_rng(0)
    things = [f"{look} {thing}" for look in LOOKS for thing in THINGS]
    random.shuffle(things)
    popularity = 1 / np.arange(10, len(things) + 10)
    of = random.choice(len(things), size=count, p=popularity / popularity.sum())
    centres = stylus.embedder.documents(things)[of]
    families = random.choice(list(FAMILIES), size=count, p=list(FAMILIES.values()))
    texts = zip((f"{things[thing]} {number}" for number, thing in enumerate(of)), _fillers(random, count), strict=True)
    load(stylus.database, _scattered(random, centres, NEAR), families, texts)
    _load_names(stylus.database, _scattered(random, centres, NAMED))
    with stylus.database.connection() as connection:  # composed with only where the weights can be had
        connection.execute("update adapters set download = 'https://localhost/' where id like 'scale:%'")
    while stylus.catalog.read_words(5000):
        pass
    stylus.catalog.index(DEFAULT)


def _scattered(random: np.random.Generator, centres: np.ndarray, distance: float) -> np.ndarray:
    """Unit vectors around others, by noise whose spectrum falls like that of embedded text."""
    spectrum = np.arange(1, DIMENSION + 1, dtype=np.float32) ** -0.5
    spectrum *= distance / np.linalg.norm(spectrum)
    points = centres + random.standard_normal(centres.shape, np.float32) * spectrum
    return np.asarray(points / np.linalg.norm(points, axis=1, keepdims=True), np.float32)


def _fillers(random: np.random.Generator, count: int) -> Iterator[str]:
    """Descriptions of 25 words, as uneven in number as words are; one of ten is a look or a thing of other cards."""
    spoken = [*LOOKS, *THINGS]
    words = np.array([spoken.pop() if i % 10 == 0 and spoken else f"w{i:x}" for i in range(20_000)])
    frequency = 1 / np.arange(20, len(words) + 20)
    frequency /= frequency.sum()
    for _ in range(count):
        yield " ".join(random.choice(words, size=25, p=frequency))


def _load_names(database: Database, vectors: np.ndarray) -> None:
    for first in range(0, len(vectors), BATCH):
        with database.connection() as connection:
            register_vector(connection)
            columns = "(adapter, model, chunk, embedding)"
            with connection.cursor().copy(f"copy embeddings {columns} from stdin (format binary)") as copy:
                copy.set_types(["text", "text", "int4", "halfvec"])
                for i, vector in enumerate(vectors[first : first + BATCH], start=first):
                    copy.write_row((f"scale:{i}", DEFAULT, -1, HalfVector(vector)))


def measure(stylus: Stylus) -> dict[str, float]:
    """Compositions, each of another prompt, then images."""
    random = Random(0)
    asked = [
        random.choice(FORMS).format(*(f"{random.choice(LOOKS)} {random.choice(THINGS)}" for _ in range(3)))
        for _ in range(PROMPTS)
    ]
    for prompt in asked[:5]:  # to warm up
        stylus.compose(prompt, base_model=BaseModelFamily.SD15)
    worked = _work(stylus.database)
    whole, adapters = [], []
    for prompt in asked[5:]:
        start = time.perf_counter()
        composition = stylus.compose(prompt, base_model=BaseModelFamily.SD15)
        whole.append(time.perf_counter() - start)
        adapters.append(len(composition.choices))
    worked = _work(stylus.database) - worked
    stylus.embedder.forget()
    for prompt in asked[:5]:
        stylus.embedder.queries([prompt, *search_terms(prompt)])
    embedding, here = [], time.process_time()
    for prompt in asked[5:]:
        start = time.perf_counter()
        stylus.embedder.queries([prompt, *search_terms(prompt)])
        embedding.append(time.perf_counter() - start)
    here = time.process_time() - here
    image = _image(stylus)
    p50 = milliseconds(whole, 50)
    return {
        "p50_ms": p50,
        "p95_ms": milliseconds(whole, 95),
        "cpu_ms": round(1000 * worked / len(whole), 1),
        "embedding_p50_ms": milliseconds(embedding, 50),
        "embedding_cpu_ms": round(1000 * here / len(embedding), 1),
        "adapters_per_prompt": round(statistics.fmean(adapters), 2),
        "image_s": round(image, 3),
        "share": round(p50 / 1000 / image, 4),
    }


def _image(stylus: Stylus) -> float:
    """Median seconds of one pocket image as `stylus generate` makes it, its composition not counted."""
    composition = stylus.compose(prompts()[0].text, base_model=BaseModelFamily.POCKET)
    seconds = []
    for seed in range(IMAGES + 1):
        start = time.perf_counter()
        stylus.generate(composition, seed=seed)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[1:])  # the first loads the checkpoint


def _work(database: Database) -> float:
    """CPU seconds of this process and of Postgres for it so far."""
    with database.connection() as connection:
        rows = connection.execute("select pid from pg_stat_activity where application_name = 'stylus'").fetchall()
    return time.process_time() + sum(sum(psutil.Process(pid).cpu_times()[:2]) for (pid,) in rows)


if __name__ == "__main__":
    main()
