"""What the lexical composer chooses for published prompts, beside the paper's baselines, through Postgres.

`python -m tests.benchmarks.composition --cards FILE --queries FILE --json OUT`. Every policy sees the same candidates.
- task_recall: share of the published topics with a pick for which some task of ours shares a content word.
- pick_precision: share of the chosen adapters one of whose topics shares a content word with the task that they were
  chosen for, and that are among the first 150 of the prompt. An adapter's topics are those under which the prompts of
  --queries pick it, and its tags, which are those of the prompts that --queries leaves out.
- exact_pick_recall: share of the published picks that were chosen.
Retriever is the paper's: whole prompt, cosine, top 3 (section 4.5); its task is the keyword nearest to the adapter.
`compose_ms` is the median CPU time of the composer alone. `--every 2` and `--from 1` take half of the prompts.
"""

import argparse
import json
import statistics
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stylus.ingest import ingest
from stylus.lexical_composer import Composer, LexicalComposer, Limits
from stylus.policies import TopPolicy
from stylus.records import BaseModelFamily, Card, Match, Policy, Task
from stylus.settings import Settings
from stylus.stylus import Stylus
from stylus.words import content_words
from tests.benchmarks import data_folder

COMPOSERS: Mapping[str, Composer] = {
    "ours": LexicalComposer(),
    "retriever": TopPolicy(Policy.RETRIEVER),
    "random": TopPolicy(Policy.RANDOM),
}
Topics = Mapping[str, Sequence[str]]


@dataclass
class Tally:
    """Counts over prompts."""

    topics: dict[str, set[str]]
    """Content words of each adapter's topics, by its id."""
    prompts: int = 0
    tasks: int = 0
    chosen: int = 0
    fitting: int = 0
    picked: int = 0
    found: int = 0
    asked: int = 0
    covered: int = 0
    none: int = 0
    milliseconds: list[float] = field(default_factory=list)

    def count(self, tasks: Sequence[Task], published: Topics) -> None:
        """Counts one prompt: its tasks and the published topics with their picks."""
        words = {word for task in tasks for word in content_words(task.keyword)}
        chosen = {choice.adapter_id: set(content_words(task.keyword)) for task in tasks for choice in task.choices}
        picks = {pick for picked in published.values() for pick in picked}
        wanted = [topic for topic, picked in published.items() if picked]
        self.prompts += 1
        self.tasks += len(tasks)
        self.chosen += len(chosen)
        self.fitting += sum(bool(self.topics[id] & task) for id, task in chosen.items())
        self.picked += len(picks)
        self.found += len(picks & chosen.keys())
        self.asked += len(wanted)
        self.covered += sum(bool(words.intersection(content_words(topic))) for topic in wanted)
        self.none += not chosen

    def figures(self) -> dict[str, float]:
        """The shares, and the means for each prompt."""
        shares = {
            "task_recall": self.covered / max(1, self.asked),
            "pick_precision": self.fitting / max(1, self.chosen),
            "exact_pick_recall": self.found / max(1, self.picked),
            "adapters_per_prompt": self.chosen / self.prompts,
            "tasks_per_prompt": self.tasks / self.prompts,
            "none_share": self.none / self.prompts,
            "compose_ms": statistics.median(self.milliseconds),
        }
        return {name: round(share, 4) for name, share in shares.items()}


def cards(rows: Sequence[Mapping[str, Any]]) -> list[Card]:
    """Published cards, as if their weights lay here, so that they are found like any others."""
    return [
        Card(
            id=row["id"],
            name=row["name"],
            tags=tuple(row["tags"]),
            description=row["description"],
            base_model=BaseModelFamily.SD15,
            file=f"/none/{row['id']}.safetensors",
        )
        for row in rows
    ]


def topic_words(known: Sequence[Card], queries: Sequence[Mapping[str, Any]]) -> dict[str, set[str]]:
    """The content words of each adapter's topics."""
    found: dict[str, set[str]] = defaultdict(set)
    for card in known:
        found[card.id].update(word for text in card.tags for word in content_words(text))
    for query in queries:
        for topic, picks in query["topics"].items():
            for pick in picks:
                found[pick].update(content_words(topic))
    return found


def measure(
    stylus: Stylus, queries: Sequence[Mapping[str, Any]], topics: dict[str, set[str]]
) -> dict[str, dict[str, float]]:
    """The figures of each policy over these prompts. What a composer is given are the prompt's first 150."""
    tallies = {name: Tally(topics) for name in COMPOSERS}
    for query in queries:
        matches: list[Match] = stylus.candidates(query["prompt"], BaseModelFamily.SD15)
        for name, composer in COMPOSERS.items():
            start = time.process_time()
            draft = composer.compose(query["prompt"], matches, Limits())
            tallies[name].milliseconds.append((time.process_time() - start) * 1000)
            tallies[name].count(draft.tasks, query["topics"])
    return {name: tally.figures() for name, tally in tallies.items()}


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cards", type=Path, required=True, help="JSONL: id, name, tags, description")
    parser.add_argument("--queries", type=Path, required=True, help="JSONL: prompt, topics (topic -> adapter ids)")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    parser.add_argument("--every", type=int, default=1, help="only each n-th prompt")
    parser.add_argument("--from", type=int, default=0, dest="first", help="the first prompt")
    arguments = parser.parse_args()
    known, queries = cards(lines(arguments.cards)), lines(arguments.queries)
    with data_folder() as folder, Stylus(Settings(data=folder)) as stylus:
        ingest(known, stylus.catalog, stylus.embedder)
        asked = queries[arguments.first :: arguments.every]
        figures = measure(stylus, asked, topic_words(known, queries))
    text = json.dumps(figures, indent=2)
    print(text)
    if arguments.json:
        arguments.json.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
