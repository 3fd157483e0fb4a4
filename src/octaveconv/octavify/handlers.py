"""The table of what octavify does with each layer, function and method. `register_layer` adds layers to it."""

from __future__ import annotations

import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ..nn import OctBatchNorm1d, OctBatchNorm2d, OctBatchNorm3d
from ..nn.computed import computes_weight
from .layers import (
    COMPUTED,
    batch_norm,
    conv,
    conv_spec_of,
    conv_transpose,
    frozen_batch_norm,
    is_plain_conv,
    layer_norm,
    linear,
    linear_spec_of,
    oct_conv,
    oct_conv_transpose,
    oct_group_norm,
    oct_instance_norm,
    oct_layer_norm,
    oct_linear,
    oct_prelu,
    oct_response_norm,
    oct_standardized_conv,
    response_norm,
    sample_drop,
    sync_batch_norm,
)
from .operations import CUTS, cat, cut, flatten, item, join, mean, permute, read_shape, resize, same
from .padding import PADDED
from .roles import Handler

_BEHIND = ("drop", "act")  # what timm puts behind a norm in one layer


def _is_over_channels(norm: Any) -> bool:
    return len(norm.normalized_shape) == 1


def _is_followed_elementwise(norm: Any) -> bool:
    children = [child for child in (getattr(norm, name, None) for name in _BEHIND) if child is not None]
    return all(getattr(handler_of(child), "elementwise", False) for child in children)


def _is_batch_norm_and_activation(norm: Any) -> bool:
    return isinstance(norm, nn.BatchNorm2d) and _is_followed_elementwise(norm)


_ELEMENTWISE = Handler(same, elementwise=True, channels_last=True)
_CHANNEL_DROPOUT = Handler(same, elementwise=True)
_SAMPLE_DROPOUT = Handler(same, sample_drop)
_CONV = Handler(conv, oct_conv, conv_spec_of, fits=is_plain_conv)
_CONV_TRANSPOSE = Handler(conv_transpose, oct_conv_transpose, conv_spec_of)
_STANDARDIZED_CONV = Handler(conv, oct_standardized_conv, conv_spec_of, axes=2)
_GROUP_NORM = Handler(same, oct_group_norm)
_GROUP_NORM_AND_ACTIVATION = Handler(same, oct_group_norm, fits=_is_followed_elementwise, behind=_BEHIND)
_INSTANCE_NORM = Handler(same, oct_instance_norm, fits=lambda layer: not layer.track_running_stats)
_LAYER_NORM = Handler(layer_norm, oct_layer_norm, fits=_is_over_channels, channels_last=True)
_SLOPES = Handler(same, oct_prelu)
_POOL = Handler(same, fits=lambda layer: not getattr(layer, "return_indices", False))
_MEAN = Handler(mean)

