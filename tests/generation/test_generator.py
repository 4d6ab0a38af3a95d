"""Requests become pictures: one composition an image, one seed an image, and nothing left behind."""

import shutil
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from stylus.errors import (
    AdapterFileError,
    Cancelled,
    CheckpointError,
    GenerationError,
    NotFound,
    SettingsError,
)
from stylus.generation.adapters import Resident, ResidentAdapters
from stylus.generation.checkpoints import Checkpoints
from stylus.generation.generator import Generator
from stylus.records import Adapter, BaseModelFamily, MaskMode, Progress, Request, Schedule
from stylus.settings import Settings
from tests.generation import tiny
from tests.generation.tiny import far, same

THREE = tiny.composition({"both": 0.8, "attention": 0.6}, {"locon": 0.7}, words={"both": "zzz", "locon": "qqq"})


def request(**fields: Any) -> Request:
    return Request(**{"composition": THREE, "count": 4, "seed": 11, "steps": 3, **fields})


def test_each_image_of_a_mixed_batch_equals_itself_alone(generator: Generator, adapters: dict[str, Adapter]) -> None:
    batch = generator.render(request(masks=MaskMode.SAMPLE), adapters)
    assert len({rendered.mask for rendered in batch}) == 4
    for rendered in batch:
        kept = tiny.composition(
            *(
                {
                    choice.name: rendered.adapters[choice.adapter_id]
                    for choice in task.choices
                    if choice.adapter_id in rendered.adapters
                }
                for task in THREE.tasks
            ),
            words={"both": "zzz", "locon": "qqq"},
        )
        # every task of `kept` with two survivors would average again: undo by their number
        kept = kept.model_copy(
            update={
                "tasks": tuple(
                    task.model_copy(
                        update={
                            "choices": tuple(
                                choice.model_copy(update={"weight": choice.weight * len(task.choices)})
                                for choice in task.choices
                            )
                        }
                    )
                    for task in kept.tasks
                )
            }
        )
        (alone,) = generator.render(request(composition=kept, count=1, seed=rendered.seed), adapters)
        assert alone.prompt == rendered.prompt
        assert far(alone.image, rendered.image) <= 1


def test_adapters_change_the_picture_and_leave_no_trace(generator: Generator, adapters: dict[str, Adapter]) -> None:
    plain = generator.render(request(masks=MaskMode.NONE), adapters)
    chosen = generator.render(request(), adapters)
    again = generator.render(request(masks=MaskMode.NONE), adapters)
    without = generator.render(request(composition=tiny.composition()), {})
    for before, with_adapters, after, bare in zip(plain, chosen, again, without, strict=True):
        assert far(before.image, with_adapters.image) > 1
        assert far(before.image, after.image) == 0
        assert far(before.image, bare.image) == 0
        assert before.adapters == {}


def test_the_same_request_gives_the_same_pixels(generator: Generator, adapters: dict[str, Adapter]) -> None:
    first, second = (generator.render(request(masks=MaskMode.SAMPLE), adapters) for _ in range(2))
    assert all(a.image.tobytes() == b.image.tobytes() for a, b in zip(first, second, strict=True))
    assert [rendered.seed for rendered in first] == [11, 12, 13, 14]
    assert len({rendered.image.tobytes() for rendered in first}) == 4


def test_masked_trigger_words_leave_the_prompt(generator: Generator, adapters: dict[str, Adapter]) -> None:
    for rendered in generator.render(request(masks=MaskMode.SAMPLE), adapters):
        assert ("zzz" in rendered.prompt) == ("test:both" in rendered.adapters)
        assert ("qqq" in rendered.prompt) == ("test:locon" in rendered.adapters)
        assert rendered.prompt.startswith("a cat")


def test_what_a_negative_weight_takes_away_is_not_asked_for(generator: Generator, adapters: dict[str, Adapter]) -> None:
    words = {"both": "zzz", "locon": "qqq"}
    mixed = tiny.composition({"both": -0.5}, {"locon": 0.5}, words=words)
    (rendered,) = generator.render(request(composition=mixed, count=1), adapters)
    assert rendered.prompt == "a cat, qqq"


