"""What made a picture, inside the picture.

Each PNG carries two text chunks: `parameters`, the line format of AUTOMATIC1111's web UI that most galleries read, and
`stylus`, a JSON record that suffices to render the same pixels again (request, hashes of adapters and checkpoint,
versions).
"""

import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from PIL import Image, PngImagePlugin

from stylus.errors import InvalidInput, StorageError
from stylus.generation.store import read_bytes, write
from stylus.records import Request

if TYPE_CHECKING:
    # types only: reading and saving pictures should not load torch and diffusers
    from stylus.generation.checkpoints import LoadedPipeline
    from stylus.generation.generator import Rendered
    from stylus.generation.settling import Settled

PACKAGES = ("torch", "diffusers", "transformers", "peft", "safetensors", "pillow")
MAX_RECORD = 2**20
"""Bytes of a text chunk that are read back; ours have a few thousand, strangers' can be bombs."""


def provenance(
    *,
    request: Request,
    index: int,
    settled: "Settled",
    adapters: Mapping[str, tuple[str, float]],
    size: tuple[int, int],
    loaded: "LoadedPipeline",
    notes: Sequence[str],
    drawn: Mapping[str, Any],
) -> dict[str, Any]:
    """The JSON record of image `index`. `adapters`: id -> (SHA-256 of its file, effective weight in this image);
    `size` is the picture's, `drawn` its `Picture.drawn`."""
    names = {choice.adapter_id: choice.name for choice in request.composition.choices}
    rows = settled.rows(index)
    return {
        "made_by": "stylus",
        "version": _version("stylus-adapters"),
        "prompt": settled.prompts[index],
        "negative_prompt": request.negative_prompt,
        "index": index,
        "seed": request.seed + index,
        "adapters": [
            {"id": id, "name": names.get(id, ""), "sha256": sha256, "weight": round(weight, 6)}
            for id, (sha256, weight) in adapters.items()
        ],
        "mask": list(settled.masks[index]),
        # [rows, adapters, steps], the adapters in the order of the composition; one step stands for all that are alike
        "schedule": (rows if (rows != rows[:, :, :1]).any() else rows[:, :, :1]).round(6).tolist(),
        "steps": settled.steps,
        "guidance_scale": settled.guidance_scale,
        "strength": settled.strength if request.image else None,
        "hires": settled.second_pass,
        "width": size[0],
        "height": size[1],
        "sampler": loaded.kind.sampler,
        "scheduler": {
            "class": type(loaded.pipeline.scheduler).__name__,
            "prediction_type": loaded.pipeline.scheduler.config.get("prediction_type", "flow"),
        },
        "checkpoint": {"family": loaded.family.value, "name": loaded.name, "sha256": loaded.sha256},
        "device": loaded.device.type,
        "hardware": loaded.hardware,
        "dtype": str(loaded.dtype).removeprefix("torch."),
        "compiled": loaded.compiled,
        **drawn,
        "notes": list(notes),
        "versions": {package: _version(package) for package in PACKAGES},
        "request": request.model_dump(mode="json"),
    }


def parameters(record: Mapping[str, Any]) -> str:
    """The record as AUTOMATIC1111's `parameters` text: prompt, negative prompt, settings."""
    adapters = record["adapters"]
    loras = "".join(f" <lora:{_plain(a['name'] or a['id'])}:{a['weight']:g}>" for a in adapters)
    hashes = ", ".join(f"{_plain(a['name'] or a['id'])}: {a['sha256'][:12]}" for a in adapters)
    hires = record.get("hires")
    strength = hires["strength"] if hires else record.get("strength")
    lines = [record["prompt"] + loras]
    if record["negative_prompt"]:
        lines.append(f"Negative prompt: {record['negative_prompt']}")
    settings = {
        "Steps": record["steps"],
        "Sampler": record["sampler"],
        "CFG scale": f"{record['guidance_scale']:g}",
        "Seed": record["seed"],
        "Size": f"{record['width']}x{record['height']}",
        **({"Denoising strength": f"{strength:g}"} if strength else {}),
        **({"Hires upscale": hires["scale"], "Hires upscaler": "Latent"} if hires else {}),
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
    return write(store_url, f"{image_id}.png", png(rendered.image, rendered.provenance))


def load(location: str) -> Image.Image:
    """The picture at a location that `save` returned. Raises NotFound when it is gone, StorageError otherwise."""
    try:
        image = Image.open(io.BytesIO(read_bytes(location)))
        image.load()
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise StorageError(
            f"the image {location} is damaged, or no picture: take the file as it was written, or generate it again."
        ) from error
    return image


def noted(rendered: "Rendered", note: str) -> "Rendered":
    """The same with one note more, also in its record."""
    notes = (*rendered.notes, note)
    return replace(rendered, notes=notes, provenance={**rendered.provenance, "notes": list(notes)})


def blank(rendered: "Rendered") -> "Rendered":
    """A grey picture in its place."""
    return replace(rendered, image=Image.new("RGB", rendered.image.size, "grey"))


def read(location: str) -> dict[str, Any]:
    """The JSON record inside a picture. Raises InvalidInput where there is none."""
    text = getattr(load(location), "text", {}).get("stylus", "")
    try:
        record = json.loads(text) if 0 < len(text) <= MAX_RECORD else None
    except (ValueError, RecursionError):
        record = None
    if not isinstance(record, dict):
        raise InvalidInput(f"{location} holds no Stylus record: it was made by something else, or edited since.")
    return record


def _plain(name: str) -> str:
    """A name that can't break the syntax of the parameters line."""
    return re.sub(r"[<>:,\"\n]+", "_", name).strip()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"