# A layer is looked up by its type, then by its type's name in `NAMED`, then by the type it inherits `forward` from.
LAYERS: dict[type[nn.Module], Handler] = {
    nn.Conv1d: _CONV.on(1), nn.Conv2d: _CONV.on(2), nn.Conv3d: _CONV.on(3),
    **{kind: _CONV.on(axes) for axes, kind in enumerate(PADDED, 1)},
    nn.ConvTranspose1d: _CONV_TRANSPOSE.on(1), nn.ConvTranspose2d: _CONV_TRANSPOSE.on(2),
    nn.ConvTranspose3d: _CONV_TRANSPOSE.on(3),
    nn.Linear: Handler(linear, oct_linear, linear_spec_of, channels_last=True),
    nn.BatchNorm1d: Handler(same, batch_norm(OctBatchNorm1d), axes=1),
    nn.BatchNorm2d: Handler(same, batch_norm(OctBatchNorm2d), axes=2),
    nn.BatchNorm3d: Handler(same, batch_norm(OctBatchNorm3d), axes=3),
    nn.SyncBatchNorm: Handler(same, sync_batch_norm, axes=2),
    nn.InstanceNorm1d: _INSTANCE_NORM.on(1), nn.InstanceNorm2d: _INSTANCE_NORM.on(2),
    nn.InstanceNorm3d: _INSTANCE_NORM.on(3),
    nn.GroupNorm: _GROUP_NORM, nn.LayerNorm: _LAYER_NORM,
    nn.MaxPool1d: _POOL.on(1), nn.MaxPool2d: _POOL.on(2), nn.MaxPool3d: _POOL.on(3),
    nn.AvgPool1d: _POOL.on(1), nn.AvgPool2d: _POOL.on(2), nn.AvgPool3d: _POOL.on(3),
    nn.AdaptiveAvgPool1d: _MEAN.on(1), nn.AdaptiveAvgPool2d: _MEAN.on(2), nn.AdaptiveAvgPool3d: _MEAN.on(3),
    nn.AdaptiveMaxPool1d: _MEAN.on(1), nn.AdaptiveMaxPool2d: _MEAN.on(2), nn.AdaptiveMaxPool3d: _MEAN.on(3),
    nn.Upsample: Handler(resize),
    nn.Flatten: Handler(flatten, fits=lambda layer: layer.start_dim == 1),
    nn.Identity: _ELEMENTWISE, nn.Dropout: _ELEMENTWISE, nn.AlphaDropout: _ELEMENTWISE,
    nn.Dropout1d: _CHANNEL_DROPOUT, nn.Dropout2d: _CHANNEL_DROPOUT, nn.Dropout3d: _CHANNEL_DROPOUT,
    nn.FeatureAlphaDropout: _CHANNEL_DROPOUT,
    nn.PReLU: _ELEMENTWISE,
    nn.Threshold: _ELEMENTWISE, nn.ReLU: _ELEMENTWISE, nn.RReLU: _ELEMENTWISE, nn.Hardtanh: _ELEMENTWISE,
    nn.ReLU6: _ELEMENTWISE, nn.Sigmoid: _ELEMENTWISE, nn.Hardsigmoid: _ELEMENTWISE, nn.Tanh: _ELEMENTWISE,
    nn.SiLU: _ELEMENTWISE, nn.Mish: _ELEMENTWISE, nn.Hardswish: _ELEMENTWISE, nn.ELU: _ELEMENTWISE,
    nn.CELU: _ELEMENTWISE, nn.SELU: _ELEMENTWISE, nn.GELU: _ELEMENTWISE, nn.Hardshrink: _ELEMENTWISE,
    nn.LeakyReLU: _ELEMENTWISE, nn.LogSigmoid: _ELEMENTWISE, nn.Softplus: _ELEMENTWISE, nn.Softshrink: _ELEMENTWISE,
    nn.Softsign: _ELEMENTWISE, nn.Tanhshrink: _ELEMENTWISE,
}  # fmt: skip

# Types of packages that are not imported here, by name: where they are defined, and what to do.
NAMED: dict[str, tuple[str | tuple[str, ...], Handler]] = {
    **dict.fromkeys(
        ("StdConv2d", "StdConv2dSame", "ScaledStdConv2d", "ScaledStdConv2dSame"), ("timm.layers", _STANDARDIZED_CONV)
    ),
    "Conv2dSame": ("timm.layers", _CONV.on(2)),
    "GlobalResponseNorm": ("timm.layers", Handler(response_norm, oct_response_norm, axes=2, channels_last=True)),
    "BatchNormAct2d": (
        "", Handler(same, batch_norm(OctBatchNorm2d), axes=2, fits=_is_batch_norm_and_activation, behind=_BEHIND)
    ),
    "SyncBatchNormAct": (
        "timm.layers", Handler(same, sync_batch_norm, axes=2, fits=_is_followed_elementwise, behind=_BEHIND)
    ),
    "FrozenBatchNormAct2d": (
        "timm.layers", Handler(same, frozen_batch_norm, axes=2, fits=_is_followed_elementwise, behind=_BEHIND)
    ),
    **dict.fromkeys(
        ("GroupNorm", "GroupNorm1", "GroupNormAct", "GroupNorm1Act"), ("timm.layers", _GROUP_NORM_AND_ACTIVATION)
    ),
    "LayerNorm": ("timm.layers", _LAYER_NORM),
    "LayerNorm2d": (("timm.layers", "torchvision.models"), Handler(same, oct_layer_norm, fits=_is_over_channels)),
    **dict.fromkeys(("AvgPool2dSame", "MaxPool2dSame"), ("timm.layers", _POOL.on(2))),
    **dict.fromkeys(("DropPath", "StochasticDepth"), ("", _SAMPLE_DROPOUT)),  # of many packages
    "PReLU": ("timm.layers.activations", LAYERS[nn.PReLU]),
    **dict.fromkeys(
        (
            "Swish", "Mish", "Sigmoid", "Tanh", "HardSwish", "HardSigmoid", "HardMish", "GELU", "GELUTanh", "QuickGELU",
            "SwishMe", "MishMe", "HardSwishMe", "HardSigmoidMe", "HardMishMe",
        ),
        ("timm.layers.activations", _ELEMENTWISE),
    ),
}  # fmt: skip

