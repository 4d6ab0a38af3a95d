"""Prompts to evaluate on: the paper's two sources (COCO captions, PartiPrompts) by path, plain lists, the pocket's own.

Nothing is fetched: whoever evaluates brings the files.
"""

import csv
import json
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from stylus.errors import InvalidInput
from stylus.pocket import prompts
from stylus.records import Record

MOST_PROMPTS = 10_000
"""Far more than anybody draws; a file with more was meant for something else."""


class EvaluationPrompt(Record):
    """A prompt with what is known about it."""

    text: str = Field(min_length=1, max_length=10_000)
    category: str = "any"
    """What results are split by, as PartiPrompts' category."""
    concepts: tuple[str, ...] = ()
    """What the picture must show, in the names of an independent judge; empty where there is none."""


def pocket_prompts() -> list[EvaluationPrompt]:
    """The pocket world's test prompts, split by whether a card uses their words."""
    return [
        EvaluationPrompt(
            text=prompt.text,
            category="other words" if prompt.paraphrase else "words of cards",
            concepts=prompt.concepts,
        )
        for prompt in prompts()
    ]


def load_prompts(path: Path, limit: int | None = None) -> list[EvaluationPrompt]:
    """The first `limit` different prompts of a file, by its ending:

    - `.json`: COCO captions (`annotations`, each with an `image_id` and a `caption`; one caption an image).
    - `.tsv`: PartiPrompts (columns `Prompt` and `Category`).
    - `.jsonl`: one object a line with `text` and, if known, `category` and `concepts`.
    - anything else: one prompt a line; empty lines and those that start with # are left out.

    Raises InvalidInput that names the line or the field."""
    readers: dict[str, Callable[[str], Iterator[EvaluationPrompt]]] = {
        ".json": _coco,
        ".tsv": _parti,
        ".jsonl": _jsonl,
    }
    try:
        text = path.read_text(encoding="utf-8-sig")
        found = {prompt.text: prompt for prompt in readers.get(path.suffix.lower(), _plain)(text)}
    except OSError as error:
        raise InvalidInput(f"{path} can't be read: {error.strerror}.") from error
    except (ValueError, KeyError, TypeError, csv.Error) as error:
        raise InvalidInput(f"{path} is not a list of prompts: {_told(error)}.") from error
    chosen = list(islice(found.values(), limit))
    if not 0 < len(chosen) <= MOST_PROMPTS:
        raise InvalidInput(f"{path} holds {len(chosen):,} prompts: 1 to {MOST_PROMPTS:,} are evaluated.")
    return chosen


def _coco(text: str) -> Iterator[EvaluationPrompt]:
    seen = set()
    for annotation in json.loads(text)["annotations"]:
        if annotation["image_id"] not in seen:
            seen.add(annotation["image_id"])
            yield EvaluationPrompt(text=" ".join(annotation["caption"].split()), category="coco")


def _parti(text: str) -> Iterator[EvaluationPrompt]:
    # its prompts hold quotation marks that quote nothing
    for row in csv.DictReader(text.splitlines(), delimiter="\t", quoting=csv.QUOTE_NONE):
        yield EvaluationPrompt(text=row["Prompt"], category=row["Category"])


def _jsonl(text: str) -> Iterator[EvaluationPrompt]:
    for number, line in enumerate(text.split("\n"), start=1):  # JSON may hold other ends of lines in its texts
        if line.strip():
            try:
                yield EvaluationPrompt.model_validate_json(line)
            except ValidationError as error:
                raise ValueError(f"line {number}: {_told(error)}") from error


def _plain(text: str) -> Iterator[EvaluationPrompt]:
    for line in text.splitlines():
        if line.strip() and not line.startswith("#"):
            yield EvaluationPrompt(text=line.strip())


def _told(error: Any) -> str:
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    if isinstance(error, KeyError):
        return f"it has no {error.args[0]!r}"
    return str(error)