@pytest.mark.parametrize("guidance_scale", [0.0, 1.0, 7.5])
@pytest.mark.parametrize("steps", [1, 4])
def test_guidance_and_steps(
    generator: Generator, adapters: dict[str, Adapter], guidance_scale: float, steps: int
) -> None:
    fields = {"count": 1, "guidance_scale": guidance_scale, "steps": steps, "negative_prompt": "a dog"}
    (rendered,) = generator.render(request(**fields), adapters)
    assert rendered.provenance["guidance_scale"] == guidance_scale
    assert any("negative prompt is not read" in note for note in rendered.notes) == (guidance_scale <= 1)
    assert rendered.image.size == (64, 64)


def test_negative_prompt_and_size_count(generator: Generator, adapters: dict[str, Adapter]) -> None:
    (plain,) = generator.render(request(count=1), adapters)
    (negative,) = generator.render(request(count=1, negative_prompt="a dog"), adapters)
    (wide,) = generator.render(request(count=1, width=96, height=72), adapters)
    assert far(plain.image, negative.image) > 0
    assert wide.image.size == (96, 72)


def test_many_images_are_rendered_in_several_batches(generator: Generator, adapters: dict[str, Adapter]) -> None:
    seen: list[Progress] = []
    images = generator.render(request(count=6, steps=2), adapters, seen.append)
    (sixth,) = generator.render(request(count=1, seed=16, steps=2), adapters)
    assert far(images[5].image, sixth.image) <= 1
    generating = [(progress.done, progress.total) for progress in seen if progress.stage == "generating"]
    assert generating == [(0, 4), (1, 4), (2, 4), (2, 4), (3, 4), (4, 4)]
    # more than once where a slow disk is waited for
    assert list(dict.fromkeys(progress.done for progress in seen if progress.stage == "loading")) == [0, 1, 2, 3]
    assert seen[-1] == Progress(stage="decoding", done=6, total=6)


@pytest.mark.parametrize("stage", ["loading", "generating", "decoding"])
def test_cancelling_leaves_everything_usable(
    generator: Generator, adapters: dict[str, Adapter], checkpoints: Checkpoints, stage: str
) -> None:
    expected = generator.render(request(), adapters)

    def cancel(progress: Progress) -> None:
        if progress.stage == stage and progress.done >= 1:
            raise Cancelled("cancelled by its owner")

    with pytest.raises(Cancelled):
        generator.render(request(), adapters, cancel)
    assert same(generator.render(request(), adapters), expected)


def test_a_bad_adapter_is_found_before_the_first_step(
    generator: Generator, adapters: dict[str, Adapter], tmp_path: Path
) -> None:
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"<html>not found</html>")
    seen: list[Progress] = []
    with pytest.raises(AdapterFileError, match="test:locon"):
        generator.render(request(), {**adapters, "test:locon": tiny.adapter("locon", broken)}, seen.append)
    assert not any(progress.done for progress in seen if progress.stage == "generating")
    # an adapter that no image uses is not even opened
    generator.render(request(masks=MaskMode.NONE), {"test:locon": tiny.adapter("locon", broken)})


def test_an_adapter_that_is_not_in_the_catalog(generator: Generator) -> None:
    with pytest.raises(NotFound, match="test:both"):
        generator.render(request(), {})


def test_overdriven_adapters_are_reported_not_drawn(
    generator: Generator, models: dict[str, torch.nn.Module], adapters: dict[str, Adapter], tmp_path: Path
) -> None:
    factors = tiny.random_factors({"unet": models["unet"]}, seed=3)
    huge: Mapping[str, torch.Tensor] = {k: t * 1e30 for k, t in tiny.kohya(factors, alpha=1.0).items()}
    file = tiny.write(tmp_path / "huge.safetensors", huge)
    with pytest.raises(GenerationError, match=r"image 0 \(seed 11\).*test:huge"):
        generator.render(
            request(composition=tiny.composition({"huge": 1.0})), {"test:huge": tiny.adapter("huge", file)}
        )
    assert len(generator.render(request(), adapters)) == 4


