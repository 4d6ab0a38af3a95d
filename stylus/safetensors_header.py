"""The header of a safetensors file (its published format: 8 bytes of length, then JSON), and what it tells.

Only the header is read and, where it alone can't tell two trainings apart, a few kilobytes of tensors, so that
hundreds of gigabytes are catalogued in minutes. Tensor names and shapes can't be wrong about the base model; metadata
of trainers (`ss_*`, `modelspec.*`) can, and is asked second.
"""

import hashlib
import json
import math
import os
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from stylus.base_models import family_by_name, family_by_tensors, is_down
from stylus.errors import AdapterFileError
from stylus.records import BaseModelFamily, Kind

MOST_HEADER_BYTES = 100_000_000
"""The format's own limit."""

MOST_RANK = 100_000
"""No layer is so wide: a shape beyond it is nonsense."""

_SAMPLE = 16_384
"""Bytes at each of three places of the tensors."""

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
    """Hex SHA-256 of size and header, and of a sample of the tensors where the header holds no hash of them: trainers
    that write no metadata give every file of one rank the same header."""

    @property
    def family(self) -> BaseModelFamily | None:
        """The base model family by names and shapes, else by metadata; None when neither tells."""
        return family_by_tensors(self.shapes) or self.claimed_family

    @property
    def claimed_family(self) -> BaseModelFamily | None:
        """What the trainer wrote down."""
        keys = ("ss_base_model_version", "modelspec.architecture", "ss_sd_model_name", "base_model")
        return next((family for key in keys if (family := family_by_name(self.metadata.get(key, "")))), None)

    @property
    def rank(self) -> int | None:
        """Of most layers, by shapes, else by metadata."""
        ranks = Counter(shape[0] for name, shape in self.shapes.items() if is_down(name) and len(shape) > 1)
        said = self.metadata.get("ss_network_dim", "")
        rank = ranks.most_common(1)[0][0] if ranks else int(said) if said.isdecimal() and len(said) < 6 else 0
        return rank if 0 < rank < MOST_RANK else None

    @property
    def kind(self) -> Kind:
        """How the weight change is stored."""
        suffixes = {name.rpartition(".")[2] for name in self.shapes}
        if "dora_scale" in suffixes or any(".lora_magnitude_vector" in name for name in self.shapes):
            return Kind.DORA
        if any(suffix.startswith("hada_") for suffix in suffixes):
            return Kind.LOHA
        if any(suffix.startswith("lokr_") for suffix in suffixes):
            return Kind.LOKR
        # Plain LoRA also covers 1x1 convolutions (the projections around attention); a larger kernel makes it LoCon.
        convolutions = (shape for name, shape in self.shapes.items() if len(shape) == 4 and is_down(name))
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
            fits = size >= 8 and length <= min(MOST_HEADER_BYTES, size - 8)
            text = file.read(length) if fits else b""
            if not text.startswith(b"{"):
                raise AdapterFileError(f"{path} {_what_else(start, size)}")
            sample = _sample(file, 8 + length, size)
    except OSError as error:
        raise AdapterFileError(f"{path} can't be read: {error.strerror}. Check its rights and its disk.") from error
    try:
        entries = json.loads(text.decode("utf-8", errors="strict"))
        metadata = {str(key): str(value) for key, value in dict(entries.pop("__metadata__", None) or {}).items()}
        shapes = {name: _shape(entry) for name, entry in entries.items()}
        end = max((int(entry["data_offsets"][1]) for entry in entries.values()), default=0)
    except (ValueError, TypeError, LookupError, ArithmeticError, RecursionError) as error:
        raise AdapterFileError(f"{path} has a header that is no safetensors header: {error}. {_AGAIN}") from error
    if size != 8 + length + end:
        problem = "truncated" if size < 8 + length + end else "padded with unknown data"
        raise AdapterFileError(
            f"{path} is {problem}: its header describes {8 + length + end:,} bytes, it has {size:,}. {_AGAIN}"
        )
    if any(metadata.get(key) for key in _TENSOR_HASHES):
        sample = b""
    identity = hashlib.sha256(size.to_bytes(8, "little") + text + sample).hexdigest()
    return Header(metadata, shapes, size, identity)


def _what_else(start: bytes, size: int) -> str:
    """What a file is whose first 8 bytes lead to no header. Asked only then: a good file may begin with any of these
    bytes, which are its header's length."""
    if start[:2] in (b"PK", *(bytes([0x80, protocol]) for protocol in range(2, 6))):
        return "is a pickle named safetensors: it could run code. Delete it."
    if start[:1] == b"<":
        return f"is a web page (an error page of a download?). {_AGAIN}"
    claim = int.from_bytes(start, "little")
    return f"has {size:,} bytes and claims a header of {claim:,}: truncated or no safetensors. {_AGAIN}"


_TENSOR_HASHES = ("sshs_model_hash", "modelspec.hash_sha256")
"""Metadata that differs wherever the tensors do."""


def _sample(file: BinaryIO, start: int, size: int) -> bytes:
    """Of the start, the middle and the end of the tensors."""
    last = max(start, size - _SAMPLE)
    pieces = []
    for offset in (start, (start + last) // 2, last):
        file.seek(offset)
        pieces.append(file.read(_SAMPLE))
    return b"".join(pieces)


_BITS = {"F64": 64, "I64": 64, "U64": 64, "F32": 32, "I32": 32, "U32": 32, "F16": 16, "BF16": 16, "I16": 16, "U16": 16}


def _shape(entry: Any) -> tuple[int, ...]:
    shape, (start, end) = entry["shape"], entry["data_offsets"]
    if not isinstance(shape, list) or not all(isinstance(n, int) and n >= 0 for n in shape):
        raise ValueError(f"shape {str(shape)[:100]}")
    bits = _BITS.get(entry["dtype"])  # of one byte or less there are many, and ever more
    if bits is not None and math.prod(shape) * bits != 8 * (end - start):
        raise ValueError(f"the shape {str(shape)[:100]} of {entry['dtype']} in {end - start} bytes")
    return tuple(shape)


_ADAPTER = re.compile(r"lora[_.]|hada_w|lokr_w|\.lora|_lora|dora_scale")
