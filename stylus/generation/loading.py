"""Getting a request's adapters ready while other work goes on, and a cache of verified files in main memory.

Files are hashed, mapped and checked by threads (all of which let go of the interpreter lock); attaching happens in the
thread that owns the device. No step starts before every adapter that it needs is attached: pixels must not depend on
the speed of a disk. What only later steps need (LoRA Switch) or later batches may come later.
"""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from stylus.errors import UnsupportedAdapter
from stylus.generation.adapter_files import AdapterWeights, read_adapter, tensor_names
from stylus.generation.adapter_keys import Shapes
from stylus.records import Adapter, BaseModelFamily
from stylus.telemetry import stage

if TYPE_CHECKING:
    from stylus.generation.adapters import Resident, ResidentAdapters

READERS = 2
"""Threads that read files: more gain nothing on one disk."""
PATIENCE = 0.2
"""Seconds between two reports while a slow disk is waited for: a report may cancel."""
TEXT = ("text_encoder", "lora_te", "text_model")
"""What the tensors of a text encoder have in their names, in all schemes."""

Stamp = tuple[object, ...]
"""Changes when the file, or what the catalog says about it, changes."""


def stamp(adapter: Adapter) -> Stamp:
    path = Path(adapter.file) if adapter.file else None
    status = path.stat() if path and path.exists() else None
    return adapter.file, adapter.sha256, adapter.base_model, status and (status.st_mtime_ns, status.st_size)


class VerifiedFiles:
    """Adapter files in main memory, the least recently used forgotten first. Safe to share between threads."""

    def __init__(self, family: BaseModelFamily, shapes: Shapes, capacity: int) -> None:
        """`capacity`: bytes."""
        self.family, self.shapes, self.capacity = family, shapes, capacity
        self._kept: OrderedDict[str, tuple[Stamp, AdapterWeights]] = OrderedDict()
        self._lock = threading.Lock()

    def read(self, adapter: Adapter) -> tuple[Stamp, AdapterWeights]:
        """As `read_adapter`, from memory where the file has not changed since; with the stamp from before it was read:
        a file that is replaced meanwhile counts as changed."""
        now = stamp(adapter)
        with self._lock:
            if (kept := self._kept.get(adapter.id)) is not None and kept[0] == now:
                self._kept.move_to_end(adapter.id)
                return kept
        read = now, read_adapter(adapter, self.family, self.shapes)
        with self._lock:
            self._kept.pop(adapter.id, None)
            self._kept[adapter.id] = read
            while len(self._kept) > 1 and self.size > self.capacity:
                self._kept.popitem(last=False)
        return read

    @property
    def size(self) -> int:
        """Bytes."""
        return sum(weights.nbytes for _, weights in self._kept.values())

    def forget(self) -> None:
        with self._lock:
            self._kept.clear()


class Loading:
    """`with` one: files are read from the start; `of_text`, `those` and `all` wait and attach. `on_loaded(n)` as the
    nth is attached, and now and then while they wait."""

    def __init__(self, held: "ResidentAdapters", adapters: Sequence[Adapter], on_loaded: Callable[[int], None]) -> None:
        self._held, self._adapters, self._on_loaded = held, adapters, on_loaded
        self.ready: dict[str, Resident] = {}
        """Adapter id -> what is attached."""
        self.left_out: dict[str, str] = {}
        """Adapter id -> why it can't be applied."""
        self.seconds = 0.0
        """Spent in waiting and attaching."""
        self._pool = ThreadPoolExecutor(READERS, "adapter-files")
        self._reads: Mapping[str, Future[tuple[Stamp, AdapterWeights]]] = {
            adapter.id: self._pool.submit(held.files.read, adapter)
            for adapter in adapters
            if held.present(adapter) is None
        }

    def of_text(self) -> "dict[str, Resident]":
        """Those that change a text encoder, by id, but for those of `left_out`. Raises AdapterFileError."""
        return self.those([adapter.id for adapter in self._adapters if self._changes_text(adapter)])

    def all(self) -> "dict[str, Resident]":
        """As `of_text`, all."""
        return self.those([adapter.id for adapter in self._adapters])

    def those(self, ids: Sequence[str]) -> "dict[str, Resident]":
        """As `of_text`, those ids in their order. A file that was found to be bad ends it, whosever it is."""
        for error in [read.exception() for read in self._reads.values() if read.done()]:
            if error is not None and not isinstance(error, UnsupportedAdapter):
                raise error
        settled = {*self.ready, *self.left_out}
        wanted = [adapter for adapter in self._adapters if adapter.id in ids and adapter.id not in settled]
        if wanted:
            start = time.perf_counter()
            with stage("load", adapters=len(wanted)):
                for adapter in wanted:
                    self._settle(adapter)
            self.seconds += time.perf_counter() - start
        return {id: self.ready[id] for id in ids if id in self.ready}

    def _settle(self, adapter: Adapter) -> None:
        try:
            self.ready[adapter.id] = self._held.present(adapter) or self._admitted(adapter)
        except UnsupportedAdapter as error:
            self.left_out[adapter.id] = f"Left out: {error}"
        self._report()

    def _admitted(self, adapter: Adapter) -> "Resident":
        read = self._reads.get(adapter.id)
        while read and not read.done():
            wait([read], PATIENCE)
            self._report()
        # none where the file changed a moment ago
        stamp, weights = read.result() if read else self._held.files.read(adapter)
        return self._held.admit(adapter, weights, stamp, {other.id for other in self._adapters})

    def _report(self) -> None:
        self._on_loaded(len(self.ready) + len(self.left_out))

    def _changes_text(self, adapter: Adapter) -> bool:
        if (resident := self._held.present(adapter)) is not None:
            return any(component.startswith("text_encoder") for component in resident.components)
        return any(mark in name for name in tensor_names(adapter) for mark in TEXT)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)
