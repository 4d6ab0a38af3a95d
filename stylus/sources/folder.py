"""Adapters of a folder: each `X.safetensors`, its header and the sidecars beside it, as a Card.

What the weights' names and shapes say of the base model stands above what the card says: cards lie, shapes can't.
"""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from stylus.errors import AdapterFileError, InvalidInput
from stylus.records import Card, Rating
from stylus.safetensors_header import Header, read_header
from stylus.sources.sidecar import Sidecar, category_of, read_sidecars, words
from stylus.text import clean_line

OnProblem = Callable[[Path, str], None]
"""Told of each file that could not be used, with the reason; the rest goes on."""

_MOST_TAGS_OF_TRAINING = 30


def cards(root: Path, *, prefix: str = "file", on_problem: OnProblem) -> Iterator[Card]:
    """The cards of all safetensors files under `root`, in the order of their paths; links to folders are not followed.

    Ids are `file:` and the hash of size and header, so that a renamed file keeps its id; with another prefix
    `prefix:stem`. Raises InvalidInput where there is no such folder.
    """
    root = root.expanduser().absolute()
    if not root.exists():
        raise InvalidInput(f"There is no folder {root}. Check the path.")
    for path in weight_files(root, on_problem):
        try:
            header = read_header(path)
            if not header.is_adapter:
                raise AdapterFileError(
                    f"{path} holds no adapter: its tensors are those of a whole model or another thing."
                )
            yield _card(path, header, prefix, on_problem)
        except (AdapterFileError, ValueError) as error:
            on_problem(path, str(error))


def weight_files(root: Path, on_problem: OnProblem) -> Iterator[Path]:
    """The safetensors files under `root` (or `root` itself), sorted."""
    if root.is_file():
        yield root
        return

    def unreadable(error: OSError) -> None:
        on_problem(Path(error.filename or root), f"The folder can't be read: {error.strerror}.")

    for folder, folders, files in os.walk(root, onerror=unreadable):
        folders.sort()
        for name in sorted(files):
            if name.lower().endswith(".safetensors"):
                yield Path(folder) / name


def _card(path: Path, header: Header, prefix: str, on_problem: OnProblem) -> Card:
    said = read_sidecars(path, on_problem).over(_metadata(header))
    stem = clean_line(path.stem, 200)
    return Card(
        id=f"file:{header.identity[:16]}" if prefix == "file" else f"{prefix}:{path.stem}",
        name=said.name or stem or "unnamed",
        description=said.description,
        tags=said.tags,
        trigger_words=said.trigger_words,
        base_model=header.family or said.base_model,
        kind=header.kind,
        category=said.category,
        weight=said.weight,
        rating=said.rating or Rating.GENERAL,
        examples=said.examples,
        author=said.author,
        licence=said.licence,
        url=said.url,
        file=str(path),
        bytes=header.bytes,
    )


def _metadata(header: Header) -> Sidecar:
    """What the trainer wrote into the file."""
    metadata = header.metadata
    frequent = _frequent_tags(metadata.get("ss_tag_frequency", ""))
    tags = words(metadata.get("modelspec.tags")) or frequent
    return Sidecar(
        name=clean_line(metadata.get("modelspec.title") or metadata.get("ss_output_name"), 200),
        description=clean_line(metadata.get("modelspec.description"), 20_000),
        tags=tags,
        trigger_words=words(metadata.get("modelspec.trigger_phrase")),
        category=category_of(tags),
        author=clean_line(metadata.get("modelspec.author"), 200) or None,
        licence=clean_line(metadata.get("modelspec.license"), 200) or None,
    )


def _frequent_tags(text: str) -> tuple[str, ...]:
    """The captions' most frequent tags over all data sets of the training, the most frequent first."""
    totals: dict[str, int] = {}
    try:
        for frequencies in json.loads(text or "{}").values():
            for tag, count in frequencies.items():
                totals[tag] = totals.get(tag, 0) + int(count)
    except (ValueError, TypeError, AttributeError, RecursionError):
        return ()  # a field that a trainer filled in a way of its own says nothing
    ranked = sorted(totals, key=lambda tag: (-totals[tag], tag))
    return words(ranked[:_MOST_TAGS_OF_TRAINING])
