"""The whole generator at the true sizes of sd15 and sdxl, random weights: seconds a step and a picture, and memory.

`python -m tests.benchmarks.families --json OUT [--family sd15 --family sdxl] [--small]`. Made for a GPU, where it works
in float16. `theirs`: diffusers' own pipeline, bare. `bare`, `fused`, `gated`: ours without adapters, with three that
all pictures share, and with a composition of its own for each. Each is the median of `--rounds` calls for four
pictures; ratios are to `theirs`, as many pictures at once. `alone`: the largest difference, of 255, between a picture
of the gated batch and the same drawn alone; `again`: between two calls; `offload`: with STYLUS_OFFLOAD=1.
"""

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DPMSolverMultistepScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from stylus.generation.checkpoints import Checkpoints, LoadedPipeline
from stylus.generation.generator import Generator, Rendered
from stylus.records import Adapter, BaseModelFamily, MaskMode, Request
from stylus.settings import Settings
from tests.benchmarks import data_folder
from tests.benchmarks.unets import RANK, SD15
from tests.generation import tiny

SDXL = {
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
    "sample_size": 128,
}
SMALLER: dict[str, Any] = {"block_out_channels": (32, 64, 64), "norm_num_groups": 8, "sample_size": 8}
LARGE_CLIP: dict[str, Any] = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
}
HUGE_CLIP: dict[str, Any] = {
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 20,
}
COMPOSITION = tiny.composition({"a": 0.4}, {"b": 0.3}, {"c": 0.3})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="where to write the figures")
    parser.add_argument("--family", action="append", choices=["sd15", "sdxl"], help="default: both")
    parser.add_argument("--small", action="store_true", help="few channels, to try the benchmark itself")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    result = {}
    for name in arguments.family or ["sd15", "sdxl"]:
        with data_folder() as folder:
            result[name] = measure(BaseModelFamily(name), folder, arguments.small, arguments.steps, arguments.rounds)
        print(json.dumps({name: result[name]}, indent=2), flush=True)
        if arguments.json:
            arguments.json.write_text(json.dumps(result, indent=2) + "\n")


def measure(family: BaseModelFamily, folder: Path, small: bool, steps: int, rounds: int) -> dict[str, Any]:
    write(family, folder / "checkpoint", small)
    settings = Settings(data=folder, checkpoints={family: str(folder / "checkpoint")})
    composition = COMPOSITION.model_copy(update={"base_model": family})
    plain = Request(composition=composition, count=4, seed=5, steps=steps)
    adapters, figures = _resident(settings, plain, folder, rounds)
    generator = Generator(Checkpoints(settings.model_copy(update={"offload": True})))
    generator.render(plain, adapters)  # warm
    seconds, peak = _timed(lambda: generator.render(plain, adapters))
    return {
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        **figures,
        "offload": {"seconds_a_picture": round(seconds / plain.count, 3), "peak_gb": round(peak, 2)},
    }


def _resident(
    settings: Settings, plain: Request, folder: Path, rounds: int
) -> tuple[dict[str, Adapter], dict[str, Any]]:
    generator = Generator(Checkpoints(settings))
    start = time.perf_counter()
    loaded = generator.checkpoint(plain.composition.base_model)
    opened = time.perf_counter() - start
    adapters = _adapters(loaded, folder)
    gated, none = (plain.model_copy(update={"masks": masks}) for masks in (MaskMode.SAMPLE, MaskMode.NONE))
    loads = generator.render(gated, adapters)[0].seconds["load"]

    def ours(request: Request) -> Callable[[], list[Rendered]]:
        return lambda: generator.render(request, adapters)

    works = {"theirs": lambda: _theirs(loaded, plain), "bare": ours(none), "fused": ours(plain), "gated": ours(gated)}
    rows = [{name: _timed(work) for name, work in works.items()} for _ in range(rounds)]
    seconds = {name: statistics.median(row[name][0] for row in rows) for name in works}
    batch, again = ours(gated)(), ours(gated)()
    last = batch[-1]
    kept = tiny.composition(*({id.removeprefix("test:"): weight} for id, weight in last.adapters.items()))
    kept = kept.model_copy(update={"base_model": loaded.family})
    (alone,) = ours(plain.model_copy(update={"composition": kept, "count": 1, "seed": last.seed}))()
    return adapters, {
        "seconds_to_open": round(opened, 2),
        "seconds_to_load_three_adapters": round(loads, 3),
        "seconds_a_picture": {name: round(median / plain.count, 3) for name, median in seconds.items()},
        "ratio_to_theirs": {name: round(median / seconds["theirs"], 3) for name, median in seconds.items()},
        "peak_gb": {name: round(max(row[name][1] for row in rows), 2) for name in works},
        "alone": tiny.far(alone.image, last.image),
        "again": max(tiny.far(a.image, b.image) for a, b in zip(batch, again, strict=True)),
        "notes": sorted({note for image in batch for note in image.notes}),
    }


