"""Which base model family an adapter was made for: by the names and shapes of its tensors, and by names that people and
trainers give to base models.

Layers and widths are those of diffusers' `lora_conversion_utils`, kohya's sd-scripts and LyCORIS. A family is told only
where nothing speaks against it: adapters of base models that we have no family for (SD 2, Flux.2, HunyuanVideo,
Qwen-Image, AuraFlow) carry the same names.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping

from stylus.records import BaseModelFamily

Shapes = Mapping[str, tuple[int, ...]]
"""Tensor name -> shape."""

_DOWN = re.compile(r"lora_down\.|lora_A\.|_lora\d?\.down\.|lora(?:_linear_layer)?\.down\.|(?:hada|lokr)_w[12]_b$")
_UNET = re.compile(r"(?:down|up|mid|input|output|middle)_blocks?[._]")
_CROSS_ATTENTION = re.compile(r"attn2[._](?:processor[._])?to_[kv](?:\b|_lora)")
_CONTEXT_WIDTHS: Mapping[int, BaseModelFamily] = {
    768: BaseModelFamily.SD15,
    2048: BaseModelFamily.SDXL,
    96: BaseModelFamily.POCKET,
}
"""Width of the text that cross-attention of a UNet reads. 1024 is SD 2."""

_STREAM_WIDTHS: Mapping[int, BaseModelFamily] = {
    **dict.fromkeys((1536, 4 * 1536, 2432, 4 * 2432), BaseModelFamily.SD3),
    **dict.fromkeys((3072, 4 * 3072, 5 * 3072), BaseModelFamily.FLUX),
}
"""What the layers of a transformer with a text and an image stream read: SD3 medium, SD3.5 large, Flux.1. Feed-forward
layers read 4 times the stream's width, Flux's single blocks 5 times."""

_BLOCKS = re.compile(r"(double_blocks|single_blocks|joint_blocks|(?:single_)?transformer_blocks)[._](\d+)[._]")
_FLUX_BLOCKS = {"double_blocks": 19, "single_blocks": 38, "single_transformer_blocks": 38, "transformer_blocks": 19}
"""How many Flux.1 has; HunyuanVideo and Qwen-Image, of the same names and width, have more."""

_TWO_STREAMS = re.compile(r"transformer_blocks.*?(?:add_[qkv]_proj|ff_context)")
_STRANGERS = re.compile(r"joint_transformer_blocks|transformer_blocks[._]\d+[._]img_m(?:lp|od)")
"""AuraFlow, Qwen-Image."""

_NAMES: tuple[tuple[str, BaseModelFamily | None], ...] = (
    ("pocket", BaseModelFamily.POCKET),
    ("flux.2", None),
    ("flux2", None),
    ("flux-2", None),
    ("pony v7", None),
    ("sdxl", BaseModelFamily.SDXL),
    ("sd_xl", BaseModelFamily.SDXL),
    ("stable-diffusion-xl", BaseModelFamily.SDXL),
    ("stable diffusion xl", BaseModelFamily.SDXL),
    ("pony", BaseModelFamily.SDXL),
    ("illustrious", BaseModelFamily.SDXL),
    ("noobai", BaseModelFamily.SDXL),
    ("flux", BaseModelFamily.FLUX),
    ("sd3", BaseModelFamily.SD3),
    ("sd 3", BaseModelFamily.SD3),
    ("stable-diffusion-3", BaseModelFamily.SD3),
    ("stable diffusion 3", BaseModelFamily.SD3),
    ("stable-diffusion-v3", BaseModelFamily.SD3),
    ("sd_v1", BaseModelFamily.SD15),
    ("sd1", BaseModelFamily.SD15),
    ("sd 1", BaseModelFamily.SD15),
    ("v1-5", BaseModelFamily.SD15),
    ("stable-diffusion-v1", BaseModelFamily.SD15),
    ("stable diffusion 1", BaseModelFamily.SD15),
)
"""Parts of names; the first that fits decides. None: a base model without a family here."""


def family_by_name(name: str) -> BaseModelFamily | None:
    """The family that a base model's name belongs to, as people and trainers write it: `SD 1.5`, `sdxl_base_v1-0`."""
    folded = name.strip().lower()
    return next((family for part, family in _NAMES if part in folded), None)


def family_by_tensors(shapes: Shapes) -> BaseModelFamily | None:
    """The family by names and shapes; None where they don't tell or tell of another base model."""
    widths = dict(_input_widths(shapes))
    for layer, width in widths.items():
        if _UNET.search(layer) and _CROSS_ATTENTION.search(layer):
            return _CONTEXT_WIDTHS.get(width)
    names = " ".join(shapes)
    if _UNET.search(names):
        # SDXL alone has a second text encoder and more than two transformer blocks in a row
        mark = re.search(r"lora_te2_|text_encoder_2\.|transformer_blocks[._][2-9]", names)
        return BaseModelFamily.SDXL if mark else None
    if _BLOCKS.search(names):
        return _family_of_transformer(names, widths)
    # a text encoder alone: kohya calls SD 1's `te`, and those of other families by number
    text = {width for layer, width in widths.items() if re.match(r"lora_te_.*self_attn", layer)}
    return BaseModelFamily.SD15 if text == {768} else None


def _family_of_transformer(names: str, widths: Mapping[str, int]) -> BaseModelFamily | None:
    blocks = _BLOCKS.findall(names)
    kinds = {kind for kind, _ in blocks}
    streams = Counter(width for layer, width in widths.items() if _BLOCKS.search(layer)).most_common(1)
    by_width = _STREAM_WIDTHS.get(streams[0][0]) if streams else None
    if "joint_blocks" in kinds:
        family: BaseModelFamily | None = BaseModelFamily.SD3
    elif kinds & {"double_blocks", "single_blocks", "single_transformer_blocks"}:
        family = BaseModelFamily.FLUX
    else:
        family = by_width if _TWO_STREAMS.search(names) else None
    more_than_flux = any(int(number) >= _FLUX_BLOCKS.get(kind, 0) for kind, number in blocks)
    if by_width != family or _STRANGERS.search(names) or (family == BaseModelFamily.FLUX and more_than_flux):
        return None
    return family


def _input_widths(shapes: Shapes) -> Iterator[tuple[str, int]]:
    """(layer, width of what it reads) wherever the shapes tell it."""
    for name, shape in shapes.items():
        layer, _, factor = name.partition(".lokr_")
        if factor in {"w1", "w1_b"} and len(shape) > 1:
            # a Kronecker product: its width is the product of both factors' widths
            other = shapes.get(f"{layer}.lokr_w2") or shapes.get(f"{layer}.lokr_w2_b") or ()
            if len(other) > 1:
                yield layer, shape[1] * other[1]
        elif not factor and len(shape) > 1 and is_down(name):
            yield name, shape[1]


def is_down(name: str) -> bool:
    """Whether the tensor is the factor that meets the layer's input: its shape is [rank, width of the input, ...]."""
    return bool(_DOWN.search(name))
