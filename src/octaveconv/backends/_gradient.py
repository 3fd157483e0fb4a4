"""The gradient of an octave convolution, path by path, with PyTorch's own convolutions."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..octave import Octave
from ..resolution import Sizes, pool
from ..spec import ConvSpec, Paths

Gradients = tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]


def gradient(
    x: Octave, weight: Tensor, grad_high: Tensor, grad_low: Tensor, spec: ConvSpec, needed: tuple[bool, ...]
) -> Gradients:
    """The gradients of the high input, the low input, the weight and the bias, each only if it is ``needed``.

    ``grad_high`` and ``grad_low`` have no channels where there is no output. Pooled maps are computed again, so that
    only ``x`` and ``weight`` have to be kept from the forward pass.
    """
    need_high, need_low, need_weight, need_bias = needed
    high, low = x
    halved = _pool(high, spec.stride)  # [N, C_high, ceil(H / stride), ceil(W / stride)]
    hh, hl, lh, ll = spec.paths(weight)

    def path(grad: Tensor, part: Tensor | None, block: Tensor | None, need: bool) -> tuple[Tensor | None, ...]:
        if part is None or block is None:
            return None, None
        groups = block.shape[0] if spec.depthwise else spec.groups
        conv = [1, 1], spec.padding, spec.dilation, False, [0, 0], groups
        gradients = torch.ops.aten.convolution_backward(grad, part, block, None, *conv, [need, need_weight, False])
        return gradients[0], gradients[1]

    high_hh, weight_hh = path(grad_high, halved, hh, need_high)
    high_hl, weight_hl = path(grad_low, _pool(halved, spec.factor), hl, need_high)
    low_lh, weight_lh = path(_sum_blocks(grad_high, spec.growth), low, lh, need_low)
    low_ll, weight_ll = path(grad_low, _pool(low, spec.stride), ll, need_low)
    return (
        _unpool(_sum(high_hh, _unpool(high_hl, halved, spec.factor)), high, spec.stride),
        _sum(low_lh, _unpool(low_ll, low, spec.stride)),
        spec.join_paths(Paths(weight_hh, weight_hl, weight_lh, weight_ll)) if need_weight else None,
        spec.outputs.join(grad_high.sum((0, 2, 3)), grad_low.sum((0, 2, 3))) if need_bias else None,
    )


def _pool(x: Tensor | None, factor: Sizes) -> Tensor | None:
    return None if x is None else pool(x, factor)


def _unpool(grad: Tensor | None, x: Tensor | None, factor: Sizes) -> Tensor | None:
    """The gradient of ``pool(x, factor)``."""
    if grad is None or x is None or factor == (1, 1):
        return grad
    unpooled: Tensor = torch.ops.aten.avg_pool2d_backward(grad, x, factor, factor, [0, 0], True, False, None)
    return unpooled


def _sum_blocks(grad: Tensor, factor: Sizes) -> Tensor:
    """The gradient of the growth by ``factor``: the sum over the block that a low pixel became."""
    if max(factor) == 1 or not grad.shape[1]:
        return grad
    return F.avg_pool2d(grad, factor, factor, ceil_mode=True, count_include_pad=False, divisor_override=1)


def _sum(first: Tensor | None, second: Tensor | None) -> Tensor | None:
    return second if first is None else first if second is None else first + second
