"""The files that people keep beside `X.safetensors`, read into one form.

Sources: AUTOMATIC1111's user metadata (`X.json`: description, activation text, preferred weight, sd version, notes) and
its descriptions (`X.txt`, `X.description.txt`), ComfyUI's LoRA manager (`X.metadata.json`), Civitai's model versions
as its helpers save them (`X.civitai.info`), previews with the parameters that generators leave in them, and the pocket
world's cards. Everything in them is text from strangers.
"""

import codecs
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from stylus.base_models import family_by_name
from stylus.errors import flaws
from stylus.image_metadata import prompt_of
from stylus.records import BaseModelFamily, Card, Category, Example, Rating
from stylus.sources.civitai_ratings import is_mild, rating
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
    group: str | None = None
    """What the versions of one model share."""
    examples: tuple[Example, ...] = ()

    def over(self, other: "Sidecar") -> "Sidecar":
        """This one's facts, and the other's where this one is silent."""
        return Sidecar(**{name: value or getattr(other, name) for name, value in vars(self).items()})


def read_sidecars(weights: Path, on_problem: Callable[[Path, str], None]) -> Sidecar:
    """All sidecars of a weight file as one. One that can't be read, or that is a link to a file neither here
    nor beside the file that `weights` links to, is reported and counts as absent."""
    read = Sidecar()
    # A folder from someone else must not show what lies elsewhere, as a key; links to whole folders are people's own.
    homes = (weights.parent.resolve(), weights.resolve().parent)
    for suffix, parse in _READERS.items():
        path = weights.with_name(weights.stem + suffix)
        if not _is_file(path):
            continue
        try:
            if path.is_symlink() and (target := path.resolve()).parent not in homes:
                raise ValueError(f"it is a link to {str(target)!r}, in another folder. Put the file itself here.")
            if (size := path.stat().st_size) > MOST_BYTES:
                raise ValueError(f"it has {size:,} bytes, at most {MOST_BYTES:,} are read")
            read = read.over(_fitting(parse(path.read_bytes(), path.parent)))
        except (OSError, ValueError, RecursionError) as error:
            on_problem(path, f"This card was left out, the adapter kept: {error}")
    previews = [weights.with_name(weights.stem + suffix) for suffix in PREVIEWS]
    pictures = [_picture(path) for path in previews if _is_file(path)]
    # a card may list the pictures that lie beside it
    distinct = {example.image: example for example in (*pictures, *read.examples)}
    return replace(read, examples=tuple(distinct.values())[:MOST_EXAMPLES])


def _fitting(said: Sidecar) -> Sidecar:
    """The same. Raises ValueError where the catalog has no room for a value: found later, it would cost the adapter."""
    try:
        Card.model_validate(
            {"id": "file:0", "name": "0", **{name: value for name, value in vars(said).items() if value}}
        )
    except ValidationError as error:
        raise ValueError(f"{flaws(error)}.") from error
    return said


def _is_file(path: Path) -> bool:
    """Also of a path whose name is longer than the disk allows, for which `Path.is_file` raises."""
    try:
        return path.is_file()
    except OSError:
        return False


def _picture(path: Path, prompt: str = "") -> Example:
    return Example(image=str(path), prompt=prompt or clean_line(prompt_of(path), 2000))


def _json(content: bytes) -> Mapping[str, Any]:
    """A JSON object in UTF-8, UTF-16 or UTF-32 (RFC 4627, section 3) or an old 8-bit encoding; control characters
    are taken as text."""
    try:
        text = content.decode(json.detect_encoding(content))
    except UnicodeDecodeError:
        text = _text(content)
    value = json.loads(text, strict=False)
    if not isinstance(value, dict):
        raise ValueError("it holds no JSON object")
    return value


def _text(content: bytes) -> str:
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return content.decode("utf-16", "replace")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return content.decode("cp1252", "replace")


def _note(content: bytes, folder: Path) -> Sidecar:
    return Sidecar(description=clean(_text(content), 20_000))


def _card(text: bytes, folder: Path) -> Sidecar:
    """A pocket card or AUTOMATIC1111's user metadata: their keys do not collide."""
    content = _json(text)
    mature = content.get("rating") == "mature" or content.get("nsfw") is True
    return Sidecar(
        name=clean_line(content.get("name"), 200),
        description=_joined(content.get("description"), content.get("notes")),
        tags=words(content.get("tags")),
        trigger_words=words(content.get("trained_words")) or words(content.get("activation text")),
        base_model=family_by_name(clean_line(content.get("base_model") or content.get("sd version"), 100)),
        category=category_of([clean_line(content.get("kind"), 50)]),
        weight=_weight(content.get("weight")) or _weight(content.get("preferred weight")),
        rating=Rating.MATURE if mature else None,
        author=clean_line(content.get("author"), 200) or None,
        licence=clean_line(content.get("licence") or content.get("license"), 200) or None,
        examples=_examples(content.get("images"), folder, mature=mature),
    )


