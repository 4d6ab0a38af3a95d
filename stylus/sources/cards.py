"""Cards as JSON lines: one object a line with the fields of `records.Card`, or of `records.Adapter` as `stylus export`
writes them. For lists that people make, and for moving a refined catalog to another machine."""

import contextlib
import hashlib
import json
import re
import secrets
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from stylus.base_models import family_by_name
from stylus.errors import InvalidInput, StorageError, flaws
from stylus.records import Adapter, BaseModelFamily, Card, Kind

OnProblem = Callable[[str, str], None]
"""Told of each line that could not be used, as `FILE:NUMBER`, with the reason; the rest goes on."""

MOST_LINE = 4 * 2**20
"""Bytes."""
_OF_ADAPTERS = frozenset(Adapter.model_fields) - frozenset(Card.model_fields)
_CARD_HASH = "card_hash"


class Exported(Adapter):
    """An adapter with all that was refined, and the hash of the card that it came from: so that reading the source
    again finds it unchanged."""

    card_hash: str

    def adapter(self) -> Adapter:
        return Adapter.model_validate(self.model_dump(exclude={_CARD_HASH}))


class Lost(Card):
    """A card whose file is not on this machine, nor anywhere it could be fetched from."""

    missing: bool = True


def cards(path: Path, on_problem: OnProblem, *, may_fetch: Callable[[Card], bool]) -> Iterator[Card]:
    """The cards of a file, in its order; lines of an export come as Exported. Those whose file is of another machine
    are missing, as Exported or as Lost, until a file is there.

    A picture on this machine is taken only from the folder of the card's own weight file: a list from someone else must
    not make us read, or show to a model, what lies elsewhere. `may_fetch` tells whether a card's download address is
    one of its source. Raises InvalidInput where the file can't be read.
    """
    for number, line in _lines(path):
        where = f"{path}:{number}"
        if line is None:
            on_problem(where, f"The line is longer than {MOST_LINE:,} bytes. Left out.")
            continue
        try:
            card = _card(json.loads(line.decode("utf-8")))
            if card.download is not None and not may_fetch(card):
                raise ValueError(f"download {card.download[:100]!r} is not on the host of its source")
            yield card
        except ValidationError as error:
            on_problem(where, f"{flaws(error)}. Left out.")
        except (ValueError, TypeError, RuntimeError, OSError) as error:
            on_problem(where, f"{error}. Left out.")


def write(adapters: Iterable[tuple[Adapter, str]], path: Path) -> int:
    """Writes adapters with the hashes of their cards, all or nothing; returns how many. Raises StorageError."""
    path = path.resolve()  # a link stays one
    if path.exists() and not path.is_file():  # which root could put the new file in place of
        raise StorageError(f"{path} is a device or a folder. Choose another place.")
    new, count = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp"), 0
    try:
        with new.open("w", encoding="utf-8") as file:
            for adapter, digest in adapters:
                content = adapter.model_dump(mode="json") | {_CARD_HASH: digest}
                file.write(json.dumps(content, ensure_ascii=False) + "\n")
                count += 1
        new.replace(path)
    except OSError as error:
        raise StorageError(f"{path} can't be written: {error.strerror}. Choose another place.") from error
    finally:
        with contextlib.suppress(OSError):
            new.unlink()
    return count


def _lines(path: Path) -> Iterator[tuple[int, bytes | None]]:
    """Numbered lines that are not blank; None for one that is too long."""
    try:
        with path.open("rb") as file:
            number = 0
            while line := file.readline(MOST_LINE):
                number += 1
                whole = line.endswith(b"\n") or len(line) < MOST_LINE
                while not whole:
                    rest = file.readline(MOST_LINE)
                    whole = rest.endswith(b"\n") or len(rest) < MOST_LINE
                    line = b""
                if not line:
                    yield number, None
                elif line.strip(b" \t\r\n\xef\xbb\xbf"):
                    yield number, line.removeprefix(b"\xef\xbb\xbf")
    except OSError as error:
        raise InvalidInput(f"{path} can't be read: {error.strerror}.") from error


def _card(content: Any) -> Card:
    """Raises ValueError (ValidationError among them) and TypeError."""
    if not isinstance(content, dict):
        raise ValueError("it holds no JSON object")
    _refuse_control_characters(content)
    fields = dict(content)
    if "type" in fields:
        fields["kind"] = _kind(fields.pop("type"))
    if isinstance(fields.get("base_model"), str) and fields["base_model"] not in list(BaseModelFamily):
        fields["base_model"] = family_by_name(fields["base_model"])
    if _OF_ADAPTERS & fields.keys():
        fields.setdefault(_CARD_HASH, hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest())
    card = (Exported if _CARD_HASH in fields else Card).model_validate(fields)
    if card.file is not None and not (card.file.lower().endswith(".safetensors") and Path(card.file).is_absolute()):
        raise ValueError(f"file {card.file[:100]!r} is no full path of a .safetensors file")
    for example in card.examples:
        if not re.match(r"https?://", example.image) and not _lies_beside(example.image, card.file):
            raise ValueError(f"the picture {example.image[:100]!r} is no URL and does not lie beside the card's file")
    lost = card.file is not None and card.download is None and not Path(card.file).is_file()
    if isinstance(card, Exported):
        return card.model_copy(update={"missing": lost})
    return Lost.model_validate(card.model_dump()) if lost else card


def _kind(name: object) -> Kind:
    """As Civitai writes model types: LORA, LoCon, DoRA."""
    known = {kind.value: kind for kind in Kind}
    if not isinstance(name, str) or name.lower() not in known:
        raise ValueError(f"type {str(name)[:60]!r} is none of {', '.join(known)}")
    return known[name.lower()]


def _lies_beside(image: str, file: str | None) -> bool:
    """Whether a picture is in the folder of a weight file; one that is there needs a file that is there too."""
    if file is None or not Path(image).is_absolute() or Path(image).resolve().parent != Path(file).resolve().parent:
        return False
    return Path(file).is_file() or not Path(image).exists()


def _refuse_control_characters(content: Mapping[str, Any]) -> None:
    """Postgres can't store NUL, half characters can't be written, the others hide text."""
    for text in _texts(content):
        if found := next((c for c in text if unicodedata.category(c) in ("Cc", "Cs") and c not in "\n\t"), None):
            raise ValueError(f"it holds the control character U+{ord(found):04X}")


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield key
            yield from _texts(item)
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item)
