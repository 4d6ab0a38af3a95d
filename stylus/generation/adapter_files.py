"""Reading an adapter's weight file: LoRA (Hu et al. 2021) and LoCon (LoRA on convolutions), in the naming schemes of
diffusers, kohya's sd-scripts and peft.

Nothing is skipped: a file is understood whole, or refused before the first step. Which layer a tensor belongs to is
`adapter_keys`' matter; here the file is opened, its numbers and shapes are checked, and its scale is found.
"""

import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from stylus.errors import AdapterFileError
from stylus.generation.adapter_keys import LayerNames, LayerShape, Problem, Shapes, place
from stylus.records import Adapter, BaseModelFamily


@dataclass(frozen=True)
class LayerWeights:
    """Low-rank factors of one layer: its output gains weight * scale * up(down(x))."""

    down: Tensor
    up: Tensor
    scale: float
    """alpha / rank (alpha / sqrt(rank) for rsLoRA)."""


@dataclass(frozen=True)
class AdapterWeights:
    """A verified file. All tensors are finite and fit their layers; dtype is the file's, device is the CPU."""

    sha256: str
    layers: Mapping[str, Mapping[str, LayerWeights]]
    """Component -> layer path -> factors."""

    @property
    def scale(self) -> float:
        """The scale that most layers share."""
        return Counter(layer.scale for layer in self._all()).most_common(1)[0][0]

    @property
    def nbytes(self) -> int:
        return sum(layer.down.nbytes + layer.up.nbytes for layer in self._all())

    def _all(self) -> Iterator[LayerWeights]:
        for layers in self.layers.values():
            yield from layers.values()


def read_adapter(adapter: Adapter, family: BaseModelFamily, shapes: Shapes) -> AdapterWeights:
    """The verified weights of `adapter` for a base model with those layers.

    Raises AdapterFileError, which names the id, the path, what is wrong and what to do, for a file that is missing,
    corrupt, of another base model, of a method or key scheme we can't apply, or that holds NaN or infinity."""
    try:
        path = _path(adapter, family)
        digest = _sha256(path)
        if adapter.sha256 and digest != adapter.sha256.lower():
            raise Problem(
                f"has SHA-256 {digest[:16]}…, not {adapter.sha256[:16]}… as the catalog says",
                "the file was changed or damaged: download it again, or ingest it again if the change was meant",
            )
        tensors, metadata = _read(path)
        return AdapterWeights(digest, _layers(tensors, _alphas(path, metadata), family, shapes))
    except Problem as problem:
        where = adapter.file or "no file"
        raise AdapterFileError(
            f"adapter {adapter.id} ({where}) {problem.what}. To go on, {problem.remedy}."
        ) from problem


def _path(adapter: Adapter, family: BaseModelFamily) -> Path:
    if adapter.base_model is not None and adapter.base_model != family:
        raise Problem(
            f"is made for base model {adapter.base_model.value}, not {family.value}",
            f"choose adapters for {family.value}, or compose with base_model={adapter.base_model.value}",
        )
    if adapter.file is None:
        raise Problem("has no weight file on this machine", "download it first, or leave this adapter out")
    path = Path(adapter.file)
    if path.suffix != ".safetensors":
        raise Problem(
            f"ends in {path.suffix or 'nothing'!r}: only .safetensors files are read, since pickle files can run code",
            "convert it to .safetensors, or leave this adapter out",
        )
    if not path.is_file():
        raise Problem("is not there", "download the file again, or ingest its folder again")
    return path


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise Problem(f"can't be read ({error.strerror})", "give this user the right to read it") from error


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors (memory-mapped) and the metadata of the header."""
    if path.stat().st_size == 0:
        raise Problem("is empty (0 bytes)")
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a mapping
            metadata = file.metadata() or {}
    except (SafetensorError, OSError, ValueError, TypeError) as error:
        raise Problem(f"is corrupt or not a safetensors file ({error})") from error
    if not tensors:
        raise Problem("holds no tensors")
    return tensors, metadata


@dataclass(frozen=True)
class _Alphas:
    """Where peft and diffusers keep alpha: in a configuration beside the tensors. Kohya keeps it among them."""

    configs: Mapping[str, Mapping[str, Any]]
    """Component -> peft's LoraConfig as JSON; "" is for any component."""

    def scale(self, component: str, layer: str, rank: int) -> float:
        config = self.configs.get(component) or self.configs.get("") or {}
        alpha = config.get("lora_alpha", rank)
        for pattern, value in (config.get("alpha_pattern") or {}).items():
            # peft takes patterns as regular expressions; from strangers' files only plain suffixes are taken
            suffix = pattern.removeprefix("^").removesuffix("$").replace("\\.", ".")
            if layer == suffix or layer.endswith("." + suffix):
                alpha = value
        if not isinstance(alpha, (int, float)) or not math.isfinite(alpha):
            raise Problem(f"has the alpha {alpha!r} in its configuration")
        return float(alpha) / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _alphas(path: Path, metadata: Mapping[str, str]) -> _Alphas:
    """peft's adapter_config.json beside an adapter_model.safetensors; diffusers' copy of it inside the header."""
    text, beside = metadata.get("lora_adapter_metadata"), path.with_name("adapter_config.json")
    try:
        if text is not None:
            configs: dict[str, dict[str, Any]] = {}
            for key, value in json.loads(text).items():
                component, _, field = key.rpartition(".")
                configs.setdefault(component, {})[field] = value
            return _Alphas(configs)
        if path.name == "adapter_model.safetensors" and beside.is_file():
            config = json.loads(beside.read_text("utf-8"))
            return _Alphas({"": config if isinstance(config, dict) else {}})
    except (ValueError, AttributeError, OSError) as error:
        raise Problem(f"has a configuration that is not JSON ({error})") from error
    return _Alphas({})


