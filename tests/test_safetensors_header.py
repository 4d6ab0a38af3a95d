"""Headers of real safetensors files, and of files that only claim to be."""

import contextlib
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save, save_file

from stylus.base_models import family_by_name
from stylus.errors import AdapterFileError
from stylus.records import BaseModelFamily, Kind
from stylus.safetensors_header import read_header

KOHYA = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"
DIFFUSERS = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"
PEFT = "base_model.model.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"
OLD = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.processor.to_k_lora"


SD15, SDXL, FLUX = BaseModelFamily.SD15, BaseModelFamily.SDXL, BaseModelFamily.FLUX


def write(path: Path, shapes: dict[str, tuple[int, ...]], metadata: dict[str, str] | None = None) -> Path:
    save_file({name: np.zeros(shape, np.float16) for name, shape in shapes.items()}, path, metadata)
    return path


@pytest.mark.parametrize(
    ("shapes", "metadata", "family"),
    [
        ({f"{KOHYA}.lora_down.weight": (4, 768)}, {}, BaseModelFamily.SD15),
        ({f"{KOHYA}.lora_down.weight": (4, 2048)}, {}, BaseModelFamily.SDXL),
        ({f"{KOHYA}.lora_down.weight": (4, 96)}, {}, BaseModelFamily.POCKET),
        ({f"{DIFFUSERS}.lora_A.weight": (4, 96)}, {}, BaseModelFamily.POCKET),
        ({f"{PEFT}.lora_A.weight": (4, 768)}, {}, BaseModelFamily.SD15),
        ({f"{OLD}.down.weight": (4, 2048)}, {}, BaseModelFamily.SDXL),
        ({f"{KOHYA}.hada_w1_b": (4, 768)}, {}, BaseModelFamily.SD15),
        ({"lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight": (4, 3072)}, {}, BaseModelFamily.FLUX),
        ({"transformer.single_transformer_blocks.0.attn.to_q.lora_A.weight": (4, 3072)}, {}, BaseModelFamily.FLUX),
        ({"transformer.transformer_blocks.0.attn.add_q_proj.lora_A.weight": (4, 1536)}, {}, BaseModelFamily.SD3),
        ({"lora_unet_joint_blocks_0_x_block_attn_qkv.lora_down.weight": (4, 1536)}, {}, BaseModelFamily.SD3),
        ({f"{KOHYA}.lora_down.weight": (4, 1024)}, {}, None),
        ({"lora_unet_joint_blocks_37_context_block_mlp_fc1.lora_down.weight": (4, 2432)}, {}, BaseModelFamily.SD3),
        ({"transformer.transformer_blocks.18.attn.add_k_proj.lora_A.weight": (4, 3072)}, {}, BaseModelFamily.FLUX),
        ({"lora_transformer_single_transformer_blocks_37_proj_out.lora_down.weight": (4, 15360)}, {}, FLUX),
        ({"double_blocks.0.processor.qkv_lora1.down.weight": (4, 3072)}, {}, FLUX),
        ({"diffusion_model.single_blocks.9.linear1.lora_A.weight": (4, 3072)}, {}, FLUX),
        ({f"{KOHYA}.lokr_w1": (4, 8), f"{KOHYA}.lokr_w2_a": (80, 4), f"{KOHYA}.lokr_w2_b": (4, 96)}, {}, SD15),
        (
            {
                "lora_unet_single_blocks_0_linear1.lokr_w1": (8, 8),
                "lora_unet_single_blocks_0_linear1.lokr_w2": (8, 384),
            },
            {},
            FLUX,
        ),
        ({"lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k.lora_down.weight": (4, 2048)}, {}, SDXL),
        ({"lora_unet_middle_block_1_transformer_blocks_7_attn1_to_k.lora_down.weight": (4, 1280)}, {}, SDXL),
        ({"lora_te_text_model_encoder_layers_0_self_attn_q_proj.lora_down.weight": (4, 768)}, {}, SD15),
        # base models without a family here, though they share names and widths with one
        ({"lora_te_text_model_encoder_layers_0_self_attn_q_proj.lora_down.weight": (4, 1024)}, {}, None),
        ({"lora_unet_double_blocks_19_img_attn_qkv.lora_down.weight": (4, 3072)}, {}, None),  # HunyuanVideo
        ({"diffusion_model.double_blocks.0.img_attn.qkv.lora_A.weight": (4, 6144)}, {}, None),  # Flux.2
        ({"transformer_blocks.40.attn.add_q_proj.lora_A.weight": (4, 3072)}, {}, None),  # Qwen-Image
        ({"transformer_blocks.3.img_mlp.net.0.proj.lora_A.weight": (4, 3072)}, {}, None),  # Qwen-Image
        ({"transformer.joint_transformer_blocks.0.attn.add_q_proj.lora_A.weight": (4, 3072)}, {}, None),  # AuraFlow
        ({"transformer_blocks.0.attn2.to_k.lora_A.weight": (4, 2048)}, {}, None),  # LTX
        ({"lora_unet_x.lora_down.weight": (4, 320)}, {"ss_base_model_version": "sdxl_base_v1-0"}, BaseModelFamily.SDXL),
        ({f"{KOHYA}.lora_down.weight": (4, 768)}, {"ss_base_model_version": "sdxl_base_v1-0"}, BaseModelFamily.SD15),
        ({"lora_unet_x.lora_down.weight": (4, 320)}, {}, None),
    ],
)
def test_family(
    tmp_path: Path, shapes: dict[str, tuple[int, ...]], metadata: dict[str, str], family: BaseModelFamily | None
) -> None:
    assert read_header(write(tmp_path / "a.safetensors", shapes, metadata)).family == family


