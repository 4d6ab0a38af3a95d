"""One generation at a time per GPU, whatever the number of processes: two servers must not own one GPU twice."""

import fcntl
import os
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from stylus.errors import StorageError
from stylus.records import OnProgress, Progress

if TYPE_CHECKING:
    import torch

POLL = 0.05
"""Seconds between two tries; waiting is short beside any generation, and must notice a cancellation."""
_WAITING = Progress(stage="waiting")


class Turns:
    """One generation at a time: of this process on a CPU, which the system shares out among processes; of the whole
    machine on a GPU. Make one for each device in a process."""

    def __init__(self, path: Path | None) -> None:
        """`path`: the lock file that all processes share; see `lock_path`."""
        self._path = path
        self._threads = threading.Lock()

    @contextmanager
    def taken(self, on_progress: OnProgress) -> Iterator[None]:
        """Holds the turn; while another has it, reports the stage `waiting` (which may raise errors.Cancelled).

        Raises StorageError when the lock file can't be opened."""
        while not self._threads.acquire(timeout=POLL):
            on_progress(_WAITING)
        try:
            with nullcontext() if self._path is None else _file_lock(self._path, on_progress):
                yield
        finally:
            self._threads.release()


def lock_path(device: "torch.device") -> Path | None:
    """The lock file of a GPU: it belongs to the machine, so its lock lies where all users find it, named by what
    identifies the card even under CUDA_VISIBLE_DEVICES. None for a CPU."""
    if device.type == "cpu":
        return None
    name = device.type
    if device.type == "cuda":
        import torch

        name = f"cuda-{torch.cuda.get_device_properties(device).uuid}"
    return Path(tempfile.gettempdir()) / f"stylus-{name}.lock"


@contextmanager
def _file_lock(path: Path, on_progress: OnProgress) -> Iterator[None]:
    """The system frees the lock when its process dies, so none is ever stale."""
    try:
        descriptor = _opened(path)
    except OSError as error:
        raise StorageError(
            f"the device lock {path} can't be opened ({error.strerror}); remove it if nothing uses the device."
        ) from error
    try:
        while not _taken(descriptor):
            on_progress(_WAITING)
            time.sleep(POLL)
        yield
    finally:
        os.close(descriptor)


def _opened(path: Path) -> int:
    # read-only suffices for flock, and lets a second user share the file that a first one made
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return os.open(path, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)


def _taken(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
