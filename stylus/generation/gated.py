"""Adapters on a live model: every image of a batch with its own composition, in one pass (DESIGN.md, idea 1).

A forward hook adds the branches of the adapters that are on to a layer's output. The factors of all of them are
stacked, so that a layer pays for two products however many adapters are on, and between the two each row of the batch
is multiplied by its own weights: [rows, ranks of all]. (peft's layers give the same numbers, one adapter after the
other, each with a product and a sum of the whole output's size.) The model itself stays as it is: its layers, their
names and weights. A switch to other weights makes one small tensor; one to other adapters visits the layers once,
whatever the number of adapters ever loaded (diffusers' set_adapters visits each layer and adapter: issue 11816).
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from stylus.generation.adapter_keys import LayerShape
from stylus.generation.deltas import Change, LowRank

Layer = nn.Linear | nn.Conv2d


@dataclass(frozen=True)
class Factors:
    """Of one adapter in one layer, or of several stacked."""

    down: Tensor
    """[rank, in, *kernel]; without `up` a dense change [out, in, *kernel]."""
    up: Tensor | None
    """[out, rank, 1...]"""

    @property
    def nbytes(self) -> int:
        return self.down.nbytes + (0 if self.up is None else self.up.nbytes)

    def dense(self, like: Tensor) -> Tensor:
        """The change of the weight, in the shape of `like` and in float32."""
        if self.up is None:
            return self.down.float()
        return (self.up.float().flatten(1) @ self.down.float().flatten(1)).reshape(like.shape)

    def to(self, dtype: torch.dtype) -> "Factors":
        return Factors(self.down.to(dtype), None if self.up is None else self.up.to(dtype))


Ranks = tuple[tuple[str, int], ...]
"""Adapters and their ranks, in the order of a stack."""


@dataclass
class Gate:
    """The weights that layers of one stack share: [rows, ranks], each adapter's repeated over its rank."""

    rows: Tensor = field(default_factory=lambda: torch.empty(0, 0))