@pytest.mark.parametrize(
    ("shapes", "kind"),
    [
        ({f"{KOHYA}.lora_down.weight": (4, 768)}, Kind.LORA),
        ({"lora_unet_proj_in.lora_down.weight": (4, 320, 1, 1)}, Kind.LORA),
        ({"lora_unet_conv1.lora_down.weight": (4, 320, 3, 3)}, Kind.LOCON),
        ({f"{KOHYA}.hada_w1_a": (4, 4)}, Kind.LOHA),
        ({f"{KOHYA}.lokr_w1": (4, 4)}, Kind.LOKR),
        ({f"{KOHYA}.lora_down.weight": (4, 768), f"{KOHYA}.dora_scale": (320, 1)}, Kind.DORA),
        ({f"{DIFFUSERS}.lora_A.weight": (4, 768), f"{DIFFUSERS}.lora_magnitude_vector.weight": (320,)}, Kind.DORA),
        ({f"{DIFFUSERS}.lora_A.weight": (4, 768), f"{DIFFUSERS}.lora_magnitude_vector": (320,)}, Kind.DORA),  # peft's
    ],
)
def test_kind(tmp_path: Path, shapes: dict[str, tuple[int, ...]], kind: Kind) -> None:
    header = read_header(write(tmp_path / "a.safetensors", shapes))
    assert header.kind == kind
    assert header.is_adapter


def test_a_whole_model_is_no_adapter(tmp_path: Path) -> None:
    assert not read_header(write(tmp_path / "a.safetensors", {"conv_in.weight": (4, 4, 3, 3)})).is_adapter


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("SD 1.5", "sd15"),
        ("sd_v1", "sd15"),
        ("SDXL 1.0", "sdxl"),
        ("Pony", "sdxl"),
        ("Flux.1 D", "flux"),
        ("SD 3.5", "sd3"),
        ("pocket", "pocket"),
        ("SD 2.1", None),
        ("Flux.2 D", None),
        ("Pony V7", None),
        ("stable-diffusion-xl-v1-base/lora", "sdxl"),
        ("flux-1-dev/lora", "flux"),
        ("stable-diffusion-3-medium/lora", "sd3"),
        ("v1-5-pruned-emaonly.safetensors", "sd15"),
        ("", None),
    ],
)
def test_family_names_as_people_write_them(name: str, family: str | None) -> None:
    assert family_by_name(name) == family


def test_identity_follows_header_and_size(tmp_path: Path) -> None:
    one = read_header(write(tmp_path / "1.safetensors", {"lora_a": (2, 2)}))
    same = read_header(write(tmp_path / "2.safetensors", {"lora_a": (2, 2)}))
    other = read_header(write(tmp_path / "3.safetensors", {"lora_a": (2, 3)}))
    assert one.identity == same.identity != other.identity
    assert one.bytes == (tmp_path / "1.safetensors").stat().st_size


def test_identity_looks_at_the_tensors_where_the_header_holds_no_hash_of_them(tmp_path: Path) -> None:
    def identity(place: int, metadata: dict[str, str] | None = None) -> str:
        tensor = np.zeros(200_000, np.uint8)
        tensor[place] = 1
        save_file({"lora_a": tensor}, tmp_path / "x.safetensors", metadata)
        return read_header(tmp_path / "x.safetensors").identity

    assert len({identity(place) for place in (0, 100_000, 199_999)}) == 3
    assert identity(0, {"ss_output_name": "x"}) != identity(1, {"ss_output_name": "x"})
    hashed = {"sshs_model_hash": "ab" * 32}
    assert identity(0, hashed) == identity(1, hashed) != identity(1, {"sshs_model_hash": "cd" * 32})


