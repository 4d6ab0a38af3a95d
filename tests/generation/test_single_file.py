"""A checkpoint as one file, in the layout that Stable Diffusion was published in, draws what its folder draws; and one
that holds the denoiser alone, as those of Flux do, with the rest from a folder.

diffusers turns the published layout of Flux only at its true width, and tells SDXL's text encoders apart by theirs: too
large for a test. So Flux and SD 3 have diffusers' own names here, and SDXL its text encoders from the folder.
"""

import re
from pathlib import Path

import pytest
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from safetensors.torch import load_file, save_file
from torch import Tensor

from stylus.errors import CheckpointError
from stylus.generation.checkpoints import Checkpoints
from stylus.generation.generator import Generator
from stylus.generation.sgm_names import sgm_names
from stylus.records import BaseModelFamily, Request
from tests.generation import tiny
from tests.generation.tiny_families import write_family

NORMS = {"norm1": "in_layers.0", "norm2": "out_layers.0"}
DECODER_BLOCKS = 4


def original_unet(state: dict[str, Tensor]) -> dict[str, Tensor]:
    names = {path: name for name, path in sgm_names(key.rpartition(".")[0] for key in state).items()}
    renamed = {}
    for key, tensor in state.items():
        path, _, kind = key.rpartition(".")
        name = "out.0" if path == "conv_norm_out" else names[path]
        if ".resnets." in path:
            end = name.rpartition(".")[2]
            name = name.removesuffix(end) + NORMS.get(end, end)
        renamed[f"model.diffusion_model.{name}.{kind}"] = tensor
    return renamed


def original_vae(state: dict[str, Tensor]) -> dict[str, Tensor]:
    def place(match: re.Match[str]) -> str:
        side, block, kind, number = match.groups()
        block = block if side == "down" else str(DECODER_BLOCKS - 1 - int(block))
        return f"{side}.{block}." + (f"block.{number}" if kind == "resnets" else f"{side}sample")

    renamed = {}
    for key, tensor in state.items():
        name = re.sub(r"(down|up)_blocks\.(\d)\.(resnets|downsamplers|upsamplers)\.(\d)", place, key)
        name = re.sub(r"mid_block\.resnets\.(\d)", lambda match: f"mid.block_{int(match[1]) + 1}", name)
        if "attentions" in name:
            name = name.replace("mid_block.attentions.0", "mid.attn_1").replace("group_norm", "norm")
            name = name.replace("to_out.0", "proj_out").replace("to_", "")
            tensor = tensor[:, :, None, None] if tensor.ndim == 2 else tensor
        name = name.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
        renamed[f"first_stage_model.{name}"] = tensor
    return renamed


def original_text(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"cond_stage_model.transformer.text_model.{key.removeprefix('text_model.')}": t for key, t in state.items()}


@pytest.fixture
def file(folder: Path, tmp_path: Path) -> Path:
    pipe = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
    tensors = original_unet(pipe.unet.state_dict()) | original_vae(pipe.vae.state_dict())
    tensors |= original_text(pipe.text_encoder.state_dict())
    path = tmp_path / "published.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    return path


def test_a_single_file(file: Path, folder: Path, generator: Generator, tmp_path: Path) -> None:
    configured = tiny.settings(tmp_path, checkpoints={"sd15": f"{file}@{folder}"})
    request = Request(composition=tiny.composition(), seed=5, steps=3)
    (from_file,) = Generator(Checkpoints(configured)).render(request, {})
    (from_folder,) = generator.render(request, {})
    assert from_file.image.tobytes() == from_folder.image.tobytes()
    assert from_file.provenance["checkpoint"]["name"] == "published"
    assert str(tmp_path) not in str(from_file.provenance)


@pytest.mark.parametrize("family", [BaseModelFamily.SDXL, BaseModelFamily.SD3, BaseModelFamily.FLUX])
def test_a_file_without_what_all_of_the_family_share(family: BaseModelFamily, tmp_path: Path) -> None:
    folder, file = tmp_path / "folder", tmp_path / "published.safetensors"
    write_family(family, folder)
    if family is BaseModelFamily.SDXL:
        pipe = StableDiffusionXLPipeline.from_pretrained(folder, add_watermarker=False)
        tensors = original_unet(pipe.unet.state_dict()) | original_vae(pipe.vae.state_dict())
    else:
        tensors = load_file(folder / "transformer" / "diffusion_pytorch_model.safetensors")
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, file)
    composition = tiny.composition().model_copy(update={"base_model": family})
    request = Request(composition=composition, seed=5, steps=2, width=64, height=64)

    def drawn(source: str) -> bytes:
        configured = tiny.settings(tmp_path, checkpoints={family: source})
        return Generator(Checkpoints(configured)).render(request, {})[0].image.tobytes()

    assert drawn(f"{file}@{folder}") == drawn(str(folder))
    for weights in folder.glob("text_encoder/*.safetensors"):
        weights.unlink()
    for source in (f"{file}@{folder}", str(file)):
        with pytest.raises(CheckpointError, match=r"FILE\.safetensors@CONFIG.*what the file lacks"):
            drawn(source)


def test_a_file_that_is_not_one(file: Path, folder: Path, tmp_path: Path) -> None:
    file.write_bytes(file.read_bytes()[:1000])
    for source, words in (
        (f"{file}@{folder}", "can't be loaded"),
        (str(tmp_path / "gone.safetensors"), "is not there"),
    ):
        with pytest.raises(CheckpointError, match=words):
            Checkpoints(tiny.settings(tmp_path, checkpoints={"sd15": source})).open(BaseModelFamily.SD15)
