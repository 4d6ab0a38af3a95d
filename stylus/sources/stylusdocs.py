"""StylusDocs, the catalog that the paper's authors published: `sd_adapters.pkl` (a list of AdapterInfo), its embeddings
`sd_embeddings.npy` (one row an adapter, in the same order) and the vision model's texts `ultra_model/MODEL.txt`.

The pickle is read by `plain_pickle`, which can build nothing but data; the authors' class comes out as a dict.
"""

import re
from collections import ChainMap
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from pydantic import ValidationError

from stylus.base_models import family_by_name
from stylus.errors import InvalidInput
from stylus.records import Card, Example
from stylus.sources.plain_pickle import load
from stylus.sources.sidecar import MOST_EXAMPLES, category_of, words
from stylus.text import clean, clean_line

OnProblem = Callable[[str, str], None]

EMBEDDER = "openai:text-embedding-3-large"
"""What the published embeddings were made with (paper, section 3.2)."""
MOST_ADAPTERS = 1_000_000
_MOST_TEXT = 2**20
"""Bytes of a vision model's text."""
_MOST_LIST = 20_000
_CLASSES = frozenset({"AdapterInfo"})
"""It lay in `autoadapter.precompute.process_adapters`, later in `stylus.refiner.fetch_adapter_metadata`."""


@dataclass(frozen=True)
class Entry:
    """A card, with the authors' vector of it where there is one."""

    card: Card
    vector: Float[np.ndarray, " d"] | None = None


def read(path: Path, on_problem: OnProblem) -> Iterator[Entry]:
    """The adapters of a folder that holds the published files (or of a pickle in it).

    Raises InvalidInput when there is no such file, when it could do more than hold data, or does not fit its
    embeddings; an adapter that makes no sense goes to `on_problem`.
    """
    file = path if path.is_file() else path / "sd_adapters.pkl"
    if not file.is_file():
        raise InvalidInput(f"There is no sd_adapters.pkl in {path}. Unpack StylusDocs there, or give the file.")
    adapters = _adapters(load(file, _CLASSES))
    vectors = _vectors(file.with_name("sd_embeddings.npy"), len(adapters))
    seen: set[str] = set()
    for row, fields in enumerate(adapters):
        number = fields.get("adapter_id", fields.get("id"))
        # values may be nested without end: none is turned into text before its type is known
        id = f"civitai:{number}" if isinstance(number, int | str) else "civitai: "
        try:
            card = _card(id, fields, file.parent / "ultra_model")
        except (ValidationError, TypeError, ValueError) as error:
            reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
            on_problem(f"adapter {row} ({clean_line(id, 60)})", f"Left out: {clean_line(reason, 200)}.")
            continue
        if card.id not in seen:
            seen.add(card.id)
            yield Entry(card, None if vectors is None else vectors[row])


def _adapters(content: object) -> list[Mapping[str, Any]]:
    """The adapters of a list, or of a dict by id."""
    if isinstance(content, dict):
        # not copied: a pickle can name one large dict a million times
        content = [ChainMap({"adapter_id": key}, value) for key, value in content.items() if isinstance(value, dict)]
    if not isinstance(content, list | tuple) or not 0 < len(content) <= MOST_ADAPTERS:
        raise InvalidInput("The pickle holds no list of adapters. Is it StylusDocs' sd_adapters.pkl?")
    return [entry if isinstance(entry, Mapping) else {} for entry in content]


def _vectors(path: Path, rows: int) -> Float[np.ndarray, "n d"] | None:
    """The published embeddings, mapped into memory and not read yet."""
    if not path.is_file():
        return None
    try:
        vectors: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise InvalidInput(f"{path} holds no plain array of numbers: {clean_line(str(error), 200)}") from error
    if vectors.ndim != 2 or vectors.dtype.kind != "f" or len(vectors) != rows or not 1 <= vectors.shape[1] <= 16_000:
        raise InvalidInput(
            f"{path} has the shape {vectors.shape} ({vectors.dtype}): one row of floats is needed for each of the "
            f"{rows:,} adapters. Remove it, and the cards are embedded anew."
        )
    return vectors


def _card(id: str, fields: Mapping[str, Any], texts: Path) -> Card:
    known = ("title", "name", "llm_description", "description", "tags", "trigger_words", "base_model")
    said = {name: fields.get(name) for name in known}
    written, weight = _written(id, texts)
    tags = words(_sequence(said["tags"]))
    address = fields.get("download_url")
    numbered = re.search(r"/api/download/models/(\d{1,12})", address if isinstance(address, str) else "")
    return Card(
        id=id,
        name=clean_line(said["title"] or said["name"], 200) or id,
        description=written or clean(said["llm_description"], 20_000) or clean(said["description"], 20_000),
        tags=tags,
        trigger_words=words(_sequence(said["trigger_words"])),
        base_model=family_by_name(clean_line(said["base_model"], 100)),
        category=category_of([clean_line(fields.get("category"), 50), *tags]),
        weight=weight if weight is not None else _weight(fields.get("weight")),
        examples=tuple(_examples(fields)),
        url=f"https://civitai.com/models/{id.partition(':')[2]}",
        # the address is made anew from its number: nothing in the file says where we connect to
        download=f"https://civitai.com/api/download/models/{numbered[1]}" if numbered else None,
        group=id,
    )


def _written(id: str, texts: Path) -> tuple[str, float | None]:
    """Description and weight that a vision model wrote, as the authors keep its answer: two bullet points."""
    number = id.partition(":")[2]
    path = texts / f"{number}.txt"
    if not number.isdecimal() or not path.is_file() or path.stat().st_size > _MOST_TEXT:
        return "", None
    parts = path.read_text("utf-8", errors="replace").split("- ")
    if len(parts) < 3:
        return "", None  # "Failed"
    try:
        weight = _weight(float(parts[-1].strip()))
    except ValueError:
        weight = None
    return clean("".join(parts[1:-1]), 20_000), weight


def _examples(fields: Mapping[str, Any]) -> Iterator[Example]:
    addresses, prompts = _sequence(fields.get("image_urls")), _sequence(fields.get("image_prompts"))
    for address, prompt in zip(addresses[:MOST_EXAMPLES], [*prompts, *[""] * len(addresses)], strict=False):
        if isinstance(address, str) and re.fullmatch(r"https://[!-~]{1,1900}", address):
            yield Example(image=address, prompt="" if prompt == "None" else clean_line(prompt, 2000))


def _sequence(value: object) -> list[Any]:
    """The start of a list, or of text with commas."""
    if isinstance(value, str):
        return value[:_MOST_LIST].split(",")
    return list(value[:_MOST_LIST]) if isinstance(value, list | tuple) else []


def _weight(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and 0 < abs(value) <= 4 else None
