"""The names that adapter files give their tensors: diffusers', kohya's (sd-scripts), peft's, LyCORIS's.

Every tensor is matched to a layer of the base model by that layer's own name, so that a UNet of any size works and a
file made for another base model is refused with the first layer that isn't there. (diffusers guesses names by string
replacement and only warns about keys it could not place.)
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from stylus.generation.sgm_names import sgm_names
from stylus.records import BaseModelFamily


@dataclass(frozen=True)
class LayerShape:
    """What a layer of the base model accepts: the shapes of the two factors but for the rank."""

    inputs: int
    outputs: int
    kernel: tuple[int, ...] = ()
    """() for a linear layer, (height, width) for a convolution."""

    @property
    def weight(self) -> tuple[int, ...]:
        return self.outputs, self.inputs, *self.kernel


Shapes = Mapping[str, Mapping[str, LayerShape]]
"""Component (`unet` or `transformer`, `text_encoder`...) -> layer path, as in `named_modules` -> shape."""


class Problem(Exception):
    """What is wrong with a file, and the remedy; `read_adapter` adds which adapter it is."""

    def __init__(self, what: str, remedy: str = "leave this adapter out or download its file again") -> None:
        super().__init__(what)
        self.what, self.remedy = what, remedy


class Unsupported(Problem):
    """The file may be fine: we can't apply what it holds."""


PARTS = {
    "down": r"(?:lora_down|lora\.down|lora_linear_layer\.down|lora_A(?:\.\w+)?)\.weight",
    "up": r"(?:lora_up|lora\.up|lora_linear_layer\.up|lora_B(?:\.\w+)?)\.weight",
    "mid": r"lora_mid\.weight",
    "magnitude": r"dora_scale|lora_magnitude_vector(?:\.\w+)*",
    "alpha": r"alpha",
    "diff": r"diff",
    **{part: part for n in "12" for part in (f"hada_w{n}_a", f"hada_w{n}_b", f"hada_t{n}")},
    **{part: part for n in "12" for part in (f"lokr_w{n}", f"lokr_w{n}_a", f"lokr_w{n}_b", f"lokr_t{n}")},
}
"""Role -> how its tensors end, in all naming schemes."""
EARLY = re.compile(r"(?P<layer>.+?)_lora\.(?P<role>down|up)\.weight")
"""Early diffusers: attn1.processor.to_q_lora.down.weight"""
ROLES = re.compile(r"(?P<layer>.+?)\.(?:" + "|".join(f"(?P<{role}>{end})" for role, end in PARTS.items()) + ")")
OTHER_METHODS = {r"\boft_": "OFT", r"\bia3_|\.on_input$": "IA3", r"\.diff_b$": "differences of biases"}
KOHYA = {
    "lora_unet_": ("unet", "transformer"),
    "lora_te_": ("text_encoder",),
    "lora_te1_": ("text_encoder",),
    "lora_te2_": ("text_encoder_2",),
    "lora_te3_": ("text_encoder_3",),
}
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
            if component == "unet":
                names = sgm_names(layers) | names
            self.flat[component] = {alias.replace(".", "_"): layer for alias, layer in names.items()}

    def find(self, name: str) -> tuple[str, str] | None:
        """(component, layer path), or None where the base model has no such layer."""
        for prefix, candidates in KOHYA.items():
            if name.startswith(prefix):
                for component in candidates:
                    if layer := self.flat.get(component, {}).get(name.removeprefix(prefix)):
                        return component, layer
                return None
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
    """(component, layer path, role: a key of PARTS) of a tensor. Raises Unsupported, and Problem where the base model
    has no such layer."""
    for mark, method in OTHER_METHODS.items():
        if re.search(mark, key):
            raise Unsupported(f"uses {method} (key {key!r}), which can't be applied", "choose another adapter")
    early = EARLY.fullmatch(key)
    match = early or ROLES.fullmatch(key)
    if match is None:
        raise Unsupported(
            f"has the unknown key {key!r}: not an adapter of diffusers, kohya, peft or LyCORIS",
            "choose another adapter",
        )
    layer = match["layer"]
    role = early["role"] if early else str(match.lastgroup)
    if early:
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
    return *found, role
