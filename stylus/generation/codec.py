"""Between pictures and latents: the VAE of a checkpoint, one picture at a time, so that none depends on its
neighbours."""

import torch
from PIL import Image
from torch import Tensor

from stylus.generation.checkpoints import LoadedPipeline
from stylus.generation.inputs import pixels
from stylus.telemetry import stage

BLACK = 2
"""Of 255: a picture without anything lighter is taken for broken down."""


def encoded(loaded: LoadedPipeline, image: Image.Image) -> Tensor:
    """The most likely latents [1, channels, height, width] of a picture: nothing is drawn at random."""
    vae = loaded.pipeline.vae
    spread = vae.encode(pixels(image).to(device=loaded.device, dtype=vae.dtype)).latent_dist
    shifted: Tensor = (spread.mode() - (vae.config.shift_factor or 0.0)) * vae.config.scaling_factor
    return shifted.to(loaded.dtype)


@stage("decode")
def decoded(loaded: LoadedPipeline, latent: Tensor) -> Image.Image | None:
    """The picture of one image's latents [1, channels, height, width]; None where numbers aren't finite."""
    vae = loaded.pipeline.vae
    shifted = latent.to(vae.dtype) / vae.config.scaling_factor + (vae.config.shift_factor or 0.0)
    picture = vae.decode(shifted, return_dict=False)[0]
    if not torch.isfinite(latent).all() or not torch.isfinite(picture).all():
        return None
    (image,) = loaded.pipeline.image_processor.postprocess(picture, output_type="pil")
    return image  # type: ignore[no-any-return]


def is_black(image: Image.Image) -> bool:
    return all(lightest <= BLACK for _, lightest in image.getextrema())  # type: ignore[misc]
