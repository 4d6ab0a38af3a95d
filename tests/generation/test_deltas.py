"""DoRA, LoHa, LoKr and the rest, against peft's own layers and against their definitions; fused weights come back."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from peft import LoHaConfig, LoKrConfig, LoraConfig, inject_adapter_in_model
from peft.utils import get_peft_model_state_dict
from torch import Tensor

from stylus.generation.adapters import ResidentAdapters
from stylus.records import Adapter, BaseModelFamily
from tests.generation import tiny

LAYERS = ["conv_in", "to_q", "to_out.0", "conv1", "conv_shortcut", "linear_1", "ff.net.2"]
METHODS: dict[str, Any] = {
    "LoHa": LoHaConfig(r=4, alpha=2, target_modules=LAYERS, init_weights=False),
    "LoHa with core": LoHaConfig(r=4, alpha=2, target_modules=LAYERS, init_weights=False, use_effective_conv2d=True),
    "LoKr": LoKrConfig(r=4, alpha=2, target_modules=LAYERS, init_weights=False),
    "LoKr with core": LoKrConfig(
        r=2, alpha=2, target_modules=LAYERS, init_weights=False, decompose_both=True, use_effective_conv2d=True
    ),
    "DoRA": LoraConfig(r=4, lora_alpha=2, target_modules=LAYERS, init_lora_weights=False, use_dora=True),
}


def unet(folder: Path) -> Any:
    return UNet2DConditionModel.from_pretrained(folder, subfolder="unet").eval().to(tiny.DEVICE)


def output(model: Any, rows: int = 2) -> Tensor:
    random = torch.Generator().manual_seed(5)
    shapes = (rows, 4, 8, 8), (rows, 24, 32)
    latents, text = (torch.randn(shape, generator=random).to(tiny.DEVICE) for shape in shapes)
    with torch.no_grad():
        predicted: Tensor = model(latents, 400, encoder_hidden_states=text).sample
    return predicted


def resident(model: Any) -> ResidentAdapters:
    return ResidentAdapters(BaseModelFamily.SD15, {"unet": model})


@pytest.mark.parametrize("method", METHODS)
def test_other_methods_are_as_peft_draws_them(method: str, folder: Path, tmp_path: Path) -> None:
    torch.manual_seed(3)
    theirs = inject_adapter_in_model(METHODS[method], unet(folder), "default").to(tiny.DEVICE)
    for name, parameter in theirs.named_parameters():
        if "magnitude" in name:
            parameter.data *= 1 + 0.2 * torch.rand_like(parameter)
        elif "hada_" in name:
            parameter.data *= 4  # they start small
        elif any(part in name for part in ("lora_", "lokr_")):
            parameter.data *= 0.5
    tensors = {f"base_model.model.{key}": value for key, value in get_peft_model_state_dict(theirs).items()}
    path = tiny.write(tmp_path / "adapter_model.safetensors", tensors)
    config = {k: v for k, v in METHODS[method].to_dict().items() if k in ("r", "alpha", "lora_alpha")}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))

    ours = unet(folder)
    bare = output(ours)
    adapters = resident(ours)
    (loaded,) = adapters.load([tiny.adapter(method.replace(" ", "-"), path)], lambda done: None).values()
    adapters.switch("unet", [loaded], np.array([[1.0], [0.0]], dtype=np.float32))
    mixed = output(ours)
    expected = output(theirs)
    assert (expected[0] - bare[0]).abs().max() > 1e-2
    torch.testing.assert_close(mixed[0], expected[0], atol=1e-4, rtol=0)
    torch.testing.assert_close(mixed[1], bare[1], atol=1e-5, rtol=0)


def changed_by(tensors: dict[str, Tensor], folder: Path, path: Path) -> Tensor:
    """How the weight of conv_in changes, seen through fusing."""
    model = unet(folder)
    before = model.conv_in.weight.clone()
    adapters = resident(model)
    loaded = adapters.load([tiny.adapter("one", tiny.write(path, tensors))], lambda done: None)
    with adapters.fused("unet", list(loaded.values()), np.ones(1, dtype=np.float32)):
        change: Tensor = (model.conv_in.weight - before).cpu()
    assert torch.equal(model.conv_in.weight, before)
    return change


def test_conv_forms_by_their_definition(folder: Path, tmp_path: Path) -> None:
    name, random = "lora_unet_conv_in", torch.Generator().manual_seed(1)

    def some(*shape: int) -> Tensor:
        return torch.randn(shape, generator=random) / 4

    down, mid, up = some(2, 4, 1, 1), some(2, 2, 3, 3), some(32, 2, 1, 1)
    tucker = {f"{name}.lora_down.weight": down, f"{name}.lora_mid.weight": mid, f"{name}.lora_up.weight": up}
    core = torch.einsum("or,rskl,si->oikl", up[:, :, 0, 0], mid, down[:, :, 0, 0])
    torch.testing.assert_close(changed_by(tucker, folder, tmp_path / "t.safetensors"), core, atol=1e-6, rtol=0)

    diff = some(32, 4, 3, 3)
    full = changed_by({f"{name}.diff": diff}, folder, tmp_path / "f.safetensors")
    torch.testing.assert_close(full, diff, atol=1e-6, rtol=0)

    # the older LyCORIS DoRA keeps one magnitude for each input
    base = unet(folder).conv_in.weight.detach().cpu()
    factors = {f"{name}.lora_down.weight": some(2, 4, 3, 3), f"{name}.lora_up.weight": up}
    merged = base + (up.flatten(1) @ factors[f"{name}.lora_down.weight"].flatten(1)).reshape(base.shape)
    scale = 1 + some(1, 4, 1, 1)
    expected = merged * scale / merged.pow(2).sum(dim=(0, 2, 3), keepdim=True).sqrt() - base
    dora = changed_by(factors | {f"{name}.dora_scale": scale}, folder, tmp_path / "d.safetensors")
    torch.testing.assert_close(dora, expected, atol=1e-5, rtol=0)


def test_fused_is_the_same_picture_and_the_base_comes_back_to_the_bit(
    folder: Path, adapters: dict[str, Adapter]
) -> None:
    model = unet(folder)
    held = resident(model)
    loaded = held.load([adapters["test:attention"], adapters["test:locon"]], lambda done: None)
    residents, weights = list(loaded.values()), np.array([0.8, -0.5], dtype=np.float32)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    held.switch("unet", residents, np.tile(weights, (2, 1)))
    gated = output(model)
    with held.fused("unet", residents, weights):
        torch.testing.assert_close(output(model), gated, atol=1e-4, rtol=0)
    assert all(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())
    with pytest.raises(RuntimeError, match="halfway"), held.fused("unet", residents, weights):
        raise RuntimeError("halfway")
    assert all(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())
