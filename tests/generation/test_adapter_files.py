"""Files as strangers publish them: each bad one is refused with its id, its path, what is wrong and what to do."""

import json
import struct
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from stylus.errors import AdapterFileError, UnsupportedAdapter
from stylus.generation.adapter_files import read_adapter
from stylus.generation.adapter_keys import LayerNames, place
from stylus.generation.deltas import LowRank
from stylus.generation.gated import GatedModel
from stylus.records import Adapter, BaseModelFamily
from tests.generation import tiny

SD15 = BaseModelFamily.SD15


@pytest.fixture(scope="module")
def good(models: dict[str, nn.Module]) -> dict[str, Tensor]:
    return tiny.kohya(tiny.random_factors(models, seed=1, keep=tiny.attention), alpha=2.0)


def refusal(adapter: Adapter, models: Mapping[str, nn.Module]) -> str:
    shapes = {component: GatedModel(model).shapes for component, model in models.items()}
    with pytest.raises(AdapterFileError) as caught:
        read_adapter(adapter, SD15, shapes)
    message = str(caught.value)
    assert adapter.id in message
    assert str(adapter.file or "no file") in message
    assert "To go on, " in message
    return message.replace(str(adapter.file), "")


def key_of(tensors: Mapping[str, Tensor], ending: str) -> str:
    return next(key for key in tensors if key.endswith(ending))


Change = Callable[[dict[str, Tensor]], None]


def change(ending: str, value: Callable[[Tensor], Tensor]) -> Change:
    def apply(tensors: dict[str, Tensor]) -> None:
        key = key_of(tensors, ending)
        tensors[key] = value(tensors[key])

    return apply


def rename(ending: str, new: str) -> Change:
    def apply(tensors: dict[str, Tensor]) -> None:
        tensors[new] = tensors.pop(key_of(tensors, ending))

    return apply


