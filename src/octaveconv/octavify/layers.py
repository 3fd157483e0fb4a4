"""Of each kind of layers: the step of a call, and the octave layer, with the same parameters, that replaces one."""

from __future__ import annotations

from typing import Any

from torch import fx, nn
from torch.nn.modules.conv import _ConvNd

from ..nn import (
    FrozenOctBatchNorm2d,
    OctBatchNorm2d,
    OctConv1d,
    OctConv2d,
    OctConv3d,
    OctConvTranspose1d,
    OctConvTranspose2d,
    OctConvTranspose3d,
    OctGlobalResponseNorm,
    OctGroupNorm,
    OctLayerNorm,
    OctPReLU,
    PixelwiseOctLinear,
    SampleDrop,
    StandardizedOctConv2d,
)
from ..nn.computed import compute_like, parameter_names
from ..nn.conv import OctConvNd
from ..octave import ChannelSplit
from ..resolution import FACTORS, pooled_size
from ..spec import ConvSpec, conv_spec
from .maps import CONVS, is_channels_last, shape_of
from .operations import same
from .roles import Make, Role, Step


def conv(node: fx.Node, layer: Any) -> Step | None:
    """A convolution; a depthwise one keeps each channel to itself."""
    return _conv_step(node, layer, _conv_refusal(layer))


def conv_transpose(node: fx.Node, layer: Any) -> Step | None:
    """A transposed convolution."""
    return _conv_step(node, layer, _transposed_refusal(layer))


def _conv_step(node: fx.Node, layer: Any, refusal: str) -> Step:
    refusal = refusal or _border_refusal(layer, shape_of(node.args[0]))
    is_depthwise = layer.groups > 1 and layer.groups == layer.in_channels == layer.out_channels
    return Step(Role.SAME if is_depthwise else Role.CONV, (node.args[0],), refusal)  # type: ignore[arg-type]


def _conv_refusal(layer: Any) -> str:
    if is_aligned(layer):
        return ""
    given = f"padding {_padding_of(layer)} with kernel {layer.kernel_size} and stride {layer.stride}"
    return f"{given} shifts high and low maps against each other"


def is_aligned(layer: Any) -> bool:
    """Whether an octave convolution with the layer's kernel, stride and padding keeps both maps beside each other."""
    return conv_spec_of(layer, 0.0, 0.0).aligned


