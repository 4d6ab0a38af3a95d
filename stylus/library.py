"""`stylus doctor --library`: what is wrong with the adapters of the catalog, with how many, and what mends it."""

import math
import os
import re
import shlex
from collections.abc import Sequence
from pathlib import Path

import psycopg

from stylus.database import Database
from stylus.errors import AdapterFileError
from stylus.evaluation.card_shelf import Shelf, judge
from stylus.evaluation.effects import Trouble
from stylus.records import OnProgress, Progress, Record
from stylus.safetensors_header import read_header

MOST_MAGNITUDE = 100.0
"""Of a number in a low-rank factor. Trained ones stay below 2 or so; float16 ends at 65,504."""
FEWEST_LAYERS = 4
"""An adapter that changes fewer was cut off, or made as a joke."""

_NO_FACTOR = re.compile(r"alpha$|dora_scale$|lora_magnitude_vector")
"""Tensors that may be large: DoRA has the norms of whole layers, under peft's name too."""
_SHOWN = 5
_CHECKED = "file check: "
"""How the quality flags begin that are set here: those of a vision model stay as they are."""


class Finding(Record):
    """A kind of trouble."""

    what: str
    count: int
    """Adapters."""
    ids: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    """Of the first of them."""
    mend: str
    """The command that mends it, or what to do before it does."""


_CARD = "stylus refine, or write {} into X.json beside X.safetensors, then stylus ingest folder FOLDER"
_QUERIES = (
    (
        "copies of one file",
        "id in (select adapter from files group by adapter having count(*) > 1)",
        "delete the copies that you don't need, then stylus ingest folder FOLDER",
    ),
    (
        "one file under several ids",
        "(sha256 in (select sha256 from adapters group by 1 having count(*) > 1)"
        " or file in (select file from adapters group by 1 having count(*) > 1))",
        "nothing: of one file the search shows one adapter",
    ),
    (
        "versions of one model",
        'a."group" in (select b."group" from adapters b group by 1 having count(*) > 1)',
        "nothing: of one model the search shows one version",
    ),
    (
        "unknown base model",
        "base_model is null",
        'write "sd version": "SD1" (or SDXL, Flux, SD3) into X.json beside X.safetensors, '
        "then stylus ingest folder FOLDER",
    ),
    (
        "wrong base model on the card",
        "id in (select adapter from files where claimed is not null)",
        "nothing: what the tensors are of stands above what the card says",
    ),
    ("no trigger words", "trigger_words = '{}'", _CARD.format('"activation text": "..."')),
    (
        "no examples",
        "examples = '[]'",
        "put a picture X.preview.png beside X.safetensors, then stylus ingest folder FOLDER",
    ),
    ("unrefined", "not refined", "stylus refine"),
    (
        "suspicious",
        "quality is not null",
        "replace or delete the file, then stylus ingest folder FOLDER and stylus doctor --library --deep",
    ),
)
"""What, condition on an adapter `a`, what mends it."""

_MEASURED = {
    Trouble.BREAKS: "stylus weight ID 0.5, then stylus evaluate adapters; or --flag there leaves them out",
    Trouble.NOTHING: "a higher stylus weight, then stylus evaluate adapters; or --flag there leaves them out",
    Trouble.OTHERWISE: "look with stylus evaluate adapters --show ID; mend the card or stylus refine, or --flag there",
}
"""What mends what report cards found."""


def examine_library(database: Database) -> list[Finding]:
    """One finding of each kind, also where there is nothing to find. Raises DatabaseUnavailable."""
    with database.connection() as connection:
        findings = [
            _finding(what, connection.execute(_select(condition)).fetchall(), mend)
            for what, condition, mend in _QUERIES
        ]
        # What can be fetched comes again when a picture needs it: nothing is missing.
        files = connection.execute(
            "select id, name, file, missing from adapters where file is not null and download is null order by id"
        ).fetchall()
    verdicts = judge(Shelf(database).all())
    names = {id: name for id, name, _, _ in files}
    measured = [
        _finding(trouble, [(id, names.get(id, id)) for id, found in verdicts.items() if found.trouble is trouble], mend)
        for trouble, mend in _MEASURED.items()
    ]
    gone = [(id, name, file) for id, name, file, missing in files if missing or not Path(file).exists()]
    folder = _nearest_folder([file for _, _, file in gone])
    mend = f"mount their disk or put them back, then stylus ingest folder {shlex.quote(str(folder))}"
    return [_finding("missing files", [(id, name) for id, name, _ in gone], mend), *findings, *measured]


def check_files(database: Database, on_progress: OnProgress | None = None) -> None:
    """Reads the tensors of every file, one at a time, and flags those that can't be right in `quality`.

    A file that was mended loses its flag; one that can't be read now, as on a disk that is not mounted, stays as it is.
    Raises DatabaseUnavailable; what was flagged until then stays.
    """
    query = "select id, file, quality from adapters where file is not null and not missing order by id"
    with database.connection() as connection:
        files = connection.execute(query).fetchall()
    for number, (id, file, before) in enumerate(files, 1):
        if (before is None or before.startswith(_CHECKED)) and os.access(file, os.R_OK):
            fault = fault_of(Path(file))
            after = None if fault is None else _CHECKED + fault
            if after != before:
                with database.connection() as connection:
                    _flag(connection, id, after)
        if on_progress is not None:
            on_progress(Progress(stage="check", done=number, total=len(files)))


def fault_of(path: Path) -> str | None:
    """What is wrong with the tensors of an adapter's file; None: nothing was found."""
    from safetensors import SafetensorError, safe_open  # torch, which it loads, takes seconds

    try:
        layers = {name.rpartition(".lora")[0] or name.rpartition(".")[0] for name in read_header(path).shapes}
        if len(layers) < FEWEST_LAYERS:
            return f"it changes {len(layers)} layers only"
        nothing = True
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - not a mapping
                tensor = file.get_tensor(name)
                if not tensor.numel() or not tensor.is_floating_point() or _NO_FACTOR.search(name):
                    continue
                low, high = (float(end) for end in tensor.float().aminmax())
                if not math.isfinite(low) or not math.isfinite(high):
                    return f"{name} holds NaN or infinity"
                if max(-low, high) > MOST_MAGNITUDE:
                    return f"{name} holds {max(-low, high):,.0f}, beyond what training gives"
                nothing = nothing and low == high == 0
        return "all its numbers are 0" if nothing else None
    except (AdapterFileError, SafetensorError, OSError) as error:
        return str(error).removeprefix(f"{path} ")


def _select(condition: str) -> str:
    return f"select id, name from adapters a where not hidden and {condition} order by id"  # noqa: S608 (ours, above)


def _flag(connection: psycopg.Connection[tuple[object, ...]], id: str, quality: str | None) -> None:
    connection.execute("update adapters set quality = %s, updated_at = now() where id = %s", [quality, id])


def _finding(what: str, adapters: Sequence[tuple[str, str]], mend: str) -> Finding:
    shown = adapters[:_SHOWN]
    return Finding(
        what=what, count=len(adapters), ids=tuple(id for id, _ in shown), names=tuple(n for _, n in shown), mend=mend
    )


def _nearest_folder(files: Sequence[str]) -> Path:
    """The folder that all files lay in, or the one above it that is still there; FOLDER where that is the root, of
    which nobody wants all."""
    folder = Path(os.path.commonpath([Path(file).parent for file in files]) if files else "FOLDER")
    there = next((parent for parent in (folder, *folder.parents) if parent.exists()), folder) if files else folder
    return Path("FOLDER") if there == Path(there.anchor) else there
