"""A lowered network run by PyTorch, an operation at a time: where the engine must not multiply infinity by zero.

The engine runs several groups of a convolution at once, with zeros for the weights between them. These leave a finite
number as it is, but make a NaN of an infinite one, or of a NaN, in groups that do not read it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from ..resolution import FACTORS, pool, upsample
from .ir import Finish, Layer, Lowered, Map, Padding, Pair, Ref, Sum, Term, Window, number

ACTIVATIONS: dict[str, Callable[[Tensor, float], Tensor]] = {  # of a map and `ir.Finish.low`
    "sigmoid": lambda x, low: torch.sigmoid(x),
    "hardswish": lambda x, low: F.hardswish(x),
    "hardsigmoid": lambda x, low: F.hardsigmoid(x),
    "silu": lambda x, low: F.silu(x),
    "leaky": F.leaky_relu,
    "elu": F.elu,
    "tanh": lambda x, low: torch.tanh(x),
    "gelu": lambda x, low: F.gelu(x),
    "gelu_tanh": lambda x, low: F.gelu(x, approximate="tanh"),
    "mish": lambda x, low: F.mish(x),
}


def mixes_groups(network: Lowered) -> bool:
    """Whether the engine has zeros between groups of a convolution."""
    sums = [layer.sum for layer in network.layers if layer.sum is not None]
    return any(term.groups > 1 and not term.depthwise for total in sums for term in (*total.terms, *total.coarse))


def run(network: Lowered, inputs: Sequence[Tensor], last: Sequence[bool], symbols: Mapping[Any, int]) -> list[Tensor]:
    """The outputs of a stretch, in float32.

    Args:
        network: its layers.
        inputs: their maps.
        last: see `Stretch`.
        symbols: the values of the symbols in the maps' sizes.
    """
    maps = {
        given: _as_map(x.float().movedim(-1, 1) if is_last else x.float())
        for given, x, is_last in zip(network.inputs, inputs, last)
    }
    for layer in network.layers:
        for target, made in _made(layer, maps, symbols):
            maps[target] = made
            if target.home is not None:
                _place(maps, target, made)
    outputs = []
    for refs, shape, is_last in zip(network.outputs, network.shapes, last[len(inputs) :]):
        y = torch.cat([_read(maps, ref) for ref in refs], 1)
        y = y.movedim(1, -1) if is_last else y
        outputs.append(y.reshape(len(y), *(number(size, symbols) for size in shape[1:])))
    return outputs


def _as_map(x: Tensor) -> Tensor:
    return x[(...,) + (None,) * (4 - x.dim())]


def _read(maps: Mapping[Map, Tensor], ref: Ref) -> Tensor:
    return maps[ref.map].narrow(1, ref.first, ref.channels)


def _place(maps: dict[Map, Tensor], target: Map, made: Tensor) -> None:
    """Copy a map to its place in the one that it is a part of."""
    assert target.home is not None
    if target.home not in maps:
        maps[target.home] = made.new_zeros(len(made), target.home.channels, *made.shape[2:])
    maps[target.home].narrow(1, target.offset, target.channels).copy_(made)


def _made(layer: Layer, maps: Mapping[Map, Tensor], symbols: Mapping[Any, int]) -> list[tuple[Map, Tensor]]:
    if layer.window is not None:
        (target,) = layer.targets
        size = number(target.size[0], symbols), number(target.size[1], symbols)
        return [(target, windowed(_read(maps, layer.window.source), layer.window, size))]
    assert layer.sum is not None
    total, found = _sum(layer.sum, maps, symbols), []
    for output in layer.outputs:
        y = _finished(total, output.finish)
        found += [(output.full, y)] if output.full is not None else []
        found += [(output.pooled, pool(y))] if output.pooled is not None else []
    return found


def _sum(total: Sum, maps: Mapping[Map, Tensor], symbols: Mapping[Any, int]) -> Tensor:
    size = number(total.size[0], symbols), number(total.size[1], symbols)

    def conv(term: Term) -> Tensor:
        return F.conv2d(_read(maps, term.source), term.weight.float(), None, *term[2:])

    def up(x: Tensor) -> Tensor:
        return upsample(x, FACTORS[2], size)

    parts = [conv(term) for term in total.terms] + [up(conv(term)) for term in total.coarse]
    for source, coarse, gate in total.addends:
        x = _read(maps, source)
        parts.append(up(x) if coarse else x if gate is None else x * _read(maps, gate))
    y = sum(parts[1:], parts[0])
    return y if total.bias is None else y + total.bias[:, None, None]


def _finished(y: Tensor, finish: Finish) -> Tensor:
    if finish.scale is not None and finish.shift is not None:
        y = y * finish.scale[:, None, None] + finish.shift[:, None, None]
    if finish.activation != "clamp":
        return ACTIVATIONS[finish.activation](y, finish.low)
    return y.clamp(finish.low, finish.high) if finish.activates else y


def windowed(x: Tensor, window: Window, size: Pair) -> Tensor:
    """A pooling or a padding; ``size`` is the height and width of the result."""
    if window.kind == "mean":
        return x.mean((2, 3), keepdim=True)
    if window.kind in get_args(Padding):
        (top, left), (height, width) = window.padding, x.shape[2:]
        beside = (left, size[1] - left - width, top, size[0] - top - height)
        return F.pad(x, beside, "constant" if window.kind == "zeros" else window.kind)
    shape = window.kernel, window.stride, window.padding
    rounded_down = tuple((n + 2 * p - k) // s + 1 for n, k, s, p in zip(x.shape[2:], *shape))
    if window.kind == "max":
        return F.max_pool2d(x, *shape, ceil_mode=rounded_down != size)
    return F.avg_pool2d(x, *shape, ceil_mode=rounded_down != size, count_include_pad=window.count_padding)
