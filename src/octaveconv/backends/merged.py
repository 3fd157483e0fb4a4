"""Fewer, larger convolutions: the paths that share an input size become one.

At stride 1 three convolutions: ``hh``, ``lh``, and ONE for the low output, which sees ``pool(high)`` and ``low`` side
by side. At stride 2 two: everything is first brought to half size, where all channels stand side by side.
"""

import torch
from torch import Tensor

from .. import reference
from ..octave import OCTAVE, ChannelSplit, Octave, pool
from ..spec import ConvSpec


def octconv(x: Octave, weight: Tensor, bias: Tensor | None, spec: ConvSpec) -> Octave:
    """The same map as `reference.octconv`; see there for shapes."""
    if spec.depthwise:  # two separate convolutions already
        return reference.octconv(x, weight, bias, spec)
    weight_high, weight_low = spec.outputs.split(_high_columns_first(weight, spec))
    bias_high, bias_low = (None, None) if bias is None else spec.outputs.split(bias)
    high = None if x.high is None else pool(x.high, spec.stride)

    if spec.stride == OCTAVE:
        joined = _side_by_side(high, x.low, spec)  # [N, C, ceil(H/2), ceil(W/2)]
        out_high = spec.conv(joined, weight_high, bias_high) if spec.outputs.high else None
        return Octave(out_high, spec.conv(pool(joined), weight_low, bias_low) if spec.outputs.low else None)

    out_high = _high_output(high, x.low, weight_high, bias_high, spec) if spec.outputs.high else None
    if not spec.outputs.low:
        return Octave(out_high, None)
    low = None if x.low is None else pool(x.low, spec.stride)
    joined = _side_by_side(None if high is None else pool(high), low, spec)  # [N, C, ceil(H/2), ceil(W/2)]
    return Octave(out_high, spec.conv(joined, weight_low, bias_low))


def _high_output(
    high: Tensor | None, low: Tensor | None, weight_high: Tensor, bias: Tensor | None, spec: ConvSpec
) -> Tensor:
    """``conv(high, hh) + upsample(conv(low, lh))``; ``high`` is already pooled by the stride."""
    hh, lh = ChannelSplit(spec.inputs.high // spec.groups, spec.inputs.low // spec.groups).split(weight_high, 1)
    if high is None:
        assert low is not None
        return spec.grow(spec.conv(low, lh, bias), None)
    out = spec.conv(high, hh, bias)
    return out if low is None else out + spec.grow(spec.conv(low, lh), high)


def _side_by_side(high: Tensor | None, low: Tensor | None, spec: ConvSpec) -> Tensor:
    """All input channels in one tensor: high first, inside each group of the convolution."""
    return ChannelSplit(spec.inputs.high, spec.inputs.low, spec.groups).join(high, low, 1)


def _high_columns_first(weight: Tensor, spec: ConvSpec) -> Tensor:
    """Reorder the input channels of an ungrouped weight that are cut in groups or pieces."""
    if spec.groups == 1 and not spec.inputs.contiguous:
        return torch.cat(spec.inputs.split(weight, 1), 1)
    return weight
