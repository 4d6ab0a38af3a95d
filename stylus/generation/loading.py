"""Getting a request's adapters ready while other work goes on, and a cache of verified files in main memory.

Files are hashed, mapped and checked by threads (all of which let go of the interpreter lock); attaching happens in the
thread that owns the device. No step starts before every adapter that it needs is attached: pixels must not depend on
the speed of a disk.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from stylus.errors import UnsupportedAdapter
from stylus.generation.adapter_files import AdapterWeights, read_adapter, tensor_names
from stylus.generation.adapter_keys import Shapes
from stylus.records import Adapter, BaseModelFamily

if TYPE_CHECKING:
    from stylus.generation.adapters import Resident, ResidentAdapters

READERS = 2
"""Threads that read files: more gain nothing on one disk."""
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

    def read(self, adapter: Adapter) -> AdapterWeights:
        """As `read_adapter`, from memory where the file has not changed since."""
        now = stamp(adapter)
        with self._lock:
            if (kept := self._kept.get(adapter.id)) is not None and kept[0] == now:
                self._kept.move_to_end(adapter.id)
                return kept[1]
        weights = read_adapter(adapter, self.family, self.shapes)
        with self._lock:
            self._kept.pop(adapter.id, None)
            self._kept[adapter.id] = now, weights
            while len(self._kept) > 1 and self.size > self.capacity:
                self._kept.popitem(last=False)
        return weights

    @property
    def size(self) -> int:
        """Bytes."""
        return sum(weights.nbytes for _, weights in self._kept.values())

    def forget(self) -> None:
        with self._lock:
            self._kept.clear()


class Loading:
    """`with` one: files are read from the start; `of_text` and `all` attach. `on_loaded(n)` as the nth is attached."""

    def __init__(self, held: "ResidentAdapters", adapters: Sequence[Adapter], on_loaded: Callable[[int], None]) -> None:
        self._held, self._adapters, self._on_loaded = held, adapters, on_loaded
        self._ready: dict[str, Resident] = {}
        self.left_out: dict[str, str] = {}
        """Adapter id -> why it can't be applied."""
        self._pool = ThreadPoolExecutor(READERS, "adapter-files")
        self._reads: Mapping[str, Future[AdapterWeights]] = {
            adapter.id: self._pool.submit(held.files.read, adapter)
            for adapter in adapters
            if held.present(adapter) is None
        }

    def of_text(self) -> "dict[str, Resident]":
        """Attaches those that change a text encoder, and returns what is attached. Raises AdapterFileError."""
        return self._attached([adapter for adapter in self._adapters if self._changes_text(adapter)])

    def all(self) -> "dict[str, Resident]":
        """Attaches the rest and returns all by id, but for those of `left_out`. Raises AdapterFileError."""
        self._attached(self._adapters)
        return {adapter.id: self._ready[adapter.id] for adapter in self._adapters if adapter.id in self._ready}

    def _attached(self, adapters: Sequence[Adapter]) -> "dict[str, Resident]":
        keep = {adapter.id for adapter in self._adapters}
        for adapter in adapters:
            if adapter.id in self._ready or adapter.id in self.left_out:
                continue
            try:
                resident = self._held.present(adapter)
                if resident is None:
                    read = self._reads.get(adapter.id)  # none where the file changed a moment ago
                    weights = self._held.files.read(adapter) if read is None else read.result()
                    resident = self._held.admit(adapter, weights, keep)
                self._ready[adapter.id] = resident
            except UnsupportedAdapter as error:
                self.left_out[adapter.id] = f"Left out: {error}"
            self._on_loaded(len(self._ready) + len(self.left_out))
        return dict(self._ready)

    def _changes_text(self, adapter: Adapter) -> bool:
        if (resident := self._held.present(adapter)) is not None:
            return any(component.startswith("text_encoder") for component in resident.components)
        return any(mark in name for name in tensor_names(adapter) for mark in TEXT)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(cancel_futures=True)
