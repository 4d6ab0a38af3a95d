"""Each family draws what diffusers' own pipeline of it draws: text to image, image translation, inpainting. Adapters on
its denoiser and on its text encoders act, one composition an image."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    AutoPipelineForImage2Image,
    AutoPipelineForInpainting,
    DPMSolverMultistepScheduler,
    UNet2DConditionModel,
)
from PIL import Image

from stylus.generation.checkpoints import Checkpoints, LoadedPipeline
from stylus.generation.codec import encoded
from stylus.generation.generator import Generator
from stylus.generation.inputs import Inputs
from stylus.records import Adapter, BaseModelFamily, MaskMode, Request
from tests.generation import tiny
from tests.generation.tiny import far
from tests.generation.tiny_families import write_family

NEW = (BaseModelFamily.SDXL, BaseModelFamily.SD3, BaseModelFamily.FLUX)
ALL = (BaseModelFamily.SD15, *NEW)
SEEDS = (11, 12)


@pytest.fixture(scope="module")
def folders(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[BaseModelFamily, Path]:
    root = tmp_path_factory.mktemp("families")
    for family in NEW:
        write_family(family, root / family)
    return {BaseModelFamily.SD15: folder, **{family: root / family for family in NEW}}


@pytest.fixture(scope="module")
def all_families(folders: dict[BaseModelFamily, Path], tmp_path_factory: pytest.TempPathFactory) -> Checkpoints:
    configured = {str(family): str(folder) for family, folder in folders.items()}
    data = tmp_path_factory.mktemp("data")
    return Checkpoints(tiny.settings(data, checkpoints=configured, checkpoints_kept=4))


def request(family: BaseModelFamily, **fields: Any) -> Request:
    plain = tiny.composition().model_copy(update={"base_model": family})
    sizes = {"width": 64, "height": 64} if "image" not in fields else {}
    return Request(
        **{
            "composition": plain,
            "count": 2,
            "seed": SEEDS[0],
            "steps": 4,
            "negative_prompt": "a dog",
            **sizes,
            **fields,
        }
    )


def picture() -> Image.Image:
    ramp = np.linspace(0, 255, 64, dtype=np.uint8)
    return Image.fromarray(
        np.stack([np.tile(ramp, (64, 1)), np.tile(ramp[:, None], (1, 64)), np.full((64, 64), 90)], 2).astype(np.uint8)
    )


def half() -> Image.Image:
    mask = Image.new("L", (64, 64))
    mask.paste(255, (0, 0, 32, 64))
    return mask


def theirs(loaded: LoadedPipeline, how: Any, **options: Any) -> list[Image.Image]:
    """diffusers' own pipeline on the same models, from the same noise."""
    pipe = loaded.pipeline if how is None else how.from_pipe(loaded.pipeline)
    if isinstance(pipe.scheduler, DPMSolverMultistepScheduler):
        pipe.scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)
    guidance = {"guidance_scale": loaded.defaults.guidance_scale}
    if loaded.family is BaseModelFamily.FLUX:
        guidance["true_cfg_scale"] = 2.0
    pipe.set_progress_bar_config(disable=True)
    images: list[Image.Image] = pipe(
        prompt=["a cat"] * 2,
        negative_prompt=["a dog"] * 2,
        num_inference_steps=4,
        generator=[torch.Generator().manual_seed(seed) for seed in SEEDS],
        **guidance,
        **options,
    ).images
    return images