def _timed(work: Callable[[], Any]) -> tuple[float, float]:
    """Seconds, and the most gigabytes that were taken on the GPU meanwhile."""
    gpu = torch.cuda.is_available()
    if gpu:
        torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    work()
    if gpu:
        torch.cuda.synchronize()
    seconds = time.perf_counter() - start
    return seconds, torch.cuda.max_memory_allocated() / 2**30 if gpu else math.nan


def _theirs(loaded: LoadedPipeline, request: Request) -> None:
    """The same number of pictures at once as ours are drawn."""
    vae = loaded.pipeline.vae
    kept = vae.dtype
    torch.nn.Module.to(vae, dtype=loaded.dtype)  # theirs raises its precision itself, where it must
    for first in range(0, request.count, loaded.defaults.batch):
        seeds = range(first, min(first + loaded.defaults.batch, request.count))
        loaded.pipeline(
            prompt=["a cat"] * len(seeds),
            num_inference_steps=request.steps,
            guidance_scale=loaded.defaults.guidance_scale,
            height=request.height or loaded.size,
            width=request.width or loaded.size,
            generator=[torch.Generator().manual_seed(request.seed + n) for n in seeds],
        )
    torch.nn.Module.to(vae, dtype=kept)


def _adapters(loaded: LoadedPipeline, folder: Path) -> dict[str, Adapter]:
    """On all attention layers of the UNet; as files of float16, as people have them."""
    unet = {"unet": loaded.pipeline.unet}
    found = {}
    for seed, name in enumerate("abc"):
        factors = tiny.random_factors(unet, seed, rank=RANK, keep=tiny.attention)
        tensors = {key: tensor.half() for key, tensor in tiny.kohya(factors, alpha=1.0).items()}
        path = tiny.write(folder / f"{name}.safetensors", tensors)
        found[f"test:{name}"] = tiny.adapter(name, path, base_model=loaded.family)
    return found


def write(family: BaseModelFamily, folder: Path, small: bool) -> None:
    """A diffusers folder of the family: the layers and channels of the published one, random weights in float16."""
    folder.mkdir()
    tokenizer = tiny.write_vocabulary(folder)
    tokenizer.model_max_length = 77
    xl = family is BaseModelFamily.SDXL
    shape: dict[str, Any] = dict(SDXL) if xl else {**SD15, "sample_size": 64}
    first, second = LARGE_CLIP, HUGE_CLIP
    blocks = (128, 256, 512, 512)
    if small:
        few = {"num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 48}
        first, second = {"hidden_size": 32, **few}, {"hidden_size": 64, **few}
        blocks = (32, 32, 32, 32)
        shape |= SMALLER if xl else {"block_out_channels": (32, 64, 64, 64), "norm_num_groups": 8, "sample_size": 8}
        shape["cross_attention_dim"] = 96 if xl else 32
        if xl:
            shape |= {"attention_head_dim": (1, 2, 4), "projection_class_embeddings_input_dim": 64 + 6 * 256}
    torch.manual_seed(7)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        parts: dict[str, Any] = {
            "unet": UNet2DConditionModel(**shape),
            "vae": AutoencoderKL(
                block_out_channels=blocks,
                down_block_types=("DownEncoderBlock2D",) * 4,
                up_block_types=("UpDecoderBlock2D",) * 4,
                layers_per_block=2,
                sample_size=1024 if xl else 512,
                force_upcast=xl,
            ),
            "text_encoder": CLIPTextModel(_clip(first, tokenizer)),
        }
        if xl:
            parts["text_encoder_2"] = CLIPTextModelWithProjection(_clip(second, tokenizer))
    parts = {name: model.half() for name, model in parts.items()}
    parts["scheduler"] = DPMSolverMultistepScheduler(
        beta_schedule="scaled_linear", use_karras_sigmas=True, prediction_type="v_prediction", steps_offset=1
    )
    if xl:
        pipeline = StableDiffusionXLPipeline(tokenizer=tokenizer, tokenizer_2=tokenizer, add_watermarker=False, **parts)
    else:
        rest = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
        pipeline = StableDiffusionPipeline(tokenizer=tokenizer, **rest, **parts)
    pipeline.save_pretrained(folder)


def _clip(size: dict[str, Any], tokenizer: Any) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        max_position_embeddings=77,
        projection_dim=size["hidden_size"],
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **size,
    )


if __name__ == "__main__":
    main()
