"""Adapters of a folder: each `X.safetensors`, its header and the sidecars beside it, as a Card.

What the weights' names and shapes say of the base model stands above what the card says: cards lie, shapes can't.
"""

import json
import os
import stat
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from stylus.base_models import family_by_tensors
from stylus.errors import AdapterFileError, InvalidInput
from stylus.records import BaseModelFamily, Card, OnProgress, Progress, Rating
from stylus.safetensors_header import Header, read_header
from stylus.sources.sidecar import BESIDE, Sidecar, category_of, read_sidecars, words
from stylus.text import clean_line

OnProblem = Callable[[Path, str], None]
"""Told of each file that could not be used, with the reason; the rest goes on."""

_MOST_TAGS_OF_TRAINING = 30
_LONGEST_PATH = 2000
"""Bytes: Postgres has no index for texts of some thousands."""
_READING = "3"
"""Raised when files are read in another way, so that all are read again."""


@dataclass(frozen=True)
class WeightFile:
    """A file as the folder's listing shows it, unread."""

    path: Path
    bytes: int
    modified: int
    """Nanoseconds since 1970."""
    beside: str
    """Which cards and pictures lie beside it, their sizes and times."""

    @property
    def bare(self) -> bool:
        """Whether nothing lies beside it."""
        return self.beside == _READING


@dataclass(frozen=True)
class Walk:
    """What there is under a folder."""

    root: Path
    files: tuple[WeightFile, ...]
    """In the order of their paths."""
    unseen: tuple[Path, ...]
    """Files and folders that are there but can't be looked at: nothing is known of what they hold."""


def cards(root: Path, *, prefix: str = "file", on_problem: OnProblem) -> Iterator[Card]:
    """The cards of all safetensors files under `root`, in the order of their paths.

    Ids are `file:` and the header's identity, so that a renamed file keeps its id; with another prefix `prefix:stem`.
    Raises InvalidInput where there is no such folder.
    """
    for file in walk(root, on_problem).files:
        try:
            yield read_card(file.path, prefix=prefix, on_problem=on_problem)[0]
        except (AdapterFileError, ValueError) as error:
            on_problem(file.path, str(error))


def walk(root: Path, on_problem: OnProblem, on_progress: OnProgress | None = None) -> Walk:
    """All safetensors files under `root` (or `root` itself), without opening any.

    Each folder is entered once, whatever links lead to it: those that lie under `root` by themselves first. Raises
    InvalidInput where there is no such folder.
    """
    try:
        root = root.expanduser().resolve()
        str(root).encode()  # Postgres keeps no other names, and all below has this one in its path
        if not root.exists():
            raise InvalidInput(f"There is no folder {root}. Check the path, and whether its disk is mounted.")
        if root.is_file():
            beside = {path.name: path for path in root.parent.iterdir()}
            return Walk(root, (_weight_file(root, root.stat(), beside),), ())
    except UnicodeEncodeError as error:
        raise InvalidInput(f"{_printable(root)}: its name or its folder's is not UTF-8. Rename it.") from error
    except (OSError, RuntimeError) as error:  # no right to look, a name too long, a link to itself, ~nobody
        raise InvalidInput(f"{_printable(root)} can't be looked at: {error}. Check the path and its rights.") from error
    files: list[WeightFile] = []
    unseen: list[Path] = []
    entered: set[tuple[int, int]] = set()
    folders = deque([root])
    while folders:
        folder = folders.popleft()
        try:
            status = folder.stat()
            if (status.st_dev, status.st_ino) in entered:
                continue
            entered.add((status.st_dev, status.st_ino))
            with os.scandir(folder) as entries:
                listing = {entry.name: entry for entry in entries}
        except OSError as error:
            on_problem(
                _printable(folder), f"The folder can't be read: {error.strerror}. Check its rights and its disk."
            )
            unseen.append(folder)
            continue
        for name, entry in listing.items():
            path = folder / name
            try:
                if entry.is_dir():
                    folders.append(path) if entry.is_symlink() else folders.appendleft(path)
                elif entry.is_symlink() and not path.exists():
                    unseen.append(path)  # whether it led to a file or to a folder
                    if name.lower().endswith(".safetensors"):
                        on_problem(path, "It is a link to a file that is not there. Mount its disk or delete the link.")
                elif name.lower().endswith(".safetensors"):
                    path.as_posix().encode()
                    status = entry.stat()
                    if not stat.S_ISREG(status.st_mode):  # to open a pipe may take for ever
                        on_problem(path, "It is a pipe or a device and no file. Move it away.")
                        continue
                    if len(os.fsencode(path)) > _LONGEST_PATH:
                        on_problem(path, f"Its path has more than {_LONGEST_PATH:,} bytes. Move it up.")
                        continue
                    files.append(_weight_file(path, status, listing))
            except UnicodeEncodeError:
                on_problem(_printable(path), "Its name or its folder's is not UTF-8. Rename it.")
            except OSError as error:
                on_problem(_printable(path), f"It can't be looked at: {error.strerror}. Check its rights and its disk.")
                unseen.append(path)
        if on_progress is not None:
            on_progress(Progress(stage="look", done=len(files)))
    return Walk(root, tuple(sorted(files, key=lambda file: file.path)), tuple(unseen))


