"""One pass over a mixed batch equals diffusers' own one-by-one way; a switch stays cheap; memory comes back."""

import gc
import hashlib
import warnings
import weakref
from concurrent.futures import wait
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from torch import nn

from stylus.errors import AdapterFileError
from stylus.generation.adapters import ResidentAdapters
from stylus.generation.deltas import LowRank
from stylus.generation.gated import GatedModel
from stylus.records import Adapter, BaseModelFamily
from tests.generation import tiny

IDS = ["test:both", "test:attention", "test:locon"]
MIXED = np.array([[0.8, 0, 0], [0, -0.5, 0.7], [0.4, 0.3, 0.6], [0, 0, 0]], dtype=np.float32)


@pytest.fixture
def pipeline(folder: Path) -> Any:
    return StableDiffusionPipeline.from_pretrained(folder, safety_checker=None, use_safetensors=True).to(tiny.DEVICE)


@pytest.fixture
def resident(pipeline: Any) -> ResidentAdapters:
    return ResidentAdapters(BaseModelFamily.SD15, {"unet": pipeline.unet, "text_encoder": pipeline.text_encoder})


def unet_output(pipeline: Any, rows: slice = slice(None)) -> torch.Tensor:
    random = torch.Generator().manual_seed(5)
    shapes = (4, 4, 8, 8), (4, 24, 32)
    latents, text = (torch.randn(shape, generator=random)[rows].to(tiny.DEVICE) for shape in shapes)
    with torch.no_grad():
        output: torch.Tensor = pipeline.unet(latents, 400, encoder_hidden_states=text).sample
    return output


def text_output(pipeline: Any, rows: slice = slice(None)) -> torch.Tensor:
    tokens = torch.arange(4 * 24, device=tiny.DEVICE).reshape(4, 24) % 50
    with torch.no_grad():
        output: torch.Tensor = pipeline.text_encoder(tokens[rows])[0]
    return output


def test_a_mixed_batch_equals_one_by_one_set_adapters(
    folder: Path, pipeline: Any, resident: ResidentAdapters, adapters: dict[str, Adapter]
) -> None:
    loaded = resident.load([adapters[id] for id in IDS], lambda done: None)
    for component in ("unet", "text_encoder"):
        resident.switch(component, [loaded[id] for id in IDS], MIXED)
    ours_unet, ours_text = unet_output(pipeline), text_output(pipeline)

    theirs = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None, use_safetensors=True).to(tiny.DEVICE)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft warns when a second adapter is loaded
        for id in IDS:
            theirs.load_lora_weights(adapters[id].file, adapter_name=id.removeprefix("test:"))
    names = [id.removeprefix("test:") for id in IDS]
    plain = unet_output(pipeline=theirs) * 0
    for row, weights in enumerate(MIXED):
        theirs.set_adapters(names, adapter_weights=[float(weight) for weight in weights])
        one = slice(row, row + 1)
        plain[one] = unet_output(theirs, one)
        assert (ours_unet[one] - plain[one]).abs().max() < 1e-4
        assert (ours_text[one] - text_output(theirs, one)).abs().max() < 1e-4
    # the adapters matter at all, and differently so
    assert (plain[:3] - plain[3:]).flatten(1).abs().amax(dim=1).min() > 1e-2


def test_all_off_is_the_bare_model_to_the_bit(
    pipeline: Any, resident: ResidentAdapters, adapters: dict[str, Adapter]
) -> None:
    bare = unet_output(pipeline), text_output(pipeline)
    loaded = resident.load([adapters[id] for id in IDS], lambda done: None)
    for component in ("unet", "text_encoder"):
        resident.switch(component, [loaded[id] for id in IDS], MIXED)
    assert not torch.equal(unet_output(pipeline), bare[0])
    resident.all_off()
    assert torch.equal(unet_output(pipeline), bare[0])
    assert torch.equal(text_output(pipeline), bare[1])


