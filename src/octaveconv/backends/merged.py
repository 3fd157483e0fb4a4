"""Fewer, larger convolutions: the paths that share an input size become one.

At stride 1 there are three convolutions: ``hh``, ``lh``, and ONE for the low output, which sees ``pool(high)`` and
``low`` side by side; likewise where the paths stride or are transposed. Where a stride of 2 pools there are two:
everything is first brought to half size, where all channels stand side by side.
"""

import torch
from torch import Tensor

from .. import reference
from ..octave import ChannelSplit, Octave
from ..resolution import pool, upsample
from ..spec import ConvSpec


def octconv(x: Octave, weight: Tensor, bias: Tensor | None, spec: ConvSpec) -> Octave:
    """The same map as `reference.octconv`; see there for shapes."""
    if spec.depthwise:  # two separate convolutions already
        return reference.octconv(x, weight, bias, spec)
    if spec.transposed or spec.strides:
        return _at_stride(x, weight, bias, spec)
    weight_high, weight_low = spec.outputs.split(_high_columns_first(weight, spec))
    bias_high, bias_low = spec.outputs.split_any(bias)
    high = None if x.high is None else pool(x.high, spec.stride)
    low = None if x.low is None else pool(x.low, spec.remaining_stride)

    if max(spec.growth) == 1:
        joined = _side_by_side(high, low, spec)  # [N, C, ceil(H/2), ceil(W/2)]
        out_high = spec.conv(joined, weight_high, bias_high) if spec.outputs.high else None
        out_low = spec.conv(pool(joined, spec.factor), weight_low, bias_low) if spec.outputs.low else None
        return Octave(out_high, out_low)

    out_high = _high_output(high, low, weight_high, bias_high, spec) if spec.outputs.high else None
    if not spec.outputs.low:
        return Octave(out_high, None)
    low = None if x.low is None else pool(x.low, spec.stride)
    joined = _side_by_side(None if high is None else pool(high, spec.factor), low, spec)  # [N, C, ceil(H/2), ceil(W/2)]
    return Octave(out_high, spec.conv(joined, weight_low, bias_low))


def _high_output(
    high: Tensor | None, low: Tensor | None, weight_high: Tensor, bias: Tensor | None, spec: ConvSpec
) -> Tensor:
    """``conv(high, hh) + upsample(conv(low, lh))``; both are already pooled by the stride."""
    hh, lh = ChannelSplit(spec.inputs.high // spec.groups, spec.inputs.low // spec.groups).split(weight_high, 1)
    if high is None:
        assert low is not None
        return spec.grow(spec.conv(low, lh, bias), None)
    out = spec.conv(high, hh, bias)
    return out if low is None else out + spec.grow(spec.conv(low, lh), high)


def _at_stride(x: Octave, weight: Tensor, bias: Tensor | None, spec: ConvSpec) -> Octave:
    hh, hl, lh, ll = spec.paths(weight)
    bias_high, bias_low = spec.outputs.split_any(bias)
    high_size, low_size = spec.out_sizes(x)
    out_high = out_low = None
    if x.high is not None and hh is not None:
        out_high = spec.conv(x.high, hh, bias_high)
    if x.low is not None and lh is not None:
        bias_once = bias_high if out_high is None else None
        up = upsample(spec.conv_low(x.low, lh, low_size, bias_once), spec.factor, high_size)
        out_high = up if out_high is None else out_high + up
    if spec.outputs.low:
        joined = _side_by_side(None if x.high is None else pool(x.high, spec.factor), x.low, spec)
        weight_low = _side_by_side(hl, ll, spec, dim=0) if spec.transposed else _columns(hl, ll)
        out_low = spec.conv_low(joined, weight_low, low_size, bias_low)
    return Octave(out_high, out_low)


def _columns(high: Tensor | None, low: Tensor | None) -> Tensor:
    """The weights of high and of low input channels, those of one group if there are groups."""
    return torch.cat([weight for weight in (high, low) if weight is not None], 1)


def _side_by_side(high: Tensor | None, low: Tensor | None, spec: ConvSpec, dim: int = 1) -> Tensor:
    """All input channels in one tensor: high first, inside each group of the convolution."""
    return ChannelSplit(spec.inputs.high, spec.inputs.low, spec.groups).join(high, low, dim)


def _high_columns_first(weight: Tensor, spec: ConvSpec) -> Tensor:
    """Reorder the input channels of an ungrouped weight if they are cut in groups or pieces."""
    return spec.inputs.high_first(weight, 1) if spec.groups == 1 else weight
