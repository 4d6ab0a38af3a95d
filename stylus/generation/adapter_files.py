"""Reading an adapter's weight file: LoRA (Hu et al. 2021) and LoCon (LoRA on convolutions), in the naming schemes of
diffusers, kohya's sd-scripts and peft.

Every tensor is matched to a layer of the base model by that layer's own name, so that a UNet of any size works and a
file made for another base model is refused with the first layer that doesn't fit. (diffusers guesses names by string
replacement and only warns about keys it could not place.) Nothing is skipped: a file is understood whole, or refused.
"""

import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from stylus.errors import AdapterFileError
from stylus.records import Adapter, BaseModelFamily


@dataclass(frozen=True)
class LayerShape:
    """What a layer of the base model accepts: the shapes of the two factors but for the rank."""

    inputs: int
    outputs: int
    kernel: tuple[int, ...] = ()
    """() for a linear layer, (height, width) for a convolution."""


Shapes = Mapping[str, Mapping[str, LayerShape]]
"""Component (`unet`, `text_encoder`) -> layer path, as in `named_modules` -> shape."""


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


ROLES = re.compile(
    r"(?P<layer>.+?)(?:"
    r"(?P<processor>_lora\.(?:down|up)\.weight)"  # early diffusers: attn1.processor.to_q_lora.down.weight
    r"|\.(?:lora_down|lora\.down|lora_linear_layer\.down|lora_A(?:\.\w+)?)\.weight"
    r"|\.(?:lora_up|lora\.up|lora_linear_layer\.up|lora_B(?:\.\w+)?)\.weight"
    r"|\.alpha)"
)
OTHER_METHODS = {
    "hada_": "LoHa",
    "lokr_": "LoKr",
    "dora_scale": "DoRA",
    "lora_magnitude_vector": "DoRA",
    "lora_mid": "LoCon with a Tucker core",
    "oft_": "OFT",
    "ia3": "IA3",
    ".diff": "full weight differences",
}
KOHYA = {"lora_unet_": "unet", "lora_te_": "text_encoder", "lora_te1_": "text_encoder"}
OTHER_FAMILIES = {
    "lora_te2_": "SDXL",
    "text_encoder_2.": "SDXL",
    "lora_unet_input_blocks_": "SDXL",
    "lora_unet_output_blocks_": "SDXL",
    "double_blocks": "Flux",
    "single_transformer_blocks": "Flux",
    "joint_transformer_blocks": "Flux or SD3",
    "transformer.": "Flux or SD3",
}


def read_adapter(adapter: Adapter, family: BaseModelFamily, shapes: Shapes) -> AdapterWeights:
    """The verified weights of `adapter` for a base model with those layers.

    Raises AdapterFileError, which names the id, the path, what is wrong and what to do, for a file that is missing,
    corrupt, of another base model, of a method or key scheme we can't apply, or that holds NaN or infinity."""
    try:
        path = _path(adapter, family)
        digest = _sha256(path)
        if adapter.sha256 and digest != adapter.sha256.lower():
            raise _Problem(
                f"has SHA-256 {digest[:16]}…, not {adapter.sha256[:16]}… as the catalog says",
                "the file was changed or damaged: download it again, or ingest it again if the change was meant",
            )
        tensors, metadata = _read(path)
        return AdapterWeights(digest, _layers(tensors, _alphas(path, metadata), family, shapes))
    except _Problem as problem:
        where = adapter.file or "no file"
        raise AdapterFileError(
            f"adapter {adapter.id} ({where}) {problem.what}. To go on, {problem.remedy}."
        ) from problem


class _Problem(Exception):
    """What is wrong with a file, and the remedy; `read_adapter` adds which adapter it is."""

    def __init__(self, what: str, remedy: str = "leave this adapter out or download its file again") -> None:
        super().__init__(what)
        self.what, self.remedy = what, remedy


