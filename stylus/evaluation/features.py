"""What pictures and texts look like to a model: vectors for CLIP score, FID, KID, dFID and similarity.

The metrics know no model: they take these vectors. Any CLIP or SigLIP of transformers serves for pictures and texts,
any vision model of transformers (as DINOv2) for pictures alone. Inception, with which the paper's FID was taken, is not
among them: FIDs compare only where the features are the same, and a report names them.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from jaxtyping import Float32
from PIL import Image

from stylus.errors import InvalidInput, ModelUnavailable
from stylus.model_loading import model_loading
from stylus.pocket import CLIP

BATCH = 32
"""Pictures or texts that go through a model at once."""


class Features(Protocol):
    """Sees pictures."""

    @property
    def name(self) -> str:
        """A hub id or a folder's name: vectors of one name are comparable."""
        ...

    def images(self, pictures: Sequence[Image.Image]) -> Float32[np.ndarray, "n d"]:
        """One vector for each picture; of length 1 where the model also reads texts."""
        ...


class TextFeatures(Features, Protocol):
    """Sees pictures and reads texts, in one space: the cosine of two vectors, which are of length 1, is their fit."""

    @property
    def scale(self) -> float:
        """What the model multiplies a cosine by before it adds `bias`."""
        ...

    @property
    def bias(self) -> float:
        """0 for CLIP, whose scale times cosine goes through a softmax over texts; SigLIP's goes through a sigmoid."""
        ...

    def texts(self, texts: Sequence[str]) -> Float32[np.ndarray, "n d"]:
        """One vector of length 1 for each text; texts longer than the model reads are cut."""
        ...


class VisionModel:
    """Any vision model of transformers with image vectors of its own: what it pools, else the mean of its patches."""

    def __init__(self, name: str, model: Any, processor: Any) -> None:
        self.name, self._model, self._processor = name, model.eval(), processor

    def images(self, pictures: Sequence[Image.Image]) -> Float32[np.ndarray, "n d"]:
        """One vector for each picture, as the model gives it."""
        return _stacked(self._images([picture.convert("RGB") for picture in part]) for part in _parts(pictures))

    def _images(self, pictures: list[Image.Image]) -> np.ndarray:
        out = self._run(self._model, self._processor(images=pictures, return_tensors="pt"))
        pooled = getattr(out, "pooler_output", None)
        return _array(out.last_hidden_state.mean(1) if pooled is None else pooled.flatten(1))

    def _run(self, function: Any, inputs: Any) -> Any:
        import torch

        with torch.inference_mode():
            return function(**{name: tensor.to(self._model.device) for name, tensor in inputs.items()})


class ClipModel(VisionModel):
    """CLIP, SigLIP and whatever else of transformers has image features and text features."""

    def __init__(self, name: str, model: Any, processor: Any, tokenizer: Any) -> None:
        super().__init__(name, model, processor)
        self._tokenizer = tokenizer
        self.scale = model.logit_scale.exp().item()
        self.bias = model.logit_bias.item() if hasattr(model, "logit_bias") else 0.0

    def texts(self, texts: Sequence[str]) -> Float32[np.ndarray, "n d"]:
        """One vector of length 1 for each text; texts longer than the model reads are cut."""
        return _stacked(self._texts(list(part)) for part in _parts(texts))

    def _images(self, pictures: list[Image.Image]) -> np.ndarray:
        inputs = self._processor(images=pictures, return_tensors="pt")
        return _unit(_array(self._run(self._model.get_image_features, inputs).pooler_output))

    def _texts(self, texts: list[str]) -> np.ndarray:
        # SigLIP was trained on padding to its full length, and CLIP does not mind it
        inputs = self._tokenizer(
            texts,
            padding="max_length",
            truncation=True,
            max_length=self._model.config.text_config.max_position_embeddings,
            return_tensors="pt",
        )
        return _unit(_array(self._run(self._model.get_text_features, inputs).pooler_output))


def open_features(name: str | None = None, device: str = "cpu") -> VisionModel:
    """The vision model of that folder or hub id; None is the pocket CLIP, which comes with Stylus. A ClipModel where it
    reads texts too. Only safetensors are loaded. Raises ModelUnavailable."""
    from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

    source = str(CLIP) if name is None else name
    shown = "pocket CLIP" if name is None else Path(name).name if Path(name).is_dir() else name
    try:
        # the processors' other back end needs torchvision
        processor = AutoImageProcessor.from_pretrained(source, backend="pil")  # type: ignore[no-untyped-call]
        with model_loading():
            model = AutoModel.from_pretrained(source, use_safetensors=True).to(device)
        if not hasattr(model, "get_text_features"):
            return VisionModel(shown, model, processor)
        return ClipModel(shown, model, processor, AutoTokenizer.from_pretrained(source))
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise ModelUnavailable(
            f"The vision model {source!r} can't be loaded ({str(error).splitlines()[0]}). Name a folder or a hub id of "
            "a CLIP, SigLIP or vision model of transformers with its preprocessor and safetensors."
        ) from error


def open_text_features(name: str | None = None, device: str = "cpu") -> ClipModel:
    """As `open_features`, for a model that reads texts. Raises ModelUnavailable, and InvalidInput if it reads none."""
    model = open_features(name, device)
    if not isinstance(model, ClipModel):
        raise InvalidInput(f"{model.name!r} sees pictures only: a CLIP score needs a CLIP or SigLIP model.")
    return model


def _parts(whole: Sequence[Any]) -> Iterator[Sequence[Any]]:
    return (whole[start : start + BATCH] for start in range(0, len(whole), BATCH))


def _stacked(parts: Iterator[np.ndarray]) -> np.ndarray:
    found = list(parts)
    return np.concatenate(found) if found else np.zeros((0, 0), np.float32)


def _array(tensor: Any) -> np.ndarray:
    out: np.ndarray = tensor.float().cpu().numpy()
    return out


def _unit(vectors: np.ndarray) -> np.ndarray:
    out: np.ndarray = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return out
