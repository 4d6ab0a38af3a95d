"""Weight files from a source to this machine: whole and verified, or not at all.

Bytes gather in `NAME.part`, which a later call (or a later process, after a crash) goes on with by a range request;
only what has the expected SHA-256 and a safetensors header gets its name, by an atomic rename. One process at a time
works on a part: it holds the part's own `flock`, so that no lock file stays behind.
"""

import contextlib
import fcntl
import hashlib
import os
import re
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import httpx2

from stylus.errors import AdapterFileError, SourceUnavailable, StorageError
from stylus.records import OnProgress, Progress
from stylus.safetensors_header import read_header
from stylus.web import Web

MOST_BYTES = 20 * 2**30
"""Of a weight file whose size the source does not tell."""
RESERVE = 2**28
"""Bytes that a download leaves free on the disk: the database and the pictures lie there too."""
_STEP = 2**16
"""Bytes between two reports of progress, at least: who hears of them may write them into a database."""
_POLL = 0.1
_STALE = 7 * 24 * 3600.0
"""Seconds after which a part that nobody went on with is litter."""


@dataclass(frozen=True)
class Remote:
    """A file as its source describes it."""

    url: str
    sha256: str
    """Hex, lower case."""
    bytes: int | None = None


def file_name(id: str, sha256: str) -> str:
    """The name under which an adapter's weights are kept: made of its id, never of what a server calls the file.

    The source in front and the hash at the end keep it from being empty, hidden, reserved or someone else's.
    """
    return f"{re.sub(r'[^A-Za-z0-9_-]+', '-', id)[:100]}-{sha256[:16]}.safetensors"


def download(web: Web, remote: Remote, target: Path, on_progress: OnProgress | None = None) -> None:
    """Puts the file at `target`, unless it is there already; reports bytes as stage `download`.

    Raises AdapterFileError when what comes is not what was announced, SourceUnavailable, NotFound or StorageError; what
    `on_progress` raises (errors.Cancelled) ends the download, and the next call goes on from there.
    """
    report = on_progress or _ignore
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _owned_part(target, remote, report) as file:
            if file is not None:
                _complete(web, remote, file, target, report)
    except OSError as error:
        raise StorageError(
            f"The weights can't be written to {target.parent}: {error.strerror or error}. Make room there, or set "
            "STYLUS_DATA to another folder."
        ) from error


@contextlib.contextmanager
def _owned_part(target: Path, remote: Remote, report: OnProgress) -> Iterator[BinaryIO | None]:
    """The part file, locked by us; None when the target is there, if only because another process has just put it."""
    part = target.with_name(target.name + ".part")
    while not target.exists():
        with part.open("ab") as file:
            while not _locked(file):
                report(Progress(stage="download", done=_size(file), total=remote.bytes or 0))
                time.sleep(_POLL)
            # While we waited, its owner may have renamed it or thrown it away: then this is no longer the part.
            if not _is_at(file, part):
                continue
            try:
                yield file
            finally:
                if _size(file) == 0 and _is_at(file, part):
                    part.unlink()
            return
    yield None