@pytest.mark.parametrize(
    ("shapes", "metadata", "rank"),
    [
        ({f"{n}.lora_A.weight": (r, 9) for n, r in enumerate((4, 8, 8))}, {"ss_network_dim": "99"}, 8),
        ({f"{KOHYA}.hada_w1_b": (6, 768), f"{KOHYA}.hada_w1_a": (320, 6)}, {}, 6),
        ({f"{KOHYA}.lokr_w1": (4, 4)}, {"ss_network_dim": "16"}, 16),
        ({f"{KOHYA}.lokr_w1": (4, 4)}, {"ss_network_dim": "many"}, None),
    ],
)
def test_rank(tmp_path: Path, shapes: dict[str, tuple[int, ...]], metadata: dict[str, str], rank: int | None) -> None:
    assert read_header(write(tmp_path / "a.safetensors", shapes, metadata)).rank == rank


def header(entry: dict[str, object]) -> bytes:
    text = json.dumps({"lora_a": entry}).encode()
    return len(text).to_bytes(8, "little") + text + bytes(4)


def test_a_rank_that_can_not_be_is_none(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    text = json.dumps({f"{KOHYA}.lora_A.weight": {"dtype": "F4", "shape": [2**40, 2], "data_offsets": [0, 4]}}).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(4))
    assert read_header(path).rank is None


GOOD = save({"lora_a": np.ones((2, 2), np.float32)})


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "empty"),
        (pickle.dumps({"a": 1}), "pickle"),
        (pickle.dumps({"a": 1}, protocol=5), "pickle"),
        (b"PK\x03\x04" + bytes(100), "pickle"),
        (b"<!DOCTYPE html><html>Not found</html>", "web page"),
        (b"short", "truncated"),
        (GOOD[:20], "truncated"),
        (GOOD[:-1], "truncated"),
        (GOOD + b"x", "padded"),
        ((10**11).to_bytes(8, "little") + bytes(100), "claims a header of 100,000,000,000"),
        ((4).to_bytes(8, "little") + b"null", "no safetensors"),
        ((2).to_bytes(8, "little") + b"[]" + bytes(8), "no safetensors"),
        ((4).to_bytes(8, "little") + b"{}\xff\xfe", "no safetensors header"),
        ((20).to_bytes(8, "little") + b'{"__metadata__": 1} ', "no safetensors header"),
        (header({"dtype": "F8", "shape": [1], "data_offsets": [0, float("inf")]}), "no safetensors header"),
        ((9).to_bytes(8, "little") + b'{"a": {}}', "no safetensors header"),
        (header({"dtype": "F16", "shape": [2**40, 2], "data_offsets": [0, 4]}), "shape"),
        (header({"dtype": "F16", "shape": [[1]], "data_offsets": [0, 4]}), "shape"),
        (header({"dtype": ["F16"], "shape": [1], "data_offsets": [0, 4]}), "no safetensors header"),
        (header({"dtype": "F16", "shape": [1], "data_offsets": "ab"}), "no safetensors header"),
        ((100_005).to_bytes(8, "little") + b'{"a":' + b"[" * 100_000, "no safetensors header"),
    ],
)
def test_bad_files_say_what_is_wrong_and_what_to_do(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "bad.safetensors"
    path.write_bytes(content)
    with pytest.raises(AdapterFileError, match=says) as caught:
        read_header(path)
    assert str(path) in str(caught.value)
    assert "elete it" in str(caught.value)


@pytest.mark.parametrize("start", [b"PK", b"\x80\x02", b"\x80\x05", b"<\x01"])
def test_a_header_may_be_as_long_as_another_format_begins(tmp_path: Path, start: bytes) -> None:
    length = int.from_bytes(start, "little")
    text = json.dumps({"lora_a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode().ljust(length)
    path = tmp_path / "a.safetensors"
    path.write_bytes(length.to_bytes(8, "little") + text + bytes(4))
    assert read_header(path).is_adapter


def test_a_missing_file_is_an_adapter_file_error(tmp_path: Path) -> None:
    with pytest.raises(AdapterFileError, match="No such file"):
        read_header(tmp_path / "absent.safetensors")


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=300) | st.binary(max_size=200).map(lambda b: len(b).to_bytes(8, "little") + b))
def test_no_bytes_make_anything_but_a_header_or_an_adapter_file_error(tmp_path_factory: object, content: bytes) -> None:
    assert isinstance(tmp_path_factory, pytest.TempPathFactory)
    path = tmp_path_factory.getbasetemp() / "any.safetensors"
    path.write_bytes(content)
    with contextlib.suppress(AdapterFileError):
        read_header(path)


def test_strange_but_legal_metadata(tmp_path: Path) -> None:
    header = json.dumps(
        {"__metadata__": None, "lora_a": {"dtype": "F32", "shape": [], "data_offsets": [0, 4]}}
    ).encode()
    path = tmp_path / "a.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    assert read_header(path).metadata == {}
