"""Reading an adapter's weight file: LoRA, LoCon, DoRA, LoHa, LoKr and full differences, in the naming schemes of
diffusers, kohya's sd-scripts, peft and LyCORIS.

Nothing is skipped: a file is understood whole, or refused before the first step. Which layer a tensor belongs to is
`adapter_keys`' matter; here the file is opened, its numbers and shapes are checked, and its scale is found.
"""

import hashlib
import json
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers.loaders import lora_conversion_utils
from safetensors import SafetensorError, safe_open
from torch import Tensor

from stylus.errors import AdapterFileError, UnsupportedAdapter
from stylus.generation.adapter_keys import LayerNames, LayerShape, Problem, Shapes, Unsupported, place
from stylus.generation.deltas import Change, DoRA, Full, LoHa, LoKr, LowRank, with_core
from stylus.records import Adapter, BaseModelFamily


@dataclass(frozen=True)
class AdapterWeights:
    """A verified file. All tensors are finite and fit their layers; dtype is the file's, device is the CPU."""

    sha256: str
    layers: Mapping[str, Mapping[str, Change]]
    """Component -> layer path -> what changes there."""

    @property
    def scale(self) -> float:
        """The scale that most layers share; dense changes are taken at strength 1, where theirs is 1."""
        scales = Counter(layer.scale if isinstance(layer, LowRank) else 1.0 for layer in self._all())
        return scales.most_common(1)[0][0]

    @property
    def nbytes(self) -> int:
        """Bytes of the file's tensors."""
        return sum(tensor.nbytes for layer in self._all() for tensor in layer.tensors())

    def _all(self) -> Iterator[Change]:
        for layers in self.layers.values():
            yield from layers.values()


def read_adapter(adapter: Adapter, family: BaseModelFamily, shapes: Shapes) -> AdapterWeights:
    """The verified weights of `adapter` for a base model with those layers.

    Raises AdapterFileError, which names the id, the path, what is wrong and what to do, for a file that is missing,
    corrupt, of another base model or that holds NaN or infinity; UnsupportedAdapter for a method or a naming scheme
    that we can't apply."""
    try:
        path = _path(adapter, family)
        digest = _sha256(path)
        if adapter.sha256 and digest != adapter.sha256.lower():
            raise Problem(
                f"has SHA-256 {digest[:16]}…, not {adapter.sha256[:16]}… as the catalog says",
                "the file was changed or damaged: download it again, or ingest it again if the change was meant",
            )
        tensors, metadata = _read(path)
        if family is BaseModelFamily.FLUX:
            tensors = _as_diffusers(tensors)
        return AdapterWeights(digest, _layers(tensors, _alphas(path, metadata), family, shapes))
    except Problem as problem:
        where = adapter.file or "no file"
        kind = UnsupportedAdapter if isinstance(problem, Unsupported) else AdapterFileError
        raise kind(f"adapter {adapter.id} ({where}) {problem.what}. To go on, {problem.remedy}.") from problem


def tensor_names(adapter: Adapter) -> list[str]:
    """The names in the header of its file; none where it can't be read, which `read_adapter` will say."""
    try:
        with safe_open(adapter.file or "", framework="pt") as file:
            return list(file.keys())
    except (SafetensorError, OSError, ValueError, TypeError):
        return []


def _path(adapter: Adapter, family: BaseModelFamily) -> Path:
    if adapter.base_model is not None and adapter.base_model != family:
        raise Problem(
            f"is made for base model {adapter.base_model.value}, not {family.value}",
            f"choose adapters for {family.value}, or compose with base_model={adapter.base_model.value}",
        )
    if adapter.file is None:
        raise Problem("has no weight file on this machine", "download it first, or leave this adapter out")
    path = Path(adapter.file)
    if path.suffix.lower() != ".safetensors":
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
    """Tensors and the metadata of the header. Tensors are copied out of the map: whoever reads a mapped file that was
    truncated since is killed by the system."""
    if path.stat().st_size == 0:
        raise Problem("is empty (0 bytes)")
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {key: file.get_tensor(key).clone() for key in file.keys()}  # noqa: SIM118 - not a mapping
            metadata = file.metadata() or {}
    except (SafetensorError, OSError, ValueError, TypeError) as error:
        raise Problem(f"is corrupt or not a safetensors file ({error})") from error
    if not tensors:
        raise Problem("holds no tensors")
    return {key: _calculable(tensor) for key, tensor in tensors.items()}, metadata


def _calculable(tensor: Tensor) -> Tensor:
    """Floats of 8 bits, with which torch can't calculate, as bfloat16, which has all their values."""
    return tensor.bfloat16() if tensor.is_floating_point() and tensor.itemsize == 1 else tensor


