"""The header of a safetensors file (its published format: 8 bytes of length, then JSON), and what it tells.

Only the header is read, never a tensor, so that hundreds of gigabytes are catalogued in minutes. Tensor names and
shapes can't be wrong about the base model; metadata of trainers (`ss_*`, `modelspec.*`) can, and is asked second.
"""

import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stylus.errors import AdapterFileError
from stylus.records import BaseModelFamily, Kind

MOST_HEADER_BYTES = 100_000_000
"""The format's own limit."""

_AGAIN = "Download it again or delete it."


@dataclass(frozen=True)
class Header:
    """What a file says of itself before its first tensor."""

    metadata: Mapping[str, str]
    shapes: Mapping[str, tuple[int, ...]]
    """Tensor name -> shape."""
    bytes: int
    """Size of the whole file."""
    identity: str
    """Hex SHA-256 of size and header: tells files apart without reading them."""

    @property
    def family(self) -> BaseModelFamily | None:
        """The base model family by names and shapes, else by metadata; None when neither tells."""
        return _family_by_shapes(self.shapes) or _family_by_metadata(self.metadata)

    @property
    def kind(self) -> Kind:
        """How the weight change is stored."""
        suffixes = {name.rpartition(".")[2] for name in self.shapes}
        if "dora_scale" in suffixes or any(name.endswith("lora_magnitude_vector.weight") for name in self.shapes):
            return Kind.DORA
        if any(suffix.startswith("hada_") for suffix in suffixes):
            return Kind.LOHA
        if any(suffix.startswith("lokr_") for suffix in suffixes):
            return Kind.LOKR
        # Plain LoRA also covers 1x1 convolutions (the projections around attention); a larger kernel makes it LoCon.
        convolutions = (shape for name, shape in self.shapes.items() if len(shape) == 4 and _is_down(name))
        return Kind.LOCON if any(max(shape[2:]) > 1 for shape in convolutions) else Kind.LORA

    @property
    def is_adapter(self) -> bool:
        """Whether any tensor is part of an adapter; a whole checkpoint has none."""
        return any(_ADAPTER.search(name) for name in self.shapes)


def read_header(path: Path) -> Header:
    """Reads and checks the header. Raises AdapterFileError: empty, truncated, no safetensors at all, absurd header."""
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            start = file.read(8)
            length = int.from_bytes(start, "little")
            if size == 0:
                raise AdapterFileError(f"{path} is empty. {_AGAIN}")
            if start[:2] in (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04"):
                raise AdapterFileError(f"{path} is a pickle named safetensors: it could run code. Delete it.")
            if start[:1] == b"<":
                raise AdapterFileError(f"{path} is a web page (an error page of a download?). {_AGAIN}")
            if size < 8 or length > MOST_HEADER_BYTES or length > size - 8:
                raise AdapterFileError(
                    f"{path} has {size:,} bytes and claims a header of {length:,}: truncated or no safetensors. "
                    f"{_AGAIN}"
                )
            text = file.read(length)
    except OSError as error:
        raise AdapterFileError(f"{path} can't be read: {error.strerror}. Check its rights and its disk.") from error
    try:
        content = json.loads(text.decode("utf-8", errors="strict"))
        entries = dict(content)
        metadata = {str(key): str(value) for key, value in dict(entries.pop("__metadata__", None) or {}).items()}
        shapes = {name: _shape(entry) for name, entry in entries.items()}
        end = max((int(entry["data_offsets"][1]) for entry in entries.values()), default=0)
    except (ValueError, TypeError, KeyError, IndexError, RecursionError) as error:
        raise AdapterFileError(f"{path} has a header that is no safetensors header: {error}. {_AGAIN}") from error
    if size != 8 + length + end:
        problem = "truncated" if size < 8 + length + end else "padded with unknown data"
        raise AdapterFileError(
            f"{path} is {problem}: its header describes {8 + length + end:,} bytes, it has {size:,}. {_AGAIN}"
        )
    identity = hashlib.sha256(size.to_bytes(8, "little") + text).hexdigest()
    return Header(metadata, shapes, size, identity)


def _shape(entry: Any) -> tuple[int, ...]:
    shape = entry["shape"]
    if not isinstance(shape, list) or not all(isinstance(n, int) and n >= 0 for n in shape):
        raise ValueError(f"shape {shape!r}")
    return tuple(shape)


_ADAPTER = re.compile(r"lora[_.]|hada_w|lokr_w|\.lora|_lora|dora_scale")
_CROSS_ATTENTION = re.compile(r"attn2[._](?:processor[._])?to_[kv]\b|attn2[._](?:processor[._])?to_[kv]_lora")
_CONTEXT_WIDTHS = {
    768: BaseModelFamily.SD15,
    2048: BaseModelFamily.SDXL,
    96: BaseModelFamily.POCKET,
}
"""Width of the text that cross-attention reads. 1024 is SD 2, which we have no family for."""

_FAMILY_NAMES: tuple[tuple[str, BaseModelFamily], ...] = (
    ("pocket", BaseModelFamily.POCKET),
    ("sdxl", BaseModelFamily.SDXL),
    ("sd_xl", BaseModelFamily.SDXL),
    ("stable-diffusion-xl", BaseModelFamily.SDXL),
    ("pony", BaseModelFamily.SDXL),
    ("illustrious", BaseModelFamily.SDXL),
    ("noobai", BaseModelFamily.SDXL),
    ("flux", BaseModelFamily.FLUX),
    ("sd3", BaseModelFamily.SD3),
    ("sd 3", BaseModelFamily.SD3),
    ("stable-diffusion-3", BaseModelFamily.SD3),
    ("stable-diffusion-v3", BaseModelFamily.SD3),
    ("sd_v1", BaseModelFamily.SD15),
    ("sd1", BaseModelFamily.SD15),
    ("sd 1", BaseModelFamily.SD15),
    ("stable-diffusion-v1", BaseModelFamily.SD15),
)


def family_by_name(name: str) -> BaseModelFamily | None:
    """The family that a base model's name belongs to, as people and trainers write it: `SD 1.5`, `sdxl_base_v1-0`."""
    folded = name.strip().lower()
    return next((family for part, family in _FAMILY_NAMES if part in folded), None)


def _family_by_metadata(metadata: Mapping[str, str]) -> BaseModelFamily | None:
    keys = ("ss_base_model_version", "modelspec.architecture", "ss_sd_model_name", "base_model")
    return next((family for key in keys if (family := family_by_name(metadata.get(key, "")))), None)


def _family_by_shapes(shapes: Mapping[str, tuple[int, ...]]) -> BaseModelFamily | None:
    for name, shape in shapes.items():
        if _CROSS_ATTENTION.search(name) and _is_down(name) and len(shape) >= 2 and shape[1] in _CONTEXT_WIDTHS:
            return _CONTEXT_WIDTHS[shape[1]]
    names = " ".join(shapes)
    if re.search(r"double_blocks[._]|single_blocks[._]|single_transformer_blocks[._]", names):
        return BaseModelFamily.FLUX
    if re.search(r"joint_blocks[._]|attn[._]add_[qkv]_proj", names):
        return BaseModelFamily.SD3
    if re.search(r"lora_te2_|text_encoder_2\.|transformer_blocks[._][2-9]", names) and "unet" in names:
        return BaseModelFamily.SDXL
    return None


def _is_down(name: str) -> bool:
    """Whether the tensor is the factor that meets the layer's input: its second axis is the input's width."""
    return bool(re.search(r"lora_down\.|lora_A\.|_lora\.down\.|lora\.down\.|hada_w[12]_b$", name))
