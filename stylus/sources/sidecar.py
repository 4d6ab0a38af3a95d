"""The files that people keep beside `X.safetensors`, read into one form.

Sources: AUTOMATIC1111's user metadata (`X.json`: description, activation text, preferred weight, sd version, notes),
model versions of Civitai's REST API as its helpers save them (`X.civitai.info`), and the pocket world's cards.
Everything in them is text from strangers.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stylus.records import BaseModelFamily, Category, Example, Rating
from stylus.safetensors_header import family_by_name
from stylus.text import clean, clean_line

MOST_BYTES = 10_000_000
MOST_EXAMPLES = 10
_MOST_TAGS = 100


@dataclass(frozen=True)
class Sidecar:
    """What a sidecar says; empty where it says nothing."""

    name: str = ""
    description: str = ""
    tags: tuple[str, ...] = ()
    trigger_words: tuple[str, ...] = ()
    base_model: BaseModelFamily | None = None
    category: Category | None = None
    weight: float | None = None
    rating: Rating | None = None
    author: str | None = None
    licence: str | None = None
    url: str | None = None
    examples: tuple[Example, ...] = ()

    def over(self, other: "Sidecar") -> "Sidecar":
        """This one's facts, and the other's where this one is silent."""
        return Sidecar(**{name: value or getattr(other, name) for name, value in vars(self).items()})


def read_sidecars(weights: Path, on_problem: Callable[[Path, str], None]) -> Sidecar:
    """All sidecars of a weight file as one. One that can't be read is reported and counts as absent."""
    read = Sidecar()
    for suffix, parse in ((".json", _card), (".civitai.info", _civitai)):
        path = weights.with_name(weights.stem + suffix)
        if not path.is_file():
            continue
        try:
            if path.stat().st_size > MOST_BYTES:
                raise ValueError(f"it has {path.stat().st_size:,} bytes, at most {MOST_BYTES:,} are read")
            content = json.loads(path.read_text(encoding="utf-8-sig"))
            if not isinstance(content, dict):
                raise ValueError("it holds no JSON object")
            read = read.over(parse(content, path.parent))
        except (OSError, ValueError, RecursionError) as error:
            on_problem(path, f"The card was left out, the adapter kept: {error}")
    previews = tuple(
        Example(image=str(path))
        for suffix in (
            ".preview.png",
            ".preview.jpg",
            ".preview.jpeg",
            ".preview.webp",
            ".png",
            ".jpg",
            ".jpeg",
            ".webp",
        )
        if (path := weights.with_name(weights.stem + suffix)).is_file()
    )
    return read.over(Sidecar(examples=previews))


def _card(content: Mapping[str, Any], folder: Path) -> Sidecar:
    """A pocket card or AUTOMATIC1111's user metadata: their keys do not collide."""
    notes = [clean(content.get(key), 20_000) for key in ("description", "notes")]
    return Sidecar(
        name=clean_line(content.get("name"), 200),
        description="\n\n".join(note for note in notes if note)[:20_000],
        tags=words(content.get("tags")),
        trigger_words=words(content.get("trained_words")) or words(content.get("activation text")),
        base_model=family_by_name(clean_line(content.get("base_model") or content.get("sd version"), 100)),
        category=category_of([clean_line(content.get("kind"), 50)]),
        weight=_weight(content.get("weight")) or _weight(content.get("preferred weight")),
        rating=Rating.MATURE if content.get("rating") == "mature" or content.get("nsfw") is True else None,
        author=clean_line(content.get("author"), 200) or None,
        licence=clean_line(content.get("licence") or content.get("license"), 200) or None,
        examples=_examples(content.get("images"), folder),
    )


def _civitai(content: Mapping[str, Any], folder: Path) -> Sidecar:
    model = _mapping(content.get("model"))
    tags = words(model.get("tags") or content.get("tags"))
    creator = _mapping(model.get("creator") or content.get("creator"))
    number = content.get("modelId")
    notes = [clean(text, 20_000) for text in (model.get("description"), content.get("description"))]
    return Sidecar(
        name=clean_line(model.get("name") or content.get("name"), 200),
        description="\n\n".join(note for note in notes if note)[:20_000],
        tags=tags,
        trigger_words=words(content.get("trainedWords")),
        base_model=family_by_name(clean_line(content.get("baseModel"), 100)),
        category=category_of(tags),
        rating=Rating.MATURE if model.get("nsfw") is True else None,
        author=clean_line(creator.get("username"), 200) or None,
        url=f"https://civitai.com/models/{number}" if isinstance(number, int) else None,
        examples=_examples(content.get("images"), folder),
    )


def words(value: object) -> tuple[str, ...]:
    """A list, or text with commas, as clean distinct words in their order."""
    parts = value.split(",") if isinstance(value, str) else value if isinstance(value, list) else []
    cleaned = (clean_line(part, 200).strip(", ") for part in parts[:_MOST_TAGS])
    return tuple(dict.fromkeys(part for part in cleaned if part))


def category_of(names: Sequence[str]) -> Category | None:
    """The first name that is a category's."""
    known = {category.value: category for category in Category} | {"backgrounds": Category.BACKGROUND}
    return next((known[name.lower()] for name in names if name.lower() in known), None)


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _weight(value: object) -> float | None:
    """0 is how the web UI writes "none"; beyond 4 it is a mistake."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < abs(value) <= 4:
        return None
    return float(value)


def _examples(value: object, folder: Path) -> tuple[Example, ...]:
    """Images with their prompts; local ones only from the card's own folder."""
    examples: list[Example] = []
    for entry in value if isinstance(value, list) else []:
        if not isinstance(entry, dict) or len(examples) == MOST_EXAMPLES:
            continue
        meta = _mapping(entry.get("meta")) or entry
        file, url = entry.get("file"), clean_line(entry.get("url"), 2000)
        if isinstance(file, str) and file == Path(file).name and "\0" not in file and (folder / file).is_file():
            image = str(folder / file)
        elif url.startswith(("https://", "http://")):
            image = url
        else:
            continue
        examples.append(Example(image=image, prompt=clean_line(meta.get("prompt"), 2000)))
    return tuple(examples)
