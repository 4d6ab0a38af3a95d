"""What made a picture, inside the picture, and the store where pictures lie.

Each PNG carries two text chunks: `parameters`, the line format of AUTOMATIC1111's web UI that most galleries read, and
`stylus`, a JSON record that suffices to render the same pixels again (request, hashes of adapters and checkpoint,
versions).
The store is an fsspec URL: a folder by default.
"""

import errno
import io
import json
import os
import re
import secrets
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import fsspec
from fsspec.implementations.local import LocalFileSystem
from PIL import Image, PngImagePlugin

from stylus.errors import InvalidInput, NotFound, StorageError
from stylus.records import Mask, Request

if TYPE_CHECKING:
    # types only: reading and saving pictures should not load torch and diffusers
    from stylus.generation.checkpoints import LoadedPipeline
    from stylus.generation.generator import Rendered

PACKAGES = ("torch", "diffusers", "transformers", "peft", "safetensors", "pillow")
MAX_RECORD = 2**20
"""Bytes of a text chunk that are read back; ours have a few thousand, strangers' can be bombs."""


def provenance(
    *,
    request: Request,
    index: int,
    prompt: str,
    mask: Mask,
    adapters: Mapping[str, tuple[str, float]],
    steps: int,
    guidance_scale: float,
    size: tuple[int, int],
    loaded: "LoadedPipeline",
) -> dict[str, Any]:
    """The JSON record of image `index`. `adapters`: id -> (SHA-256 of its file, effective weight in this image)."""
    names = {choice.adapter_id: choice.name for choice in request.composition.choices}
    return {
        "made_by": "stylus",
        "version": _version("stylus-adapters"),
        "prompt": prompt,
        "negative_prompt": request.negative_prompt,
        "index": index,
        "seed": request.seed + index,
        "adapters": [
            {"id": id, "name": names.get(id, ""), "sha256": sha256, "weight": round(weight, 6)}
            for id, (sha256, weight) in adapters.items()
        ],
        "mask": list(mask),
        "steps": steps,
        "guidance_scale": guidance_scale,
        "width": size[0],
        "height": size[1],
        "sampler": loaded.sampler,
        "scheduler": {
            "class": type(loaded.pipeline.scheduler).__name__,
            "prediction_type": loaded.pipeline.scheduler.config.prediction_type,
        },
        "checkpoint": {"family": loaded.family.value, "name": loaded.name, "sha256": loaded.sha256},
        "device": loaded.device.type,
        "dtype": str(loaded.dtype).removeprefix("torch."),
        "prompt_truncated": _truncated(prompt, loaded),
        "versions": {package: _version(package) for package in PACKAGES},
        "request": request.model_dump(mode="json"),
    }


def parameters(record: Mapping[str, Any]) -> str:
    """The record as AUTOMATIC1111's `parameters` text: prompt, negative prompt, settings."""
    adapters = record["adapters"]
    loras = "".join(f" <lora:{_plain(a['name'] or a['id'])}:{a['weight']:g}>" for a in adapters)
    hashes = ", ".join(f"{_plain(a['name'] or a['id'])}: {a['sha256'][:12]}" for a in adapters)
    lines = [record["prompt"] + loras]
    if record["negative_prompt"]:
        lines.append(f"Negative prompt: {record['negative_prompt']}")
    settings = {
        "Steps": record["steps"],
        "Sampler": record["sampler"],
        "CFG scale": f"{record['guidance_scale']:g}",
        "Seed": record["seed"],
        "Size": f"{record['width']}x{record['height']}",
        "Model hash": record["checkpoint"]["sha256"][:10],
        "Model": _plain(record["checkpoint"]["name"]),
        **({"Lora hashes": f'"{hashes}"'} if hashes else {}),
        "Version": f"stylus {record['version']}",
    }
    return "\n".join([*lines, ", ".join(f"{key}: {value}" for key, value in settings.items())])


def png(image: Image.Image, record: Mapping[str, Any]) -> bytes:
    """The image as a PNG file with its record inside."""
    chunks = PngImagePlugin.PngInfo()
    chunks.add_itxt("parameters", parameters(record))
    chunks.add_itxt("stylus", json.dumps(record, ensure_ascii=False, sort_keys=True))
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", pnginfo=chunks)
    return buffer.getvalue()


def save(rendered: "Rendered", store_url: str, image_id: str) -> str:
    """Writes `{image_id}.png` to the store, whole or not at all, and returns where it lies: a path or a URL.

    Writing the same id again replaces the file. Raises StorageError that says what to do."""
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,100}", image_id):
        raise InvalidInput(f"{image_id!r} can't name an image file: use letters, digits, - and _.")
    data = png(rendered.image, rendered.provenance)
    try:
        filesystem, root = fsspec.core.url_to_fs(store_url)
        if isinstance(filesystem, LocalFileSystem):
            return str(_write_local(Path(root), f"{image_id}.png", data))
        path = f"{root.rstrip('/')}/{image_id}.png"
        filesystem.pipe_file(path, data)  # object stores show an object when it is complete, not before
        return str(filesystem.unstrip_protocol(path))
    except (OSError, ValueError, ImportError, NotImplementedError) as error:
        raise StorageError(f"the image can't be saved in {store_url}: {_reason(error)}") from error


def load(location: str) -> Image.Image:
    """The picture at a location that `save` returned. Raises NotFound when it is gone, StorageError otherwise."""
    try:
        with fsspec.open(location, "rb") as file:
            data = file.read()
        image = Image.open(io.BytesIO(data))
        image.load()
    except FileNotFoundError as error:
        raise NotFound(f"the image file {location} is gone: it was moved or deleted. Generate it again.") from error
    except (OSError, ValueError, ImportError, SyntaxError, Image.DecompressionBombError) as error:
        raise StorageError(f"the image {location} can't be read: {_reason(error)}") from error
    return image


def read(location: str) -> dict[str, Any]:
    """The JSON record inside a picture. Raises InvalidInput where there is none."""
    text = getattr(load(location), "text", {}).get("stylus", "")
    try:
        record = json.loads(text) if 0 < len(text) <= MAX_RECORD else None
    except ValueError:
        record = None
    if not isinstance(record, dict):
        raise InvalidInput(f"{location} holds no Stylus record: it was made by something else, or edited since.")
    return record


def _write_local(folder: Path, name: str, data: bytes) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".{name}.{secrets.token_hex(8)}.tmp"
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(folder / name)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return folder / name


def _reason(error: Exception) -> str:
    """What went wrong and what to do about it."""
    code = error.errno if isinstance(error, OSError) else None
    if code in (errno.ENOSPC, errno.EDQUOT):
        return "the disk is full. Free some space, or set STYLUS_STORE to another folder or fsspec URL."
    if code in (errno.EACCES, errno.EPERM, errno.EROFS):
        return "no right to write or read there. Set STYLUS_STORE to a folder or fsspec URL that this user may write."
    if isinstance(error, ImportError):
        return f"{error}. Install that package (for s3:// the extra `s3`), or set STYLUS_STORE to a folder."
    return f"{error}. Set STYLUS_STORE to a folder or fsspec URL that can be written."


def _truncated(prompt: str, loaded: "LoadedPipeline") -> bool:
    """True when the text encoder did not see the end of the prompt."""
    tokenizer = loaded.pipeline.tokenizer
    tokens = tokenizer(prompt, truncation=False, verbose=False).input_ids
    return bool(len(tokens) > tokenizer.model_max_length)


def _plain(name: str) -> str:
    """A name that can't break the syntax of the parameters line."""
    return re.sub(r"[<>:,\"\n]+", "_", name).strip()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"
