"""Base models: where each checkpoint lies, and how it is loaded.

A checkpoint is a diffusers folder, a hub id, or one .safetensors file in the original layout (`single_file`), whose
configurations and tokenizers come from CONFIG in `FILE.safetensors@CONFIG` (a diffusers folder or a hub id; without it,
from the hub id that diffusers takes the file for). Weights are read from safetensors only: pickle files can run code.
"""

import hashlib
import platform
import re
import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import diffusers
import torch

from stylus.checkpoint_names import source_of
from stylus.errors import CheckpointError, SettingsError
from stylus.generation.adapters import ResidentAdapters
from stylus.generation.families import DEFAULTS, FAMILIES, Defaults, Flux, StableDiffusion
from stylus.generation.memory import moved, out_of_memory, return_memory
from stylus.generation.single_file import UNREADABLE, read_single_file
from stylus.model_loading import model_loading, pick_device
from stylus.pocket import PIPELINE
from stylus.records import BaseModelFamily
from stylus.settings import Settings

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
SCHNELL_STEPS = 4
"""Steps of a Flux without guidance: it was distilled to need no more."""


@dataclass(frozen=True)
class LoadedPipeline:
    """A checkpoint in memory, on its device, with the adapters attached to it."""

    family: BaseModelFamily
    name: str
    """A folder's name or a hub id: fit for provenance, without paths of this machine."""
    sha256: str
    """Of its weight files, in the order of their relative paths."""
    pipeline: Any
    """diffusers' pipeline of the family."""
    kind: StableDiffusion
    """What the family does in its own way."""
    adapters: ResidentAdapters
    device: torch.device
    dtype: torch.dtype
    defaults: Defaults
    compiled: bool
    """By torch.compile."""

    @property
    def pixels_per_latent(self) -> int:
        return int(self.pipeline.vae_scale_factor)

    @property
    def size(self) -> int:
        """Width and height, in pixels, that the model was trained on."""
        return self.kind.size

    @property
    def vae_dtype(self) -> torch.dtype:
        return self.pipeline.vae.dtype  # type: ignore[no-any-return]

    @property
    def hardware(self) -> str:
        """What the last bit of a pixel may depend on besides the kind of device."""
        if self.device.type == "cuda":
            return torch.cuda.get_device_name(self.device)
        if self.device.type == "cpu":
            return f"{torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads"
        return platform.processor()

    @contextmanager
    def exact(self) -> Iterator["LoadedPipeline"]:
        """Denoiser and VAE in float32 meanwhile. What half precision holds, float32 holds exactly; and layers that were
        in float32 all along (T5 has some) are so again afterwards, which `to` would not care for."""
        models = self.kind.denoiser, self.pipeline.vae
        tensors = [tensor for model in models for tensor in (*model.parameters(), *model.buffers())]
        was = [(tensor, tensor.dtype) for tensor in tensors if tensor.is_floating_point()]
        try:
            for tensor, _ in was:
                tensor.data = tensor.data.float()
            yield replace(self, dtype=torch.float32)
        finally:
            for tensor, dtype in was:
                tensor.data = tensor.data.to(dtype)


class Checkpoints:
    """The configured base models, each loaded when it is first needed; the least recently used is unloaded."""

    def __init__(self, settings: Settings) -> None:
        """Raises SettingsError for a device or dtype that can't be used here."""
        self.settings = settings
        self.device = pick_device(settings.device)
        pick_dtype(settings, self.device)
        self._opening = threading.Lock()
        self._loaded: OrderedDict[str, LoadedPipeline] = OrderedDict()

    def open(self, family: BaseModelFamily, name: str | None = None) -> LoadedPipeline:
        """The family's checkpoint of that name, or its first; loaded at the first call, then kept for a while.

        Raises CheckpointError, which says which setting to set, when it isn't configured or can't be loaded."""
        source = self.check(family, name)
        key = f"{family}={source}"
        with self._opening:
            if key not in self._loaded:
                self._unload(self.settings.checkpoints_kept - 1)
                try:
                    self._loaded[key] = self._load(family, source)
                except CheckpointError as error:
                    if not self._loaded or not out_of_memory(error.__cause__):
                        raise
                    self._unload(0)
                    self._loaded[key] = self._load(family, source)
            self._loaded.move_to_end(key)
            return self._loaded[key]

    def _unload(self, kept: int) -> None:
        while len(self._loaded) > kept:
            self._loaded.popitem(last=False)
        return_memory(self.device)

    def loaded(self) -> list[LoadedPipeline]:
        """The pipelines that are in memory now."""
        with self._opening:
            return list(self._loaded.values())

    def check(self, family: BaseModelFamily, name: str | None = None) -> str:
        """Where the checkpoint is configured to be. Raises CheckpointError when it can't be used at all."""
        return source_of(self.settings.checkpoints, family, name)

    def _load(self, family: BaseModelFamily, source: str) -> LoadedPipeline:
        dtype = pick_dtype(self.settings, self.device, family)
        try:
            pipeline, name, digest = _read(family, source, dtype)
            kind = FAMILIES[family](pipeline)
            kind.prepare()
            _keep_vae_exact(family, pipeline)
            self._place(pipeline)
        except (*UNREADABLE, MemoryError) as error:
            why = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
            if out_of_memory(error):
                raise CheckpointError(
                    f"not enough memory for the {family.value} checkpoint {source!r} ({why}): end what else uses the "
                    "device, or draw with another checkpoint (set STYLUS_CHECKPOINTS)."
                ) from error
            raise CheckpointError(
                f"the {family.value} checkpoint {source!r} can't be loaded ({why}). It must be a diffusers folder or "
                f"hub id of a {FAMILIES[family].pipeline.__name__} with .safetensors weights, or a single file as "
                "FILE.safetensors@CONFIG, CONFIG being a folder or hub id with the configurations and what the file "
                f"lacks; set STYLUS_CHECKPOINTS={family.value}=FOLDER_OR_HUB_ID."
            ) from error
        pipeline.set_progress_bar_config(disable=True)
        models = {component: model for component in kind.components if (model := getattr(pipeline, component, None))}
        for model in (*models.values(), pipeline.vae):
            model.eval().requires_grad_(False)
        if self.settings.vae_tiling:
            pipeline.vae.enable_tiling()
        loaded = LoadedPipeline(
            family=family,
            name=name,
            sha256=digest,
            pipeline=pipeline,
            kind=kind,
            adapters=ResidentAdapters(
                family, models, capacity=int(self.settings.adapter_cache_gb * 2**30), device=self.device
            ),
            device=self.device,
            dtype=dtype,
            defaults=_defaults(family, kind),
            compiled=self.settings.compile,
        )
        if self.settings.compile:
            loaded.adapters.compile(kind.components[0])
        return loaded

    def _place(self, pipeline: Any) -> None:
        """On the device; where there is no room, without the other checkpoints, and then the model at work alone."""
        offload = self.settings.offload
        if not offload and not moved(pipeline, self.device):
            self._unload(0)
            offload = not moved(pipeline, self.device)
        if offload and self.device.type != "cpu":
            pipeline.enable_model_cpu_offload(device=self.device)