def _lora_manager(text: bytes, folder: Path) -> Sidecar:
    content = _json(text)
    # The preview lies beside the weights and is shown with them: its level counts as a version's.
    preview = rating({}, {"nsfwLevel": content.get("preview_nsfw_level")})
    said = Sidecar(
        name=clean_line(content.get("model_name"), 200),
        description=_joined(content.get("modelDescription"), content.get("notes")),
        tags=words(content.get("tags")),
        base_model=family_by_name(clean_line(content.get("base_model"), 100)),
        category=category_of(words(content.get("tags"))),
        weight=_usual_strength(content.get("usage_tips")),
        rating=Rating.MATURE if preview is Rating.MATURE else None,
    )
    return said.over(_model_version(_mapping(content.get("civitai")), folder))


def _usual_strength(tips: object) -> float | None:
    """From JSON inside a text; of a range the middle (paper, section 3.1)."""
    try:
        content = _mapping(json.loads(tips)) if isinstance(tips, str) else {}
    except (ValueError, RecursionError):
        return None
    ends = _weight(content.get("strength_min")), _weight(content.get("strength_max"))
    middle = (ends[0] + ends[1]) / 2 if ends[0] is not None and ends[1] is not None else None
    return _weight(content.get("strength")) or _weight(middle)


def _civitai(text: bytes, folder: Path) -> Sidecar:
    return _model_version(_json(text), folder)


def _model_version(content: Mapping[str, Any], folder: Path) -> Sidecar:
    model = _mapping(content.get("model"))
    tags = words(model.get("tags") or content.get("tags"))
    creator = _mapping(model.get("creator") or content.get("creator"))
    number, version = content.get("modelId"), content.get("id")
    known = isinstance(number, int)
    mature = rating(model, content) is Rating.MATURE
    return Sidecar(
        name=clean_line(model.get("name") or content.get("name"), 200),
        description=_joined(model.get("description"), content.get("description")),
        tags=tags,
        trigger_words=words(content.get("trainedWords")),
        base_model=family_by_name(clean_line(content.get("baseModel"), 100)),
        category=category_of(tags),
        rating=Rating.MATURE if mature else None,
        author=clean_line(creator.get("username"), 200) or None,
        url=f"https://civitai.com/models/{number}{_query(version)}" if known else None,
        group=f"civitai:{number}" if known else None,
        examples=_examples(content.get("images"), folder, mature=mature),
    )


def _query(version: object) -> str:
    return f"?modelVersionId={version}" if isinstance(version, int) else ""


def _joined(*texts: object) -> str:
    return "\n\n".join(note for text in texts if (note := clean(text, 20_000)))[:20_000]


_READERS: Mapping[str, Callable[[bytes, Path], Sidecar]] = {
    ".json": _card,
    ".metadata.json": _lora_manager,
    ".civitai.info": _civitai,
    ".txt": _note,
    ".description.txt": _note,
}
"""The first that says something stands: what a person typed above what was downloaded."""

PREVIEWS = tuple(f"{middle}.{form}" for middle in (".preview", "") for form in ("png", "jpg", "jpeg", "webp"))
BESIDE = (*_READERS, *PREVIEWS)
"""What follows the stem of the weight file in the names of all files that are read with it."""


def words(value: object) -> tuple[str, ...]:
    """A list, or text with commas, as clean distinct words in their order."""
    parts = value.split(",") if isinstance(value, str) else value if isinstance(value, list) else []
    cleaned = (clean_line(part, 200).strip(", ") for part in parts[:_MOST_TAGS])
    return tuple(dict.fromkeys(part for part in cleaned if part))


def category_of(names: Sequence[str]) -> Category | None:
    """The first name that is a category's, also in the plural."""
    known = {name: category for category in Category for name in (category.value, f"{category}s")}
    return next((known[name.lower()] for name in names if name.lower() in known), None)


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _weight(value: object) -> float | None:
    """0 is how the web UI writes "none"; beyond 4 it is a mistake."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < abs(value) <= 4:
        return None
    return float(value)


def _examples(value: object, folder: Path, *, mature: bool) -> tuple[Example, ...]:
    """Images with their prompts, of the card's own rating; local ones only from its own folder."""
    examples: list[Example] = []
    for entry in value if isinstance(value, list) else []:
        if not isinstance(entry, dict) or len(examples) == MOST_EXAMPLES:
            continue
        if not mature and not is_mild(entry.get("nsfwLevel")):
            continue
        meta = _mapping(entry.get("meta")) or entry
        prompt = clean_line(meta.get("prompt"), 2000)
        file, url = entry.get("file"), clean_line(entry.get("url"), 2000)
        if isinstance(file, str) and file.isprintable() and file == Path(file).name and _is_file(folder / file):
            examples.append(_picture(folder / file, prompt))
        elif url.startswith(("https://", "http://")):
            examples.append(Example(image=url, prompt=prompt))
    return tuple(examples)
