"""The operations that can be lowered: which method of the walk in `lower` handles each."""

from __future__ import annotations

import operator
from typing import Any

import torch

from .ir import INFINITY, Activation

aten = torch.ops.aten

# In evaluation mode their result is their argument.
SAME: set[Any] = {
    aten.dropout.default, aten.dropout_.default, aten.feature_dropout.default, aten.clone.default,
    aten.contiguous.default, aten.alias.default, aten.detach.default,
}  # fmt: skip

# Their result shares memory with their argument.
VIEWS: set[Any] = {aten.narrow.default, aten.slice.Tensor, operator.getitem, aten.view.default}

ACTIVATIONS: dict[Any, tuple[Activation, float, float]] = {
    aten.relu.default: ("clamp", 0.0, INFINITY),
    aten.relu_.default: ("clamp", 0.0, INFINITY),
    aten.relu6.default: ("clamp", 0.0, 6.0),
    aten.relu6_.default: ("clamp", 0.0, 6.0),
    aten.sigmoid.default: ("sigmoid", 0.0, 1.0),
    aten.sigmoid_.default: ("sigmoid", 0.0, 1.0),
    aten.silu.default: ("silu", 0.0, 1.0),
    aten.silu_.default: ("silu", 0.0, 1.0),
    aten.hardswish.default: ("hardswish", 0.0, 1.0),
    aten.hardswish_.default: ("hardswish", 0.0, 1.0),
    aten.hardsigmoid.default: ("hardsigmoid", 0.0, 1.0),
    aten.hardsigmoid_.default: ("hardsigmoid", 0.0, 1.0),
}

METHODS: dict[Any, str] = {
    aten.conv2d.default: "conv",
    aten.linear.default: "linear",
    aten.batch_norm.default: "batch_norm",
    aten.hardtanh.default: "hardtanh",
    aten.hardtanh_.default: "hardtanh",
    aten.add.Tensor: "add",
    aten.add_.Tensor: "add",
    aten.sub.Tensor: "subtract",
    aten.mul.Tensor: "multiply",
    aten.mul_.Tensor: "multiply",
    aten.cat.default: "cat",
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
    aten.view.default: "flatten",
    aten.reshape.default: "flatten",
    aten.flatten.using_ints: "flatten",
}
