"""How loud adapters are: the Frobenius norm of the weight change that a file holds, kept in the catalog.

K-LoRA's observation (PAPER.md): adapters from different trainers differ in magnitude by far more than their recommended
weights tell, and the loudest one of a mix decides the picture. The norm of up @ down is taken from two small products,
trace((down down^T)(up^T up)), so the change itself is never formed.
"""

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from stylus.database import Database
from stylus.records import Adapter, BaseModelFamily, Kind

if TYPE_CHECKING:
    from torch import Tensor

_FACTOR = re.compile(
    r"^(?P<layer>.+?)(?:_lora\.|\.lora_|\.lora\.|\.lora_linear_layer\.)(?P<role>down|up|A|B)(?:\.\w+)?\.weight$"
)
ENOUGH = 3
"""Norms of a base model from which on their median says anything."""


class Norms:
    """Measured once for each file. Safe to share between threads."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def measure(self, adapters: Sequence[Adapter]) -> dict[str, float]:
        """The norms of these adapters: id -> norm, measured and kept where they aren't known. Adapters without a file
        here, of another kind than LoRA and LoCon, or with a file that can't be read are absent."""
        found = self._known(adapters)
        for adapter in adapters:
            if adapter.id not in found and adapter.file and adapter.kind in (Kind.LORA, Kind.LOCON):
                norm = file_norm(Path(adapter.file))
                if norm is not None:
                    found[adapter.id] = norm
                    self._keep(adapter, norm)
        return found

    def median(self, family: BaseModelFamily) -> float | None:
        """Over the adapters of a base model that were measured; None where they are too few to say anything."""
        query = (
            "select percentile_cont(0.5) within group (order by norm), count(*) "
            "from adapter_norms join adapters on id = adapter where base_model = %s"
        )
        with self._database.connection() as connection:
            median, count = connection.execute(query, [family]).fetchone() or (None, 0)
        return None if median is None or count < ENOUGH else float(median)

    def _known(self, adapters: Sequence[Adapter]) -> dict[str, float]:
        files = {adapter.id: (adapter.file, adapter.bytes) for adapter in adapters}
        query = "select adapter, norm, file, bytes from adapter_norms where adapter = any(%s)"
        with self._database.connection() as connection:
            rows = connection.execute(query, [list(files)]).fetchall()
        return {id: norm for id, norm, file, size in rows if files[id] in ((file, size), (file, None))}

    def _keep(self, adapter: Adapter, norm: float) -> None:
        query = (
            "insert into adapter_norms (adapter, norm, file, bytes) "
            "select id, %s, %s, %s from adapters where id = %s "  # nothing if it was deleted in the meantime
            "on conflict (adapter) do update set norm = excluded.norm, file = excluded.file, bytes = excluded.bytes"
        )
        size = adapter.bytes if adapter.bytes is not None else Path(adapter.file or "").stat().st_size
        with self._database.connection() as connection:
            connection.execute(query, [norm, adapter.file, size, adapter.id])


def file_norm(path: Path) -> float | None:
    """Of a safetensors file in the naming of diffusers, kohya or peft: >= 0. None where it holds no pair of factors,
    can't be read or isn't finite: loading it says what is wrong, here it only can't be compared."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return tensors_norm({key: file.get_tensor(key) for key in file.keys()})  # noqa: SIM118 - not a mapping
    except (SafetensorError, OSError, ValueError, RuntimeError):
        return None


def tensors_norm(tensors: "Mapping[str, Tensor]") -> float | None:
    """Square root of the sum over layers of |alpha / rank * up @ down|^2; alpha is the rank where the file has none."""
    layers: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        if match := _FACTOR.match(key):
            role = "down" if match["role"] in ("down", "A") else "up"
            layers.setdefault(match["layer"], {})[role] = tensor.flatten(1).double()
        elif not key.endswith(".alpha"):
            return None  # a magnitude of DoRA, a core of LoCon: more than two factors
    total = 0.0
    for layer, factors in layers.items():
        if len(factors) < 2 or factors["down"].shape[0] != factors["up"].shape[1]:
            return None
        down, up = factors["down"], factors["up"]
        alpha = tensors.get(f"{layer}.alpha")
        scale = 1.0 if alpha is None else float(alpha) / down.shape[0]
        total += scale**2 * float(((down @ down.T) * (up.T @ up).T).sum())
    return math.sqrt(max(0.0, total)) if layers and math.isfinite(total) else None
