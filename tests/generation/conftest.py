from pathlib import Path

import pytest
import torch

from stylus.generation.checkpoints import Checkpoints
from stylus.generation.generator import Generator
from stylus.records import Adapter, BaseModelFamily
from stylus.settings import Settings
from tests.generation import tiny


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny pipeline's diffusers folder."""
    folder = tmp_path_factory.mktemp("checkpoint") / "tiny"
    tiny.write_pipeline(folder)
    return folder


@pytest.fixture(scope="session")
def settings(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    return tiny.settings(tmp_path_factory.mktemp("data"), checkpoints={BaseModelFamily.SD15: str(folder)})


@pytest.fixture(scope="session")
def checkpoints(settings: Settings) -> Checkpoints:
    return Checkpoints(settings)


@pytest.fixture
def generator(checkpoints: Checkpoints) -> Generator:
    return Generator(checkpoints)


@pytest.fixture(scope="session")
def models(folder: Path) -> dict[str, torch.nn.Module]:
    """The base models without any adapter layer, to build adapters for."""
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextModel

    return {
        "unet": UNet2DConditionModel.from_pretrained(folder, subfolder="unet"),
        "text_encoder": CLIPTextModel.from_pretrained(folder, subfolder="text_encoder"),
    }


@pytest.fixture(scope="session")
def adapters(models: dict[str, torch.nn.Module], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Adapter]:
    """Three adapters in three formats, by id: UNet and text encoder attention; attention; every layer (LoCon)."""
    folder = tmp_path_factory.mktemp("adapters")
    unet = {"unet": models["unet"]}
    both = tiny.random_factors(models, seed=1, keep=tiny.attention)
    attention = tiny.random_factors(unet, seed=2, rank=8, keep=tiny.attention)
    everything = tiny.random_factors(unet, seed=3, rank=2)
    files = {
        "both": tiny.write(folder / "both.safetensors", tiny.kohya(both, alpha=2.0)),
        "attention": tiny.write(folder / "attention.safetensors", tiny.dotted(attention, "unet.", "lora_A", "lora_B")),
        "locon": tiny.write(folder / "locon.safetensors", tiny.kohya(everything, alpha=1.0)),
    }
    return {f"test:{name}": tiny.adapter(name, path) for name, path in files.items()}