def _read(family: BaseModelFamily, source: str, dtype: torch.dtype) -> tuple[Any, str, str]:
    """(pipeline on the CPU, name, SHA-256) of a configured checkpoint."""
    diffusers.utils.logging.disable_progress_bar()  # ours is the one that people see
    pipeline = FAMILIES[family].pipeline
    file, _, config = source.partition("@")
    path = Path(file).expanduser()
    plain = {"safety_checker": None} if FAMILIES[family] is StableDiffusion else {}
    if path.suffix == ".safetensors":
        if not path.is_file():
            raise CheckpointError(f"the {family.value} checkpoint {file!r} is not there; correct STYLUS_CHECKPOINTS.")
        loaded, weights = read_single_file(FAMILIES[family], path, config, dtype, **plain)
        return loaded, path.stem, _sha256(weights)
    folder = _folder(source, family)
    with model_loading():
        loaded = pipeline.from_pretrained(
            folder,
            dtype=dtype,
            use_safetensors=True,
            local_files_only=True,
            **(plain | {"requires_safety_checker": False} if plain else {}),
        )
    name = family.value if folder == PIPELINE else folder.name if Path(source).expanduser().is_dir() else source
    return loaded, name, _sha256(sorted(folder.rglob("*.safetensors")))


def _folder(source: str, family: BaseModelFamily) -> Path:
    """The diffusers folder of a configured checkpoint; a hub id is downloaded once, its pickle files left out."""
    path = Path(source).expanduser()
    if path.is_dir():
        return path
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", source) or source.startswith((".", "/")):
        raise CheckpointError(
            f"the {family.value} checkpoint {source!r} is not there; "
            f"set STYLUS_CHECKPOINTS={family.value}=FOLDER_OR_HUB_ID."
        )
    return Path(FAMILIES[family].pipeline.download(source, use_safetensors=True, safety_checker=None))


def _sha256(paths: list[Path]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _defaults(family: BaseModelFamily, kind: StableDiffusion) -> Defaults:
    if isinstance(kind, Flux) and not kind.denoiser.config.guidance_embeds:
        return replace(DEFAULTS[family], steps=SCHNELL_STEPS)
    return DEFAULTS[family]


def _keep_vae_exact(family: BaseModelFamily, pipeline: Any) -> None:
    """The decoder of SDXL gives NaN in half precision, and says so in its configuration."""
    if family is BaseModelFamily.SDXL and pipeline.vae.config.force_upcast:
        torch.nn.Module.to(pipeline.vae, dtype=torch.float32)  # diffusers' own would warn of what is meant


def pick_dtype(settings: Settings, device: torch.device, family: BaseModelFamily = BaseModelFamily.SD15) -> torch.dtype:
    """The configured precision, or the one that suits device and family: Flux was trained in bfloat16, and some of its
    numbers are too large for float16. Raises SettingsError for an unknown name."""
    name = settings.dtype
    if name is None:
        if device.type == "cpu":
            return torch.float32
        wide = family is BaseModelFamily.FLUX and device.type == "cuda"
        return torch.bfloat16 if wide and torch.cuda.get_device_capability(device) >= (8, 0) else torch.float16
    if name not in DTYPES:
        raise SettingsError(f"STYLUS_DTYPE={name}: set one of {', '.join(DTYPES)}, or unset it.")
    return DTYPES[name]
