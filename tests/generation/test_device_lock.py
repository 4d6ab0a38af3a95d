"""Who draws on a device: one process of the machine on a GPU, one thread of a process on a CPU."""

import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from stylus.errors import Cancelled, StorageError
from stylus.generation.device_lock import Turns, lock_path
from stylus.records import Progress

HOLDER = """
import sys, time, pathlib
from stylus.generation.device_lock import Turns
with Turns(pathlib.Path(sys.argv[1])).taken(print):
    print("held", flush=True)
    time.sleep(600)
"""


class Impatient:
    """Raises after it was told three times to wait."""

    def __init__(self) -> None:
        self.stages: list[str] = []

    def __call__(self, progress: Progress) -> None:
        self.stages.append(progress.stage)
        if len(self.stages) == 3:
            raise Cancelled("tired of waiting")


def test_processes_take_turns_on_a_gpu(tmp_path: Path) -> None:
    """Another process holds the card: we wait, say so, can be cancelled, and go on when it dies without releasing."""
    path = tmp_path / "stylus-cuda.lock"
    turns, impatient = Turns(path), Impatient()
    other = subprocess.Popen([sys.executable, "-c", HOLDER, path], stdout=subprocess.PIPE)
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(Cancelled), turns.taken(impatient):
            pytest.fail("two processes on one card")
        assert impatient.stages == ["waiting"] * 3
        killer = threading.Timer(0.3, other.kill)
        killer.start()
        with turns.taken(lambda _: None):
            assert other.wait(10) != 0
        killer.join()
    finally:
        other.kill()
        other.communicate()


def test_processes_share_a_cpu_and_threads_take_turns() -> None:
    assert lock_path(torch.device("cpu")) is None
    assert lock_path(torch.device("mps")) is not None
    turns, impatient = Turns(None), Impatient()

    def second() -> None:
        with turns.taken(impatient):
            pytest.fail("two threads on one model")

    with turns.taken(lambda _: None), ThreadPoolExecutor() as pool, pytest.raises(Cancelled):
        pool.submit(second).result()
    with turns.taken(lambda _: None):
        assert impatient.stages == ["waiting"] * 3


def test_a_lock_that_can_not_be_opened(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"nowhere.*remove it"), Turns(tmp_path / "nowhere" / "x").taken(print):
        pytest.fail("no lock")
