"""Reorder the channels of a traced network without changing what it computes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from .maps import scale_of, shape_of
from .roles import Role
from .spaces import Net


def permute(net: Net, orders: Mapping[fx.Node, Tensor]) -> None:
    """Give the channels of each space in ``orders`` that order, in everything that writes and reads them.

    Args:
        net: the network, whose parameters and buffers change.
        orders: the new order of a space's channels, ``[C]``, within each group of a grouped convolution.
    """
    for node, step in net.steps.items():
        if step.handler is not None and step.handler.registered:
            continue  # elementwise, or its channels keep their order
        if step.role in (Role.CONV, Role.LINEAR):
            module = net.module(node)
            permute_layer = _permute_linear if isinstance(module, nn.Linear) else _permute_conv
            permute_layer(module, order_of(net, step.inputs[0], orders), order_of(net, node, orders))
        elif step.role is Role.SAME and node.op == "call_module":
            order = order_of(net, node, orders)
            if order is not None:
                for name in ("weight", "bias", "running_mean", "running_var"):
                    _take(net.module(node), name, order, 0)
        elif step.role is Role.JOIN:
            order = order_of(net, node, orders)
            for x in step.inputs:
                scale = scale_of(x)
                if scale is not None and order is not None:
                    path, _, name = str(scale.target).rpartition(".")
                    axis = len(shape_of(x) or ()) + 1 - len(shape_of(node) or ()) if scale is x else 0
                    _take(net.model.get_submodule(path), name, order, axis)


def order_of(net: Net, node: fx.Node, orders: Mapping[fx.Node, Tensor]) -> Tensor | None:
    """The new order of a value's channels; for a concatenation it follows from its parts."""
    space = net.spaces.of(node)
    if not net.cats.get(space):
        return orders.get(space)
    parts, first, changed = [], 0, False
    for x in net.cats[space][0]:
        order = order_of(net, x, orders)
        changed |= order is not None
        parts.append(first + (torch.arange(net.channels(x)) if order is None else order.cpu()))
        first += net.channels(x)
    return torch.cat(parts) if changed else None


def _permute_conv(conv: Any, inputs: Tensor | None, outputs: Tensor | None) -> None:
    rows, columns = (inputs, outputs) if conv.transposed else (outputs, inputs)
    if columns is not None:
        weight, groups = conv.weight.detach(), conv.groups
        order = columns.to(weight.device).view(groups, -1)  # [groups, columns]
        order = order - order.min(1, keepdim=True).values
        groups_rows = weight.unflatten(0, (groups, -1))  # [groups, rows / groups, columns, k, k]
        _set(conv, "weight", torch.cat([row.index_select(1, column) for row, column in zip(groups_rows, order)]))
    if rows is not None:
        _take(conv, "weight", rows, 0)
    if outputs is not None:
        _take(conv, "bias", outputs, 0)
        _take(conv, "gain", outputs, 0)


def _permute_linear(linear: nn.Module, inputs: Tensor | None, outputs: Tensor | None) -> None:
    if inputs is not None:
        _take(linear, "weight", inputs, 1)
    if outputs is not None:
        _take(linear, "weight", outputs, 0)
        _take(linear, "bias", outputs, 0)


def _take(module: nn.Module, name: str, order: Tensor, axis: int) -> None:
    tensor = getattr(module, name, None)
    if isinstance(tensor, Tensor) and tensor.dim() and tensor.shape[axis] == len(order):  # not PReLU's one weight
        _set(module, name, tensor.detach().index_select(axis, order.to(tensor.device)))


def _set(module: nn.Module, name: str, value: Tensor) -> None:
    with torch.no_grad():
        getattr(module, name).copy_(value)