def test_families_that_are_not_there(settings: Settings, adapters: dict[str, Adapter], tmp_path: Path) -> None:
    def render(family: BaseModelFamily, source: str | None) -> None:
        configured = settings.model_copy(update={"checkpoints": {family: source} if source else {}})
        composition = tiny.composition().model_copy(update={"base_model": family})
        Generator(Checkpoints(configured)).render(request(composition=composition), {})

    with pytest.raises(CheckpointError, match="no checkpoint is configured for sdxl"):
        render(BaseModelFamily.SDXL, None)
    with pytest.raises(CheckpointError, match="STYLUS_CHECKPOINTS=sd15="):
        render(BaseModelFamily.SD15, None)
    with pytest.raises(CheckpointError, match="is not there"):
        render(BaseModelFamily.SD15, "/nowhere/at/all")
    with pytest.raises(CheckpointError, match="is not there"):
        render(BaseModelFamily.SD15, "model.safetensors")
    with pytest.raises(CheckpointError, match="can't be loaded"):
        render(BaseModelFamily.SD15, str(tmp_path))


def test_weights_that_change_over_the_steps(
    generator: Generator, adapters: dict[str, Adapter], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No composition asks for it yet; the schedule allows it, so each step must run with its own weights."""
    weights = np.zeros((1, 3, 3), dtype=np.float32)
    weights[0] = [[0.9, 0.0, 0.0], [0.0, 0.6, 0.6], [0.0, 0.0, 0.3]]
    schedule = Schedule(
        adapters=("test:both", "test:attention", "test:locon"), weights=weights, image_of_row=np.zeros(1, np.int64)
    )
    monkeypatch.setattr("stylus.generation.settling.schedule", lambda *_, **__: schedule)
    seen: list[tuple[str, list[list[float]]]] = []
    switch = ResidentAdapters.switch

    def spy(self: ResidentAdapters, component: str, residents: list[Resident], rows: np.ndarray) -> None:
        seen.append((component, rows.astype(float).round(3).tolist()))
        switch(self, component, residents, rows)

    monkeypatch.setattr(ResidentAdapters, "switch", spy)
    (rendered,) = generator.render(request(count=1), adapters)
    assert seen == [
        ("text_encoder", [[0.3]]),  # of the adapter that changes it
        ("unet", [[0.9]] * 2),
        ("unet", [[0.6]] * 2),
        ("unet", [[0.6, 0.3]] * 2),
    ]
    assert {id: round(weight, 3) for id, weight in rendered.adapters.items()} == {
        "test:both": 0.3,
        "test:attention": 0.4,
        "test:locon": 0.1,
    }


def test_two_threads_share_one_generator(generator: Generator, adapters: dict[str, Adapter]) -> None:
    requests = [request(seed=1, count=1), request(seed=2, count=2, composition=tiny.composition({"locon": 0.9}))]
    expected = [generator.render(one, adapters) for one in requests]
    generator.forget_adapters()
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda one: generator.render(one, adapters), requests))
    assert all(same(a, b) for a, b in zip(found, expected, strict=True))
    assert set(found[0][0].seconds) == {"checkpoint", "load", "generate"}


def test_settings_that_can_not_be_used(settings: Settings) -> None:
    for field, value in (("device", "cuda:99"), ("device", "abacus"), ("dtype", "float8")):
        with pytest.raises(SettingsError, match=f"STYLUS_{field.upper()}={value}"):
            Checkpoints(settings.model_copy(update={field: value}))


def test_weights_in_pickle_files_are_not_loaded(settings: Settings, folder: Path, tmp_path: Path) -> None:
    """A checkpoint whose UNet comes as .bin: refused, even though diffusers could load it."""
    copy = tmp_path / "pickled"
    shutil.copytree(folder, copy)
    weights = copy / "unet" / "diffusion_pytorch_model.safetensors"
    torch.save(load_file(weights), weights.with_suffix(".bin"))
    weights.unlink()
    configured = settings.model_copy(update={"checkpoints": {BaseModelFamily.SD15: str(copy)}})
    with pytest.raises(CheckpointError, match="safetensors"):
        Checkpoints(configured).open(BaseModelFamily.SD15)