def _padding_of(layer: Any) -> Any:
    """Pixels for each axis, or before and after it; ``"same"`` where they depend on the input's size."""
    if pads_same(layer) and max(layer.stride) > 1 and not pools_strides(layer):
        return "same"
    if pads_same(layer):
        spans = [d * (k - 1) for d, k in zip(layer.dilation, layer.kernel_size)]
        return tuple((span // 2, span - span // 2) for span in spans)
    return getattr(layer, "pairs", layer.padding)


def pads_same(layer: Any) -> bool:
    """Whether it is one of timm's convolutions that pad as TensorFlow does: to the input's size over the stride."""
    return type(layer).__name__ == "Conv2dSame" or bool(getattr(layer, "same_pad", False))


def pool_strides(model: nn.Module) -> None:
    """Let the octave forms of a network's convolutions pool where these stride by 2."""
    for layer in model.modules():
        if isinstance(layer, _ConvNd) and not isinstance(layer, OctConvNd):
            layer.pool_strides = True  # type: ignore[assignment]  # see `pools_strides`


def pools_strides(layer: Any) -> bool:
    """Whether a stride of 2 is to pool, as in the paper, rather than to stride, as the weights have learned."""
    return bool(getattr(layer, "pool_strides", False))


def _padding_mode_of(layer: Any) -> str:
    mode = getattr(layer, "mode", "constant")
    return str(layer.padding_mode if mode == "constant" else mode)


def _border_refusal(layer: Any, shape: Any) -> str:
    """What is reflected or goes round at a border must be in the low map, too."""
    mode = _padding_mode_of(layer)
    if mode not in ("reflect", "circular") or shape is None:
        return ""
    spec = conv_spec_of(layer, 0.0, 0.0)
    smallest = pooled_size(pooled_size(shape[2:], spec.pooling), FACTORS[len(spec.kernel_size)])
    fits = all(max(sides) < size + (mode == "circular") for sides, size in zip(spec.sides, smallest))
    return "" if fits else f"padding_mode={mode!r}: the low map would be smaller than the padding"


def _transposed_refusal(layer: Any) -> str:
    given = f"padding {layer.padding} with kernel {layer.kernel_size}"
    low = ChannelSplit(0, layer.in_channels), ChannelSplit(0, layer.out_channels)
    try:
        conv_spec_of(layer, *low)
    except ValueError:
        return f"{given} does not enlarge the map by the stride"
    return ""


def conv_spec_of(layer: Any, inputs: float | ChannelSplit, outputs: float | ChannelSplit) -> ConvSpec:
    """What `oct_conv` of a convolution would be asked to do; ValueError if it has no octave form."""
    return conv_spec(
        len(layer.kernel_size),
        layer.in_channels,
        layer.out_channels,
        layer.kernel_size,
        layer.stride,
        _padding_of(layer),
        layer.dilation,
        layer.groups,
        _padding_mode_of(layer),
        inputs,
        outputs,
        None,
        None,
        None,
        layer.output_padding if layer.transposed else None,
        pools_strides(layer),
    )


def is_plain_conv(layer: Any) -> bool:
    """Whether it computes what PyTorch's convolution does, from the same parameters, which may be computed ones."""
    kind: Any = CONVS[len(layer.kernel_size) - 1]
    return type(layer)._conv_forward is kind._conv_forward and parameter_names(layer) == {"weight", "bias"}


def oct_conv(layer: Any, inputs: ChannelSplit, outputs: ChannelSplit) -> nn.Module:
    """Of ``nn.Conv1d``, ``nn.Conv2d``, ``nn.Conv3d``."""
    return _conv_like((OctConv1d, OctConv2d, OctConv3d)[len(layer.kernel_size) - 1], layer, inputs, outputs)


def oct_standardized_conv(layer: Any, inputs: ChannelSplit, outputs: ChannelSplit) -> nn.Module:
    """Of timm's ``StdConv2d`` and ``ScaledStdConv2d``."""
    made: Any = _conv_like(StandardizedOctConv2d, layer, inputs, outputs)
    made.eps, made.scale = layer.eps, getattr(layer, "scale", 1.0)
    return made  # type: ignore[no-any-return]


def _conv_like(kind: Any, layer: Any, inputs: ChannelSplit, outputs: ChannelSplit) -> nn.Module:
    made = kind(
        layer.in_channels,
        layer.out_channels,
        layer.kernel_size,
        layer.stride,
        _padding_of(layer),
        layer.dilation,
        layer.groups,
        layer.bias is not None,
        _padding_mode_of(layer),
        device="meta",
        alpha_in=inputs,
        alpha_out=outputs,
        pool_strides=pools_strides(layer),
    )
    return with_state(made, layer)


def oct_conv_transpose(layer: Any, inputs: ChannelSplit, outputs: ChannelSplit) -> nn.Module:
    """Of ``nn.ConvTranspose1d``, ``nn.ConvTranspose2d``, ``nn.ConvTranspose3d``."""
    kind: Any = (OctConvTranspose1d, OctConvTranspose2d, OctConvTranspose3d)[len(layer.kernel_size) - 1]
    made = kind(
        layer.in_channels,
        layer.out_channels,
        layer.kernel_size,
        layer.stride,
        layer.padding,
        layer.output_padding,
        layer.groups,
        layer.bias is not None,
        layer.dilation,
        device="meta",
        alpha_in=inputs,
        alpha_out=outputs,
    )
    return with_state(made, layer)


def linear(node: fx.Node, layer: Any) -> Step | None:
    """Over the channels of each pixel, if they are in the last dimension, or over a vector."""
    x: Any = node.args[0]
    if is_channels_last(x):
        return Step(Role.CONV, (x,))
    return Step(Role.LINEAR, (x,)) if len(shape_of(x) or ()) == 2 else None


def linear_spec_of(layer: Any, inputs: ChannelSplit, outputs: ChannelSplit) -> ConvSpec:
    """What `oct_linear` would be asked to do."""
    return conv_spec(2, layer.in_features, layer.out_features, 1, 1, 0, 1, 1, "zeros", inputs, outputs, None, None)


def oct_linear(layer: Any, inputs: ChannelSplit, outputs: ChannelSplit) -> nn.Module:
    """Of ``nn.Linear`` over the channels of each pixel."""
    made = PixelwiseOctLinear(
        layer.in_features,
        layer.out_features,
        1,
        bias=layer.bias is not None,
        device="meta",
        alpha_in=inputs,
        alpha_out=outputs,
    )
    return with_state(made, layer)


FITTED = (oct_conv, oct_linear)  # what makes the layers whose weights a regression can choose
COMPUTED = (*FITTED, oct_conv_transpose)  # what makes layers whose weights may be computed


def batch_norm(kind: Any) -> Make:
    """What makes the octave layer ``kind`` of a batch normalization, PyTorch's or timm's with an activation."""

    def make(layer: Any, split: ChannelSplit, outputs: ChannelSplit) -> nn.Module:
        made = kind(
            layer.num_features,
            layer.eps,
            layer.momentum,
            layer.affine,
            layer.track_running_stats,
            device="meta",
            alpha=split,
        )
        return with_state(made, layer)

    return make


def sync_batch_norm(layer: Any, split: ChannelSplit, outputs: ChannelSplit) -> nn.Module:
    """Of ``nn.SyncBatchNorm`` of images, and timm's with an activation: processes go on to share their statistics."""
    made = batch_norm(OctBatchNorm2d)(layer, split, outputs)
    made.sync = nn.SyncBatchNorm(
        layer.num_features, affine=False, track_running_stats=False, process_group=layer.process_group
    )
    return made


def frozen_batch_norm(layer: Any, split: ChannelSplit, outputs: ChannelSplit) -> nn.Module:
    """Of timm's ``FrozenBatchNormAct2d``."""
    made = FrozenOctBatchNorm2d()
    made.split, made.eps = split, layer.eps
    return with_state(made, layer)


def oct_prelu(layer: Any, split: ChannelSplit, outputs: ChannelSplit) -> nn.Module:
    """Of ``nn.PReLU`` with a slope for each channel."""
    made = OctPReLU(layer.num_parameters, device="meta")
    made.split = split
    return with_state(made, layer)


def oct_group_norm(layer: Any, split: ChannelSplit, outputs: ChannelSplit) -> nn.Module:
    """Of ``nn.GroupNorm``, and timm's with an activation."""
    made = OctGroupNorm(layer.num_groups, layer.num_channels, layer.eps, layer.affine, device="meta", alpha=split)
    return with_state(made, layer)


def oct_instance_norm(layer: Any, split: ChannelSplit, outputs: ChannelSplit) -> nn.Module:
    """Of ``nn.InstanceNorm1d``, ``nn.InstanceNorm2d``, ``nn.InstanceNorm3d``: groups of one channel."""
    made = OctGroupNorm(layer.num_features, layer.num_features, layer.eps, layer.affine, device="meta", alpha=split)
    return with_state(made, layer)


def layer_norm(node: fx.Node, layer: Any) -> Step | None:
    """Over the last dimension: of maps only where the channels are there."""
    return same(node, layer) if is_channels_last(node) else None


def oct_layer_norm(layer: Any, split: ChannelSplit, outputs: ChannelSplit) -> nn.Module:
    """Of ``nn.LayerNorm`` over channels, timm's ``LayerNorm`` and ``LayerNorm2d``, and torchvision's."""
    made = OctLayerNorm(layer.normalized_shape, layer.eps, layer.elementwise_affine, device="meta")
    made.split = split
    return with_state(made, layer)


def response_norm(node: fx.Node, layer: Any) -> Step | None:
    """Over the channels, which are in the dimension that the layer takes them from."""
    return same(node, layer) if is_channels_last(node) == (layer.channel_dim == -1) else None


def oct_response_norm(layer: Any, split: ChannelSplit, outputs: ChannelSplit) -> nn.Module:
    """Of timm's ``GlobalResponseNorm``."""
    made = OctGlobalResponseNorm()
    made.split, made.eps = split, layer.eps
    return with_state(made, layer)


def sample_drop(layer: Any, split: ChannelSplit, outputs: ChannelSplit) -> nn.Module:
    """Of stochastic depth. A layer may be called several times, and is then replaced once."""
    return layer if isinstance(layer, SampleDrop) else SampleDrop(layer)


def with_state(made: nn.Module, layer: nn.Module) -> nn.Module:
    """Give the octave layer the parameters, buffers and children of the dense one, and how it computes its weight."""
    compute_like(made, layer)
    made._parameters, made._buffers = dict(layer._parameters), dict(layer._buffers)
    made._non_persistent_buffers_set = set(layer._non_persistent_buffers_set)
    for name, child in layer.named_children():
        made.add_module(name, child)
    return made
