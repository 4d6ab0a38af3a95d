"""Pictures as generators write them -> the prompt, without decoding a pixel."""

import io
import json
import struct
import zlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image
from PIL.PngImagePlugin import PngInfo

from stylus.image_metadata import prompt_of

A1111 = (
    "a lighthouse at dusk <lora:sea:0.7>,\noil paint\nNegative prompt: blurry\n"
    "Steps: 20, Sampler: Euler a, CFG scale: 7, Seed: 3, Size: 512x512"
)
PROMPT = "a lighthouse at dusk <lora:sea:0.7>,\noil paint"
GRAPH = {
    "3": {"class_type": "KSampler", "inputs": {"seed": 1, "positive": ["9", 0], "negative": ["7", 0]}},
    "7": {"class_type": "CLIPTextEncode", "inputs": {"text": "blurry"}},
    "9": {"class_type": "FluxGuidance", "inputs": {"conditioning": ["6", 0], "guidance": 3.5}},
    "6": {"class_type": "CLIPTextEncode", "inputs": {"text": ["11", 0], "clip": ["4", 1]}},
    "11": {"class_type": "StringConstant", "inputs": {"string": "a heron"}},
    "4": {"class_type": "LoraLoader", "inputs": {"lora_name": "birds\\heron.safetensors", "strength_model": 0.65}},
}
GUIDER = {
    "1": {"class_type": "SamplerCustomAdvanced", "inputs": {"guider": ["2", 0]}},
    "2": {"class_type": "BasicGuider", "inputs": {"conditioning": ["3", 0]}},
    "3": {"class_type": "CLIPTextEncodeFlux", "inputs": {"t5xxl": "a moth", "clip_l": "moth"}},
}
CIRCLE = {"1": {"inputs": {"positive": ["2", 0]}}, "2": {"inputs": {"conditioning": ["2", 0]}}}


def png(chunks: dict[str, str], size: tuple[int, int] = (4, 4)) -> bytes:
    info, out = PngInfo(), io.BytesIO()
    for key, text in chunks.items():
        info.add_text(key, text, zip=len(text) > 200)
    Image.new("RGB", size).save(out, "PNG", pnginfo=info)
    return out.getvalue()


def with_exif(form: str, tags: dict[int, str], comment: bytes = b"") -> bytes:
    exif, out = Image.Exif(), io.BytesIO()
    exif.update(tags)
    if comment:
        exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment] = comment
    Image.new("RGB", (4, 4)).save(out, form, exif=exif)
    return out.getvalue()


@pytest.mark.parametrize(
    ("content", "prompt"),
    [
        (png({"parameters": A1111}), PROMPT),
        (png({"parameters": "no settings"}), ""),
        (png({"prompt": json.dumps(GRAPH), "workflow": "{}"}), "a heron <lora:heron:0.65>"),
        (png({"prompt": json.dumps(GUIDER)}), "a moth"),
        (png({"prompt": json.dumps(CIRCLE)}), ""),
        (png({"prompt": json.dumps(GRAPH).replace("0.65", "9" * 400)}), ""),
        (png({"parameters": json.dumps({"prompt": "a fox", "steps": 30})}), "a fox"),
        (png({"invokeai_metadata": json.dumps({"positive_prompt": "an owl"})}), "an owl"),
        (png({"prompt": "[" * 100_000}), ""),
        (png({"prompt": '{"a": ' * 100_000}), ""),
        (png({"parameters": "x" * 5_000_000}), ""),
        (with_exif("JPEG", {}, b"UNICODE\0" + A1111.encode("utf-16-be")), PROMPT),
        (with_exif("WEBP", {}, b"UNICODE\0" + A1111.encode("utf-16-le")), PROMPT),
        (with_exif("JPEG", {}, b"ASCII\0\0\0" + A1111.encode()), PROMPT),
        (with_exif("WEBP", {ExifTags.Base.Model: "prompt:" + json.dumps(GRAPH)}), "a heron <lora:heron:0.65>"),
        (with_exif("JPEG", {ExifTags.Base.Model: "X100"}, b"ASCII\0\0\0from my camera"), ""),
        (b"", ""),
        (b"\x89PNG\r\n\x1a\n", ""),
        (b"RIFF\0\0\0\0WEBP", ""),
        (b"\xff\xd8", ""),
        (b"GIF89a", ""),
    ],
)
def test_prompts_of_pictures(tmp_path: Path, content: bytes, prompt: str) -> None:
    # the name says nothing: sites serve PNG as .jpg and the other way round
    path = tmp_path / "any.jpg"
    path.write_bytes(content)
    assert prompt_of(path) == prompt


def test_a_huge_picture_gives_its_prompt_without_being_decoded(tmp_path: Path) -> None:
    path = tmp_path / "huge.png"
    header = struct.pack(">II5B", 60_000, 60_000, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"tEXt", b"parameters\0" + A1111.encode()), (b"IDAT", zlib.compress(b"no pixels"))]
    body = b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)
    assert prompt_of(path) == PROMPT


def test_no_picture_there(tmp_path: Path) -> None:
    assert prompt_of(tmp_path / "absent.png") == ""
    assert prompt_of(tmp_path) == ""


GOOD = [png({"parameters": A1111}), with_exif("JPEG", {}, b"ASCII\0\0\0" + A1111.encode()), with_exif("WEBP", {1: "x"})]


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(GOOD), st.lists(st.tuples(st.integers(0, 400), st.binary(max_size=6)), max_size=4))
def test_damaged_pictures_give_a_text_or_none(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, damage: list[tuple[int, bytes]]
) -> None:
    for at, new in damage:
        content = content[:at] + new + content[at + len(new) :]
    path = tmp_path_factory.getbasetemp() / "damaged"
    path.write_bytes(content)
    assert isinstance(prompt_of(path), str)
