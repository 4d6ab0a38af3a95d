"""Rows that share an image, second passes, long prompts, fusing, and what happens when memory or numbers give out."""

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from stylus.errors import Cancelled, CheckpointError, GenerationError, StorageError
from stylus.generation import checkpoints as checkpoints_module
from stylus.generation import rendering
from stylus.generation.adapter_files import AdapterWeights
from stylus.generation.adapters import ResidentAdapters
from stylus.generation.checkpoints import Checkpoints, pick_dtype
from stylus.generation.denoising import _averaged
from stylus.generation.generator import Generator, Rendered
from stylus.generation.inputs import Inputs
from stylus.generation.loading import Stamp, VerifiedFiles
from stylus.generation.windows import windows
from stylus.records import Adapter, BaseModelFamily, MaskMode, Method, Progress, Request
from stylus.settings import Settings
from tests.generation import tiny
from tests.generation.tiny import far, same

SD15 = BaseModelFamily.SD15
THREE = tiny.composition({"both": 0.8}, {"attention": 0.6}, {"locon": 0.7})
HALF = Image.new("L", (64, 64))
HALF.paste(255, (0, 0, 32, 64))
RAMP = Image.fromarray(np.linspace(0, 255, 64 * 64 * 3).reshape(64, 64, 3).astype(np.uint8))


def request(**fields: Any) -> Request:
    return Request(**{"composition": THREE, "count": 2, "seed": 11, "steps": 3, **fields})


