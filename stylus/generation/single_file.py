"""A checkpoint in one .safetensors file, in the layout that its family was published in.

Such files often lack what all checkpoints of the family share: those of Flux hold the transformer alone, most of SD 3
no T5. These models come from the folder or hub id that gives the configurations as well.
"""

from pathlib import Path
from typing import Any

import torch
from diffusers.loaders.single_file_utils import SingleFileComponentError
from safetensors import SafetensorError, safe_open

from stylus.generation.families import StableDiffusion
from stylus.model_loading import model_loading

UNREADABLE = (
    OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError, SafetensorError, SingleFileComponentError,
)  # fmt: skip
"""What is raised for a checkpoint, of one file or many, that is not what it should be."""
HELD = {
    "AutoencoderKL": ("first_stage_model.", "vae."),
    "CLIPTextModel": ("cond_stage_model.", "conditioner.", "text_encoders.clip_"),
    "CLIPTextModelWithProjection": ("conditioner.", "text_encoders.clip_"),
    "T5EncoderModel": ("text_encoders.t5",),
}
"""What the names of a model's tensors begin with."""


def read_single_file(
    kind: type[StableDiffusion], file: Path, config: str, dtype: torch.dtype, **options: Any
) -> tuple[Any, list[Path]]:
    """The pipeline, and the files that its weights came from. Without `config`, diffusers asks the hub for that of the
    published model that it takes the file for. `options` are components for the pipeline."""
    pipeline = kind.pipeline
    if config and Path(config).expanduser().is_dir():
        config = str(Path(config).expanduser())
    known: dict[str, Any] = {"config": config} if config else {}
    weights = [file]
    if config and (missing := _missing(kind, file)):
        held = dict.fromkeys(name for name in (*kind.components, "vae") if name not in missing) | options
        # a hub id is downloaded without the models that the file holds
        folder = Path(config if Path(config).is_dir() else pipeline.download(config, use_safetensors=True, **held))
        with model_loading():
            rest = pipeline.from_pretrained(folder, dtype=dtype, use_safetensors=True, local_files_only=True, **held)
        known = {"config": str(folder), **{name: getattr(rest, name) for name in missing}}
        weights += [path for name in missing for path in sorted((folder / name).glob("*.safetensors"))]
    with model_loading():
        return pipeline.from_single_file(str(file), torch_dtype=dtype, **known, **options), weights


def _missing(kind: type[StableDiffusion], file: Path) -> list[str]:
    """Text encoders and VAE of which the file holds nothing."""
    with safe_open(file, "pt") as opened:
        names = list(opened.keys())
    models = {name: kind.pipeline.__init__.__annotations__[name].__name__ for name in (*kind.components[1:], "vae")}
    return [name for name, model in models.items() if not any(key.startswith(HELD[model]) for key in names)]
