"""What an adapter changes in one layer, in each of the forms that files hold it.

LoRA (Hu et al. 2021) and LoCon stay in their low-rank form. DoRA (Liu et al. 2024), LoHa and LoKr (LyCORIS, Yeh et al.
2024) become the dense change of the layer's weight at strength 1, and the layer gains strength * delta(x): exact for
LoHa and LoKr at any strength, and for DoRA at 1 (README, Decisions). A rank-16 approximation of one had 66% error. The
products of LoHa and LoKr are peft's.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Self

import torch
from peft.tuners.loha.layer import make_weight, make_weight_cp
from peft.tuners.lokr.layer import make_kron
from peft.tuners.lokr.layer import make_weight_cp as make_factor
from torch import Tensor


class Change:
    """The change of one layer's weight [out, in, *kernel]. Those below are dataclasses of tensors."""

    def dense(self, base: Tensor) -> Tensor:
        """The change at strength 1, in the shape of `base` (the layer's own weight) and in float32."""
        raise NotImplementedError

    def map(self, function: Callable[[Tensor], Tensor]) -> Self:
        """The same with `function` applied to every tensor."""

        def mapped(value: object) -> object:
            if isinstance(value, Change):
                return value.map(function)
            return function(value) if isinstance(value, Tensor) else value

        return type(self)(**{name: mapped(value) for name, value in vars(self).items()})

    def tensors(self) -> Iterator[Tensor]:
        for value in vars(self).values():
            if isinstance(value, Change):
                yield from value.tensors()
            elif isinstance(value, Tensor):
                yield value


@dataclass(frozen=True)
class LowRank(Change):
    """scale * up @ down: down [rank, in, *kernel], up [out, rank, 1...]."""

    down: Tensor
    up: Tensor
    scale: float
    """alpha / rank (alpha / sqrt(rank) for rsLoRA)."""

    def dense(self, base: Tensor) -> Tensor:
        return self.scale * (self.up.float().flatten(1) @ self.down.float().flatten(1)).reshape(base.shape)


@dataclass(frozen=True)
class DoRA(Change):
    """Another change, after which the weight is scaled to the magnitude [out, 1...] (or [1, in, 1...], old LyCORIS)."""

    direction: Change
    magnitude: Tensor

    def dense(self, base: Tensor) -> Tensor:
        weight = base.float()
        changed = weight + self.direction.dense(base)
        axis = 1 if self.magnitude.ndim > 1 and self.magnitude.shape[0] == 1 != weight.shape[0] else 0
        norms = torch.linalg.vector_norm(changed.transpose(0, axis).flatten(1), dim=1)
        along = [-1 if n == axis else 1 for n in range(weight.ndim)]
        difference: Tensor = changed * (self.magnitude.float().flatten() / norms).reshape(along) - weight
        return difference


@dataclass(frozen=True)
class LoHa(Change):
    """scale * (w1_a @ w1_b) * (w2_a @ w2_b), elementwise; with Tucker cores t1 and t2 for convolutions."""

    w1_a: Tensor
    w1_b: Tensor
    w2_a: Tensor
    w2_b: Tensor
    scale: float
    t1: Tensor | None = None
    t2: Tensor | None = None

    def dense(self, base: Tensor) -> Tensor:
        scale = torch.tensor(self.scale, device=self.w1_a.device)
        w1, w2 = (self.w1_a.float(), self.w1_b.float()), (self.w2_a.float(), self.w2_b.float())
        if self.t1 is None or self.t2 is None:
            product: Tensor = make_weight(*w1, *w2, scale)
        else:
            product = make_weight_cp(self.t1.float(), *w1, self.t2.float(), *w2, scale)
        return product.reshape(base.shape)


@dataclass(frozen=True)
class LoKr(Change):
    """scale * kron(w1, w2), each whole or as a product of two; with a Tucker core t2 for convolutions."""

    scale: float
    w1: Tensor | None = None
    w1_a: Tensor | None = None
    w1_b: Tensor | None = None
    w2: Tensor | None = None
    w2_a: Tensor | None = None
    w2_b: Tensor | None = None
    t2: Tensor | None = None

    def dense(self, base: Tensor) -> Tensor:
        first, second = _whole(self.w1, self.w1_a, self.w1_b), _whole(self.w2, self.w2_a, self.w2_b, self.t2)
        product: Tensor = make_kron(first, second, self.scale)
        return product.reshape(base.shape)


@dataclass(frozen=True)
class Full(Change):
    """The change itself, as LyCORIS's `full` writes it."""

    diff: Tensor

    def dense(self, base: Tensor) -> Tensor:
        return self.diff.float().reshape(base.shape)


def with_core(down: Tensor, core: Tensor) -> Tensor:
    """LoCon with a Tucker core [rank, rank, *kernel]: the core taken into down [rank, in, 1, 1]."""
    return torch.einsum("orkl,ri->oikl", core.float(), down.float().flatten(1))


def _whole(w: Tensor | None, a: Tensor | None, b: Tensor | None, core: Tensor | None = None) -> Tensor:
    if w is not None:
        return w.float()
    if a is None or b is None:
        raise ValueError("neither whole nor both factors")
    if core is None:
        return a.float() @ b.float()
    product: Tensor = make_factor(core.float(), a.float(), b.float())
    return product
