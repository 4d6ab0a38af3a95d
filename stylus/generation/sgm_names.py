"""The names that a UNet's layers had in the code that Stable Diffusion was published with (`input_blocks.4.1...`).

Kohya's scripts train SDXL on that code, so most SDXL adapters carry these names, and some LyCORIS files for SD 1.5 do.
diffusers numbers blocks by resolution and layers within them; the original numbers all layers in a row.
"""

import re
from collections.abc import Iterable

INSIDE = {
    "conv1": "in_layers.2",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
OUTSIDE = {
    "conv_in": "input_blocks.0.0",
    "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
}
BLOCK = re.compile(r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.+)")
MIDDLE = re.compile(r"mid_block\.(resnets|attentions)\.(\d+)\.(.+)")


def sgm_names(layers: Iterable[str]) -> dict[str, str]:
    """Original name -> layer path, for the layers of a UNet that have one."""
    paths = list(layers)
    resnets = [match for path in paths if (match := re.match(r"down_blocks\.0\.resnets\.(\d+)\.", path))]
    # in the original's count a block is its resnets and what resamples
    a_block = max((int(match[1]) for match in resnets), default=0) + 2
    with_attention = {match[0] for path in paths if (match := re.match(r"up_blocks\.\d+\.attentions", path))}
    return {name: path for path in paths if (name := _name(path, a_block, with_attention))}


def _name(path: str, a_block: int, with_attention: set[str]) -> str | None:
    if path in OUTSIDE:
        return OUTSIDE[path]
    if match := MIDDLE.fullmatch(path):
        kind, number, rest = match.groups()
        place = 1 if kind == "attentions" else 2 * int(number)
        return f"middle_block.{place}.{INSIDE.get(rest, rest)}"
    if not (match := BLOCK.fullmatch(path)):
        return None
    side, block, kind, number, rest = match.groups()
    start = int(block) * a_block
    if kind == "downsamplers":
        return f"input_blocks.{start + a_block}.0.op"
    if kind == "upsamplers":
        place = 2 if f"up_blocks.{block}.attentions" in with_attention else 1
        return f"output_blocks.{start + a_block - 1}.{place}.{rest}"
    place = 0 if kind == "resnets" else 1
    layer = start + int(number) + (1 if side == "down" else 0)
    return f"{'input' if side == 'down' else 'output'}_blocks.{layer}.{place}.{INSIDE.get(rest, rest)}"
