"""What only a GPU can show: run with `pytest tests/generation/test_gpu.py` where one is."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from stylus.errors import GenerationError
from stylus.generation.checkpoints import Checkpoints
from stylus.generation.device_lock import lock_path
from stylus.generation.generator import Generator
from stylus.records import Adapter, BaseModelFamily, MaskMode, Request
from tests.generation import tiny
from tests.generation.tiny import far, same
from tests.generation.tiny_families import write_family

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
SD15 = BaseModelFamily.SD15
THREE = tiny.composition({"both": 0.8, "attention": 0.6}, {"locon": 0.7})
MIB = 2**20


def request(**fields: Any) -> Request:
    return Request(**{"composition": THREE, "count": 4, "seed": 11, "steps": 8, **fields})


def opened(folder: Path, data: Path, family: BaseModelFamily = SD15, **fields: Any) -> Checkpoints:
    return Checkpoints(tiny.settings(data, **{"checkpoints": {family: str(folder)}, "device": "cuda", **fields}))


@pytest.fixture
def exact() -> Iterator[None]:
    """Convolutions in float32 as a CPU has them."""
    was = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = was


@pytest.mark.usefixtures("exact")
@pytest.mark.parametrize("masks", [MaskMode.SAMPLE, MaskMode.ALL])
def test_it_draws_what_a_cpu_draws(masks: MaskMode, folder: Path, adapters: dict[str, Adapter], tmp_path: Path) -> None:
    """The noise is the same on every device, so the pictures are, gated and fused, but for rounding."""
    asked = request(masks=masks)
    on_gpu = Generator(opened(folder, tmp_path)).render(asked, adapters)
    on_cpu = Generator(opened(folder, tmp_path, device="cpu")).render(asked, adapters)
    assert all(far(a.image, b.image) <= 1 for a, b in zip(on_gpu, on_cpu, strict=True))
    assert on_gpu[0].provenance["device"] == "cuda"
    assert on_gpu[0].provenance["hardware"] == torch.cuda.get_device_name()


@pytest.mark.parametrize("dtype", [None, "bfloat16", "float32"])
def test_the_same_request_gives_the_same_pixels(
    dtype: str | None, folder: Path, adapters: dict[str, Adapter], tmp_path: Path
) -> None:
    checkpoints = opened(folder, tmp_path, dtype=dtype)
    generator = Generator(checkpoints)
    assert checkpoints.open(SD15).dtype is (torch.float16 if dtype is None else getattr(torch, dtype))
    first, second = (generator.render(request(masks=MaskMode.SAMPLE), adapters) for _ in range(2))
    assert same(first, second)
    generator.forget_adapters()
    assert same(generator.render(request(masks=MaskMode.SAMPLE), adapters), first)


@pytest.mark.parametrize("family", [SD15, BaseModelFamily.SDXL, BaseModelFamily.SD3, BaseModelFamily.FLUX])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_offloading_changes_no_pixel(
    family: BaseModelFamily, dtype: str, folder: Path, adapters: dict[str, Adapter], tmp_path: Path
) -> None:
    if family is not SD15:
        folder = tmp_path / family
        write_family(family, folder)
    composition = (THREE if family is SD15 else tiny.composition()).model_copy(update={"base_model": family})
    for steps in (2, 8):  # gated, fused
        asked = request(composition=composition, steps=steps, width=64, height=64)
        pictures = []
        for offload in (False, True):
            checkpoints = opened(folder, tmp_path, family, dtype=dtype, offload=offload)
            pictures.append(Generator(checkpoints).render(asked, adapters))
            resting = next(checkpoints.open(family).kind.denoiser.parameters()).device.type
            # accelerate leaves the model that worked last on the card
            assert resting in ({"cpu", "cuda"} if offload else {"cuda"})
        assert same(*pictures), steps
        assert all(image.notes == () for image in pictures[0])


def taken(generator: Generator, request: Request, adapters: dict[str, Adapter]) -> int:
    """Bytes that a generation needs."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    generator.render(request, adapters)
    return torch.cuda.max_memory_reserved()


def test_a_card_that_is_full(folder: Path, adapters: dict[str, Adapter], tmp_path: Path) -> None:
    """Memory that really runs out: smaller batches, offloading, and at last an error; then all is as before."""
    generator = Generator(opened(folder, tmp_path, dtype="float16", vae_tiling=True))
    expected = generator.render(request(), adapters)
    total = torch.cuda.get_device_properties(0).total_memory
    large = request(width=1024, height=1024, steps=2)
    four = taken(generator, large, adapters)
    one = taken(generator, large.model_copy(update={"count": 1}), adapters)
    assert four > one + 20 * MIB
    torch.cuda.empty_cache()
    try:
        torch.cuda.set_per_process_memory_fraction((one + four) / 2 / total)
        images = generator.render(large, adapters)
        assert any("Memory ran out: images were rendered" in note for note in images[0].notes)
        torch.cuda.empty_cache()
        torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 2 * MIB) / total)
        with pytest.raises(GenerationError, match="not enough memory for one image of 2048x2048"):
            generator.render(request(width=2048, height=2048, steps=1), adapters)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    again = generator.render(request(), adapters)
    assert all(far(a.image, b.image) <= 1 for a, b in zip(again, expected, strict=True))


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning:torch")
@pytest.mark.timeout(900)
def test_a_compiled_model_draws_the_same(folder: Path, adapters: dict[str, Adapter], tmp_path: Path) -> None:
    plain, compiled = (Generator(opened(folder, tmp_path, compile=compile)) for compile in (False, True))
    for asked in (request(masks=MaskMode.SAMPLE, steps=2), request(masks=MaskMode.NONE), request(count=1, steps=2)):
        pairs = zip(plain.render(asked, adapters), compiled.render(asked, adapters), strict=True)
        assert all(far(a.image, b.image) <= 2 for a, b in pairs)


def test_all_processes_of_a_card_share_one_lock(monkeypatch: pytest.MonkeyPatch) -> None:
    path = lock_path(torch.device("cuda"))
    assert path == lock_path(torch.device("cuda:0"))
    assert str(torch.cuda.get_device_properties(0).uuid) in str(path)
