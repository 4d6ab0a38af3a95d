"""The adapters that are attached to one pipeline: loaded on demand, switched together, let go when room is short."""

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float32
from torch import nn

from stylus.errors import AdapterFileError, UnsupportedAdapter
from stylus.generation.adapter_files import AdapterWeights
from stylus.generation.gated import GatedModel
from stylus.generation.loading import Loading, Stamp, VerifiedFiles, stamp
from stylus.records import Adapter, BaseModelFamily

CAPACITY = 2 * 2**30
"""Bytes of adapter weights that stay attached between generations."""


@dataclass(frozen=True)
class Resident:
    """An adapter that is attached to the models."""

    name: str
    """What its layers call it."""
    sha256: str
    scale: float
    components: frozenset[str]
    size: int
    """Bytes of its tensors on the device."""
    stamp: Stamp


class ResidentAdapters:
    """The adapters attached to one pipeline: loaded on demand, the least recently used let go first.

    Not for use by several threads at once: whoever holds the device lock uses it."""

    def __init__(
        self,
        family: BaseModelFamily,
        models: Mapping[str, nn.Module],
        capacity: int = CAPACITY,
        device: torch.device | None = None,
    ) -> None:
        """`capacity`: bytes on the device, and as many in main memory."""
        self.capacity = capacity
        self._models = {component: GatedModel(model, device) for component, model in models.items()}
        shapes = {component: gated.shapes for component, gated in self._models.items()}
        self.files = VerifiedFiles(family, shapes, capacity)
        self._residents: OrderedDict[str, Resident] = OrderedDict()

    @property
    def components(self) -> Set[str]:
        """The models that adapters may change, by name."""
        return self._models.keys()

    @property
    def size(self) -> int:
        """Bytes of all attached adapters."""
        return sum(resident.size for resident in self._residents.values())

    def compile(self, component: str) -> None:
        """torch.compile of one model, in a way that notices adapters."""
        self._models[component].compile()

    def loading(self, adapters: Sequence[Adapter], on_loaded: Callable[[int], None]) -> Loading:
        """Begins to read the files of those that are not attached."""
        return Loading(self, adapters, on_loaded)

    def load(self, adapters: Sequence[Adapter], on_loaded: Callable[[int], None]) -> dict[str, Resident]:
        """Attaches those that are not attached yet; returns all by id. `on_loaded(n)` is called as the nth is ready.

        All of `adapters` are resident on return, even beyond `capacity`. Raises AdapterFileError."""
        with self.loading(adapters, on_loaded) as loading:
            residents = loading.all()
        for reason in loading.left_out.values():
            raise UnsupportedAdapter(reason)
        return residents

    def present(self, adapter: Adapter) -> Resident | None:
        """The attached adapter, unless its file has changed since."""
        resident = self._residents.get(adapter.id)
        if resident is None or resident.stamp != stamp(adapter):
            return None
        self._residents.move_to_end(adapter.id)
        return resident

    def admit(self, adapter: Adapter, weights: AdapterWeights, stamp: Stamp, keep: Set[str]) -> Resident:
        """Attaches weights that were read under `stamp`; others than `keep` are let go of where room is short."""
        self._drop(adapter.id)
        self._make_room(weights.nbytes, keep)
        self._residents[adapter.id] = self._attach(adapter, weights, stamp)
        self._make_room(0, keep)  # a dense change takes more than its file
        return self._residents[adapter.id]

    def switch(self, component: str, residents: Sequence[Resident], weights: Float32[np.ndarray, "rows n"]) -> None:
        """Sets the weight of each row of the component's next batches: [rows, len(residents)]; all others are off."""
        gated = self._models[component]
        columns = {
            resident.name: torch.from_numpy(column * resident.scale).to(device=gated.device, dtype=gated.dtype)
            for resident, column in zip(residents, weights.T, strict=True)
            if component in resident.components and column.any()
        }
        gated.switch(columns)

    @contextmanager
    def fused(
        self, component: str, residents: Sequence[Resident], weights: Float32[np.ndarray, " n"]
    ) -> Iterator[None]:
        """Within, every row of the component has these adapters at these weights, at no cost in a step."""
        used = {
            resident.name: float(weight) * resident.scale
            for resident, weight in zip(residents, weights, strict=True)
            if component in resident.components and weight
        }
        with self._models[component].fused(used):
            yield

    def all_off(self) -> None:
        """The plain base model again."""
        for gated in self._models.values():
            gated.switch({})

    def forget(self) -> None:
        """Lets go of every adapter; the next generation reads its files again."""
        self.all_off()
        self.files.forget()
        for id in list(self._residents):
            self._drop(id)

    def _attach(self, adapter: Adapter, weights: AdapterWeights, stamp: Stamp) -> Resident:
        name = "adapter_" + hashlib.sha256(adapter.id.encode()).hexdigest()[:16]
        scale = weights.scale or 1.0
        try:
            size = sum(
                self._models[component].attach(name, layers, scale) for component, layers in weights.layers.items()
            )
        except OverflowError as error:
            for gated in self._models.values():
                gated.detach(name)
            raise AdapterFileError(
                f"adapter {adapter.id} ({adapter.file}): {error}. Set STYLUS_DTYPE=float32, or leave it out."
            ) from error
        return Resident(name, weights.sha256, scale, frozenset(weights.layers), size, stamp)

    def _make_room(self, size: int, keep: Set[str]) -> None:
        for id in [id for id in self._residents if id not in keep]:
            if self.size + size <= self.capacity:
                return
            self._drop(id)

    def _drop(self, id: str) -> None:
        resident = self._residents.pop(id, None)
        if resident is not None:
            for component in resident.components:
                self._models[component].detach(resident.name)
