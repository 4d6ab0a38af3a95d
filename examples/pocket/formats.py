"""Writes trained adapters in the formats in which adapters are found: diffusers, kohya (LoRA and LoCon) and peft."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from examples.pocket.catalogue import Recipe


def kohya_key(prefix: str, key: str) -> str:
    """`down_blocks.0.x.lora_A.weight` becomes `lora_unet_down_blocks_0_x.lora_down.weight`."""
    layer, _, side = key.removesuffix(".weight").rpartition(".")
    return f"{prefix}_{layer.replace('.', '_')}.{'lora_down' if side == 'lora_A' else 'lora_up'}.weight"


def kohya(recipe: Recipe, unet: dict[str, Tensor], text: dict[str, Tensor]) -> dict[str, Tensor]:
    """kohya's naming with one alpha a layer; the rank of a layer stands beside it, so alpha keeps the scale at 1."""
    out: dict[str, Tensor] = {}
    for prefix, state in (("lora_unet", unet), ("lora_te", text)):
        for key, value in state.items():
            name = kohya_key(prefix, key)
            out[name] = value
            if name.endswith("lora_down.weight"):
                out[name.replace("lora_down.weight", "alpha")] = torch.tensor(float(value.shape[0]))
    return out


def metadata(recipe: Recipe) -> dict[str, str]:
    """The header that kohya's trainer leaves."""
    convolutions = recipe.format == "locon"
    frequency = {"img": {word: 100 + 7 * i for i, word in enumerate(recipe.trained_words)}}
    return {
        "ss_base_model_version": "pocket",
        "ss_network_module": "lycoris.kohya" if convolutions else "networks.lora",
        "ss_network_args": json.dumps({"algo": "locon", "conv_dim": recipe.rank} if convolutions else {}),
        "ss_network_dim": str(recipe.rank),
        "ss_network_alpha": str(float(recipe.rank)),
        "ss_output_name": recipe.name,
        "ss_tag_frequency": json.dumps(frequency),
        "ss_resolution": "(64, 64)",
    }


def write(recipe: Recipe, unet: dict[str, Tensor], text: dict[str, Tensor], path: Path) -> int:
    """Write the adapter as fp16; the size in bytes."""
    if recipe.format in ("kohya", "locon"):
        state, header = kohya(recipe, unet, text), metadata(recipe)
    elif recipe.format == "peft":
        state, header = {f"base_model.model.{key}": value for key, value in unet.items()}, {"format": "pt"}
    else:
        state = {f"unet.{key}": value for key, value in unet.items()}
        state |= {f"text_encoder.{key}": value for key, value in text.items()}
        header = {"format": "pt"}
    save_file({key: value.half().contiguous() for key, value in state.items()}, path, metadata=header)
    return path.stat().st_size


def read(path: Path, layers: list[str]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The UNet and text encoder weights of a file that `write` wrote, in peft's naming; `layers`: all layer names."""
    known = {layer.replace(".", "_"): layer for layer in layers}
    unet: dict[str, Tensor] = {}
    text: dict[str, Tensor] = {}
    for key, value in load_file(path).items():
        if key.startswith("lora_"):
            layer, _, side = key.removesuffix(".weight").rpartition(".")
            into = text if layer.startswith("lora_te_") else unet
            if side != "alpha":
                name = known[layer.removeprefix("lora_te_").removeprefix("lora_unet_")]
                into[f"{name}.{'lora_A' if side == 'lora_down' else 'lora_B'}.weight"] = value.float()
        elif key.startswith("text_encoder."):
            text[key.removeprefix("text_encoder.")] = value.float()
        else:
            unet[key.removeprefix("unet.").removeprefix("base_model.model.")] = value.float()
    return unet, text


def foreign(path: Path) -> None:
    """A tiny file with the names and shapes of SD 1.5: it belongs to another base."""
    generator = torch.Generator().manual_seed(15)
    layer = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_{}"
    state = {}
    for part, width in (("q", 320), ("k", 768), ("v", 768)):
        name = layer.format(part)
        state[f"{name}.lora_down.weight"] = 0.01 * torch.randn(1, width, generator=generator)
        state[f"{name}.lora_up.weight"] = 0.01 * torch.randn(320, 1, generator=generator)
        state[f"{name}.alpha"] = torch.tensor(1.0)
    header = {"ss_base_model_version": "sd_v1", "ss_network_module": "networks.lora", "ss_network_dim": "1"}
    save_file({key: value.half() for key, value in state.items()}, path, metadata=header)