def _layers(
    tensors: Mapping[str, Tensor], alphas: _Alphas, family: BaseModelFamily, shapes: Shapes
) -> dict[str, dict[str, LayerWeights]]:
    names = LayerNames(shapes)
    found: dict[tuple[str, str], dict[str, tuple[str, Tensor]]] = {}
    for key, tensor in tensors.items():
        component, layer, role = place(key, names, family)
        if not tensor.is_floating_point() or not torch.isfinite(tensor).all():
            raise Problem(f"holds NaN or infinity, or no floating-point numbers, in {key!r}", "leave this adapter out")
        if role in (roles := found.setdefault((component, layer), {})):
            raise Problem(f"gives layer {layer} twice: {roles[role][0]!r} and {key!r}")
        roles[role] = (key, tensor)
    layers: dict[str, dict[str, LayerWeights]] = {}
    for (component, layer), roles in found.items():
        if "down" not in roles or "up" not in roles:
            key = next(iter(roles.values()))[0]
            raise Problem(f"is incomplete: {key!r} has no counterpart (down and up are both needed)")
        shape = shapes[component][layer]
        down, up = _fitted(*roles["down"], *roles["up"], shape, family)
        rank = down.shape[0]
        if "alpha" in roles:
            key, alpha = roles["alpha"]
            if alpha.numel() != 1:
                raise Problem(f"has {alpha.numel()} numbers in {key!r} where one is expected")
            scale = float(alpha) / rank
        else:
            scale = alphas.scale(component, layer, rank)
        layers.setdefault(component, {})[layer] = LayerWeights(down, up, scale)
    return layers


def _fitted(
    down_key: str, down: Tensor, up_key: str, up: Tensor, shape: LayerShape, family: BaseModelFamily
) -> tuple[Tensor, Tensor]:
    """Both factors in the shape that their layer takes: down [rank, in, *kernel], up [out, rank, 1...]."""
    ones = (1,) * len(shape.kernel)
    rank = down.shape[0] if down.ndim else 0
    # 1x1 convolutions and linear layers are the same mathematics, and files mix the two forms
    if all(side == 1 for side in shape.kernel) and down.ndim in (2, 4) and set(down.shape[2:]) <= {1}:
        down = down.reshape(*down.shape[:2], *ones)
    if up.ndim in (2, 4) and set(up.shape[2:]) <= {1}:
        up = up.reshape(*up.shape[:2], *ones)
    for key, tensor, expected in (
        (down_key, down, (rank, shape.inputs, *shape.kernel)),
        (up_key, up, (shape.outputs, rank, *ones)),
    ):
        if tuple(tensor.shape) != expected:
            raise Problem(
                f"has the shape {list(tensor.shape)} in {key!r} where {family.value} takes {list(expected)}: "
                "it was made for another base model",
                f"choose adapters for {family.value}",
            )
    most = max(shape.inputs * math.prod(shape.kernel), shape.outputs)
    if not 1 <= rank <= most:
        raise Problem(f"has rank {rank} in {down_key!r}; the layer allows 1 to {most}", "leave this adapter out")
    return down, up
