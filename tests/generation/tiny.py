"""A Stable Diffusion pipeline of random weights, small enough to render in a tenth of a second, and random adapters for
it in every file format that people publish."""

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from stylus.generation.generator import Rendered
from stylus.records import Adapter, BaseModelFamily, Choice, Composition, Task
from stylus.settings import Settings

Factors = dict[str, dict[str, tuple[Tensor, Tensor]]]
"""Component -> layer path -> (down, up)."""

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0", "q_proj", "k_proj", "v_proj", "out_proj")

DEVICE = os.environ.get("STYLUS_TEST_DEVICE", "cpu")
"""Where the tests of the generation draw. Not whatever there is: what they compare with is exact on a CPU."""
if DEVICE.startswith("cuda"):
    torch.backends.cudnn.allow_tf32 = False  # its 10 bits of mantissa are what half precision has


def settings(data: Path, **fields: Any) -> Settings:
    """For generations on DEVICE, in float32 unless `fields` say otherwise."""
    return Settings(**{"data": data, "device": DEVICE, "dtype": "float32", **fields})


def far(a: Image.Image, b: Image.Image) -> int:
    """Largest difference of a channel, of 255."""
    return int(np.abs(np.asarray(a, dtype=int) - np.asarray(b, dtype=int)).max())


def same(a: list[Rendered], b: list[Rendered]) -> bool:
    """Whether all pixels of all images are the same."""
    return all(x.image.tobytes() == y.image.tobytes() for x, y in zip(a, b, strict=True))


def write_vocabulary(folder: Path) -> CLIPTokenizer:
    """A tokenizer of single letters that reads 22 of them at once."""
    letters = "abcdefghijklmnopqrstuvwxyz,"
    tokens = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({token: n for n, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=24)


def write_pipeline(folder: Path, seed: int = 0, widths: tuple[int, int] = (32, 64)) -> None:
    torch.manual_seed(seed)
    folder.mkdir(parents=True)
    tokenizer = write_vocabulary(folder)
    pipeline = StableDiffusionPipeline(
        vae=AutoencoderKL(
            block_out_channels=(8, 8, 8, 8),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            norm_num_groups=4,
            sample_size=64,
        ),
        text_encoder=CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(tokenizer),
                hidden_size=32,
                intermediate_size=48,
                num_hidden_layers=2,
                num_attention_heads=4,
                max_position_embeddings=24,
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            )
        ),
        tokenizer=tokenizer,
        unet=UNet2DConditionModel(
            sample_size=8,
            block_out_channels=widths,
            layers_per_block=1,
            down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
            cross_attention_dim=32,
            attention_head_dim=8,
            norm_num_groups=8,
        ),
        scheduler=DDIMScheduler(
            beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, steps_offset=1, clip_sample=False
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder)


def random_factors(
    models: Mapping[str, nn.Module], seed: int, rank: int = 4, keep: Callable[[str], bool] = lambda path: True
) -> Factors:
    """Random factors for the linear and convolution layers whose path `keep` accepts."""
    random = torch.Generator().manual_seed(seed)
    factors: Factors = {}
    down: tuple[int, ...]
    up: tuple[int, ...]
    for component, model in models.items():
        for path, layer in model.named_modules():
            if isinstance(layer, nn.Linear) and keep(path):
                down, up = (rank, layer.in_features), (layer.out_features, rank)
            elif isinstance(layer, nn.Conv2d) and keep(path):
                down, up = (rank, layer.in_channels, *layer.kernel_size), (layer.out_channels, rank, 1, 1)
            else:
                continue
            spread = 1.0 / down[1] ** 0.5
            factors.setdefault(component, {})[path] = (
                torch.randn(down, generator=random) * spread,
                torch.randn(up, generator=random) * 0.2,
            )
    return factors


def attention(path: str) -> bool:
    return path.endswith(ATTENTION)


def kohya(factors: Factors, alpha: float | None) -> dict[str, Tensor]:
    prefixes = {"unet": "lora_unet_", "text_encoder": "lora_te_text_model_"}
    tensors: dict[str, Tensor] = {}
    for component, layers in factors.items():
        for path, (down, up) in layers.items():
            name = prefixes[component] + path.replace(".", "_")
            tensors |= {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up}
            if alpha is not None:
                tensors[f"{name}.alpha"] = torch.tensor(alpha)
    return tensors


def dotted(factors: Factors, prefix: str, down_name: str, up_name: str, text_model: str = "") -> dict[str, Tensor]:
    """`prefix` may hold {component}."""
    tensors: dict[str, Tensor] = {}
    for component, layers in factors.items():
        for path, (down, up) in layers.items():
            name = prefix.format(component=component) + (text_model if component == "text_encoder" else "") + path
            tensors |= {f"{name}.{down_name}.weight": down, f"{name}.{up_name}.weight": up}
    return tensors


def early_diffusers(factors: Factors) -> dict[str, Tensor]:
    """UNet attention only, as diffusers before 0.18 wrote it."""
    tensors: dict[str, Tensor] = {}
    for path, (down, up) in factors["unet"].items():
        parent, _, part = path.replace("to_out.0", "to_out").rpartition(".")
        name = f"unet.{parent}.processor.{part}_lora"
        tensors |= {f"{name}.down.weight": down, f"{name}.up.weight": up}
    return tensors


def write(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({key: tensor.clone().contiguous() for key, tensor in tensors.items()}, path, metadata=metadata)
    return path


def adapter(name: str, path: Path | str | None, **fields: Any) -> Adapter:
    base = {"base_model": BaseModelFamily.SD15, **fields}
    return Adapter(id=f"test:{name}", name=name, file=None if path is None else str(path), **base)


def composition(
    *tasks: Mapping[str, float], prompt: str = "a cat", words: Mapping[str, str] | None = None
) -> Composition:
    """Each task maps adapter names to weights; `words` maps names to trigger words."""
    return Composition(
        id="composition",
        prompt=prompt,
        base_model=BaseModelFamily.SD15,
        composer="test",
        tasks=tuple(
            Task(
                keyword=f"task {n}",
                choices=tuple(
                    Choice(
                        adapter_id=f"test:{name}",
                        name=name,
                        weight=weight,
                        trigger_words=(words[name],) if words and name in words else (),
                    )
                    for name, weight in task.items()
                ),
            )
            for n, task in enumerate(tasks)
        ),
    )
