"""The octave layers that stand in for plain ones, with their very parameters."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from .. import functional
from ..nn import (
    OctBatchNorm1d,
    OctBatchNorm2d,
    OctBatchNorm3d,
    OctConv1d,
    OctConv2d,
    OctConv3d,
    OctConvTranspose2d,
    OctGroupNorm,
)
from ..nn.conv import OctConvNd
from ..octave import ChannelSplit, Octave
from ._maps import ANY_CONV, INSTANCE_NORMS, NORMS, is_standardized


def oct_conv(conv: nn.Module, inputs: ChannelSplit, outputs: ChannelSplit) -> OctConvNd:
    """The octave convolution with the very parameters of a plain one."""
    assert isinstance(conv, ANY_CONV)
    made: OctConvNd
    if isinstance(conv, nn.ConvTranspose2d):
        made = OctConvTranspose2d(
            conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, conv.padding, conv.output_padding,  # type: ignore[arg-type]
            conv.groups, conv.bias is not None, conv.dilation, device="meta", alpha_in=inputs, alpha_out=outputs,
        )  # fmt: skip
    else:
        kinds = OctConv1d, StandardizedOctConv2d if is_standardized(conv) else OctConv2d, OctConv3d
        made = kinds[len(conv.kernel_size) - 1](
            conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, conv.padding, conv.dilation,  # type: ignore[arg-type]
            conv.groups, conv.bias is not None, conv.padding_mode, device="meta", alpha_in=inputs, alpha_out=outputs,
        )  # fmt: skip
    made._parameters = dict(conv._parameters)
    if isinstance(made, StandardizedOctConv2d):
        made.eps, made.scale = conv.eps, getattr(conv, "scale", 1.0)  # type: ignore[assignment]
    return made


def oct_norm(norm: nn.Module, split: ChannelSplit) -> nn.Module:
    """The octave norm with the very parameters and statistics of a plain one, and with what timm puts behind it."""
    made: nn.Module
    if isinstance(norm, nn.GroupNorm):
        made = OctGroupNorm(norm.num_groups, norm.num_channels, norm.eps, norm.affine, device="meta", alpha=split)
    elif isinstance(norm, INSTANCE_NORMS):
        made = OctGroupNorm(norm.num_features, norm.num_features, norm.eps, norm.affine, device="meta", alpha=split)
    else:
        assert isinstance(norm, NORMS)
        axes = next(axes for axes, kind in enumerate(NORMS) if isinstance(norm, kind))
        made = (OctBatchNorm1d, OctBatchNorm2d, OctBatchNorm3d)[axes](
            norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats, device="meta",
            alpha=split,
        )  # fmt: skip
    made._parameters, made._buffers = norm._parameters, norm._buffers
    for name, child in norm.named_children():
        made.add_module(name, child)
    return made


class StandardizedOctConv2d(OctConv2d):
    """timm's convolution, by weights that have mean 0 and variance 1 for each output channel, then perhaps a gain."""

    eps: float
    scale: float

    def forward(self, x: Tensor | Octave) -> Octave:  # type: ignore[override]
        gain = self._parameters.get("gain")
        scale = None if gain is None else (gain * self.scale).flatten()
        rows = self.weight.flatten(1)[None]
        weight = F.batch_norm(rows, None, None, scale, None, True, 0.0, self.eps).view_as(self.weight)
        return functional.run(x, weight, self.bias, self.spec)


class SampleDrop(nn.Module):
    """A module that drops whole samples (stochastic depth), dropping both parts of an octave or neither."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Octave) -> Octave:
        if not self.training:
            return x
        assert x.high is not None
        assert x.low is not None
        mask = self.module(x.high.new_ones(len(x.high), *[1] * (x.high.dim() - 1)))
        return Octave(x.high * mask, x.low * mask)
