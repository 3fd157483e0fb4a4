"""Padding in front of a convolution becomes the convolution's own; so does a call of `conv2d` with a layer's weight.

Networks for sound pad on one side, those from TensorFlow pad by hand for even kernels and strides, those that make
images reflect their borders: what stands in front of the convolution is a map of another size, which no octave has.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from ..nn._hooks import has_hooks
from ..nn.computed import computes_weight, has_other_hooks
from .layers import conv_spec_of, is_aligned, is_plain_conv, with_state
from .maps import CONVS
from .operations import is_in_place

_FUNCTIONS: dict[Any, int] = {
    function: axes
    for axes, functions in enumerate(((F.conv1d, torch.conv1d), (F.conv2d, torch.conv2d), (F.conv3d, torch.conv3d)), 1)
    for function in functions
}
_MODES = {"ZeroPad": "constant", "ConstantPad": "constant", "ReflectionPad": "reflect", "ReplicationPad": "replicate"}
_MODES |= {"CircularPad": "circular"}
_ARGUMENTS = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")


class Padded:
    """A convolution and the padding in front of it.

    Attributes:
        sides: as `torch.nn.functional.pad` takes them, the last axis first.
        mode: the same.
    """

    sides: list[int]
    mode: str
    _conv_forward: Callable[..., Tensor]
    weight: Tensor
    bias: Tensor | None

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(x, self.sides, self.mode) if any(self.sides) else x
        return self._conv_forward(x, self.weight, self.bias)

    @property
    def pairs(self) -> tuple[tuple[int, ...], ...]:
        """Pixels before and after each axis, the first axis first."""
        pairs = zip(self.sides[::2], self.sides[1::2])
        return tuple(pairs)[::-1]


class PaddedConv1d(Padded, nn.Conv1d):  # type: ignore[misc]
    """Of series."""


class PaddedConv2d(Padded, nn.Conv2d):  # type: ignore[misc]
    """Of images."""


class PaddedConv3d(Padded, nn.Conv3d):  # type: ignore[misc]
    """Of volumes and videos."""


PADDED = (PaddedConv1d, PaddedConv2d, PaddedConv3d)


def absorb(graph: fx.Graph, model: nn.Module, kept: Collection[str]) -> None:
    """Let convolutions that can be octave take in the padding in front of them; ``model`` and ``graph`` change.

    Args:
        graph: of ``model``, traced.
        model: a layer that is replaced keeps its name, its parameters and its children.
        kept: names of layers that stay as they are.
    """
    _call_layers(graph, model, kept)
    calls = Counter(str(node.target) for node in graph.nodes if node.op == "call_module")
    nodes = list(graph.nodes)
    place = {node: i for i, node in enumerate(nodes)}
    written = [place[node] for node in nodes if is_in_place(node, model)]
    for node in nodes:
        pad = _pad(node, model)
        if pad is None or str(node.target) in kept or len(node.all_input_nodes) != 1:
            continue
        for user in list(node.users):
            name = str(user.target)
            if user.op != "call_module" or user.args != (node,) or user.kwargs or calls[name] > 1 or name in kept:
                continue
            if any(place[node] < at < place.get(user, at) for at in written) or len(_names(model, name)) > 1:
                continue  # what it pads is written before the convolution reads it, or it has two names
            made = _padded(model.get_submodule(name), *pad)
            if made is not None and is_aligned(made):
                model.set_submodule(name, made)
                user.args = tuple(node.all_input_nodes)
        if not node.users:
            graph.erase_node(node)


def _pad(node: fx.Node, model: nn.Module) -> tuple[list[int], str] | None:
    """What a node pads with, and how, if it does nothing else."""
    if node.op == "call_module":
        layer: Any = model.get_submodule(str(node.target))
        kind = type(layer).__name__[:-2]  # without the axes
        if not type(layer).__module__.startswith("torch.nn.") or kind not in _MODES or has_hooks(layer):
            return None
        sides, mode, value = layer.padding, _MODES[kind], getattr(layer, "value", 0)
    elif node.op == "call_function" and node.target in (F.pad, torch._C._nn.pad):
        given = dict(zip(("input", "pad", "mode", "value"), node.args)) | node.kwargs
        sides, mode, value = given["pad"], str(given.get("mode", "constant")), given.get("value") or 0
    else:
        return None
    if value != 0 or not isinstance(sides, list | tuple) or not all(type(side) is int and side >= 0 for side in sides):
        return None
    return list(sides), mode


def _padded(layer: Any, sides: list[int], mode: str) -> nn.Module | None:
    """The convolution with padding in front, or None if it is not plain or has another kind of padding itself."""
    kinds = enumerate(zip(CONVS, PADDED), 1)
    axes = next((axes for axes, (kind, own) in kinds if type(layer).forward is kind.forward or type(layer) is own), 0)
    if not axes or not is_plain_conv(layer) or has_other_hooks(layer):
        return None
    if _has_own_state(layer):
        return None
    own = [side for pair in reversed(conv_spec_of(layer, 0.0, 0.0).sides) for side in pair]
    sides = sides + [0] * (len(own) - len(sides))
    modes = {layer.padding_mode, getattr(layer, "mode", "constant")}
    if modes != {"zeros", "constant"} or any(sides[len(own) :]) or (mode != "constant" and any(own)):
        return None
    return made_like(layer, axes, [a + b for a, b in zip(sides, own)], mode, _arguments(layer))


def _arguments(layer: Any) -> dict[str, Any]:
    return {name: getattr(layer, name) for name in ("stride", "dilation", "groups")}


def _tuple(value: Any, axes: int) -> tuple[Any, ...]:
    values = tuple(value) if isinstance(value, list | tuple) else (value,)
    return values * axes if len(values) == 1 else values


def made_like(layer: nn.Module, axes: int, sides: list[int], mode: str, arguments: dict[str, Any]) -> nn.Module:
    """A convolution with a layer's parameters and children, and with padding of its own."""
    given: Any = layer
    inputs = given.in_channels // given.groups * arguments["groups"]
    made: Any = PADDED[axes - 1](
        inputs, given.out_channels, given.kernel_size, bias=given.bias is not None, device="meta", **arguments
    )
    made.sides, made.mode, made.training = sides, mode, layer.training
    return with_state(made, layer)