@pytest.mark.parametrize("family", ALL)
def test_the_loop_is_that_of_diffusers(family: BaseModelFamily, all_families: Checkpoints) -> None:
    loaded, generator = all_families.open(family), Generator(all_families)
    ours = generator.render(request(family), {})
    assert ours[0].notes == ()
    for mine, other in zip(ours, theirs(loaded, None, height=64, width=64), strict=True):
        assert far(mine.image, other) <= 1
    assert far(ours[0].image, ours[1].image) > 10

    # theirs draws from the VAE's latents; ours takes the likeliest, so those are what both get here
    latents = encoded(loaded, picture()).expand(2, -1, -1, -1)
    started = request(family, image="0" * 64, strength=0.5)
    translated = generator.render(started, {}, inputs=Inputs(picture()))
    size = {} if family in (BaseModelFamily.SD15, BaseModelFamily.SDXL) else {"height": 64, "width": 64}
    for mine, other in zip(
        translated, theirs(loaded, AutoPipelineForImage2Image, image=latents, strength=0.5, **size), strict=True
    ):
        assert far(mine.image, other) <= 1

    inpainted = generator.render(
        request(family, image="0" * 64, mask="1" * 64, strength=0.75), {}, inputs=Inputs(picture(), half())
    )
    mask = torch.from_numpy(np.asarray(half(), dtype=np.float32) / 255)[None, None]
    options = {"image": latents, "mask_image": mask, "masked_image_latents": latents, "strength": 0.75}
    for mine, other in zip(
        inpainted, theirs(loaded, AutoPipelineForInpainting, height=64, width=64, **options), strict=True
    ):
        left = (0, 0, 32, 64)
        assert far(mine.image.crop(left), other.crop(left)) <= 1
        right = (32, 0, 64, 64)
        assert far(mine.image.crop(right), picture().crop(right)) == 0


def models(loaded: LoadedPipeline) -> dict[str, torch.nn.Module]:
    return {component: getattr(loaded.pipeline, component) for component in loaded.kind.components}


def attention(path: str) -> bool:
    return path.endswith((*tiny.ATTENTION, "add_q_proj", "add_k_proj", ".q", ".k", ".v"))


@pytest.mark.parametrize("family", NEW)
def test_adapters_of_each_family(
    family: BaseModelFamily, folders: dict[BaseModelFamily, Path], all_families: Checkpoints, tmp_path: Path
) -> None:
    pipe = Checkpoints(tiny.settings(tmp_path, checkpoints={str(family): str(folders[family])})).open(family)
    denoiser, *texts = pipe.kind.components
    parts = {"denoiser": [denoiser], "texts": texts}
    adapters: dict[str, Adapter] = {}
    for seed, (name, components) in enumerate(parts.items()):
        chosen = {component: model for component, model in models(pipe).items() if component in components}
        factors = tiny.random_factors(chosen, seed, keep=attention)
        assert set(factors) == set(components)
        tensors = tiny.dotted(factors, "{component}.", "lora_A", "lora_B")
        path = tiny.write(tmp_path / f"{name}.safetensors", tensors)
        adapters[f"test:{name}"] = tiny.adapter(name, path, base_model=family)
    composition = tiny.composition({"denoiser": 1.0}, {"texts": 3.0}).model_copy(update={"base_model": family})
    generator = Generator(all_families)
    sampled = request(family, composition=composition, masks=MaskMode.SAMPLE, count=4, steps=2)
    images = generator.render(sampled, adapters)
    assert sorted(tuple(sorted(image.adapters)) for image in images) == [
        (),
        ("test:denoiser",),
        ("test:denoiser", "test:texts"),
        ("test:texts",),
    ]
    plain = generator.render(sampled.model_copy(update={"masks": MaskMode.NONE}), {})
    for image, bare in zip(images, plain, strict=True):
        assert (far(image.image, bare.image) > 1) == bool(image.adapters), image.adapters