class Branches:
    """What adapters add to the output of one layer: its forward hook."""

    def __init__(self, layer: Layer) -> None:
        self.layer = layer
        self.attached: dict[str, Factors] = {}
        self._on: list[tuple[Factors, Gate]] = []

    def choose(self, names: Sequence[str], gates: dict[Ranks, Gate]) -> None:
        """From now on only these adapters count; `gates` is where the layers of a model find those they share."""
        dtype = self.layer.weight.dtype
        here = [(name, self.attached[name].to(dtype)) for name in names if name in self.attached]
        low = [(name, factors) for name, factors in here if factors.up is not None]
        stacks = [[(name, factors)] for name, factors in here if factors.up is None] + ([low] if low else [])
        self._on = [
            (
                _stacked([factors for _, factors in stack]),
                # all ranks of a dense change have one weight
                gates.setdefault(tuple((name, 1 if f.up is None else len(f.down)) for name, f in stack), Gate()),
            )
            for stack in stacks
        ]

    def __call__(self, layer: Layer, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        for factors, gate in self._on:
            output = _added(layer, factors, gate.rows, inputs[0], output)
        return output


class GatedModel:
    """A model whose linear and convolution layers can carry adapters, with one weight per batch row and adapter.

    Without adapters that are on, the model gives exactly its own output."""

    def __init__(self, model: nn.Module, device: torch.device | None = None) -> None:
        """`device`: where the model works; it may rest elsewhere (offloading)."""
        self.model = model
        self._device = device
        self._like = next(model.parameters())
        self.shapes: dict[str, LayerShape] = dict(_layer_shapes(model))
        self._branches: dict[str, Branches] = {}
        self._gates: dict[Ranks, Gate] = {}
        self._chosen: tuple[object, ...] = ()

    @property
    def device(self) -> torch.device:
        return self._device or self._like.device

    @property
    def dtype(self) -> torch.dtype:
        return self._like.dtype

    def compile(self, **options: Any) -> None:
        """torch.compile in place, with its options. One graph is made for the plain model and one for each set of
        sizes of what is on, whichever adapters these are."""
        # by default a graph made before the first adapter came would be used after it as well, without its hooks
        torch._dynamo.config.skip_nnmodule_hook_guards = False
        self.model.compile(**options)

    def attach(self, name: str, layers: Mapping[str, Change], scale: float) -> int:
        """Gives layers the adapter's factors, in the model's dtype and device; returns their bytes. `scale` is left to
        the weights of `switch`; a layer whose own scale differs gets the ratio multiplied in.

        Raises OverflowError for weights that the dtype can't hold."""
        size = 0
        for path, change in layers.items():
            branches = self._branches.get(path) or self._hook(path)
            factors = _factors(change, scale, branches.layer, self.device)
            branches.attached[name] = factors
            size += factors.nbytes
        return size

    def detach(self, name: str) -> None:
        """Lets go of the adapter's tensors wherever it has any; it must not be on."""
        for branches in self._branches.values():
            branches.attached.pop(name, None)

    def switch(self, weights: Mapping[str, Tensor]) -> None:
        """From now on adapter `name` counts `weights[name]` [rows], one number per batch row; all others are off."""
        chosen = (*weights, self.dtype)
        if chosen != self._chosen:
            self._gates = {}
            for branches in self._branches.values():
                branches.choose(list(weights), self._gates)
            self._chosen = chosen
        for ranks, gate in self._gates.items():
            gate.rows = torch.cat([weights[name][:, None].expand(-1, rank) for name, rank in ranks], dim=1)

    @contextmanager
    def fused(self, weights: Mapping[str, float]) -> Iterator[None]:
        """Within, the adapters are part of the base weights, at one weight for all rows, and cost nothing in a step.

        The base weights of the layers concerned are kept meanwhile and put back bit by bit: subtracting what was added
        would not give them back."""
        self.switch({})
        kept: list[tuple[Tensor, Tensor]] = []
        try:
            for branches in self._branches.values():
                here = [name for name in weights if name in branches.attached]
                if here:
                    base = branches.layer.weight.data
                    total = base.float()
                    for name in here:
                        # an offloaded layer rests elsewhere than its adapters
                        total = total + weights[name] * branches.attached[name].dense(base).to(base.device)
                    kept.append((branches.layer.weight, base.clone()))
                    base.copy_(total)
            yield
        finally:
            for weight, base in kept:
                weight.data.copy_(base)

    def _hook(self, path: str) -> Branches:
        layer = self.model.get_submodule(path)
        assert isinstance(layer, Layer), path  # noqa: S101 - `shapes` has no others
        self._branches[path] = Branches(layer)
        layer.register_forward_hook(self._branches[path])
        return self._branches[path]


def _layer_shapes(model: nn.Module) -> Iterator[tuple[str, LayerShape]]:
    for path, module in model.named_modules():
        if isinstance(module, nn.Linear):
            yield path, LayerShape(module.in_features, module.out_features)
        elif isinstance(module, nn.Conv2d) and module.groups == 1:
            yield path, LayerShape(module.in_channels, module.out_channels, module.kernel_size)


def _factors(change: Change, scale: float, layer: Layer, device: torch.device) -> Factors:
    """The change over `scale`, on the device and in the dtype of `layer`: the two factors of a LoRA, or a dense one."""
    base = layer.weight
    if isinstance(change, LowRank):
        up = change.up if change.scale == scale else change.up.float() * (change.scale / scale)
        factors = Factors(_fit(change.down, base, device), _fit(up, base, device))
    else:
        here = change.map(lambda tensor: tensor.to(base.device))
        factors = Factors(_fit(here.dense(base) / scale, base, device), None)
    return factors


def _fit(weight: Tensor, base: Tensor, device: torch.device) -> Tensor:
    weight = weight.to(device=device, dtype=base.dtype)
    if not torch.isfinite(weight).all():
        raise OverflowError(f"its weights are too large for {base.dtype}")
    return weight


def _stacked(parts: Sequence[Factors]) -> Factors:
    """One beside the other along the rank; a single one as it is, without a copy."""
    if len(parts) == 1:
        return parts[0]
    ups = [part.up for part in parts if part.up is not None]
    return Factors(torch.cat([part.down for part in parts]), torch.cat(ups, dim=1))


def _added(layer: Layer, factors: Factors, rows: Tensor, inputs: Tensor, output: Tensor) -> Tensor:
    """`output` of `layer` plus the branch: up(rows * down(inputs)). `output` is changed in place. Few operations, since
    a GPU is often done before it is sent the next."""
    if isinstance(layer, nn.Conv2d):
        form: dict[str, Any] = {"stride": layer.stride, "padding": layer.padding, "dilation": layer.dilation}
        inner = functional.conv2d(inputs, factors.down, **form).mul_(rows[:, :, None, None])
        return output.add_(inner if factors.up is None else functional.conv2d(inner, factors.up))
    inner = functional.linear(inputs, factors.down)
    inner.mul_(rows.view(len(rows), *(1,) * (inputs.ndim - 2), -1))
    if factors.up is None:
        return output.add_(inner)
    output.view(-1, output.shape[-1]).addmm_(inner.flatten(0, -2), factors.up.t())
    return output