HADA = ("1_a", "1_b", "2_a", "2_b")
DAMAGE: dict[str, tuple[Change, str]] = {
    "NaN": (change("lora_up.weight", lambda t: t * float("nan")), "NaN"),
    "infinite alpha": (change(".alpha", lambda t: t * float("inf")), "NaN or infinity"),
    "integers": (change("lora_up.weight", lambda t: t.to(torch.int8)), "no floating-point"),
    "no up": (lambda tensors: tensors.__delitem__(key_of(tensors, "lora_up.weight")), "incomplete"),
    "wrong width": (change("attn2_to_k.lora_down.weight", lambda t: t.repeat(1, 24)), "another base model"),
    "ranks differ": (change("lora_down.weight", lambda t: t[:2]), "another base model"),
    "rank 0": (change("lora_down.weight", lambda t: t[:0]), "another base model|rank 0"),
    "vector": (change("lora_down.weight", lambda t: t[0]), "another base model"),
    "two alphas": (change(".alpha", lambda t: t.repeat(2)), "2 numbers"),
    "LoHa of rank 0": (
        lambda tensors: tensors.update(
            {f"lora_unet_conv_out.hada_w{n}": torch.ones(4, 0) if n[-1] == "a" else torch.ones(0, 288) for n in HADA}
            | {"lora_unet_conv_out.alpha": torch.tensor(1.0)}
        ),
        "rank 0",
    ),
    "unknown key": (rename(".alpha", "something.else"), "unknown key 'something.else'"),
    "SDXL": (rename("lora_down.weight", "lora_te2_text_model_encoder_layers_0_mlp_fc1.lora_down.weight"), "for SDXL"),
    "Flux": (rename("lora_down.weight", "transformer.double_blocks.0.x.lora_A.weight"), "for Flux"),
    "other layers": (rename("lora_down.weight", "unet.up_blocks.9.conv.lora_A.weight"), "another base model"),
    "half a LoHa": (rename("lora_down.weight", "lora_unet_conv_in.hada_w1_a"), "hada_w1_b"),
    "half a LoKr": (rename("lora_down.weight", "lora_unet_conv_in.lokr_w1"), "neither whole nor both factors"),
    "magnitude alone": (rename("lora_down.weight", "lora_unet_conv_in.dora_scale"), "incomplete"),
    "core alone": (rename("lora_down.weight", "lora_unet_conv_in.lora_mid.weight"), "incomplete"),
    "difference of another size": (
        lambda tensors: tensors.update({"lora_unet_conv_in.diff": torch.ones(32, 4, 1, 1)}),
        "don't fit a layer of shape [32, 4, 3, 3]",
    ),
    "Kronecker product of another size": (
        lambda tensors: tensors.update(
            {"lora_unet_conv_in.lokr_w1": torch.ones(2, 2), "lora_unet_conv_in.lokr_w2": torch.ones(3, 3)}
        ),
        "don't fit a layer of shape [32, 4, 3, 3]",
    ),
    "magnitude of another size": (
        lambda tensors: tensors.update(
            {key_of(tensors, "alpha").replace(".alpha", ".dora_scale"): torch.ones(7)},
        ),
        "7 numbers",
    ),
    "twice": (
        lambda tensors: tensors.update(
            {"unet.conv_in.lora_A.weight": torch.ones(1, 4, 3, 3), "lora_unet_conv_in.lora_down.weight": torch.ones(1)}
        ),
        "twice",
    ),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damaged_tensors(name: str, good: dict[str, Tensor], models: dict[str, nn.Module], tmp_path: Path) -> None:
    apply, expected = DAMAGE[name]
    tensors = dict(good)
    apply(tensors)
    path = tiny.write(tmp_path / "adapter.safetensors", tensors)
    message = refusal(tiny.adapter("bad", path), models)
    assert any(part in message for part in expected.split("|")), message


@pytest.mark.parametrize(
    ("key", "method"),
    [("oft_blocks", "OFT"), ("ia3_l", "IA3"), ("on_input", "IA3"), ("diff_b", "biases"), ("mystery", "unknown key")],
)
def test_methods_that_can_not_be_applied(
    key: str, method: str, good: dict[str, Tensor], models: dict[str, nn.Module], tmp_path: Path
) -> None:
    """Refused as a kind of their own: the generator draws without them, and says so."""
    path = tiny.write(tmp_path / "adapter.safetensors", good | {f"lora_unet_conv_in.{key}": torch.ones(32)})
    shapes = {component: GatedModel(model).shapes for component, model in models.items()}
    with pytest.raises(UnsupportedAdapter, match=method):
        read_adapter(tiny.adapter("other", path), SD15, shapes)


def test_absurd_rank(models: dict[str, nn.Module], tmp_path: Path) -> None:
    path = tmp_path / "adapter.safetensors"
    tiny.write(path, tiny.kohya(tiny.random_factors(models, 1, rank=5000, keep=lambda p: p == "conv_in"), alpha=1.0))
    assert "rank 5000" in refusal(tiny.adapter("bad", path), models)


def header(fields: object, length: int | None = None) -> bytes:
    text = json.dumps(fields).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text


BYTES = {
    "empty": (b"", "empty"),
    "seven bytes": (b"1234567", "corrupt"),
    "error page": (b"<html>404 not found</html>" * 100, "corrupt"),
    "10 GB header": (header({}, length=10 * 2**30), "corrupt"),
    "header of lies": (header({"a": {"dtype": "F32", "shape": [9, 9], "data_offsets": [0, 999]}}), "corrupt"),
    "not a mapping": (header([1, 2]), "corrupt"),
    "no tensors": (header({}), "no tensors"),
    "pickle": (b"\x80\x04\x95", "corrupt"),
}


@pytest.mark.parametrize("name", BYTES)
def test_damaged_bytes(name: str, models: dict[str, nn.Module], tmp_path: Path) -> None:
    content, expected = BYTES[name]
    path = tmp_path / "adapter.safetensors"
    path.write_bytes(content)
    assert expected in refusal(tiny.adapter("bad", path), models)


def test_truncated(good: dict[str, Tensor], models: dict[str, nn.Module], tmp_path: Path) -> None:
    path = tiny.write(tmp_path / "adapter.safetensors", good)
    path.write_bytes(path.read_bytes()[:-100])
    assert "corrupt" in refusal(tiny.adapter("bad", path), models)


def test_missing_unreadable_or_of_another_kind(
    good: dict[str, Tensor], models: dict[str, nn.Module], tmp_path: Path
) -> None:
    path = tiny.write(tmp_path / "adapter.safetensors", good)
    assert "is not there" in refusal(tiny.adapter("bad", tmp_path / "gone.safetensors"), models)
    assert "is not there" in refusal(tiny.adapter("bad", tmp_path.with_suffix(".safetensors")), models)
    assert "no weight file" in refusal(tiny.adapter("bad", None), models)
    assert "'.ckpt'" in refusal(tiny.adapter("bad", path.rename(tmp_path / "adapter.ckpt")), models)
    path = tiny.write(tmp_path / "adapter.safetensors", good)
    assert "made for base model sdxl" in refusal(tiny.adapter("bad", path, base_model=BaseModelFamily.SDXL), models)
    assert "SHA-256" in refusal(tiny.adapter("bad", path, sha256="0" * 64), models)


def test_a_name_in_capitals(good: dict[str, Tensor], models: dict[str, nn.Module], tmp_path: Path) -> None:
    """A folder's X.SAFETENSORS is in the catalog and chosen; here it was refused."""
    path = tiny.write(tmp_path / "X.SAFETENSORS", good)
    shapes = {component: GatedModel(model).shapes for component, model in models.items()}
    assert read_adapter(tiny.adapter("loud", path), SD15, shapes).layers


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_eight_bits(dtype: torch.dtype, good: dict[str, Tensor], models: dict[str, nn.Module], tmp_path: Path) -> None:
    """As adapters of Flux come; torch has no isfinite for them, which ended in a traceback."""
    small = {key: tensor.to(dtype) for key, tensor in good.items()}
    path, exact = tiny.write(tmp_path / "x.safetensors", small), {key: tensor.float() for key, tensor in small.items()}
    shapes = {component: GatedModel(model).shapes for component, model in models.items()}
    read = read_adapter(tiny.adapter("small", path), SD15, shapes).layers["unet"]
    layer = key_of(good, "attn1_to_q.lora_down.weight")
    change = read["down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"]
    assert isinstance(change, LowRank)
    assert torch.equal(change.down.float(), exact[layer])
    infinite = small | {layer: torch.full_like(good[layer], float("nan")).to(dtype)}
    assert "NaN" in refusal(tiny.adapter("bad", tiny.write(path, infinite)), models)


def test_another_sized_base_model(models: dict[str, nn.Module], tmp_path: Path) -> None:
    """An adapter for a UNet of the same layout but other widths: names fit, shapes don't."""
    tiny.write_pipeline(tmp_path / "wide", widths=(64, 96))
    from diffusers import UNet2DConditionModel

    wide = {"unet": UNet2DConditionModel.from_pretrained(tmp_path / "wide", subfolder="unet")}
    path = tmp_path / "adapter.safetensors"
    tiny.write(path, tiny.kohya(tiny.random_factors(wide, seed=1, keep=tiny.attention), alpha=1.0))
    assert "choose adapters for sd15" in refusal(tiny.adapter("bad", path, base_model=None), models)


def test_bad_configuration(models: dict[str, nn.Module], tmp_path: Path) -> None:
    factors = tiny.random_factors(models, seed=1, keep=tiny.attention)
    tensors = tiny.dotted(factors, "base_model.model.", "lora_A", "lora_B")
    path = tiny.write(tmp_path / "adapter_model.safetensors", tensors)
    (tmp_path / "adapter_config.json").write_text('{"lora_alpha": "loud"}')
    assert "alpha 'loud'" in refusal(tiny.adapter("bad", path), models)
    (tmp_path / "adapter_config.json").write_text('{"lora_alpha": 1' + "0" * 400 + "}")
    assert "alpha 1000" in refusal(tiny.adapter("bad", path), models)
    for text in ("{", "[" * 100_000):
        (tmp_path / "adapter_config.json").write_text(text)
        assert "not JSON" in refusal(tiny.adapter("bad", path), models)
    (tmp_path / "adapter_config.json").write_text('{"alpha_pattern": [1]}')
    shapes = {component: GatedModel(model).shapes for component, model in models.items()}
    assert read_adapter(tiny.adapter("odd", path), SD15, shapes).scale == 1
    odd = tiny.write(tmp_path / "odd.safetensors", tensors, {"lora_adapter_metadata": "[1]"})
    assert "not JSON" in refusal(tiny.adapter("bad", odd), models)


def test_what_the_converter_of_flux_can_not_read(models: dict[str, nn.Module], tmp_path: Path) -> None:
    path = tiny.write(tmp_path / "x.safetensors", {"double_blocks.processor.x": torch.ones(4, 32)})
    with pytest.raises(UnsupportedAdapter, match="Flux"):
        read_adapter(tiny.adapter("odd", path, base_model=None), BaseModelFamily.FLUX, {})


def test_peft_patterns_and_rank_stabilised_scale(models: dict[str, nn.Module], tmp_path: Path) -> None:
    factors = tiny.random_factors({"unet": models["unet"]}, seed=1, rank=4, keep=tiny.attention)
    path = tiny.write(
        tmp_path / "adapter_model.safetensors", tiny.dotted(factors, "base_model.model.", "lora_A", "lora_B")
    )
    config = {"lora_alpha": 4, "use_rslora": True, "alpha_pattern": {"attn2.to_k": 8}}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    shapes = {"unet": GatedModel(models["unet"]).shapes}
    layers = read_adapter(tiny.adapter("good", path), SD15, shapes).layers["unet"]
    scales = {name: layer.scale for name, layer in layers.items() if isinstance(layer, LowRank)}
    assert {scale for name, scale in scales.items() if name.endswith("attn2.to_k")} == {4.0}
    assert {scale for name, scale in scales.items() if not name.endswith("attn2.to_k")} == {2.0}


def test_what_is_read_is_what_was_written(
    good: dict[str, Tensor], models: dict[str, nn.Module], tmp_path: Path
) -> None:
    path = tiny.write(tmp_path / "adapter.safetensors", good)
    shapes = {component: GatedModel(model).shapes for component, model in models.items()}
    weights = read_adapter(tiny.adapter("good", path), SD15, shapes)
    written = load_file(path)
    assert sum(len(layers) for layers in weights.layers.values()) == len(written) / 3
    assert weights.scale == 0.5
    assert weights.nbytes == sum(t.nbytes for key, t in written.items() if not key.endswith("alpha"))


def test_names_as_published_for_sd15() -> None:
    """Keys as they stand in files that people share, on a UNet and text encoder of the true size (no weights)."""
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    with torch.device("meta"):
        unet = UNet2DConditionModel(cross_attention_dim=768, attention_head_dim=8)
        text = CLIPTextModel(CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_attention_heads=12))
    names = LayerNames({"unet": GatedModel(unet).shapes, "text_encoder": GatedModel(text).shapes})
    block = "down_blocks.1.attentions.0.transformer_blocks.0"
    flat = block.replace(".", "_")
    for key, component, layer, role in (
        (f"lora_unet_{flat}_attn1_to_q.lora_down.weight", "unet", f"{block}.attn1.to_q", "down"),
        (f"lora_unet_{flat}_attn2_to_out_0.lora_up.weight", "unet", f"{block}.attn2.to_out.0", "up"),
        (f"lora_unet_{flat}_ff_net_0_proj.alpha", "unet", f"{block}.ff.net.0.proj", "alpha"),
        (f"lora_unet_{flat}_ff_net_2.lora_up.weight", "unet", f"{block}.ff.net.2", "up"),
        ("lora_unet_mid_block_attentions_0_proj_in.lora_down.weight", "unet", "mid_block.attentions.0.proj_in", "down"),
        ("lora_unet_up_blocks_3_resnets_2_conv_shortcut.alpha", "unet", "up_blocks.3.resnets.2.conv_shortcut", "alpha"),
        ("lora_unet_down_blocks_0_downsamplers_0_conv.alpha", "unet", "down_blocks.0.downsamplers.0.conv", "alpha"),
        ("lora_unet_up_blocks_0_upsamplers_0_conv.alpha", "unet", "up_blocks.0.upsamplers.0.conv", "alpha"),
        ("lora_unet_time_embedding_linear_1.lora_down.weight", "unet", "time_embedding.linear_1", "down"),
        (f"unet.{block}.attn1.processor.to_out_lora.up.weight", "unet", f"{block}.attn1.to_out.0", "up"),
        (f"unet.{block}.attn1.to_k.lora.down.weight", "unet", f"{block}.attn1.to_k", "down"),
        (f"base_model.model.{block}.attn1.to_k.lora_B.weight", "unet", f"{block}.attn1.to_k", "up"),
    ):
        assert place(key, names, SD15) == (component, layer, role)
    layer = next(path for path in GatedModel(text).shapes if path.endswith("encoder.layers.11.mlp.fc1"))
    for key in (
        "lora_te_text_model_encoder_layers_11_mlp_fc1.lora_down.weight",
        "lora_te1_text_model_encoder_layers_11_mlp_fc1.lora_down.weight",
        "text_encoder.text_model.encoder.layers.11.mlp.fc1.lora_linear_layer.down.weight",
        "text_encoder.encoder.layers.11.mlp.fc1.lora_A.weight",
        "base_model.model.text_model.encoder.layers.11.mlp.fc1.lora_A.default.weight",
    ):
        assert place(key, names, SD15) == ("text_encoder", layer, "down")
    attention = layer.replace("mlp.fc1", "self_attn.out_proj")
    early = "text_encoder.text_model.encoder.layers.11.self_attn.to_out_lora.up.weight"
    assert place(early, names, SD15) == ("text_encoder", attention, "up")
