"""The names that adapter files give their tensors: diffusers', kohya's (sd-scripts), peft's.

Every tensor is matched to a layer of the base model by that layer's own name, so that a UNet of any size works and a
file made for another base model is refused with the first layer that isn't there. (diffusers guesses names by string
replacement and only warns about keys it could not place.)
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from stylus.records import BaseModelFamily


@dataclass(frozen=True)
class LayerShape:
    """What a layer of the base model accepts: the shapes of the two factors but for the rank."""

    inputs: int
    outputs: int
    kernel: tuple[int, ...] = ()
    """() for a linear layer, (height, width) for a convolution."""


Shapes = Mapping[str, Mapping[str, LayerShape]]
"""Component (`unet`, `text_encoder`) -> layer path, as in `named_modules` -> shape."""


class Problem(Exception):
    """What is wrong with a file, and the remedy; `read_adapter` adds which adapter it is."""

    def __init__(self, what: str, remedy: str = "leave this adapter out or download its file again") -> None:
        super().__init__(what)
        self.what, self.remedy = what, remedy


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
    r"\boft_": "OFT",
    r"\bia3_": "IA3",
    r"\.diff(_b)?$": "full weight differences",
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


class LayerNames:
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


def place(key: str, names: LayerNames, family: BaseModelFamily) -> tuple[str, str, str]:
    """(component, layer path, role: down | up | alpha) of a tensor."""
    for mark, method in OTHER_METHODS.items():
        if re.search(mark, key):
            raise Problem(f"uses {method} (key {key!r}), which can't be applied yet", "choose another adapter")
    match = ROLES.fullmatch(key)
    if match is None:
        raise Problem(f"has the unknown key {key!r}: not a LoRA of diffusers, kohya or peft", "choose another adapter")
    layer = match["layer"]
    if match["processor"]:
        parent, _, part = layer.replace(".processor", "").rpartition(".")
        kind = "text_encoder" if layer.startswith("text_encoder") else "unet"
        layer = f"{parent}.{OLD_PROCESSORS[kind].get(part, part)}"
    found = names.find(layer)
    if found is None:
        other = next((name for mark, name in OTHER_FAMILIES.items() if mark in key), "another base model")
        raise Problem(
            f"has the key {key!r}, for which base model {family.value} has no layer: it seems made for {other}",
            f"choose adapters for {family.value}",
        )
    role = "alpha" if key.endswith(".alpha") else "down" if re.search(r"down\.weight$|lora_A\b", key) else "up"
    return *found, role
