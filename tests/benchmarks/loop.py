"""Seconds of each stage of the loop at several batch sizes on the pocket world, and Stylus's share of the whole.

`python -m tests.benchmarks.loop --json OUT`. Overhead is (search + compose + load) / generate, as in the paper's
section 4.4, where it is 75% at batch 1. Each figure is the median over the prompts of one run, after one warm-up; every
generation loads its adapters anew, so that `load` is not flattered by the cache.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

from stylus.ingest import ingest_pocket
from stylus.lexical_composer import Limits
from stylus.pocket import prompts
from stylus.records import BaseModelFamily
from stylus.settings import Settings
from stylus.stylus import Stylus

BATCHES = (1, 2, 4, 8)
PROMPTS = 8
STAGES = ("search", "compose", "load", "generate")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="where to write the figures")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, Stylus(Settings(data=Path(folder))) as stylus:
        ingest_pocket(stylus.catalog, stylus.embedder)
        _time_one(stylus, prompts()[0].text, 1)
        result = {str(batch): _measure(stylus, batch) for batch in BATCHES}
    text = json.dumps(result, indent=2)
    print(text)
    if arguments.json:
        arguments.json.write_text(text + "\n")


def _measure(stylus: Stylus, batch: int) -> dict[str, float]:
    texts = [prompt.text for prompt in prompts() if len(prompt.concepts) > 1][:PROMPTS]
    runs = [_time_one(stylus, text, batch) for text in texts]
    medians = {stage: statistics.median(run[stage] for run in runs) for stage in STAGES}
    overhead = (medians["search"] + medians["compose"] + medians["load"]) / medians["generate"]
    return {name: round(value, 4) for name, value in {**medians, "overhead": overhead}.items()}


def _time_one(stylus: Stylus, text: str, batch: int) -> dict[str, float]:
    start = time.perf_counter()
    matches = stylus.candidates(text, BaseModelFamily.POCKET)
    found = time.perf_counter()
    stylus.composer.compose(text, matches, Limits(), 0.0)
    composed = time.perf_counter()
    composition = stylus.compose(text, base_model=BaseModelFamily.POCKET)
    stylus.generator.forget_adapters()
    images = stylus.generate(composition, count=batch, seed=1)
    seconds = images[0].seconds
    return {"search": found - start, "compose": composed - found, **{s: seconds[s] for s in ("load", "generate")}}


if __name__ == "__main__":
    main()