def test_formats_of_one_adapter_are_equal(
    pipeline: Any, resident: ResidentAdapters, models: dict[str, nn.Module], tmp_path: Path
) -> None:
    """alpha 2 at rank 4, said in each format's own way; scale 0.5 in the factors for the formats that can't say it."""
    factors = tiny.random_factors(models, seed=9, keep=tiny.attention)
    halved = {c: {p: (down, up / 2) for p, (down, up) in layers.items()} for c, layers in factors.items()}
    header = {f"{c}.{key}": value for c in factors for key, value in (("r", 4), ("lora_alpha", 2))}
    config = '{"peft_type": "LORA", "r": 4, "lora_alpha": 2}'
    (tmp_path / "peft").mkdir()
    (tmp_path / "peft" / "adapter_config.json").write_text(config)
    peft = tiny.dotted(factors, "base_model.model.", "lora_A", "lora_B", text_model="text_model.")
    files = {
        "kohya": tiny.write(tmp_path / "kohya.safetensors", tiny.kohya(factors, alpha=2.0)),
        "diffusers": tiny.write(
            tmp_path / "diffusers.safetensors", tiny.dotted(halved, "{component}.", "lora.down", "lora.up")
        ),
        "diffusers-linear": tiny.write(
            tmp_path / "linear.safetensors",
            tiny.dotted(halved, "{component}.", "lora_linear_layer.down", "lora_linear_layer.up", "text_model."),
        ),
        "diffusers-peft": tiny.write(
            tmp_path / "diffusers-peft.safetensors",
            tiny.dotted(factors, "{component}.", "lora_A", "lora_B"),
            {"lora_adapter_metadata": str(header).replace("'", '"')},
        ),
        "peft": tiny.write(tmp_path / "peft" / "adapter_model.safetensors", peft),
        "peft-named": tiny.write(
            tmp_path / "peft-named.safetensors",
            tiny.dotted(halved, "base_model.model.{component}.", "lora_A.default", "lora_B.default"),
        ),
        "half": tiny.write(
            tmp_path / "half.safetensors", {k: t.half() for k, t in tiny.kohya(factors, alpha=2.0).items()}
        ),
    }
    outputs: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    for name, path in files.items():
        loaded = resident.load([tiny.adapter(name, path)], lambda done: None)
        for component in ("unet", "text_encoder"):
            resident.switch(component, list(loaded.values()), np.full((4, 1), 0.9, dtype=np.float32))
        outputs[name] = unet_output(pipeline), text_output(pipeline)
    for name, (unet, text) in outputs.items():
        tolerance = 5e-3 if name == "half" else 1e-5
        torch.testing.assert_close(unet, outputs["kohya"][0], atol=tolerance, rtol=0, msg=name)
        torch.testing.assert_close(text, outputs["kohya"][1], atol=tolerance, rtol=0, msg=name)


def test_early_diffusers_names(
    pipeline: Any, resident: ResidentAdapters, models: dict[str, nn.Module], tmp_path: Path
) -> None:
    factors = tiny.random_factors({"unet": models["unet"]}, seed=9, keep=tiny.attention)
    early = tiny.write(tmp_path / "early.safetensors", tiny.early_diffusers(factors))
    modern = tiny.write(tmp_path / "modern.safetensors", tiny.dotted(factors, "unet.", "lora_A", "lora_B"))
    loaded = resident.load([tiny.adapter("early", early), tiny.adapter("modern", modern)], lambda done: None)
    outputs = []
    for one in loaded.values():
        resident.switch("unet", [one], np.ones((4, 1), dtype=np.float32))
        outputs.append(unet_output(pipeline))
    assert torch.equal(*outputs)


def test_layers_of_different_scales_share_one_adapter(
    pipeline: Any, resident: ResidentAdapters, models: dict[str, nn.Module], tmp_path: Path
) -> None:
    """Ranks and alphas that differ by layer: what is not common to all layers goes into the factors."""
    factors = tiny.random_factors({"unet": models["unet"]}, seed=9, keep=tiny.attention)
    varied = tiny.kohya(factors, alpha=4.0)
    folded = {c: dict(layers) for c, layers in factors.items()}
    for n, (path, (down, up)) in enumerate(factors["unet"].items()):
        if n % 3 == 0:
            varied[f"lora_unet_{path.replace('.', '_')}.alpha"] = torch.tensor(1.0 + n)
            folded["unet"][path] = (down, up * (1.0 + n) / 4)
    loaded = resident.load(
        [
            tiny.adapter("varied", tiny.write(tmp_path / "varied.safetensors", varied)),
            tiny.adapter("folded", tiny.write(tmp_path / "folded.safetensors", tiny.kohya(folded, alpha=4.0))),
        ],
        lambda done: None,
    )
    outputs = []
    for one in loaded.values():
        resident.switch("unet", [one], np.full((4, 1), 0.2, dtype=np.float32))
        outputs.append(unet_output(pipeline))
    torch.testing.assert_close(*outputs, atol=1e-5, rtol=0)


