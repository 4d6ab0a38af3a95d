"""The independent judge: a small classifier that names the subjects, styles and backgrounds in a pocket picture.

Trained apart from all that it scores (examples/pocket/judging.py); `README.md` holds its recall, its false positives
and its confusion matrix on held-out pictures. The model file carries the concept names and their thresholds.
"""

from pathlib import Path
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors import safe_open
from torch import Tensor, nn

from stylus.pocket import JUDGE


def _layer(inside: int, out: int, size: int = 3, stride: int = 1) -> list[nn.Module]:
    return [nn.Conv2d(inside, out, size, stride, padding=1), nn.GroupNorm(8, out), nn.ReLU()]


class Residual(nn.Module):
    """Adds what one more layer sees; starts as the identity."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layer = nn.Sequential(*_layer(width, width), nn.Conv2d(width, width, 1))
        nn.init.zeros_(self.layer[-1].weight)  # type: ignore[arg-type]
        nn.init.zeros_(self.layer[-1].bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.layer(x)
        return out


class Network(nn.Module):
    """Pictures [n, 3, 64, 64] in -1..1 to logits [n, concepts]."""

    def __init__(self, concepts: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *_layer(3, 24, size=4, stride=2),
            *_layer(24, 48, stride=2),
            *_layer(48, 48),
            Residual(48),
            *_layer(48, 96, stride=2),
            *_layer(96, 96),
            Residual(96),
            *_layer(96, 128, stride=2),
        )
        self.head = nn.Linear(256, concepts)

    def forward(self, x: Tensor) -> Tensor:
        """One logit for each concept: the largest and the mean answer over the picture decide."""
        features = self.body(x)
        out: Tensor = self.head(torch.cat([features.amax((2, 3)), features.mean((2, 3))], 1))
        return out


class Judge:
    """Names the concepts in pictures."""

    def __init__(self, network: Network, names: tuple[str, ...], thresholds: Tensor) -> None:
        self.network, self.names, self.thresholds = network.eval(), names, thresholds

    @classmethod
    def load(cls, path: Path = JUDGE) -> Self:
        """Read the shipped judge, or another file of the same format."""
        with safe_open(path, framework="pt") as file:
            names = tuple(file.metadata()["concepts"].split())
            state = {key: file.get_tensor(key).float() for key in file.keys()}  # noqa: SIM118 (not a dict)
        thresholds = state.pop("thresholds")
        network = Network(len(names))
        network.load_state_dict(state)
        return cls(network, names, thresholds)

    def scores(self, images: list[Image.Image]) -> NDArray[np.float32]:
        """Probabilities [images, concepts], columns in the order of `names`."""
        if not images:
            return np.zeros((0, len(self.names)), np.float32)
        small = [image.convert("RGB").resize((64, 64), Image.Resampling.BOX) for image in images]
        pixels = torch.from_numpy(np.stack([np.asarray(image, np.float32) for image in small]))
        with torch.no_grad():
            logits = self.network(pixels.permute(0, 3, 1, 2) / 127.5 - 1)
        out: NDArray[np.float32] = logits.sigmoid().numpy()
        return out

    def concepts(self, images: list[Image.Image]) -> list[frozenset[str]]:
        """The concepts found in each image, base shapes included."""
        limits = self.thresholds.numpy()
        return [
            frozenset(name for name, score, limit in zip(self.names, row, limits, strict=True) if score >= limit)
            for row in self.scores(images)
        ]