def _path(adapter: Adapter, family: BaseModelFamily) -> Path:
    if adapter.base_model is not None and adapter.base_model != family:
        raise _Problem(
            f"is made for base model {adapter.base_model.value}, not {family.value}",
            f"choose adapters for {family.value}, or compose with base_model={adapter.base_model.value}",
        )
    if adapter.file is None:
        raise _Problem("has no weight file on this machine", "download it first, or leave this adapter out")
    path = Path(adapter.file)
    if path.suffix != ".safetensors":
        raise _Problem(
            f"ends in {path.suffix or 'nothing'!r}: only .safetensors files are read, since pickle files can run code",
            "convert it to .safetensors, or leave this adapter out",
        )
    if not path.is_file():
        raise _Problem("is not there", "download the file again, or ingest its folder again")
    return path


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise _Problem(f"can't be read ({error.strerror})", "give this user the right to read it") from error


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors (memory-mapped) and the metadata of the header."""
    if path.stat().st_size == 0:
        raise _Problem("is empty (0 bytes)")
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a mapping
            metadata = file.metadata() or {}
    except (SafetensorError, OSError, ValueError, TypeError) as error:
        raise _Problem(f"is corrupt or not a safetensors file ({error})") from error
    if not tensors:
        raise _Problem("holds no tensors")
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
            raise _Problem(f"has the alpha {alpha!r} in its configuration")
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
        raise _Problem(f"has a configuration that is not JSON ({error})") from error
    return _Alphas({})


def _layers(
    tensors: Mapping[str, Tensor], alphas: _Alphas, family: BaseModelFamily, shapes: Shapes
) -> dict[str, dict[str, LayerWeights]]:
    names = _Names(shapes)
    found: dict[tuple[str, str], dict[str, tuple[str, Tensor]]] = {}
    for key, tensor in tensors.items():
        component, layer, role = _place(key, names, family)
        if not tensor.is_floating_point() or not torch.isfinite(tensor).all():
            raise _Problem(f"holds NaN or infinity, or no floating-point numbers, in {key!r}", "leave this adapter out")
        if role in (roles := found.setdefault((component, layer), {})):
            raise _Problem(f"gives layer {layer} twice: {roles[role][0]!r} and {key!r}")
        roles[role] = (key, tensor)
    layers: dict[str, dict[str, LayerWeights]] = {}
    for (component, layer), roles in found.items():
        if "down" not in roles or "up" not in roles:
            key = next(iter(roles.values()))[0]
            raise _Problem(f"is incomplete: {key!r} has no counterpart (down and up are both needed)")
        shape = shapes[component][layer]
        down, up = _fitted(*roles["down"], *roles["up"], shape, family)
        rank = down.shape[0]
        if "alpha" in roles:
            key, alpha = roles["alpha"]
            if alpha.numel() != 1:
                raise _Problem(f"has {alpha.numel()} numbers in {key!r} where one is expected")
            scale = float(alpha) / rank
        else:
            scale = alphas.scale(component, layer, rank)
        layers.setdefault(component, {})[layer] = LayerWeights(down, up, scale)
    return layers


class _Names:
    """Finds a layer of the base model by the name that a file gives it."""

    def __init__(self, shapes: Shapes) -> None:
        self.dotted: dict[str, dict[str, str]] = {}
        self.flat: dict[str, dict[str, str]] = {}
        for component, layers in shapes.items():
            names = {alias: layer for layer in layers for alias in _aliases(component, layer)}
            self.dotted[component] = names
            self.flat[component] = {alias.replace(".", "_"): layer for alias, layer in names.items()}

    def find(self, name: str) -> tuple[str, str] | None:
        """(component, layer path), or None where the base model has no such layer."""
        for prefix, component in KOHYA.items():
            if name.startswith(prefix):
                layer = self.flat.get(component, {}).get(name.removeprefix(prefix))
                return (component, layer) if layer else None
        components = list(self.dotted)
        while True:
            if name.startswith("base_model.model."):
                name = name.removeprefix("base_model.model.")
            elif name.partition(".")[0] in self.dotted:
                component, _, name = name.partition(".")
                components = [component]
            else:
                break
        for component in components:
            if layer := self.dotted[component].get(name):
                return component, layer
        return None


def _aliases(component: str, layer: str) -> Iterator[str]:
    """The layer's own path; for CLIP also with or without `text_model.`, which came and went in transformers."""
    yield layer
    if component.startswith("text_encoder"):
        yield layer.removeprefix("text_model.") if layer.startswith("text_model.") else "text_model." + layer


OLD_PROCESSORS = {
    "unet": {"to_out": "to_out.0"},
    "text_encoder": {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out": "out_proj"},
}


def _place(key: str, names: _Names, family: BaseModelFamily) -> tuple[str, str, str]:
    """(component, layer path, role: down | up | alpha) of a tensor."""
    for mark, method in OTHER_METHODS.items():
        if mark in key:
            raise _Problem(f"uses {method} (key {key!r}), which can't be applied yet", "choose another adapter")
    match = ROLES.fullmatch(key)
    if match is None:
        raise _Problem(f"has the unknown key {key!r}: not a LoRA of diffusers, kohya or peft", "choose another adapter")
    layer = match["layer"]
    if match["processor"]:
        parent, _, part = layer.replace(".processor", "").rpartition(".")
        kind = "text_encoder" if layer.startswith("text_encoder") else "unet"
        layer = f"{parent}.{OLD_PROCESSORS[kind].get(part, part)}"
    found = names.find(layer)
    if found is None:
        other = next((name for mark, name in OTHER_FAMILIES.items() if mark in key), "another base model")
        raise _Problem(
            f"has the key {key!r}, for which base model {family.value} has no layer: it seems made for {other}",
            f"choose adapters for {family.value}",
        )
    role = "alpha" if key.endswith(".alpha") else "down" if re.search(r"down\.weight$|lora_A\b", key) else "up"
    return *found, role


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
            raise _Problem(
                f"has the shape {list(tensor.shape)} in {key!r} where {family.value} takes {list(expected)}: "
                "it was made for another base model",
                f"choose adapters for {family.value}",
            )
    most = max(shape.inputs * math.prod(shape.kernel), shape.outputs)
    if not 1 <= rank <= most:
        raise _Problem(f"has rank {rank} in {down_key!r}; the layer allows 1 to {most}", "leave this adapter out")
    return down, up