def _names(model: nn.Module, name: str) -> list[str]:
    """All names of the module that goes by ``name``."""
    module = model.get_submodule(name)
    return [other for other, each in model.named_modules(remove_duplicate=False) if each is module]


def _has_own_state(layer: nn.Module) -> bool:
    """Whether its state dict has more than parameters and buffers."""
    plain = nn.Module.get_extra_state, nn.Module._save_to_state_dict
    return (type(layer).get_extra_state, type(layer)._save_to_state_dict) != plain


def _call_layers(graph: fx.Graph, model: nn.Module, kept: Collection[str]) -> None:
    """Replace calls of a function with the weight and bias of a convolution's module by calls of a module."""
    used = Counter(str(node.target) for node in graph.nodes if node.op == "get_attr")
    calls = Counter(id(model.get_submodule(str(node.target))) for node in graph.nodes if node.op == "call_module")
    for node in list(graph.nodes):
        axes = _FUNCTIONS.get(node.target, 0) if node.op == "call_function" else 0
        given = dict(zip(_ARGUMENTS, node.args)) | node.kwargs if axes else {}
        weight, bias = given.get("weight"), given.get("bias")
        if not isinstance(weight, fx.Node) or weight.op != "get_attr" or not str(weight.target).endswith(".weight"):
            continue
        owner = str(weight.target).rpartition(".")[0]
        layer: Any = model.get_submodule(owner)
        nodes = [each for each in (weight, bias) if isinstance(each, fx.Node)]
        names = [f"{owner}.{name}" for name, parameter in layer._parameters.items() if parameter is not None]
        once = all(used[str(each.target)] == 1 and len(each.users) == 1 for each in nodes)
        if not isinstance(layer, CONVS[axes - 1]) or [str(each.target) for each in nodes] != names or not once:
            continue
        rest = {name: _tuple(given.get(name, 1), axes) for name in ("stride", "dilation")}
        padding, groups = given.get("padding", 0), given.get("groups", 1)
        numbers = [*rest["stride"], *rest["dilation"], groups, *_tuple(padding, axes)]
        if owner in kept or computes_weight(layer) or not all(type(number) is int for number in numbers):
            continue
        if calls[id(layer)] or len(_names(model, owner)) > 1 or _has_own_state(layer):
            continue
        sides = [side for p in _tuple(padding, axes)[::-1] for side in (p, p)]
        model.set_submodule(owner, made_like(layer, axes, sides, "constant", rest | {"groups": groups}))
        with graph.inserting_before(node):
            call = graph.call_module(owner, (given["input"],))
        call.meta = dict(node.meta)
        node.replace_all_uses_with(call)
        for dead in (node, *nodes):
            graph.erase_node(dead)
