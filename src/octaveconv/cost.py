"""What a network costs: parameters, multiply-accumulates and activation bytes, per layer and per frequency.

Every figure comes from an analytic formula of the shapes that each layer sees. Multiply-accumulates are also counted by
PyTorch, from the operations that are executed. The network runs on the meta device, so nothing is computed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, astuple, dataclass, field
from math import prod
from numbers import Integral
from typing import Any

import torch
from torch import Tensor, nn

from ._modes import check_network, eval_mode, explained
from ._text import text_table
from .nn.conv import (
    OctConv1d,
    OctConv2d,
    OctConv3d,
    OctConvNd,
    OctConvTranspose1d,
    OctConvTranspose2d,
    OctConvTranspose3d,
)
from .nn.group_norm import OctGroupNorm
from .nn.layers import PixelwiseOctLinear, StandardizedOctConv2d
from .nn.norm import OctBatchNormNd
from .octave import Octave, as_octave
from .resolution import Sizes, pooled_size
from .spec import ConvSpec

_CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED_CONVS = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


@dataclass(frozen=True)
class Cost:
    """Parameters, multiply-accumulates (MACs), and bytes of the maps that convolutions and linear layers write."""

    params: int = 0
    macs: int = 0
    activation_bytes: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.params + other.params, self.macs + other.macs, self.activation_bytes + other.activation_bytes)


@dataclass(frozen=True)
class LayerCost:
    """One layer: the cost of its high and of its low output, its MACs by path, and its cost in the dense twin."""

    name: str
    kind: str
    high: Cost
    low: Cost
    dense: Cost
    paths: dict[str, int] = field(default_factory=dict)

    @property
    def total(self) -> Cost:
        """Both outputs together."""
        return self.high + self.low


@dataclass(frozen=True)
class CostReport:
    """The cost of one call of a network. ``print(report)`` shows it as a table.

    ``macs`` is the sum of the analytic formula, ``counted_macs`` the result of PyTorch's counter. The two are equal for
    every network made of convolutions and linear layers. ``dense`` is the cost of the same network at alpha 0.
    ``input_size`` is the shape of the first input without its batch dimension.
    """

    layers: list[LayerCost]
    input_size: tuple[int, ...]
    counted_macs: int

    @property
    def high(self) -> Cost:
        """The cost of making the high-frequency maps, dense layers included."""
        return _sum(layer.high for layer in self.layers)

    @property
    def low(self) -> Cost:
        """The cost of making the low-frequency maps."""
        return _sum(layer.low for layer in self.layers)

    @property
    def total(self) -> Cost:
        """Both frequencies together."""
        return self.high + self.low

    @property
    def dense(self) -> Cost:
        """The dense twin."""
        return _sum(layer.dense for layer in self.layers)

    @property
    def params(self) -> int:
        """Parameters, the same at every alpha."""
        return self.total.params

    @property
    def macs(self) -> int:
        """Multiply-accumulates of convolutions and linear layers, by the analytic formula."""
        return self.total.macs

    @property
    def activation_bytes(self) -> int:
        """Bytes of the maps that convolutions and linear layers write."""
        return self.total.activation_bytes

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain numbers, for JSON."""
        parts = {name: asdict(getattr(self, name)) for name in ("total", "high", "low", "dense")}
        layers = [asdict(layer) for layer in self.layers]
        return {"input_size": list(self.input_size), **parts, "counted_macs": self.counted_macs, "layers": layers}

    def table(self) -> list[list[str]]:
        """Rows of text, the heading first: each frequency, the total, the dense twin, and total / dense twin."""
        rows = [["", "parameters", "MACs", "activation bytes"]]
        for name, part in (("high", self.high), ("low", self.low), ("total", self.total), ("dense twin", self.dense)):
            rows.append([name, *(f"{number:,}" for number in astuple(part))])
        shares = (f"{one / other:.3f}" if other else "" for one, other in zip(astuple(self.total), astuple(self.dense)))
        return [*rows, ["total / dense", *shares]]

    def layer_table(self) -> list[list[str]]:
        """Rows of text, the heading first: the figures of each layer, and of its low output."""
        rows = [
            ["layer", "kind", "parameters", "of low", "MACs", "of low", "activation bytes", "of low", "MACs / dense"]
        ]
        for layer in self.layers:
            pairs = zip(astuple(layer.total), astuple(layer.low))
            share = f"{layer.total.macs / layer.dense.macs:.3f}" if layer.dense.macs else ""
            rows.append([layer.name, layer.kind, *(f"{number:,}" for pair in pairs for number in pair), share])
        return rows

    def __str__(self) -> str:
        return f"{text_table(self.layer_table())}\n\n{text_table(self.table())}"


