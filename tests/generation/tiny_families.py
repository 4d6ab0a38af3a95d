"""Tiny pipelines of random weights for the families with more than one text encoder: the true classes, few channels."""

from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

from stylus.records import BaseModelFamily
from tests.generation.tiny import write_vocabulary

WIDTH = 32


def write_family(family: BaseModelFamily, folder: Path) -> None:
    """A diffusers folder of that family: 64x64 pictures, 8 pixels a latent."""
    torch.manual_seed(7)
    folder.mkdir(parents=True)
    {BaseModelFamily.SDXL: _sdxl, BaseModelFamily.FLUX: _flux, BaseModelFamily.SD3: _sd3}[family](
        folder
    ).save_pretrained(folder)


def _vae(channels: int, shift: float | None = None) -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(8, 8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=channels,
        norm_num_groups=4,
        sample_size=64,
        shift_factor=shift,
        use_quant_conv=shift is None,
        use_post_quant_conv=shift is None,
    )


def _clip(folder: Path, projected: bool) -> tuple[Any, CLIPTokenizer]:
    tokenizer = write_vocabulary(folder)
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=tokenizer.model_max_length,
        projection_dim=WIDTH,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return (CLIPTextModelWithProjection if projected else CLIPTextModel)(config), tokenizer


def _t5(width: int) -> tuple[T5EncoderModel, T5Tokenizer]:
    pieces = ["<pad>", "</s>", "<unk>", "▁", *"abcdefghijklmnopqrstuvwxyz,"]
    tokenizer = T5Tokenizer(vocab=[(piece, -1.0) for piece in pieces], extra_ids=0)
    config = T5Config(vocab_size=64, d_model=width, d_kv=8, d_ff=48, num_layers=2, num_heads=4)
    return T5EncoderModel(config), tokenizer


def _sdxl(folder: Path) -> StableDiffusionXLPipeline:
    first, tokenizer = _clip(folder, projected=False)
    second, tokenizer_2 = _clip(folder, projected=True)
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(32, 64),
        layers_per_block=2,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=(2, 4),
        transformer_layers_per_block=(1, 2),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=WIDTH + 6 * 8,
        cross_attention_dim=2 * WIDTH,
        norm_num_groups=8,
    )
    return StableDiffusionXLPipeline(
        vae=_vae(4),
        text_encoder=first,
        text_encoder_2=second,
        tokenizer=tokenizer,
        tokenizer_2=tokenizer_2,
        unet=unet,
        scheduler=EulerDiscreteScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012),
        add_watermarker=False,
    )


def _flux(folder: Path) -> FluxPipeline:
    clip, tokenizer = _clip(folder, projected=False)
    t5, tokenizer_2 = _t5(WIDTH)
    transformer = FluxTransformer2DModel(
        in_channels=64,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        pooled_projection_dim=WIDTH,
        axes_dims_rope=(4, 4, 8),
        guidance_embeds=True,
    )
    return FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=_vae(16, shift=0.1),
        text_encoder=clip,
        tokenizer=tokenizer,
        text_encoder_2=t5,
        tokenizer_2=tokenizer_2,
        transformer=transformer,
    )


def _sd3(folder: Path) -> StableDiffusion3Pipeline:
    first, tokenizer = _clip(folder, projected=True)
    second, tokenizer_2 = _clip(folder, projected=True)
    t5, tokenizer_3 = _t5(2 * WIDTH)
    transformer = SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=16,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=4,
        joint_attention_dim=2 * WIDTH,
        caption_projection_dim=WIDTH,
        pooled_projection_dim=2 * WIDTH,
        out_channels=16,
        pos_embed_max_size=16,
    )
    return StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=_vae(16, shift=0.0),  # diffusers' inpainting pipeline of this family forgets the shift
        text_encoder=first,
        tokenizer=tokenizer,
        text_encoder_2=second,
        tokenizer_2=tokenizer_2,
        text_encoder_3=t5,
        tokenizer_3=tokenizer_3,
    )