def _as_diffusers(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Flux files of other trainers, whose layers are cut differently (q, k and v in one), by diffusers' converters."""
    if any(key.startswith(("lora_unet_double_blocks", "lora_unet_single_blocks")) for key in tensors):
        convert = lora_conversion_utils._convert_kohya_flux_lora_to_diffusers
    elif any(".processor." in key and "_blocks." in key for key in tensors):
        convert = lora_conversion_utils._convert_xlabs_flux_lora_to_diffusers
    else:
        return tensors
    try:
        converted: dict[str, Tensor] = convert(dict(tensors))
    except (LookupError, AttributeError, TypeError, ValueError, RuntimeError) as error:
        raise Unsupported(f"can't be read as an adapter of Flux ({error})") from error
    return converted


_ENDLESS = 1e30
"""Beyond any alpha."""


@dataclass(frozen=True)
class _Alphas:
    """Where peft and diffusers keep alpha: in a configuration beside the tensors. Kohya keeps it among them."""

    configs: Mapping[str, Mapping[str, Any]]
    """Component -> peft's LoraConfig as JSON; "" is for any component."""

    def scale(self, component: str, layer: str, rank: int | None) -> float:
        """Of a layer; `rank` is None where it can't be seen in the tensors."""
        config = self.configs.get(component) or self.configs.get("") or {}
        rank = rank or config.get("r") or 1
        alpha = config.get("lora_alpha", config.get("alpha", rank))
        patterns = config.get("alpha_pattern")
        for pattern, value in patterns.items() if isinstance(patterns, dict) else ():
            # peft takes patterns as regular expressions; from strangers' files only plain suffixes are taken
            suffix = pattern.removeprefix("^").removesuffix("$").replace("\\.", ".")
            if layer == suffix or layer.endswith("." + suffix):
                alpha = value
        if not isinstance(alpha, (int, float)) or not abs(alpha) < _ENDLESS:  # nor NaN, nor an integer beyond floats
            raise Problem(f"has the alpha {alpha!r:.40} in its configuration")
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
    except (ValueError, AttributeError, OSError, RecursionError) as error:
        raise Problem(f"has a configuration that is not JSON ({error})") from error
    return _Alphas({})


def _layers(
    tensors: Mapping[str, Tensor], alphas: _Alphas, family: BaseModelFamily, shapes: Shapes
) -> dict[str, dict[str, Change]]:
    names = LayerNames(shapes)
    found: dict[tuple[str, str], dict[str, tuple[str, Tensor]]] = {}
    for key, tensor in tensors.items():
        component, layer, role = place(key, names, family)
        if not tensor.is_floating_point() or not torch.isfinite(tensor).all():
            raise Problem(f"holds NaN or infinity, or no floating-point numbers, in {key!r}", "leave this adapter out")
        if role in (roles := found.setdefault((component, layer), {})):
            raise Problem(f"gives layer {layer} twice: {roles[role][0]!r} and {key!r}")
        roles[role] = (key, tensor)
    layers: dict[str, dict[str, Change]] = {}
    for (component, layer), parts in found.items():
        change = _change(parts, shapes[component][layer], family, partial(alphas.scale, component, layer))
        layers.setdefault(component, {})[layer] = change
    return layers


Parts = dict[str, tuple[str, Tensor]]
"""Role -> (key, tensor) of one layer."""


def _change(parts: Parts, shape: LayerShape, family: BaseModelFamily, scale: Callable[[int | None], float]) -> Change:
    """What the tensors of one layer say. `scale(rank)` is for files that keep alpha elsewhere."""
    given = {role: tensor for role, (_, tensor) in parts.items()}
    key = next(iter(parts.values()))[0]

    def scaled(rank: int | None) -> float:
        if rank == 0:
            raise Problem(f"has rank 0 in {key!r}", "leave this adapter out")
        if "alpha" not in given or rank is None:
            # LyCORIS ignores the alpha of a LoKr whose factors are both whole
            return scale(rank)
        if given["alpha"].numel() != 1:
            raise Problem(f"has {given['alpha'].numel()} numbers in {parts['alpha'][0]!r} where one is expected")
        return float(given["alpha"]) / rank

    change: Change
    try:
        if "down" in given and "up" in given:
            if "mid" in given:
                parts = parts | {"down": (parts["down"][0], with_core(given["down"], given["mid"]))}
            down, up = _fitted(*parts["down"], *parts["up"], shape, family)
            change = LowRank(down, up, scaled(down.shape[0]))
        elif "hada_w1_a" in given:
            factors = {role.removeprefix("hada_"): tensor for role, tensor in given.items() if role.startswith("hada_")}
            change = LoHa(**factors, scale=scaled(given["hada_w1_b"].shape[0]))
        elif any(role.startswith("lokr_") for role in given):
            factors = {role.removeprefix("lokr_"): tensor for role, tensor in given.items() if role.startswith("lokr_")}
            rank = next((factors[role].shape[0] for role in ("w1_b", "w2_b") if role in factors), None)
            change = LoKr(**factors, scale=scaled(rank))
        elif "diff" in given:
            change = Full(given["diff"])
        else:
            raise Problem(f"is incomplete: {key!r} has no counterpart (down and up are both needed)")
        if "magnitude" in given:
            change = DoRA(change, _magnitude(*parts["magnitude"], shape))
        if not isinstance(change, LowRank):
            # sizes only: on the meta device nothing is computed
            change.map(lambda tensor: tensor.to("meta")).dense(torch.empty(shape.weight, device="meta"))
    except (KeyError, TypeError, ValueError, RuntimeError, IndexError) as error:
        raise Problem(
            f"has tensors around {key!r} that don't fit a layer of shape {list(shape.weight)} of {family.value} "
            f"({str(error).splitlines()[0]}): it was made for another base model",
            f"choose adapters for {family.value}",
        ) from error
    return change


def _magnitude(key: str, magnitude: Tensor, shape: LayerShape) -> Tensor:
    if magnitude.numel() not in (shape.outputs, shape.inputs):
        raise Problem(f"has {magnitude.numel()} numbers in {key!r}; the layer has {shape.outputs} outputs")
    return magnitude if key.endswith("dora_scale") else magnitude.flatten()


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
