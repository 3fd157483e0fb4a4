"""The octave layer that takes the place of a dense one, with the same parameters."""

from __future__ import annotations

from torch import nn

from ..nn import (
    OctBatchNorm1d,
    OctBatchNorm2d,
    OctBatchNorm3d,
    OctConv1d,
    OctConv2d,
    OctConv3d,
    OctConvTranspose2d,
    OctGroupNorm,
    OctLayerNorm,
    PixelwiseOctLinear,
    StandardizedOctConv2d,
)
from ..nn.conv import OctConvNd
from ..octave import ChannelSplit
from ..spec import ConvSpec, conv_spec
from .operations import ANY_CONV, CONVS, INSTANCE_NORMS, NORMS, is_standardized


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
