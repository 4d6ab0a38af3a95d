"""Adapters on a live pipeline: every image of a batch with its own composition, in one pass (DESIGN.md, idea 1).

peft multiplies each LoRA branch by `layer.scaling[name]`. A tensor there, shaped so that it broadcasts over the layer's
output ([batch, 1, 1] after a linear layer on sequences, [batch, 1] on vectors, [batch, 1, 1, 1] after a convolution),
gives every image its own weight. All layers of a model share one list of active adapters and one `scaling` per number
of dimensions, so that a switch costs the same whatever the number of layers, or of adapters ever loaded (diffusers'
set_adapters visits each layer and adapter: issue 11816).
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from peft import LoraConfig
from peft.tuners.lora import Conv2d as LoraConv2d
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor, nn

from stylus.generation.adapter_keys import LayerShape
from stylus.generation.deltas import Change, LowRank


class GatedModel:
    """A model whose linear and convolution layers can carry adapters, with one weight per batch row and adapter.

    Layers are wrapped when an adapter first needs them, and then stay wrapped: without active adapters a wrapped layer
    gives exactly its base layer's output."""

    def __init__(self, model: nn.Module, device: torch.device | None = None) -> None:
        """`device`: where the model works; it may rest elsewhere (offloading)."""
        self.model = model
        self._device = device
        self._like = next(model.parameters())
        self.shapes: dict[str, LayerShape] = dict(_layer_shapes(model))
        self._wrapped: dict[str, Any] = {}
        self._active: list[str] = []
        self._scaling: dict[int, dict[str, Tensor]] = {2: {}, 3: {}, 4: {}}

    @property
    def device(self) -> torch.device:
        return self._device or self._like.device

    @property
    def dtype(self) -> torch.dtype:
        return self._like.dtype

    def attach(self, name: str, layers: Mapping[str, Change], scale: float) -> int:
        """Gives layers the adapter's factors, in the model's dtype and device; returns their bytes. `scale` is left to
        the weights of `switch`; a layer whose own scale differs gets the ratio multiplied in."""
        size = 0
        for path, change in layers.items():
            layer = self._wrapped.get(path) or self._wrap(path)
            branches = _branches(change, scale, layer.get_base_layer())
            layer.lora_A[name], layer.lora_B[name] = branches
            layer.lora_dropout[name] = nn.Identity()
            size += sum(weight.nbytes for branch in branches for weight in branch.parameters())
        return size

    def detach(self, name: str) -> None:
        """Lets go of the adapter's tensors wherever it has any."""
        for layer in self._wrapped.values():
            for modules in (layer.lora_A, layer.lora_B, layer.lora_dropout):
                if name in modules:
                    del modules[name]

    def switch(self, weights: Mapping[str, Tensor]) -> None:
        """From now on adapter `name` counts `weights[name]` [rows], one number per batch row; all others are off."""
        self._active[:] = weights
        for dimensions, scaling in self._scaling.items():
            scaling.clear()
            scaling.update({name: rows.reshape(-1, *(1,) * (dimensions - 1)) for name, rows in weights.items()})

    @contextmanager
    def fused(self, weights: Mapping[str, float]) -> Iterator[None]:
        """Within, the adapters are part of the base weights, at one weight for all rows, and cost nothing in a step.

        The base weights of the layers concerned are kept meanwhile and put back bit by bit: subtracting what was added
        would not give them back."""
        self.switch({})
        kept: dict[str, Tensor] = {}
        try:
            for path, layer in self._wrapped.items():
                names = [name for name in weights if name in layer.lora_A]
                if names:
                    base = layer.get_base_layer().weight.data
                    total = base.float()
                    for name in names:
                        total = total + weights[name] * _whole(layer.lora_A[name], layer.lora_B[name], base)
                    kept[path] = base.clone()
                    base.copy_(total)
            yield
        finally:
            for path, base in kept.items():
                self._wrapped[path].get_base_layer().weight.data.copy_(base)

    def _wrap(self, path: str) -> Any:
        base = self.model.get_submodule(path)
        kind = LoraLinear if isinstance(base, nn.Linear) else LoraConv2d
        layer: Any = kind(base, "placeholder", config=LoraConfig(init_lora_weights=False), r=1, lora_alpha=1)
        for modules in (layer.lora_A, layer.lora_B, layer.lora_dropout):
            modules.clear()
        layer.train(base.training)
        layer.requires_grad_(False)
        layer._active_adapter = self._active
        layer.register_forward_pre_hook(self._choose_scaling)
        parent, _, child = path.rpartition(".")
        setattr(self.model.get_submodule(parent), child, layer)
        self._wrapped[path] = layer
        return layer

    def _choose_scaling(self, layer: Any, inputs: tuple[Tensor, ...]) -> None:
        layer.scaling = self._scaling[inputs[0].ndim]


def _layer_shapes(model: nn.Module) -> Iterator[tuple[str, LayerShape]]:
    for path, module in model.named_modules():
        if isinstance(module, nn.Linear):
            yield path, LayerShape(module.in_features, module.out_features)
        elif isinstance(module, nn.Conv2d) and module.groups == 1:
            yield path, LayerShape(module.in_channels, module.out_channels, module.kernel_size)


def _branches(change: Change, scale: float, base: nn.Linear | nn.Conv2d) -> tuple[nn.Module, nn.Module]:
    """What peft calls A and B, on the device and in the dtype of `base`: the two factors of a LoRA, or a dense change
    with nothing after it. Their product times `scale` is the change."""
    if isinstance(change, LowRank):
        up = change.up if change.scale == scale else change.up.float() * (change.scale / scale)
        return _layer(change.down, base), _layer(up, base, pointwise=True)
    device = base.weight.device
    return _layer(change.map(lambda tensor: tensor.to(device)).dense(base.weight) / scale, base), nn.Identity()


def _layer(weight: Tensor, base: nn.Linear | nn.Conv2d, pointwise: bool = False) -> nn.Module:
    """A layer of that weight that takes the inputs of `base`, or with `pointwise` the outputs of such a layer."""
    weight = weight.to(device=base.weight.device, dtype=base.weight.dtype)
    if not torch.isfinite(weight).all():
        raise OverflowError(f"its weights are too large for {base.weight.dtype}")
    layer: nn.Linear | nn.Conv2d
    with torch.device("meta"):  # shapes only: the weights come from the file
        if isinstance(base, nn.Linear):
            layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
        elif pointwise:
            layer = nn.Conv2d(weight.shape[1], weight.shape[0], 1, bias=False)
        else:
            form = {"stride": base.stride, "padding": base.padding, "dilation": base.dilation, "bias": False}
            layer = nn.Conv2d(weight.shape[1], weight.shape[0], base.kernel_size, **form)  # type: ignore[arg-type]
    layer.weight = nn.Parameter(weight, requires_grad=False)
    return layer.eval()


def _whole(a: Any, b: Any, base: Tensor) -> Tensor:
    """The change that two branches make, in the shape of `base`, in float32."""
    if isinstance(b, nn.Identity):
        return a.weight.float()  # type: ignore[no-any-return]
    return (b.weight.float().flatten(1) @ a.weight.float().flatten(1)).reshape(base.shape)  # type: ignore[no-any-return]