def cost(
    model: nn.Module,
    example_inputs: Tensor | tuple[Any, ...] | None = None,
    *,
    input_size: int | tuple[int, ...] | None = None,
) -> CostReport:
    """Report what a call of ``model`` costs, without computing anything.

    Args:
        model: any module; it is not changed.
        example_inputs: what the model is called with, a tensor or a tuple, on any device. By default one image of the
            size in ``model.pretrained_cfg``, or else of 3x224x224 pixels.
        input_size: instead of ``example_inputs``, the size of one image: ``(C, H, W)``, or the pixels of a square image
            of 3 channels; of one series ``(C, L)``, of one volume ``(C, T, H, W)``.

    Returns:
        A `CostReport`. A MAC is one multiply-accumulate of a convolution or a linear layer (the paper's "FLOPs"). A
        batch of N images costs N times the MACs and activation bytes of one.

    Raises:
        ValueError: ``example_inputs`` has no tensor, ``input_size`` is given as well, or the model fails on them.

    Source: the analytic formula is section 3.3 of Chen et al., ICCV 2019, per path.

    Example:
        >>> import torch, octaveconv as oc
        >>> layer = oc.OctConv2d(64, 64, 3, padding=1, alpha_out=0.5)
        >>> report = oc.cost(layer, torch.zeros(1, 64, 56, 56))
        >>> report.macs == report.counted_macs, report.low.macs, report.dense.macs
        (True, 14450688, 115605504)
        >>> oc.cost(layer, input_size=(64, 56, 56)) == report
        True
    """
    from torch.func import functional_call
    from torch.utils._pytree import tree_leaves, tree_map_only
    from torch.utils.flop_counter import FlopCounterMode

    check_network(model, "cost")
    state = {name: tensor.detach().to("meta") for name, tensor in [*model.named_parameters(), *model.named_buffers()]}
    dtype = next((tensor.dtype for tensor in state.values() if tensor.is_floating_point()), torch.float32)
    if example_inputs is None:
        shape = image_size(model) if input_size is None else _shape_of_one(input_size)
        example_inputs = torch.empty(1, *shape, dtype=dtype, device="meta")
    elif input_size is not None:
        raise ValueError("cost takes example_inputs or input_size, got both")
    inputs = tree_map_only(Tensor, lambda x: x.to("meta"), example_inputs)
    first = next(filter(torch.is_tensor, tree_leaves(inputs)), None)
    if first is None:
        raise ValueError(
            f"example_inputs must be a tensor or a tuple with one, got {type(example_inputs).__name__}: pass a size as "
            f"input_size="
        )
    with (
        explained(model, inputs if isinstance(inputs, tuple) else (inputs,)),
        _record(model) as layers,
        eval_mode(model),
        torch.no_grad(),
        FlopCounterMode(display=False) as counter,
    ):
        functional_call(model, state, inputs)
    return CostReport(layers, tuple(first.shape[1:]), counter.get_total_flops() // 2)  # a MAC counts as two operations


def _shape_of_one(size: int | tuple[int, ...]) -> tuple[int, ...]:
    """The shape of one input, without its batch dimension."""
    shape = tuple(size) if isinstance(size, Iterable) else (3, size, size)
    if not all(isinstance(n, Integral) and n > 0 for n in shape):
        raise ValueError(f"input_size must be a number of pixels from 1 up, or a tuple (C, H, W), got {size!r}")
    return shape


def image_size(model: nn.Module) -> tuple[int, ...]:
    """``(C, H, W)`` of the images that a network of timm's was made for; of others ImageNet's."""
    return tuple((getattr(model, "pretrained_cfg", None) or {}).get("input_size", (3, 224, 224)))


@contextmanager
def _record(model: nn.Module) -> Iterator[list[LayerCost]]:
    """Collect the cost of each layer when it is called. Parameters count once, however often their layer is called."""
    layers: list[LayerCost] = []
    waiting = {
        module: (name, sum(p.numel() for p in module.parameters(recurse=False)))
        for name, module in model.named_modules()
        if any(True for _ in module.parameters(recurse=False))
    }
    names = {module: name for module, (name, _) in waiting.items()}

    def record(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        params = waiting.pop(module, ("", 0))[1]
        x = next(iter((*args, *kwargs.values())), None)
        layers.append(_layer_cost(names[module], module, params, x, output))

    hooks = [module.register_forward_hook(record, with_kwargs=True) for module in names]
    try:
        yield layers
    finally:
        for hook in hooks:
            hook.remove()
    for module, (name, params) in waiting.items():
        layers.append(LayerCost(name, type(module).__name__, Cost(params), Cost(), Cost(params)))


def _layer_cost(name: str, module: nn.Module, params: int, x: Any, y: Any) -> LayerCost:
    kind = type(module).__name__
    if isinstance(module, OctConvNd):
        return _octconv_cost(name, module, params, as_octave(x), as_octave(y))
    if isinstance(module, (OctBatchNormNd, OctGroupNorm)):
        high = params * module.split.high // sum(module.split[:2])
        return LayerCost(name, kind, Cost(high), Cost(params - high), Cost(params))
    whole = Cost(params)
    if isinstance(module, _CONVS):
        whole = Cost(params, y.numel() * module.weight[0].numel(), _bytes(y))
    elif isinstance(module, _TRANSPOSED_CONVS):
        whole = Cost(params, x.numel() * module.weight[0].numel(), _bytes(y))
    elif isinstance(module, nn.Linear):
        whole = Cost(params, y.numel() * module.in_features, _bytes(y))
    return LayerCost(name, kind, whole, Cost(), whole)


def path_macs(spec: ConvSpec, size: Sizes, out_size: Sizes) -> dict[str, int]:
    """MACs of each path = output channels x input channels per group x kernel area x pixels that it convolves.

    The pixels are those of the output; those of the input if the convolution is transposed or precedes upsampling.

    Args:
        spec: the convolution.
        size, out_size: pixels of the high input and of the high output on each axis, even if they have no channels.
    """
    low = pooled_size(size, spec.factor)
    if spec.transposed:
        pixels = dict(hh=prod(size), hl=prod(low), lh=prod(low), ll=prod(low))
    elif spec.strides:
        made = prod(spec.at(size).convolved_low(low))
        pixels = dict(hh=prod(out_size), hl=made, lh=made, ll=made)
    else:
        out_low = prod(pooled_size(out_size, spec.factor))
        pixels = dict(hh=prod(out_size), hl=out_low, lh=prod(pooled_size(low, spec.remaining_stride)), ll=out_low)
    inputs, outputs, area = spec.inputs, spec.outputs, prod(spec.kernel_size)
    if spec.depthwise:
        return {"hh": outputs.high * area * pixels["hh"], "ll": outputs.low * area * pixels["ll"]}
    channels = dict(
        hh=outputs.high * inputs.high,
        hl=outputs.low * inputs.high,
        lh=outputs.high * inputs.low,
        ll=outputs.low * inputs.low,
    )
    return {path: product * area * pixels[path] // spec.groups for path, product in channels.items()}


def _octconv_cost(name: str, module: OctConvNd, params: int, x: Octave, y: Octave) -> LayerCost:
    spec, outputs = module.spec, module.spec.outputs
    size, out_size = spec.high_size(x), _out_size(spec, x, y)
    paths = path_macs(spec, size, out_size)
    high = Cost(params * outputs.high // sum(outputs[:2]), paths["hh"] + paths.get("lh", 0), _bytes(y.high))
    low = Cost(params - high.params, paths["ll"] + paths.get("hl", 0), _bytes(y.low))
    written = sum(outputs[:2]) * prod(out_size) * module.weight.element_size()
    dense = Cost(params, module.weight.numel() * prod(size if spec.transposed else out_size), written)
    return LayerCost(name, type(module).__name__, high, low, dense, paths)


def count_macs(module: OctConvNd, inputs: tuple[Any, ...], output: Any) -> None:
    """A forward hook that adds a layer's multiply-adds to what thop and ptflops keep in the module."""
    macs = _layer_cost("", module, 0, inputs[0], output).total.macs
    for name in ("total_ops", "__flops__"):  # thop's, ptflops's
        if hasattr(module, name):
            setattr(module, name, getattr(module, name) + macs)


# What counters that go by a layer's class need: thop.profile(..., custom_ops=MAC_HOOKS), and the custom_modules_hooks=
# of ptflops's "pytorch" backend. Its "aten" backend and PyTorch's FlopCounterMode need nothing.
MAC_HOOKS = dict.fromkeys(
    (
        *(OctConv1d, OctConv2d, OctConv3d, OctConvTranspose1d, OctConvTranspose2d, OctConvTranspose3d),
        *(PixelwiseOctLinear, StandardizedOctConv2d),
    ),
    count_macs,
)


def _out_size(spec: ConvSpec, x: Octave, y: Octave) -> Sizes:
    """Pixels of the dense twin's output on each axis."""
    if y.high is not None:
        return y.high.shape[2:]
    if spec.transposed or spec.strides:
        return spec.out_sizes(x)[0]
    return pooled_size(spec.high_size(x), spec.stride)


def _bytes(x: Tensor | None) -> int:
    return 0 if x is None else x.numel() * x.element_size()


def _sum(costs: Iterable[Cost]) -> Cost:
    total = Cost()
    for one in costs:
        total = total + one
    return total
