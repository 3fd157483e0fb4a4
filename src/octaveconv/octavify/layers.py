"""The octave layers that stand in for plain ones, with their very parameters."""

from __future__ import annotations

import torch
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
from ..nn.norm import moments
from ..octave import ChannelSplit, Octave
from ..resolution import pool, upsample
from ..spec import ConvSpec, conv_spec
from ._operations import ANY_CONV, CONVS, INSTANCE_NORMS, NORMS, is_standardized


def spec_of(conv: nn.Module, alpha_in: float | ChannelSplit, alpha_out: float | ChannelSplit) -> ConvSpec:
    """What `oct_conv` of a plain convolution would be asked to do; ValueError if two frequencies cannot."""
    if isinstance(conv, nn.Linear):
        return conv_spec(
            2, conv.in_features, conv.out_features, 1, 1, 0, 1, 1, "zeros", alpha_in, alpha_out, None, None
        )
    assert isinstance(conv, ANY_CONV)
    return conv_spec(
        len(conv.kernel_size), conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, conv.padding,  # type: ignore[arg-type]
        conv.dilation, conv.groups, conv.padding_mode, alpha_in, alpha_out, None, None, None,
        conv.output_padding if conv.transposed else None,  # type: ignore[arg-type]
    )  # fmt: skip


def oct_conv(conv: nn.Module, inputs: ChannelSplit, outputs: ChannelSplit) -> OctConvNd:
    """The octave convolution with the very parameters of a plain one."""
    made: OctConvNd
    if isinstance(conv, nn.Linear):
        made = PixelwiseOctLinear(
            conv.in_features, conv.out_features, 1, bias=conv.bias is not None, device="meta", alpha_in=inputs,
            alpha_out=outputs,
        )  # fmt: skip
    elif isinstance(conv, nn.ConvTranspose2d):
        made = OctConvTranspose2d(
            conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, conv.padding, conv.output_padding,  # type: ignore[arg-type]
            conv.groups, conv.bias is not None, conv.dilation, device="meta", alpha_in=inputs, alpha_out=outputs,
        )  # fmt: skip
    else:
        assert isinstance(conv, CONVS)
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
    elif isinstance(norm, nn.LayerNorm):
        made = OctLayerNorm(norm.normalized_shape, norm.eps, norm.elementwise_affine, device="meta")
        made.split = split  # type: ignore[assignment]
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


class PixelwiseOctLinear(OctConv2d):
    """``nn.Linear`` over the channels of each pixel, on octaves: a 1x1 convolution whose weight is ``[out, in]``."""

    def forward(self, x: Tensor | Octave) -> Octave:  # type: ignore[override]
        return functional.run(x, self.weight[..., None, None], self.bias, self.spec)


class OctLayerNorm(nn.LayerNorm):
    """Layer normalisation over the channels of each pixel. A low one takes the statistics of those it stands for."""

    split: ChannelSplit

    def forward(self, x: Octave) -> Octave:  # type: ignore[override]
        assert x.high is not None
        assert x.low is not None
        high, low = moments(x.high, 1), [upsample(map_, (2, 2), x.high.shape[2:]) for map_ in moments(x.low, 1)]
        share = self.split.alpha
        mean = torch.lerp(high[0], low[0], share)
        var = torch.lerp(high[1] + (high[0] - mean).square(), low[1] + (low[0] - mean).square(), share)
        parameters = [self.split.split_any(parameter) for parameter in (self.weight, self.bias)]
        return Octave(
            self._normalise(x.high, mean, var, *(of_high for of_high, _ in parameters)),
            self._normalise(x.low, pool(mean), pool(var), *(of_low for _, of_low in parameters)),
        )

    def _normalise(self, x: Tensor, mean: Tensor, var: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        y = (x - mean) * (var + self.eps).rsqrt()
        if weight is not None:
            y = y * weight[:, None, None]
        return (y if bias is None else y + bias[:, None, None]).to(x.dtype)


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
