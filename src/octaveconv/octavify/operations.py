"""The layers and operations that octavify knows."""

from __future__ import annotations

import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)  # of one, two and three axes
ANY_CONV = (*CONVS, nn.ConvTranspose2d)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
TO_CHANNELS_LAST, FROM_CHANNELS_LAST = (0, 2, 3, 1), (0, 3, 1, 2)  # permutations
INSTANCE_NORMS = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
CUTS = {torch.chunk, torch.split, "chunk", "split"}  # into pieces, along a dimension
DROPPED_BY_SAMPLE = ("DropPath", "StochasticDepth")  # of timm, torchvision and many others: whole, or not at all
CHANNEL_DROPOUTS = {F.dropout1d, F.dropout2d, F.dropout3d}
BY_PIXEL = CHANNEL_DROPOUTS | {
    F.relu, F.relu6, F.leaky_relu, F.elu, F.selu, F.celu, F.gelu, F.silu, F.mish, F.softplus, F.hardswish,
    F.hardsigmoid, F.hardtanh, F.logsigmoid, F.dropout, F.alpha_dropout,
    torch.relu, torch.sigmoid, F.sigmoid, torch.tanh, F.tanh, torch.clamp, torch.abs, torch.neg, torch.square,
    operator.neg,
}  # fmt: skip
METHODS_BY_PIXEL = {
    "relu", "relu_", "sigmoid", "sigmoid_", "tanh", "tanh_", "clamp", "clamp_", "contiguous", "clone", "detach",
    "abs", "neg", "square", "float", "half", "bfloat16",
}  # fmt: skip
# Of one, two and three axes: given maps of fewer, a pooling takes the channels for an axis.
POOLS = (
    {F.max_pool1d, F.avg_pool1d, torch.max_pool1d},
    {F.max_pool2d, F.avg_pool2d, torch.max_pool2d},
    {F.max_pool3d, F.avg_pool3d, torch.max_pool3d},
)
POOL_LAYERS = ((nn.MaxPool1d, nn.AvgPool1d), (nn.MaxPool2d, nn.AvgPool2d), (nn.MaxPool3d, nn.AvgPool3d))
GLOBAL_POOLS = (
    (F.adaptive_avg_pool1d, F.adaptive_max_pool1d),
    (F.adaptive_avg_pool2d, F.adaptive_max_pool2d),
    (F.adaptive_avg_pool3d, F.adaptive_max_pool3d),
)
GLOBAL_POOL_LAYERS = (
    (nn.AdaptiveAvgPool1d, nn.AdaptiveMaxPool1d),
    (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d),
    (nn.AdaptiveAvgPool3d, nn.AdaptiveMaxPool3d),
)
JOINS = {
    operator.add, operator.iadd, operator.sub, operator.isub, operator.mul, operator.imul, operator.truediv,
    operator.itruediv, torch.add, torch.sub, torch.mul, torch.div, torch.maximum, torch.minimum,
}  # fmt: skip
JOIN_METHODS = {"add", "add_", "sub", "sub_", "mul", "mul_", "div", "div_"}
CHANNEL_DROPOUT_LAYERS = (nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.FeatureAlphaDropout)
_SINGLE_LAYERS = (nn.Identity, nn.Dropout, nn.AlphaDropout, *CHANNEL_DROPOUT_LAYERS)
_NOT_BY_PIXEL = (nn.Softmax, nn.Softmax2d, nn.LogSoftmax, nn.Softmin, nn.MultiheadAttention, nn.GLU)
_ACTIVATIONS = ("torch.nn.modules.activation", "timm.layers.activations")


def is_norm(module: nn.Module, axes: int) -> bool:
    """PyTorch's normalisation of maps of so many axes, or timm's, some of which have an activation behind it."""
    if type(module) in (NORMS[axes - 1], nn.GroupNorm):
        return True
    if type(module) is INSTANCE_NORMS[axes - 1]:
        return not module.track_running_stats
    is_batch_norm = type(module).__name__ == "BatchNormAct2d" and isinstance(module, NORMS[axes - 1])
    behind = [child for child in (getattr(module, name, None) for name in ("drop", "act")) if child is not None]
    return (is_batch_norm or is_group_norm(module)) and all(map(is_by_pixel, behind))


def is_by_pixel(module: Any) -> bool:
    """Whether it treats each number by itself."""
    if isinstance(module, nn.PReLU):
        return module.num_parameters == 1
    known = isinstance(module, _SINGLE_LAYERS) or type(module).__module__.startswith(_ACTIVATIONS)
    return known and not isinstance(module, _NOT_BY_PIXEL)


def is_plain_conv(module: nn.Module) -> bool:
    """Whether it is PyTorch's convolution, a subclass that only builds it otherwise, or one of standardised weights."""
    if is_standardized(module):
        return True
    kind = next((kind for kind in CONVS if isinstance(module, kind)), None)
    return (
        kind is not None and type(module).forward is kind.forward
        and type(module)._conv_forward is kind._conv_forward  # type: ignore[attr-defined]
        and module._parameters.keys() == {"weight", "bias"}  # else it is parametrized
    )  # fmt: skip


def is_standardized(module: nn.Module) -> bool:
    """Whether it is timm's convolution by standardised weights, with the same padding on both sides."""
    names = ("StdConv2d", "StdConv2dSame", "ScaledStdConv2d", "ScaledStdConv2dSame")
    return _is_one_of(module, "timm.layers", *names) and not getattr(module, "same_pad", False)


def is_group_norm(module: nn.Module) -> bool:
    """PyTorch's group normalisation, or timm's, some of which have an activation behind it."""
    names = ("GroupNorm", "GroupNorm1", "GroupNormAct", "GroupNorm1Act")
    return type(module) is nn.GroupNorm or _is_one_of(module, "timm.layers", *names)


def is_layer_norm(module: nn.Module) -> bool:
    """PyTorch's or timm's layer normalisation, or timm's or torchvision's of maps, over one dimension."""
    known = type(module) is nn.LayerNorm or _is_one_of(module, "timm.layers", "LayerNorm") or is_layer_norm_2d(module)
    return known and len(module.normalized_shape) == 1  # type: ignore[arg-type]


def is_layer_norm_2d(module: nn.Module) -> bool:
    """timm's or torchvision's layer normalisation of maps, over their channels."""
    return _is_one_of(module, ("timm.layers", "torchvision.models"), "LayerNorm2d")


def _is_one_of(module: nn.Module, packages: str | tuple[str, ...], *names: str) -> bool:
    """Whether its class is of these names in these packages; another's may do something else."""
    return type(module).__module__.startswith(packages) and type(module).__name__ in names


def permutation_of(node: fx.Node) -> tuple[Any, ...]:
    """The order in which a node puts the dimensions of its first argument; empty if that is not what it does."""
    if node.target not in (torch.permute, "permute"):
        return ()
    dims = (*node.args[1:], *node.kwargs.values())
    return tuple(dims[0]) if len(dims) == 1 and isinstance(dims[0], (tuple, list)) else dims


def modes_read(node: fx.Node) -> list[fx.Node]:
    """The mode, where a function reads it."""
    return [n for n in node.all_input_nodes if n.target in ("training", operator.not_)]
