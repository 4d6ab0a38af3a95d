"""The prompt that a picture was made with, as generators leave it in the file.

Sources: AUTOMATIC1111's `parameters` text (a text chunk of PNG; UserComment in the EXIF of JPEG and WebP), ComfyUI's
graph in its API format (PNG chunk `prompt`; in EXIF a text that starts with `prompt:`), JSON of Fooocus and InvokeAI.
No pixel is decoded, whatever size the picture claims to have. What comes out was written by strangers.
"""

import json
import re
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from PIL import ExifTags
from PIL.Image import DecompressionBombError
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

_MOST_BYTES = 100_000_000
_MOST_TEXT = 4_000_000
_MOST_LINKS = 20
"""Nodes between a sampler and its text; a graph of a stranger may run in a circle."""

_CHUNKS = ("parameters", "prompt", "invokeai_metadata", "comment", "Comment")
_INPUTS = (
    "text",
    "text_g",
    "t5xxl",
    "string",
    "value",
    "conditioning",
    "positive",
    "conditioning_1",
    "conditioning_to",
)
"""Inputs of ComfyUI's nodes that lead from a sampler back to the text, the nearest first."""

_UNREADABLE = (
    OSError, EOFError, ValueError, SyntaxError, LookupError, TypeError, ArithmeticError, RecursionError,
    DecompressionBombError,
)  # fmt: skip
"""What PIL and our own reading raise on pictures that are broken, or made to break them."""

_STEPS = re.compile(r"(?:^|\n)Steps: \d")


def prompt_of(path: Path) -> str:
    """The positive prompt of a PNG, JPEG or WebP file; "" where it tells none or can't be read."""
    try:
        if path.stat().st_size > _MOST_BYTES:
            return ""
        # PIL warns of broken EXIF: a picture without metadata is nothing that a person must hear of
        with warnings.catch_warnings(), path.open("rb") as file:
            warnings.simplefilter("ignore")
            picture = _open(file)
            texts = _texts(picture) if picture is not None else iter(())
            return next((prompt for text in texts if (prompt := _prompt(text[:_MOST_TEXT]))), "")
    except _UNREADABLE:
        return ""


def _open(file: BinaryIO) -> ImageFile | None:
    """By its first bytes, since names lie. The classes are called themselves: `Image.open` refuses large pictures."""
    start = file.read(12)
    file.seek(0)
    if start.startswith(b"\x89PNG"):
        return PngImageFile(file)
    if start.startswith(b"\xff\xd8"):
        return JpegImageFile(file)
    return WebPImageFile(file) if start[:4] == b"RIFF" and start[8:] == b"WEBP" else None


def _texts(picture: ImageFile) -> Iterator[str]:
    for key in _CHUNKS:
        value = picture.info.get(key)
        if isinstance(value, str | bytes):
            yield value if isinstance(value, str) else value.decode("utf-8", "replace")
    exif = picture.getexif()
    comment = exif.get_ifd(ExifTags.IFD.Exif).get(ExifTags.Base.UserComment)
    if isinstance(comment, bytes):
        yield _user_comment(comment)
    for value in exif.values():
        if isinstance(value, str) and value[:7].lower() == "prompt:":
            yield value[7:]


def _user_comment(value: bytes) -> str:
    """EXIF 2.3, UserComment: eight bytes name the encoding. Of the two orders of UTF-16 writers use either."""
    if value[:8] != b"UNICODE\0":
        return value[8 if value[:5] == b"ASCII" or not any(value[:8]) else 0 :].decode("utf-8", "replace")
    text = value[8:]
    little = text[:2] == b"\xff\xfe" or text[1::2].count(0) > text[::2].count(0)
    return text.decode("utf-16-le" if little else "utf-16-be", "replace").lstrip("\ufeff\ufffe")


def _prompt(text: str) -> str:
    text = text.strip().strip("\0")
    if text.startswith("{"):
        content = json.loads(text, strict=False)
        direct = content.get("prompt") or content.get("positive_prompt")
        return direct if isinstance(direct, str) else _comfyui(content)
    # Cameras and editors leave comments too: only settings after it make a text a prompt.
    return re.split(r"\nNegative prompt:|\nSteps: \d", f"\n{text}")[0].strip() if _STEPS.search(text) else ""


def _comfyui(graph: Mapping[str, object]) -> str:
    """The text that reaches the first sampler, and the LoRA files loaded, as `<lora:NAME:WEIGHT>`."""
    nodes = {id: node["inputs"] for id, node in graph.items() if isinstance(node, dict) and "inputs" in node}
    nodes = {id: inputs for id, inputs in nodes.items() if isinstance(inputs, dict)}
    prompt = next((text for inputs in nodes.values() if (text := _text_at(nodes, inputs.get("positive")))), "")
    if not prompt:  # newer samplers take their conditioning from a guider
        prompt = next((text for inputs in nodes.values() if (text := _text_at(nodes, inputs.get("conditioning")))), "")
    loras = [
        f"<lora:{PurePosixPath(inputs['lora_name'].replace(chr(92), '/')).stem}:{inputs['strength_model']:g}>"
        for inputs in nodes.values()
        if isinstance(inputs.get("lora_name"), str) and isinstance(inputs.get("strength_model"), int | float)
    ]
    return " ".join([prompt, *loras]) if prompt else ""


def _text_at(nodes: Mapping[str, Mapping[str, object]], value: object) -> str:
    """Follows a link [node, output] until it meets text."""
    for _ in range(_MOST_LINKS):
        if isinstance(value, str):
            return value
        inputs = nodes.get(str(value[0])) if isinstance(value, list) and value else None
        if inputs is None:
            return ""
        value = next((inputs[name] for name in _INPUTS if inputs.get(name)), None)
    return ""