def read_card(path: Path, *, prefix: str = "file", on_problem: OnProblem) -> tuple[Card, BaseModelFamily | None]:
    """The card of a file, and the base model that the card names where the tensors are of another.

    Raises AdapterFileError for a file that is no adapter or can't be read.
    """
    header = read_header(path)
    if not header.is_adapter:
        raise AdapterFileError(f"{path} holds no adapter: its tensors are those of a whole model or another thing.")
    beside = read_sidecars(path, on_problem)
    said = beside.over(_metadata(header))
    family, claimed = header.family, beside.base_model or header.claimed_family
    card = Card(
        id=f"file:{header.identity[:16]}" if prefix == "file" else f"{prefix}:{path.stem}",
        name=said.name or file_name(path),
        description=said.description,
        tags=said.tags,
        trigger_words=said.trigger_words,
        base_model=family or said.base_model,
        kind=header.kind,
        category=said.category,
        weight=said.weight,
        rating=said.rating or Rating.GENERAL,
        examples=said.examples,
        author=said.author,
        licence=said.licence,
        url=said.url,
        group=said.group,
        file=str(path),
        bytes=header.bytes,
        rank=header.rank,
    )
    return card, claimed if family_by_tensors(header.shapes) not in (None, claimed) else None


def file_name(path: Path) -> str:
    """What an adapter is called that has no other name."""
    return clean_line(path.stem, 200) or "unnamed"


def _weight_file(path: Path, status: os.stat_result, listing: Mapping[str, os.DirEntry[str] | Path]) -> WeightFile:
    modified = min(status.st_mtime_ns, 2**63 - 1)  # a clock that ran centuries ahead is beyond Postgres's integers
    return WeightFile(path, status.st_size, modified, _beside(path.stem, listing))


def _beside(stem: str, listing: Mapping[str, os.DirEntry[str] | Path]) -> str:
    present = [(suffix, listing[stem + suffix]) for suffix in BESIDE if stem + suffix in listing]
    parts = [_READING]
    for suffix, entry in present:
        try:
            status = entry.stat()
            parts.append(f"{suffix} {status.st_size} {status.st_mtime_ns}")
        except OSError:
            parts.append(f"{suffix} ?")
    return ", ".join(parts)


def _printable(path: Path) -> Path:
    """A name that is not UTF-8, with a mark in place of each byte that can't be shown."""
    return Path(os.fsencode(path).decode("utf-8", "replace"))


def _metadata(header: Header) -> Sidecar:
    """What the trainer wrote into the file."""
    metadata = header.metadata
    frequent = _frequent_tags(metadata.get("ss_tag_frequency", ""))
    tags = words(metadata.get("modelspec.tags")) or frequent
    described = metadata.get("modelspec.description") or metadata.get("ss_training_comment")
    return Sidecar(
        name=clean_line(metadata.get("modelspec.title") or metadata.get("ss_output_name"), 200),
        description=clean_line(described, 20_000),
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
    except (ValueError, TypeError, AttributeError, RecursionError, OverflowError):
        return ()  # a field that a trainer filled in a way of its own says nothing
    ranked = sorted(totals, key=lambda tag: (-totals[tag], tag))
    return words(ranked[:_MOST_TAGS_OF_TRAINING])
