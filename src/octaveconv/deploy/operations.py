"""The operations that can be lowered: which method of the walk in `lower` handles each."""

from __future__ import annotations

import operator
from typing import Any

import torch

from .ir import INFINITY, Activation

aten = torch.ops.aten

# Their result is their argument; dropout's, as it is captured in evaluation mode only.
SAME: set[Any] = {
    aten.dropout.default, aten.feature_dropout.default, aten.lift_fresh_copy.default, aten.clone.default,
    aten.contiguous.default, aten.alias.default, aten.detach.default,
}  # fmt: skip

ACTIVATIONS: dict[Any, tuple[Activation, float, float]] = {
    aten.relu.default: ("clamp", 0.0, INFINITY),
    aten.relu6.default: ("clamp", 0.0, 6.0),
    aten.sigmoid.default: ("sigmoid", 0.0, 1.0),
    aten.silu.default: ("silu", 0.0, 1.0),
    aten.hardswish.default: ("hardswish", 0.0, 1.0),
    aten.hardsigmoid.default: ("hardsigmoid", 0.0, 1.0),
    aten.tanh.default: ("tanh", -1.0, 1.0),
    aten.mish.default: ("mish", 0.0, 1.0),
}

METHODS: dict[Any, str] = {
    aten.conv2d.default: "conv",
    aten.conv2d.padding: "conv_padded",
    aten.pad.default: "pad",
    aten.linear.default: "linear",
    aten._native_batch_norm_legit_no_training.default: "norm",
    aten.hardtanh.default: "hardtanh",
    aten.clamp.default: "clamp",
    aten.clamp_min.default: "clamp",
    aten.leaky_relu.default: "leaky_relu",
    aten.elu.default: "elu",
    aten.selu.default: "selu",
    aten.celu.default: "celu",
    aten.gelu.default: "gelu",
    aten.prelu.default: "prelu",
    aten.neg.default: "negate",
    aten.add.Tensor: "add",
    aten.sub.Tensor: "subtract",
    aten.rsub.Scalar: "subtract_from",
    aten.mul.Tensor: "multiply",
    aten.div.Tensor: "divide",
    aten.cat.default: "cat",
    aten.permute.default: "permute",
    aten.narrow.default: "narrow",
    aten.slice.Tensor: "slice",
    aten.split.Tensor: "split",
    aten.split_with_sizes.default: "split",
    aten.chunk.default: "split",
    operator.getitem: "item",
    aten.avg_pool2d.default: "avg_pool",
    aten.max_pool2d.default: "max_pool",
    aten.mean.dim: "mean",
    aten.adaptive_avg_pool2d.default: "adaptive_avg_pool",
    aten.upsample_nearest2d.default: "upsample",
    aten.upsample_nearest2d.vec: "upsample_by",
    aten.view.default: "flatten",
    aten.reshape.default: "flatten",
    aten.flatten.using_ints: "flatten",
}

READS_LAST: set[Any] = {aten.linear.default}  # the last axis of any tensor

# Where channels may be in the last axis.
EITHER_AXIS: set[Any] = {
    *SAME, *ACTIVATIONS, *READS_LAST, aten.permute.default, aten.hardtanh.default, aten.clamp.default,
    aten.clamp_min.default, aten.leaky_relu.default, aten.elu.default, aten.selu.default, aten.celu.default,
    aten.gelu.default, aten.neg.default, aten.add.Tensor, aten.sub.Tensor, aten.rsub.Scalar, aten.mul.Tensor,
    aten.div.Tensor,
}  # fmt: skip

# Whose input without the axis of images would be ``[C, H, W]``, which looks like ``[N, C, pixels]``.
READS_IMAGES: set[Any] = {
    aten.conv2d.default, aten.conv2d.padding, aten.avg_pool2d.default, aten.max_pool2d.default,
    aten.adaptive_avg_pool2d.default, aten.upsample_nearest2d.default, aten.upsample_nearest2d.vec,
}  # fmt: skip

# Which may read several maps; the others read one, and constants.
READS_SEVERAL: set[Any] = {
    aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor, aten.cat.default, operator.getitem,
}  # fmt: skip

# Where an argument may be a size that follows from the input's, since the result's shape says what it comes to.
READS_SIZES: set[Any] = {
    aten.upsample_nearest2d.default, aten.upsample_nearest2d.vec, aten.view.default, aten.reshape.default,
    aten.flatten.using_ints,
}  # fmt: skip
