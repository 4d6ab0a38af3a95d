"""Input tokens, calls and time of a composition by a language model: the paper's form against ours.

`python -m tests.benchmarks.tokens --cards cards.jsonl --queries queries.jsonl --json OUT`. The cards are ingested and
searched as always. The paper's form (section 3.3) is the first 150 adapters by similarity to the whole prompt, as full
cards under the same rules, read by two calls; ours is one call with the short list, the schema of its answer
counted in. One tokenizer counts both: that of all-MiniLM-L6-v2, which the package brings. `kept` is the share of the
published picks among the paper's 150 that our short list holds, over the candidates that the composer gets. Time is
that of everything but the model's own answer: candidates, short list and request, per prompt, as median.
"""

import argparse
import json
import statistics
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pydantic_ai.tools import GenerateToolJsonSchema
from transformers import AutoTokenizer

from stylus.composer import Reply, instructions
from stylus.embedder import _packaged_weights
from stylus.ingest import ingest
from stylus.lexical_composer import Limits
from stylus.records import Adapter, BaseModelFamily, Card, Filters
from stylus.settings import Settings
from stylus.short_list import render, short_list
from stylus.stylus import CANDIDATES, Stylus
from tests.benchmarks import data_folder

CALLS = 2
"""Of the paper's composer for each prompt."""


def cards(path: Path) -> Iterator[Card]:
    """Published cards, as if their weights lay here, so that they are found like any others."""
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        yield Card(
            id=row["id"],
            name=row["name"],
            tags=tuple(row["tags"]),
            description=row["description"],
            base_model=BaseModelFamily.SD15,
            file=f"/none/{row['id']}.safetensors",
        )


def full_card(adapter: Adapter) -> str:
    """All that the paper's composer reads of an adapter."""
    fields = {"id": adapter.id, "title": adapter.name, "tags": ", ".join(adapter.tags)}
    if adapter.trigger_words:
        fields["trigger words"] = ", ".join(adapter.trigger_words)
    return "\n".join(f"{name}: {text}" for name, text in {**fields, "description": adapter.description}.items())


class Counter:
    """Tokens by one tokenizer, without its marks of beginning and end."""

    def __init__(self) -> None:
        self._tokenizer: Any = AutoTokenizer.from_pretrained(_packaged_weights())

    def __call__(self, text: str) -> int:
        return len(self._tokenizer(text, add_special_tokens=False, verbose=False).input_ids)


def measure(stylus: Stylus, queries: Sequence[dict[str, Any]], known: set[str]) -> dict[str, Any]:
    """The figures over these prompts."""
    count, limits = Counter(), Limits()
    rules, schema = (
        count(instructions(limits)),
        count(json.dumps(Reply.model_json_schema(schema_generator=GenerateToolJsonSchema))),
    )
    filters = Filters(base_model=BaseModelFamily.SD15, has_file=True)
    papers, ours, sizes, spent, wanted, held = [], [], [], [], 0, 0
    for query in queries:
        prompt = query["prompt"]
        vector = stylus.embedder.queries([prompt])[0]
        first = [found for found, _ in stylus.catalog.nearest(vector, stylus.embedder.name, filters, CANDIDATES)]
        start = time.perf_counter()
        shown = short_list(prompt, stylus.candidates(prompt, BaseModelFamily.SD15))
        text = render(prompt, shown)
        spent.append(time.perf_counter() - start)
        papers.append(CALLS * (rules + count(prompt) + sum(count(full_card(adapter)) for adapter in first)))
        ours.append(rules + schema + count(text))
        sizes.append(len(shown))
        picks = {pick for picked in query["topics"].values() for pick in picked} & known
        reachable = picks & {adapter.id for adapter in first}
        wanted += len(reachable)
        held += len(reachable & {adapter.id for adapter in shown})
    return {
        "prompts": len(queries),
        "paper": {"tokens": round(statistics.mean(papers)), "calls": CALLS},
        "ours": {
            "tokens": round(statistics.mean(ours)),
            "calls": 1,
            "cards": round(statistics.mean(sizes), 1),
            "seconds": round(statistics.median(spent), 3),
        },
        "ratio": round(statistics.mean(papers) / statistics.mean(ours), 2),
        "kept": round(held / max(1, wanted), 4),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cards", type=Path, required=True)
    parser.add_argument("--queries", type=Path, required=True)
    parser.add_argument("--prompts", type=int, default=300, help="how many prompts, from the start of the file")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    arguments = parser.parse_args()
    published = list(cards(arguments.cards))
    known = {card.id for card in published}
    rows = [json.loads(line) for line in arguments.queries.read_text(encoding="utf-8").splitlines()]
    asked = [row for row in rows if any(pick in known for picks in row["topics"].values() for pick in picks)]
    with data_folder() as folder, Stylus(Settings(data=folder)) as stylus:
        ingest(published, stylus.catalog, stylus.embedder)
        result = measure(stylus, asked[: arguments.prompts], known)
    text = json.dumps(result, indent=2)
    print(text)
    if arguments.json:
        arguments.json.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
