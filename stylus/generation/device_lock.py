"""One generation at a time per device, whatever the number of processes: two servers must not own one GPU twice."""

import fcntl
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from stylus.errors import StorageError
from stylus.records import OnProgress, Progress

if TYPE_CHECKING:
    import torch

POLL = 0.05
"""Seconds between two tries; waiting is short beside any generation, and must notice a cancellation."""


def lock_path(device: "torch.device", data: Path) -> Path:
    """The lock file of a device. A GPU belongs to the machine: its lock lies where all users find it, named by what
    identifies the card even under CUDA_VISIBLE_DEVICES. The CPU is shared by the system anyway: there the lock only
    keeps the processes of one data folder from slowing each other."""
    if device.type == "cpu":
        return data / "cpu.lock"
    name = device.type
    if device.type == "cuda":
        import torch

        name = f"cuda-{torch.cuda.get_device_properties(device).uuid}"
    return Path(tempfile.gettempdir()) / f"stylus-{name}.lock"


@contextmanager
def device_lock(path: Path, on_progress: OnProgress) -> Iterator[None]:
    """Holds the lock; while another holds it, reports the stage `waiting` (which may raise errors.Cancelled).

    The system frees the lock when its process dies, so none is ever stale. Raises StorageError when the file can't be
    opened."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = _opened(path)
    except OSError as error:
        raise StorageError(
            f"the device lock {path} can't be opened ({error.strerror}); "
            "set STYLUS_DATA to a folder that this user may write."
        ) from error
    try:
        while not _taken(descriptor):
            on_progress(Progress(stage="waiting"))
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
