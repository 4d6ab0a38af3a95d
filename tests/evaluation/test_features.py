"""Features give what transformers itself gives on the same tensors."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    BitImageProcessorPil,
    CLIPModel,
    CLIPTokenizer,
    Dinov2Config,
    Dinov2Model,
    SiglipConfig,
    SiglipImageProcessorPil,
    SiglipModel,
)

from stylus.errors import InvalidInput, ModelUnavailable
from stylus.evaluation.features import BATCH, ClipModel, open_features, open_text_features
from stylus.evaluation.metrics import clip_score
from stylus.pocket import ADAPTERS, CLIP

TEXTS = ["a red star", "a green heart on a checkerboard", "watercolour"]


@pytest.fixture(scope="module")
def pictures() -> list[Image.Image]:
    return [Image.open(path) for path in sorted(ADAPTERS.glob("*.webp"))[: BATCH + 3]]


@pytest.fixture(scope="module")
def pocket() -> ClipModel:
    return open_text_features()


def test_clip_scores_are_those_of_transformers(pocket: ClipModel, pictures: list[Image.Image]) -> None:
    model = CLIPModel.from_pretrained(CLIP)
    pixels = [np.asarray(picture.convert("RGB"), np.float32).transpose(2, 0, 1) / 127.5 - 1 for picture in pictures]
    ids = CLIPTokenizer.from_pretrained(CLIP)(TEXTS, padding=True, return_tensors="pt")
    with torch.inference_mode():
        out = model(pixel_values=torch.from_numpy(np.stack(pixels)), **ids)
    cosine = out.logits_per_image.numpy() / model.logit_scale.exp().item()
    images = pocket.images(pictures)
    for column, text in enumerate(pocket.texts(TEXTS)):
        ours = clip_score(images, np.broadcast_to(text, images.shape))
        assert np.allclose(ours, 100 * np.clip(cosine[:, column], 0, None), atol=1e-3)
    assert np.allclose(np.linalg.norm(images, axis=1), 1, atol=1e-5)
    assert (pocket.name, pocket.bias) == ("pocket CLIP", 0)


def test_nothing_has_no_vectors(pocket: ClipModel) -> None:
    assert len(pocket.images([])) == len(pocket.texts([])) == 0


def test_siglip_reads_texts_and_has_a_bias(tmp_path: Path, pictures: list[Image.Image]) -> None:
    torch.manual_seed(0)
    tower = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    # the pocket tokenizer stands in for SentencePiece: what is tested is padding, pooling and scale
    tokenizer = CLIPTokenizer.from_pretrained(CLIP, model_input_names=["input_ids"])
    tokens = {"vocab_size": len(tokenizer), "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    text = {**tower, **tokens, "max_position_embeddings": 16}
    config = SiglipConfig(text_config=text, vision_config={**tower, "image_size": 32, "patch_size": 8})
    model = SiglipModel(config)
    torch.nn.init.constant_(model.logit_bias, -3.0)
    model.train(False)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    SiglipImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(tmp_path)
    features = open_text_features(str(tmp_path))
    pixels = SiglipImageProcessorPil(size={"height": 32, "width": 32})(pictures[:5], return_tensors="pt")
    ids = tokenizer(TEXTS, padding="max_length", max_length=16, truncation=True, return_tensors="pt")
    with torch.inference_mode():
        wanted = model(pixel_values=pixels.pixel_values, input_ids=ids.input_ids).logits_per_image.numpy()
    ours = features.images(pictures[:5]) @ features.texts(TEXTS).T * features.scale + features.bias
    assert np.allclose(ours, wanted, atol=1e-4)
    assert features.bias == -3


def test_a_vision_model_without_texts_serves_for_fid_alone(tmp_path: Path, pictures: list[Image.Image]) -> None:
    torch.manual_seed(0)
    config = Dinov2Config(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14)
    Dinov2Model(config).save_pretrained(tmp_path)
    size = {"height": 28, "width": 28}
    processor = BitImageProcessorPil(size={"shortest_edge": 28}, crop_size=size)
    processor.save_pretrained(tmp_path)
    with torch.inference_mode():
        wanted = Dinov2Model.from_pretrained(tmp_path)(**processor(pictures[:5], return_tensors="pt"))
    features = open_features(str(tmp_path))
    assert np.allclose(features.images(pictures[:5]), wanted.pooler_output.numpy(), atol=1e-4)
    assert features.name == tmp_path.name
    with pytest.raises(InvalidInput, match="pictures only"):
        open_text_features(str(tmp_path))


def test_a_model_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(ModelUnavailable, match="safetensors"):
        open_features(str(tmp_path / "missing"))
