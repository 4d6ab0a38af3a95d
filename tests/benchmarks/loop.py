"""Seconds of each stage of the loop at several batch sizes on the pocket world, and Stylus's share of the whole.

`python -m tests.benchmarks.loop --json OUT`; `stylus.evaluation.overhead` says what is measured.
"""

import argparse
import json
from pathlib import Path

from stylus.evaluation.overhead import overhead
from stylus.ingest import ingest_pocket
from stylus.pocket import prompts
from stylus.records import BaseModelFamily
from stylus.settings import Settings
from stylus.stylus import Stylus
from tests.benchmarks import data_folder

PROMPTS = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="where to write the figures")
    arguments = parser.parse_args()
    texts = [prompt.text for prompt in prompts() if len(prompt.concepts) > 1][:PROMPTS]
    with data_folder() as folder, Stylus(Settings(data=folder)) as stylus:
        ingest_pocket(stylus.catalog, stylus.embedder)
        result = overhead(stylus, texts, BaseModelFamily.POCKET, lambda _: None)
    text = json.dumps(result, indent=2)
    print(text)
    if arguments.json:
        arguments.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
