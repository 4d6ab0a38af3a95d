"""Base models: where each family's checkpoint lies, how it is loaded, and what it draws best by default.

The defaults of sd15 are the paper's (appendix A.3): DPM++ 2M with Karras sigmas (Lu et al. 2022, Karras et al. 2022),
35 steps, guidance 7, 512x512. Weights are read from safetensors only: pickle files can run code.
"""

import hashlib
import re
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import DPMSolverMultistepScheduler, StableDiffusionPipeline

from stylus.errors import CheckpointError, SettingsError
from stylus.generation.adapters import ResidentAdapters
from stylus.records import BaseModelFamily
from stylus.settings import Settings

POCKET = Path(__file__).parent.parent / "pocket" / "pipeline"
"""The trained pipeline that the package brings."""

SAMPLER = "DPM++ 2M Karras"
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Defaults:
    """What a request that leaves a field open gets. Width and height default to the size the UNet was trained on."""

    steps: int
    guidance_scale: float
    batch: int
    """Images of the default size that are rendered at once; fewer of larger ones."""


DEFAULTS = {
    BaseModelFamily.POCKET: Defaults(steps=20, guidance_scale=4.0, batch=16),
    BaseModelFamily.SD15: Defaults(steps=35, guidance_scale=7.0, batch=4),
}


@dataclass(frozen=True)
class LoadedPipeline:
    """A checkpoint in memory, on its device, with the adapters attached to it."""

    family: BaseModelFamily
    name: str
    """A folder's name or a hub id: fit for provenance, without paths of this machine."""
    sha256: str
    """Of its weight files, in the order of their relative paths."""
    pipeline: Any
    """diffusers' StableDiffusionPipeline."""
    adapters: ResidentAdapters
    device: torch.device
    dtype: torch.dtype
    defaults: Defaults
    sampler: str = SAMPLER

    @property
    def pixels_per_latent(self) -> int:
        return int(self.pipeline.vae_scale_factor)

    @property
    def size(self) -> int:
        """Width and height, in pixels, that the UNet was trained on."""
        return int(self.pipeline.unet.config.sample_size) * self.pixels_per_latent


class Checkpoints:
    """The configured base models, each loaded when it is first needed."""

    def __init__(self, settings: Settings) -> None:
        """Raises SettingsError for a device or dtype that can't be used here."""
        self.settings = settings
        self.device = pick_device(settings)
        self.dtype = pick_dtype(settings, self.device)
        self._opening = threading.Lock()
        self._loaded: dict[BaseModelFamily, LoadedPipeline] = {}

    def open(self, family: BaseModelFamily) -> LoadedPipeline:
        """The family's pipeline; loaded at the first call, then kept.

        Raises CheckpointError, which says which setting to set, when it isn't configured or can't be loaded."""
        with self._opening:
            if family not in self._loaded:
                self._loaded[family] = self._load(family)
            return self._loaded[family]

    def loaded(self) -> list[LoadedPipeline]:
        """The pipelines that are in memory now."""
        with self._opening:
            return list(self._loaded.values())

    def check(self, family: BaseModelFamily) -> str:
        """Where the family's checkpoint is configured to be. Raises CheckpointError when it can't be used at all."""
        if family not in DEFAULTS:
            raise CheckpointError(
                f"base model family {family.value} can't be rendered yet; use one of {', '.join(DEFAULTS)}."
            )
        source = self.settings.checkpoints.get(family)
        if source is None and family is BaseModelFamily.POCKET:
            source = str(POCKET)
        if source is None:
            raise CheckpointError(
                f"no checkpoint is configured for {family.value}: set "
                f"STYLUS_CHECKPOINTS={family.value}=FOLDER_OR_HUB_ID, or use the base model pocket."
            )
        return source

    def _load(self, family: BaseModelFamily) -> LoadedPipeline:
        source = self.check(family)
        try:
            folder = _folder(source, family)
            pipeline: Any = StableDiffusionPipeline.from_pretrained(
                folder,
                dtype=self.dtype,
                use_safetensors=True,
                local_files_only=True,
                safety_checker=None,
                requires_safety_checker=False,
            )
            pipeline.scheduler = DPMSolverMultistepScheduler.from_config(
                pipeline.scheduler.config, algorithm_type="dpmsolver++", solver_order=2, use_karras_sigmas=True
            )
            pipeline.to(self.device)
            digest = _sha256(folder)
        except (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(
                f"the {family.value} checkpoint {source!r} can't be loaded ({type(error).__name__}: {error}). It must "
                "be a diffusers folder or hub id of a Stable Diffusion pipeline with .safetensors weights; "
                f"set STYLUS_CHECKPOINTS={family.value}=FOLDER_OR_HUB_ID."
            ) from error
        pipeline.set_progress_bar_config(disable=True)
        for model in (pipeline.unet, pipeline.vae, pipeline.text_encoder):
            model.eval().requires_grad_(False)
        return LoadedPipeline(
            family=family,
            name=family.value if folder == POCKET else folder.name if Path(source).expanduser().is_dir() else source,
            sha256=digest,
            pipeline=pipeline,
            adapters=ResidentAdapters(family, {"unet": pipeline.unet, "text_encoder": pipeline.text_encoder}),
            device=self.device,
            dtype=self.dtype,
            defaults=DEFAULTS[family],
        )


def _folder(source: str, family: BaseModelFamily) -> Path:
    """The diffusers folder of a configured checkpoint; a hub id is downloaded once, its pickle files left out."""
    path = Path(source).expanduser()
    if path.is_dir():
        return path
    if path.suffix == ".safetensors":
        raise CheckpointError(
            f"{source!r}: single-file checkpoints can't be loaded yet; convert it to a diffusers folder "
            f"and set STYLUS_CHECKPOINTS={family.value}=FOLDER."
        )
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", source) or source.startswith((".", "/")):
        raise CheckpointError(
            f"the {family.value} checkpoint {source!r} is not there; "
            f"set STYLUS_CHECKPOINTS={family.value}=FOLDER_OR_HUB_ID."
        )
    return Path(StableDiffusionPipeline.download(source, use_safetensors=True, safety_checker=None))


def _sha256(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.safetensors")):
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def pick_device(settings: Settings) -> torch.device:
    """The configured device, or the best there is. Raises SettingsError when it can't be used here."""
    name = settings.device
    if name is None:
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise SettingsError(
            f"STYLUS_DEVICE={name}: this device can't be used here ({str(error).splitlines()[0]}). "
            "Set cpu, cuda, cuda:N or mps, or unset it."
        ) from error
    return device


def pick_dtype(settings: Settings, device: torch.device) -> torch.dtype:
    """The configured precision, or the one that suits the device. Raises SettingsError for an unknown name."""
    name = settings.dtype
    if name is None:
        return torch.float32 if device.type == "cpu" else torch.float16
    if name not in DTYPES:
        raise SettingsError(f"STYLUS_DTYPE={name}: set one of {', '.join(DTYPES)}, or unset it.")
    return DTYPES[name]