def test_composite_averages_the_predictions_of_its_rows(
    generator: Generator, checkpoints: Checkpoints, adapters: dict[str, Adapter], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the loop uses is the mean of what each adapter predicts on its own, in one pass for all rows."""
    seen: list[torch.Tensor] = []
    kind = checkpoints.open(SD15).kind
    predict = kind.predict

    def spy(latents: torch.Tensor, *rest: Any) -> torch.Tensor:
        seen.append(predict(latents, *rest))
        return seen[-1]

    monkeypatch.setattr(kind, "predict", spy)
    composed = generator.render(request(method=Method.COMPOSITE, guidance_scale=1.0, steps=1), adapters)
    assert [len(rows) for rows in seen] == [3, 3]  # four rows at once would cut an image
    assert {id: round(weight, 4) for id, weight in composed[0].adapters.items()} == {
        "test:both": round(0.8 / 3, 4),
        "test:attention": 0.2,
        "test:locon": round(0.7 / 3, 4),
    }
    assert np.array(composed[0].provenance["schedule"]).shape == (3, 3, 1)

    rows = torch.cat(seen)
    averaged = _averaged(rows, torch.tensor([0, 0, 0, 1, 1, 1], device=rows.device), 2)
    torch.testing.assert_close(averaged, rows.reshape(2, 3, 4, 8, 8).mean(dim=1))
    (alone,) = generator.render(request(method=Method.COMPOSITE, count=1, seed=12), adapters)
    both = generator.render(request(method=Method.COMPOSITE), adapters)
    assert far(alone.image, both[1].image) <= 1
    merged = generator.render(request(), adapters)
    assert far(merged[0].image, both[0].image) > 1


def test_switch_gives_each_step_its_adapter(generator: Generator, adapters: dict[str, Adapter]) -> None:
    rotated, merged = (
        generator.render(request(method=method, switch_every=1, count=1), adapters)[0]
        for method in (Method.SWITCH, Method.MERGE)
    )
    assert far(rotated.image, merged.image) > 1
    assert np.array(rotated.provenance["schedule"]).astype(bool).tolist() == [np.eye(3, dtype=bool).tolist()]


@pytest.mark.parametrize("start", [{}, {"image": "0" * 64, "strength": 0.7}, {"image": "0" * 64, "mask": "1" * 64}])
def test_hires_fix_doubles_the_size_of_whatever_is_drawn(
    generator: Generator, adapters: dict[str, Adapter], start: dict[str, Any]
) -> None:
    inputs = Inputs(RAMP, HALF if "mask" in start else None) if start else None
    seen: list[Progress] = []
    asked = request(hires=True, steps=4, **start)
    images = generator.render(asked, adapters, seen.append, inputs=inputs)
    assert {image.image.size for image in images} == {(128, 128)}
    steps = [progress for progress in seen if progress.stage == "generating"]
    first = 4 if not start else 2
    assert (steps[-1].done, steps[-1].total) == (first + 2, first + 2)
    (alone,) = generator.render(asked.model_copy(update={"count": 1, "seed": 12}), adapters, inputs=inputs)
    assert far(alone.image, images[1].image) <= 1
    assert images[0].provenance["hires"] == {"scale": 2, "strength": 0.7}
    if "mask" in start:
        right = (64, 0, 128, 128)
        large = RAMP.resize((128, 128), Image.Resampling.LANCZOS)
        assert far(images[0].image.crop(right), large.crop(right)) == 0


def test_low_strength_stays_near_the_picture(generator: Generator) -> None:
    plain = request(composition=tiny.composition(), image="0" * 64, steps=10, count=1)
    near, away = (
        np.asarray(
            generator.render(plain.model_copy(update={"strength": strength}), {}, inputs=Inputs(RAMP))[0].image, float
        )
        for strength in (0.1, 1.0)
    )
    # the tiny VAE does not give pictures back: what it makes of the latents alone is the measure
    assert np.abs(near - away).max() > 10


def test_a_long_prompt_is_read_to_its_end(generator: Generator, checkpoints: Checkpoints) -> None:
    tokenizer = checkpoints.open(SD15).pipeline.tokenizer
    long = "a cat on a mat " * 6
    parts = windows(tokenizer, long)
    assert len(parts) > 1
    assert " ".join(parts).split() == long.split()
    assert all(len(tokenizer(part).input_ids) <= tokenizer.model_max_length for part in parts)
    assert "".join(windows(tokenizer, "x" * 100)).replace(" ", "") == "x" * 100
    assert windows(tokenizer, "") == [""]
    images = [
        generator.render(request(composition=tiny.composition(prompt=long + end), count=1), {})[0]
        for end in ("dog", "fox")
    ]
    assert far(images[0].image, images[1].image) > 0
    assert images[0].notes == ()


def test_images_of_other_lengths_do_not_meet_in_a_batch(generator: Generator, adapters: dict[str, Adapter]) -> None:
    """A trigger word that needs a second window must not change the images whose prompt has one."""
    words = {"both": "a long word to trigger it"}
    composition = tiny.composition({"both": 0.8}, {"locon": 0.6}, words=words)
    batch = generator.render(request(composition=composition, masks=MaskMode.SAMPLE, count=4), adapters)
    assert len({len(image.prompt) > 20 for image in batch}) == 2
    for image in batch:
        kept = tiny.composition(*({id.removeprefix("test:"): w} for id, w in image.adapters.items()), words=words)
        (alone,) = generator.render(request(composition=kept, count=1, seed=image.seed), adapters)
        assert (alone.prompt, far(alone.image, image.image) <= 1) == (image.prompt, True)


def test_one_composition_for_all_is_fused_and_looks_the_same(
    generator: Generator, checkpoints: Checkpoints, adapters: dict[str, Adapter], monkeypatch: pytest.MonkeyPatch
) -> None:
    unet = checkpoints.open(SD15).pipeline.unet
    generator.render(request(), adapters)
    before = {name: weight.clone() for name, weight in unet.named_parameters()}
    fused: list[int] = []
    original = ResidentAdapters.fused

    @contextmanager
    def spy(self: ResidentAdapters, component: str, residents: Any, weights: Any) -> Iterator[None]:
        fused.append(len(residents))
        with original(self, component, residents, weights):
            yield

    monkeypatch.setattr(ResidentAdapters, "fused", spy)
    together = generator.render(request(steps=8), adapters)
    assert fused == [3]
    monkeypatch.setattr(rendering, "FUSE_FROM", 10_000)
    gated = generator.render(request(steps=8), adapters)
    assert fused == [3]
    assert all(far(a.image, b.image) <= 1 for a, b in zip(together, gated, strict=True))
    assert all(torch.equal(weight, before[name]) for name, weight in unet.named_parameters())


def test_an_adapter_that_can_not_be_applied_is_named_and_the_picture_made(
    generator: Generator, adapters: dict[str, Adapter], tmp_path: Path
) -> None:
    odd = tiny.write(tmp_path / "odd.safetensors", {"lora_unet_conv_in.oft_blocks": torch.ones(4, 8, 8)})
    composition = tiny.composition({"locon": 0.7}, {"odd": 1.0})
    images = generator.render(request(composition=composition), {**adapters, "test:odd": tiny.adapter("odd", odd)})
    without = generator.render(request(composition=tiny.composition({"locon": 0.7})), adapters)
    for image, other in zip(images, without, strict=True):
        assert any("Left out: adapter test:odd" in note and "OFT" in note for note in image.notes)
        assert set(image.adapters) == {"test:locon"}
        assert image.provenance["notes"] == list(image.notes)
        assert far(image.image, other.image) <= 1


def failing(when: Callable[[int], bool], unet: Any, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Lets the UNet run out of memory when `when(rows)`; returns the batch sizes that it got."""
    seen: list[int] = []
    forward = unet.forward

    def limited(latents: torch.Tensor, *rest: Any, **options: Any) -> Any:
        seen.append(len(latents))
        if when(len(latents)):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")
        return forward(latents, *rest, **options)

    monkeypatch.setattr(unet, "forward", limited)
    return seen


def test_memory_that_runs_out_halves_the_batch(
    generator: Generator, checkpoints: Checkpoints, adapters: dict[str, Adapter], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = generator.render(request(count=4), adapters)
    seen = failing(lambda rows: rows > 2, checkpoints.open(SD15).pipeline.unet, monkeypatch)
    images = generator.render(request(count=4), adapters)
    assert seen[:3] == [8, 4, 2]
    assert all(far(a.image, b.image) <= 1 for a, b in zip(images, expected, strict=True))
    assert images[0].notes == ("Memory ran out: images were rendered 1 at a time.",)
    assert images[0].provenance["at_once"] == 1


def test_memory_that_runs_out_in_the_decoder(
    generator: Generator, checkpoints: Checkpoints, adapters: dict[str, Adapter], monkeypatch: pytest.MonkeyPatch
) -> None:
    vae = checkpoints.open(SD15).pipeline.vae
    decode = vae.decode

    def limited(latents: torch.Tensor, **options: Any) -> Any:
        if not vae.use_tiling:
            raise torch.OutOfMemoryError("out of memory")
        return decode(latents, **options)

    monkeypatch.setattr(vae, "decode", limited)
    (image,) = generator.render(request(count=1), adapters)
    assert "decoded in tiles" in image.notes[0]
    assert not vae.use_tiling  # the next request starts as the first did


def test_memory_that_is_never_enough(
    generator: Generator, checkpoints: Checkpoints, adapters: dict[str, Adapter], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = generator.render(request(), adapters)
    with monkeypatch.context() as patch:
        failing(lambda rows: True, checkpoints.open(SD15).pipeline.unet, patch)
        with pytest.raises(GenerationError, match="not enough memory for one image of 64x64"):
            generator.render(request(), adapters)
    again = generator.render(request(), adapters)
    assert all(a.image.tobytes() == b.image.tobytes() for a, b in zip(again, expected, strict=True))


def test_what_breaks_down_in_half_precision_is_drawn_again(
    settings: Settings, adapters: dict[str, Adapter], monkeypatch: pytest.MonkeyPatch
) -> None:
    halved = Checkpoints(settings.model_copy(update={"dtype": "bfloat16"}))
    generator, loaded = Generator(halved), halved.open(SD15)
    kind, predict = loaded.kind, loaded.kind.predict

    def broken(latents: torch.Tensor, *rest: Any) -> torch.Tensor:
        made = predict(latents, *rest)
        if latents.dtype is torch.bfloat16:
            made[0] = float("nan")
        return made

    monkeypatch.setattr(kind, "predict", broken)
    images: list[Rendered] = generator.render(request(guidance_scale=1.0, steps=8), adapters)
    assert [len(image.notes) for image in images] == [1, 0]
    assert images[0].notes[0] == "It broke down in bfloat16 and was drawn again in float32."
    assert loaded.pipeline.unet.dtype is torch.bfloat16
    monkeypatch.undo()
    sound = generator.render(request(guidance_scale=1.0, steps=8), adapters)
    assert all(image.notes == () for image in sound)
    assert sound[1].image.tobytes() == images[1].image.tobytes()


def test_black_pictures_are_told(
    generator: Generator, checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    vae = checkpoints.open(SD15).pipeline.vae
    monkeypatch.setattr(vae, "decode", lambda latents, **_: (torch.full((1, 3, 64, 64), -1.0),))
    (image,) = generator.render(request(composition=tiny.composition(), count=1), {})
    assert image.notes == ("It is black all over.",)


@pytest.mark.parametrize("method", [Method.SWITCH, Method.MERGE])
def test_a_step_waits_for_its_own_adapters_only(
    method: Method,
    generator: Generator,
    checkpoints: Checkpoints,
    adapters: dict[str, Adapter],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The file of an adapter that takes its turn at step 4 arrives late: its steps wait, those before don't, and the
    picture is that of a fast disk."""
    asked = request(
        composition=tiny.composition({"attention": 0.6}, {"locon": 0.7}), method=method, switch_every=4, steps=7
    )
    expected = generator.render(asked, adapters)
    generator.forget_adapters()
    arrives = threading.Event()
    last_free_step = 4 if method is Method.SWITCH else 0
    read, seen = VerifiedFiles.read, list[tuple[str, int, bool]]()

    def slow(self: VerifiedFiles, adapter: Adapter) -> tuple[Stamp, AdapterWeights]:
        if adapter.id == "test:locon":
            assert arrives.wait(60)
        return read(self, adapter)

    def look(progress: Progress) -> None:
        seen.append((progress.stage, progress.done, arrives.is_set()))
        if progress.stage == "loading" and seen.count(("loading", 1, False)) == 3:  # it reports while it waits
            assert [done for stage, done, _ in seen if stage == "generating"][-1] == last_free_step
            arrives.set()

    monkeypatch.setattr(VerifiedFiles, "read", slow)
    images = generator.render(asked, adapters, look)
    assert same(images, expected)
    assert max(done for stage, done, there in seen if stage == "generating" and not there) == last_free_step
    assert images[0].seconds["load"] > 0.3  # the wait, and nothing else


def test_a_slow_disk_can_be_given_up(
    generator: Generator, adapters: dict[str, Adapter], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = generator.render(request(), adapters)
    generator.forget_adapters()
    arrives = threading.Event()
    read = VerifiedFiles.read

    def slow(self: VerifiedFiles, adapter: Adapter) -> tuple[Stamp, AdapterWeights]:
        assert arrives.wait(60)
        return read(self, adapter)

    def impatient(progress: Progress) -> None:
        if progress.stage == "loading":
            raise Cancelled("tired of waiting")

    with monkeypatch.context() as patch:
        patch.setattr(VerifiedFiles, "read", slow)
        with pytest.raises(Cancelled):
            generator.render(request(), adapters, impatient)
        arrives.set()
    assert same(generator.render(request(), adapters), expected)


def test_a_turn_that_is_not_run_is_not_recorded_and_told(generator: Generator, adapters: dict[str, Adapter]) -> None:
    """Image translation runs the last steps: an adapter whose turn comes before them has no part in the picture."""
    words = {"attention": "zzz", "locon": "qqq"}
    composition = tiny.composition({"attention": 0.6}, {"locon": 0.7}, words=words)
    asked = request(
        composition=composition, method=Method.SWITCH, switch_every=4, steps=8, image="0" * 64, strength=0.5, count=1
    )
    (image,) = generator.render(asked, adapters, inputs=Inputs(RAMP))
    assert {id: round(weight, 3) for id, weight in image.adapters.items()} == {"test:locon": 0.7}
    assert any("No turn came for test:attention: 4 steps are run" in note for note in image.notes)
    assert image.prompt == "a cat, qqq"
    few = asked.model_copy(update={"image": None, "strength": None, "steps": 3})
    (image,) = generator.render(few, adapters)
    assert list(image.adapters) == ["test:attention"]
    assert any("No turn came for test:locon: 3 steps are run" in note for note in image.notes)
    assert image.prompt == "a cat, zzz"
    assert image.provenance["notes"] == list(image.notes)


def test_previews_appear_while_it_draws(generator: Generator, adapters: dict[str, Adapter], tmp_path: Path) -> None:
    path, sizes = tmp_path / "previews" / "now.png", []

    def look(progress: Progress) -> None:
        if progress.preview:
            assert progress.preview == str(path)
            with Image.open(path) as image:
                sizes.append(image.size)

    generator.render(request(count=1, steps=10), adapters, look, preview=path)
    assert sizes == [(64, 64)] * 2
    assert [file.name for file in path.parent.iterdir()] == ["now.png"]


def test_a_preview_that_can_not_be_written(generator: Generator, adapters: dict[str, Adapter], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "file" / "now.png", tmp_path / "pipe"):
        with pytest.raises(StorageError, match=r"preview can't be written.*name a \.png file"):
            generator.render(request(count=1, steps=10), adapters, preview=path)
        assert sorted(file.name for file in tmp_path.iterdir()) == ["file", "pipe"]
    assert (tmp_path / "pipe").is_fifo()


def test_memory_that_runs_out_before_the_first_step(
    generator: Generator, checkpoints: Checkpoints, adapters: dict[str, Adapter], monkeypatch: pytest.MonkeyPatch
) -> None:
    text_encoder = checkpoints.open(SD15).pipeline.text_encoder

    def full(*_: Any, **__: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")

    with monkeypatch.context() as patch:
        patch.setattr(text_encoder, "forward", full)
        with pytest.raises(GenerationError, match=r"not enough memory for the prompt and 3 adapters.*STYLUS_OFFLOAD"):
            generator.render(request(), adapters)
    assert len(generator.render(request(), adapters)) == 2


def test_a_checkpoint_that_does_not_fit_beside_another(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others are unloaded, and it is tried once more."""
    kept = Checkpoints(tiny.settings(tmp_path, checkpoints={"sd15": str(folder), "sd15:other": str(folder) + "/"}))
    kept.open(SD15)
    read = checkpoints_module._read

    def crowded(*arguments: Any) -> Any:
        if kept._loaded:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")
        return read(*arguments)

    monkeypatch.setattr(checkpoints_module, "_read", crowded)
    kept.open(SD15, "other")
    assert len(kept.loaded()) == 1


class Placed:
    """A pipeline that does not fit on the device so many times."""

    def __init__(self, failures: int) -> None:
        self.failures, self.offloaded = failures, False

    def to(self, _device: torch.device) -> None:
        self.failures -= 1
        if self.failures >= 0:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")

    def enable_model_cpu_offload(self, device: torch.device) -> None:
        assert device.type == "cuda"
        self.offloaded = True


@pytest.mark.parametrize(("failures", "others", "offloaded"), [(0, 1, False), (1, 0, False), (2, 0, True)])
def test_a_checkpoint_that_does_not_fit_on_the_device(
    failures: int, others: int, offloaded: bool, folder: Path, tmp_path: Path
) -> None:
    """Others make room for it; then only its model at work is there."""
    kept = Checkpoints(tiny.settings(tmp_path, checkpoints={"sd15": str(folder)}))
    kept.open(SD15)
    kept.device = torch.device("cuda")
    pipeline = Placed(failures)
    kept._place(pipeline)
    assert (len(kept.loaded()), pipeline.offloaded) == (others, offloaded)


def test_memory_that_does_not_suffice_for_a_checkpoint(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> Any:
        raise MemoryError("can't allocate memory: you tried to allocate 9 bytes")

    monkeypatch.setattr(checkpoints_module, "_read", full)
    with pytest.raises(CheckpointError, match=r"not enough memory for the sd15 checkpoint"):
        Checkpoints(tiny.settings(tmp_path, checkpoints={"sd15": str(folder)})).open(SD15)


@pytest.mark.parametrize(
    ("family", "capability", "dtype"),
    [("flux", (8, 0), "bfloat16"), ("flux", (7, 5), "float16"), ("sdxl", (9, 0), "float16")],
)
def test_flux_is_drawn_in_what_it_was_trained_in(
    family: str, capability: tuple[int, int], dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: capability)
    settings = Settings.model_validate({"data": tmp_path})
    assert pick_dtype(settings, torch.device("cuda"), BaseModelFamily(family)) is getattr(torch, dtype)
    assert pick_dtype(settings, torch.device("cpu"), BaseModelFamily(family)) is torch.float32


def test_several_checkpoints_of_a_family(folder: Path, tmp_path: Path) -> None:
    tiny.write_pipeline(tmp_path / "other", seed=5)
    configured = {"sd15": str(folder), "sd15:other": str(tmp_path / "other")}
    checkpoints = Checkpoints(tiny.settings(tmp_path, checkpoints=configured, checkpoints_kept=1, vae_tiling=True))
    generator, plain = Generator(checkpoints), request(composition=tiny.composition(), count=1)
    first = generator.render(plain, {})[0]
    other = generator.render(plain.model_copy(update={"checkpoint": "other"}), {})[0]
    assert (first.provenance["checkpoint"]["name"], other.provenance["checkpoint"]["name"]) == ("tiny", "other")
    assert far(first.image, other.image) > 1
    assert [loaded.name for loaded in checkpoints.loaded()] == ["other"]
    with pytest.raises(CheckpointError, match=r"no checkpoint 'third'.*use other"):
        checkpoints.check(SD15, "third")