def test_the_least_recently_used_go_and_their_memory_returns(
    pipeline: Any, resident: ResidentAdapters, models: dict[str, nn.Module], tmp_path: Path
) -> None:
    def few(path: str) -> bool:
        return path == "conv_in" or path.endswith("attn1.to_q")

    many = [
        tiny.adapter(
            f"n{n}",
            tiny.write(tmp_path / f"{n}.safetensors", tiny.kohya(tiny.random_factors(models, n, keep=few), alpha=1.0)),
        )
        for n in range(6)
    ]
    resident.load(many[:1], lambda done: None)
    one = resident.size
    resident.capacity = 3 * one
    resident.load(many[:3], lambda done: None)
    resident.load(many[:1], lambda done: None)  # the first is now the freshest
    second = list(resident._models["unet"]._branches["conv_in"].attached.values())[1]
    gone = weakref.ref(second.down)
    del second
    resident.files.forget()  # on a CPU, main memory and the device share tensors
    loaded = resident.load(many[3:5], lambda done: None)
    assert resident.size == held(resident) == 3 * one
    assert set(resident.load([many[0]], lambda done: None)) == {"test:n0"}
    gc.collect()
    assert gone() is None
    assert set(loaded) == {"test:n3", "test:n4"}
    resident.load(many, lambda done: None)  # all of one request stay, whatever the capacity
    assert resident.size == held(resident) == 6 * one
    resident.forget()
    assert resident.size == held(resident) == 0


def held(resident: ResidentAdapters) -> int:
    """Bytes of all factors that the layers really have."""
    layers = [layer for gated in resident._models.values() for layer in gated._branches.values()]
    return sum(factors.nbytes for layer in layers for factors in layer.attached.values())


def test_a_changed_file_is_read_again(
    pipeline: Any, resident: ResidentAdapters, models: dict[str, nn.Module], tmp_path: Path
) -> None:
    path = tmp_path / "one.safetensors"
    outputs = []
    for seed in (1, 2):
        tiny.write(path, tiny.kohya(tiny.random_factors(models, seed, rank=seed), alpha=1.0))
        loaded = resident.load([tiny.adapter("one", path)], lambda done: None)
        resident.switch("unet", list(loaded.values()), np.ones((4, 1), dtype=np.float32))
        outputs.append(unet_output(pipeline))
    assert not torch.equal(*outputs)


def test_a_file_that_is_replaced_before_it_is_attached_is_read_again(
    pipeline: Any, resident: ResidentAdapters, models: dict[str, nn.Module], tmp_path: Path
) -> None:
    path = tmp_path / "one.safetensors"
    files = [tiny.kohya(tiny.random_factors(models, seed, rank=seed), alpha=1.0) for seed in (1, 2)]
    adapter = tiny.adapter("one", tiny.write(path, files[0]))
    with resident.loading([adapter], lambda done: None) as loading:
        wait(loading._reads.values())
        tiny.write(path, files[1])
        loading._settle(adapter)
    old = loading.ready[adapter.id].sha256
    new = resident.load([adapter], lambda done: None)[adapter.id].sha256
    assert old != new == hashlib.sha256(path.read_bytes()).hexdigest()


def test_weights_that_half_precision_can_not_hold(pipeline: Any, models: dict[str, nn.Module], tmp_path: Path) -> None:
    unet = pipeline.unet.half()
    resident = ResidentAdapters(BaseModelFamily.SD15, {"unet": unet})
    factors = tiny.random_factors({"unet": models["unet"]}, seed=1, keep=tiny.attention)
    tensors = tiny.kohya(factors, alpha=1.0)
    tensors[list(tensors)[-2]] *= 1e6
    path = tiny.write(tmp_path / "loud.safetensors", tensors)
    with pytest.raises(AdapterFileError, match=r"test:loud.*float16.*STYLUS_DTYPE=float32"):
        resident.load([tiny.adapter("loud", path)], lambda done: None)
    assert resident.size == held(resident) == 0