# Functions by themselves, methods by name. Given maps of fewer axes, a pooling takes the channels for an axis.
FUNCTIONS: dict[Any, Handler] = {
    **dict.fromkeys(
        (
            F.relu, F.relu6, F.leaky_relu, F.elu, F.selu, F.celu, F.gelu, F.silu, F.mish, F.softplus, F.hardswish,
            F.hardsigmoid, F.hardtanh, F.logsigmoid, F.dropout, F.alpha_dropout,
            torch.relu, torch.sigmoid, F.sigmoid, torch.tanh, F.tanh, torch.clamp, torch.abs, torch.neg, torch.square,
            operator.neg,
            "relu", "relu_", "sigmoid", "sigmoid_", "tanh", "tanh_", "clamp", "clamp_", "contiguous", "clone", "detach",
            "abs", "neg", "square", "float", "half", "bfloat16",
        ),
        _ELEMENTWISE,
    ),
    **dict.fromkeys((F.dropout1d, F.dropout2d, F.dropout3d), _CHANNEL_DROPOUT),
    **dict.fromkeys((F.max_pool1d, F.avg_pool1d, torch.max_pool1d), Handler(same, axes=1)),
    **dict.fromkeys((F.max_pool2d, F.avg_pool2d, torch.max_pool2d), Handler(same, axes=2)),
    **dict.fromkeys((F.max_pool3d, F.avg_pool3d, torch.max_pool3d), Handler(same, axes=3)),
    **dict.fromkeys((F.adaptive_avg_pool1d, F.adaptive_max_pool1d), _MEAN.on(1)),
    **dict.fromkeys((F.adaptive_avg_pool2d, F.adaptive_max_pool2d), _MEAN.on(2)),
    **dict.fromkeys((F.adaptive_avg_pool3d, F.adaptive_max_pool3d), _MEAN.on(3)),
    **dict.fromkeys((torch.mean, "mean"), _MEAN),
    **dict.fromkeys((torch.flatten, "flatten"), Handler(flatten)),
    **dict.fromkeys((torch.permute, "permute"), Handler(permute)),
    **dict.fromkeys((getattr, "size"), Handler(read_shape)),
    **dict.fromkeys((torch.cat, torch.concat), Handler(cat)),
    **dict.fromkeys(CUTS, Handler(cut)),
    **dict.fromkeys(
        (
            operator.add, operator.iadd, operator.sub, operator.isub, operator.mul, operator.imul, operator.truediv,
            operator.itruediv, torch.add, torch.sub, torch.mul, torch.div, torch.maximum, torch.minimum,
            "add", "add_", "sub", "sub_", "mul", "mul_", "div", "div_",
        ),
        Handler(join),
    ),
    operator.getitem: Handler(item),
    F.interpolate: Handler(resize),
}  # fmt: skip

REGISTERED: dict[type[nn.Module], Handler] = {}  # by `register_layer`: these types alone, not what inherits from them


def handler_of(layer: Any) -> Handler | None:
    """What octavify does with a layer; None if that is nothing."""
    kind = type(layer)
    if kind in REGISTERED:
        return REGISTERED[kind]
    found = LAYERS.get(kind) or _by_name(kind) or _by_inheritance(kind)
    if isinstance(layer, nn.PReLU) and layer.num_parameters > 1:
        found = _SLOPES
    if found is None or not found.fits(layer):
        return None
    return found if found.make in COMPUTED or not computes_weight(layer) else None


def _by_name(kind: type) -> Handler | None:
    packages, handler = NAMED.get(kind.__name__, ((), None))
    return handler if kind.__module__.startswith(packages) else None


def _by_inheritance(kind: Any) -> Handler | None:
    parents = (parent for parent in kind.__mro__[1:] if parent in LAYERS)
    return next((LAYERS[parent] for parent in parents if kind.forward is parent.forward), None)