def _is_at(file: BinaryIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _locked(file: BinaryIO) -> bool:
    try:
        fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _complete(web: Web, remote: Remote, file: BinaryIO, target: Path, report: OnProgress) -> None:
    part = Path(file.name)
    resumed = _size(file) > 0
    web.retry(lambda: _receive(web, remote, file, report))
    if resumed and _digest(part) != remote.sha256:
        # what an earlier run had left may be the bad half: once more from the start
        file.truncate(0)
        web.retry(lambda: _receive(web, remote, file, report))
    try:
        if (digest := _digest(part)) != remote.sha256:
            raise AdapterFileError(
                f"{web.name} sent a file with SHA-256 {digest[:16]}…, where {remote.sha256[:16]}… was announced. "
                "Ingest the adapter again: its author may have replaced the file."
            )
        read_header(part)
    except AdapterFileError:
        part.unlink()
        raise
    os.fsync(file.fileno())
    part.replace(target)
    _sweep(target)


def _receive(web: Web, remote: Remote, file: BinaryIO, report: OnProgress) -> None:
    """Appends what the part lacks. Raises httpx2.TransportError for a body that ends early."""
    if remote.bytes is not None and _size(file) > remote.bytes:
        file.truncate(0)
    have = _size(file)
    if have == remote.bytes:
        return
    headers = {"accept-encoding": "identity"} | ({"range": f"bytes={have}-"} if have else {})
    with web.stream(remote.url, headers=headers) as response:
        if response.status_code == 416:
            file.truncate(0)
            raise httpx2.RemoteProtocolError("there is no such range: from the start again")
        kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind.startswith("text/") or kind in ("application/json", "application/xhtml+xml"):
            raise SourceUnavailable(
                f"{web.name} sent {kind} instead of weights: mostly a page that asks to sign in or to accept terms. "
                f"Open {remote.url} in a browser to see it. {web.remedy}".rstrip()
            )
        if have and not _goes_on(response, have):
            file.truncate(0)
            have = 0
            if response.status_code != 200:
                raise httpx2.RemoteProtocolError("the range does not fit: from the start again")
        limit = _announced(web, remote, response, have)
        _make_sure_it_fits(target=Path(file.name), bytes=limit - have if limit < MOST_BYTES else 0)
        step, due = max(_STEP, limit // 100), have
        for piece in response.iter_raw():
            have += len(piece)
            if have > limit:
                file.truncate(0)
                raise AdapterFileError(f"{web.name} sent more than the {limit:,} bytes that were announced.")
            file.write(piece)
            file.flush()
            if have >= due or have == limit:
                due = have + step
                report(Progress(stage="download", done=have, total=limit if limit < MOST_BYTES else 0))
        if have < limit < MOST_BYTES:
            raise httpx2.RemoteProtocolError(f"the body ended after {have:,} of {limit:,} bytes")


def _goes_on(response: httpx2.Response, have: int) -> bool:
    """Whether the answer is the rest of the file: a server may ignore a range and send all of it (status 200)."""
    return response.status_code == 206 and response.headers.get("content-range", "").startswith(f"bytes {have}-")


def _announced(web: Web, remote: Remote, response: httpx2.Response, have: int) -> int:
    """The size of the whole file in bytes; MOST_BYTES where nobody tells."""
    length = response.headers.get("content-length", "")
    told = have + int(length) if length.isdecimal() else None
    if remote.bytes is not None and told not in (None, remote.bytes):
        raise AdapterFileError(
            f"{web.name} offers a file of {told:,} bytes, where {remote.bytes:,} were announced. Ingest the adapter "
            "again: its author may have replaced the file."
        )
    size = remote.bytes if remote.bytes is not None else told
    if size is not None and size > MOST_BYTES:
        raise AdapterFileError(f"{web.name} offers a file of {size:,} bytes: more than {MOST_BYTES:,} is no adapter.")
    return MOST_BYTES if size is None else size


def _make_sure_it_fits(target: Path, bytes: int) -> None:
    free = shutil.disk_usage(target.parent).free
    if free < bytes + RESERVE:
        raise StorageError(
            f"{target.parent} has {free / 2**20:,.0f} MiB free, the weights need {bytes / 2**20:,.0f} and "
            f"{RESERVE / 2**20:,.0f} stay free. Make room, or set STYLUS_DATA to a folder on another disk."
        )


def _sweep(target: Path) -> None:
    """Removes the parts of other files of this adapter (its author replaced the file) and those long abandoned."""
    adapter = target.name.rpartition("-")[0]
    for part in target.parent.glob("*.part"):
        with contextlib.suppress(FileNotFoundError), part.open("rb") as file:
            mine = part.name.rpartition("-")[0] == adapter
            if (mine or time.time() - part.stat().st_mtime > _STALE) and _locked(file):
                part.unlink()


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _size(file: BinaryIO) -> int:
    return os.fstat(file.fileno()).st_size


def _ignore(_progress: Progress) -> None:
    pass