def test_kohya_names_of_sdxl_and_flux(
    folders: dict[BaseModelFamily, Path], all_families: Checkpoints, tmp_path: Path
) -> None:
    """The names that most published files have: SDXL's of the original code, Flux's with q, k and v in one."""
    unet = {"unet": UNet2DConditionModel.from_pretrained(folders[BaseModelFamily.SDXL], subfolder="unet")}
    factors = tiny.random_factors(unet, 1, keep=lambda path: not path.startswith("add_embedding"))
    plain = tiny.dotted(factors, "unet.", "lora_A", "lora_B")
    original = {_sgm(key): tensor for key, tensor in plain.items()}
    assert any("input_blocks_5_1_transformer" in key for key in original)
    assert any("output_blocks_2_2_conv" in key for key in original)
    both = [
        drawn(all_families, BaseModelFamily.SDXL, tensors, tmp_path / f"{n}.safetensors")
        for n, tensors in enumerate((plain, original))
    ]
    assert far(*both) == 0

    down, up = torch.randn(4, 32) / 4, torch.randn(96, 4) / 4
    name = "lora_unet_double_blocks_0_img_attn_qkv"
    fused = {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up, f"{name}.alpha": torch.tensor(4.0)}
    split: dict[str, torch.Tensor] = {}
    for part, rows in zip("qkv", torch.split(up, 32), strict=True):
        split |= {f"transformer.transformer_blocks.0.attn.to_{part}.lora_A.weight": down}
        split |= {f"transformer.transformer_blocks.0.attn.to_{part}.lora_B.weight": rows}
    both = [
        drawn(all_families, BaseModelFamily.FLUX, tensors, tmp_path / f"f{n}.safetensors")
        for n, tensors in enumerate((fused, split))
    ]
    assert far(*both) == 0


def drawn(
    checkpoints: Checkpoints, family: BaseModelFamily, tensors: Mapping[str, torch.Tensor], path: Path
) -> Image.Image:
    adapter = tiny.adapter(path.stem, tiny.write(path, tensors), base_model=family)
    composition = tiny.composition({path.stem: 1.0}).model_copy(update={"base_model": family})
    one = request(family, composition=composition, count=1, steps=2)
    (with_it,) = Generator(checkpoints).render(one, {adapter.id: adapter})
    (without,) = Generator(checkpoints).render(one.model_copy(update={"masks": MaskMode.NONE}), {})
    assert with_it.notes == ()
    assert far(with_it.image, without.image) > 1
    return with_it.image


def _sgm(key: str) -> str:
    """The name that a layer of the tiny SDXL UNet (two blocks of two layers) has in the original code."""
    path, _, part = key.removeprefix("unet.").partition(".lora_")
    for new, old in (
        ("down_blocks.0.resnets.", "input_blocks.{1}.0."),
        ("down_blocks.0.downsamplers.0.conv", "input_blocks.3.0.op"),
        ("down_blocks.1.resnets.", "input_blocks.{4}.0."),
        ("down_blocks.1.attentions.", "input_blocks.{4}.1."),
        ("mid_block.resnets.0.", "middle_block.0."),
        ("mid_block.attentions.0.", "middle_block.1."),
        ("mid_block.resnets.1.", "middle_block.2."),
        ("up_blocks.0.resnets.", "output_blocks.{0}.0."),
        ("up_blocks.0.attentions.", "output_blocks.{0}.1."),
        ("up_blocks.0.upsamplers.0.", "output_blocks.2.2."),
        ("up_blocks.1.resnets.", "output_blocks.{3}.0."),
    ):
        if path.startswith(new):
            rest = path.removeprefix(new)
            if "{" in old:
                number, _, rest = rest.partition(".")
                old = old.replace(
                    old[old.index("{") : old.index("}") + 1], str(int(old[old.index("{") + 1]) + int(number))
                )
            path = old + rest
    for new, old in (
        ("conv_in", "input_blocks.0.0"),
        ("conv_out", "out.2"),
        ("time_embedding.linear_1", "time_embed.0"),
        ("time_embedding.linear_2", "time_embed.2"),
    ):
        path = old if path == new else path
    if (".0." in path and "blocks" in path) or "middle_block" in path:
        for new, old in (
            ("conv1", "in_layers.2"),
            ("conv2", "out_layers.3"),
            ("time_emb_proj", "emb_layers.1"),
            ("conv_shortcut", "skip_connection"),
        ):
            path = path.removesuffix(new) + old if path.endswith("." + new) else path
    return "lora_unet_" + path.replace(".", "_") + (".lora_down.weight" if part.startswith("A") else ".lora_up.weight")