def test_a_switch_costs_the_same_however_many_adapters_were_loaded(
    pipeline: Any, resident: ResidentAdapters, adapters: dict[str, Adapter], monkeypatch: pytest.MonkeyPatch
) -> None:
    """To other weights it visits no layer; to other adapters it asks each layer once, and only for those."""
    loaded = resident.load([adapters[id] for id in IDS], lambda done: None)
    asked: list[str] = []

    class Asked(dict[str, Any]):
        def __contains__(self, name: object) -> bool:
            asked.append(str(name))
            return super().__contains__(name)

        def __iter__(self) -> Any:
            raise AssertionError("all adapters of a layer were visited")

        items = keys = values = __iter__

    layers = resident._models["unet"]._branches.values()
    for layer in layers:
        layer.attached = Asked(layer.attached)
    two = [loaded[id] for id in IDS[:2]]
    resident.switch("unet", two, MIXED[:, :2])
    assert sorted(asked) == sorted([one.name for one in two] * len(layers))
    resident.switch("unet", two, MIXED[:, :2] / 2)
    assert len(asked) == 2 * len(layers)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_as_exact_as_one_by_one(
    pipeline: Any, adapters: dict[str, Adapter], dtype: torch.dtype
) -> None:
    unet = nn.Module.to(pipeline.unet, dtype=dtype)
    resident = ResidentAdapters(BaseModelFamily.SD15, {"unet": unet, "text_encoder": pipeline.text_encoder})
    loaded = list(resident.load([adapters[id] for id in IDS], lambda done: None).values())
    latents, text = (torch.randn(shape).to(tiny.DEVICE, dtype) for shape in ((4, 4, 8, 8), (4, 24, 32)))

    def output(rows: slice) -> torch.Tensor:
        with torch.no_grad():
            predicted: torch.Tensor = unet(latents[rows], 400, encoder_hidden_states=text[rows]).sample
        return predicted.float()

    resident.switch("unet", loaded, MIXED)
    mixed = output(slice(None))
    for row in range(4):
        resident.switch("unet", loaded, MIXED[row : row + 1])
        alone = output(slice(row, row + 1))
        assert mixed.dtype is torch.float32
        assert (alone - mixed[row]).abs().max() < 0.03 * alone.abs().max()


class Net(nn.Module):
    """Inputs of four, three and two dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.inner, self.last = nn.Conv2d(4, 8, 3, padding=1), nn.Linear(16, 6), nn.Linear(48, 5)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        outputs: torch.Tensor = self.last(self.inner(nn.functional.silu(self.conv(inputs)).flatten(2)).flatten(1))
        return outputs


def test_a_compiled_model_notices_adapters_and_is_compiled_once_for_each_size() -> None:
    """A graph that was made before the first adapter must not be used with adapters; weights must not be constants in
    it. Only the tracing is tried here: what makes machine code of it takes minutes."""
    model = Net().requires_grad_(False)
    inputs, factors = torch.randn(2, 4, 4, 4), tiny.random_factors({"unet": model}, seed=1)["unet"]
    compilations: list[int] = []

    def traced(graph: Any, _inputs: Any) -> Any:
        compilations.append(1)
        return graph

    gated = GatedModel(model)
    gated.compile(backend=traced)
    plain = model(inputs)
    torch.testing.assert_close(plain, model.forward(inputs))
    for n in range(4):
        changes = {path: LowRank(down * (n + 1), up, 1.0) for path, (down, up) in factors.items()}
        gated.attach(f"n{n}", changes, scale=1.0)
    seen = [plain]
    for names, weights in ((("n0", "n1"), (0.5, -0.5)), (("n0", "n1"), (0.1, 2.0)), (("n2", "n3"), (1.0, 0.3))):
        gated.switch({name: torch.tensor([w, 1 - w]) for name, w in zip(names, weights, strict=True)})
        seen.append(model(inputs))
        torch.testing.assert_close(seen[-1], model.forward(inputs), atol=1e-5, rtol=0)
        assert all((seen[-1] - other).abs().max() > 1e-2 for other in seen[:-1])
    assert len(compilations) == 2  # without adapters, and with any two of this rank
    gated.switch({})
    assert torch.equal(model(inputs), plain)
