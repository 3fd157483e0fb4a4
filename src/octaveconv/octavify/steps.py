"""The step of every node of a traced network."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

from torch import fx, nn

from ..nn.computed import has_other_hooks
from .handlers import FUNCTIONS, handler_of
from .layers import sample_drop
from .maps import CONVS, axes_of, is_channels_last, shape_of
from .operations import FROM_CHANNELS_LAST, permutation_of
from .roles import Handler, Role, Step


def steps_of(graph: fx.Graph, model: nn.Module, kept: set[str]) -> dict[fx.Node, Step]:
    """The step of every node of a graph with shapes."""
    calls = Counter(str(node.target) for node in graph.nodes if node.op == "call_module")
    owners = Counter(id(p) for module in model.modules() for p in module.parameters(recurse=False))
    steps = {}
    for node in graph.nodes:
        if node.op == "call_module":
            name, layer = str(node.target), model.get_submodule(str(node.target))
            shares = any(owners[id(p)] > 1 for p in layer.parameters())
            steps[node] = _layer_step(node, layer, name in kept, calls[name] > 1, shares)
        elif node.op in ("call_function", "call_method"):
            step = _step(node, FUNCTIONS.get(node.target), None)
            steps[node] = step or Step(Role.OTHER, refusal=f"{_name(node)} has no octave form")
        else:
            steps[node] = Step(Role.OTHER)
    return steps


def _layer_step(node: fx.Node, layer: nn.Module, kept: bool, called_again: bool, shares: bool) -> Step:
    handler = handler_of(layer)
    has_state = any(True for _ in layer.parameters())
    other = Step(Role.OTHER, refusal=_no_form(layer, axes_of(node)), handler=handler)
    replaced = handler is None or handler.make is not None or not handler.elementwise  # or called on each part
    made_anew = handler is not None and handler.make not in (None, sample_drop)
    if called_again and (made_anew or (replaced and has_state)):
        return replace(other, refusal="called more than once")
    if shares and replaced:
        return replace(other, refusal="shares its weights with another layer")
    step = None
    if len(node.args) == 1 and not node.kwargs and shape_of(node.args[0]) is not None and shape_of(node) is not None:
        if has_other_hooks(layer):
            return replace(other, refusal="has hooks, which expect plain tensors")
        step = _step(node, handler, layer)
    step = step or other
    return replace(step, refusal="listed in keep") if kept else step


def _step(node: fx.Node, handler: Handler | None, layer: Any) -> Step | None:
    if handler is None or handler.axes not in (0, axes_of(node)):
        return None
    stays_last = is_channels_last(node) or permutation_of(node) == FROM_CHANNELS_LAST
    if any(map(is_channels_last, node.all_input_nodes)) and not stays_last:
        return None
    step = handler.step(node, layer)
    return step and replace(step, handler=handler)


def _no_form(layer: nn.Module, axes: int) -> str:
    """Why a layer takes plain tensors only."""
    name = type(layer).__name__
    for of_axes, kind in enumerate(CONVS, 1):
        if isinstance(layer, kind):
            return f"{name} is not a plain convolution" if of_axes == axes else f"{name} among {axes}-d feature maps"
    if isinstance(layer, (nn.Linear, nn.LayerNorm)):
        return f"{name} not over the channels of a feature map"
    return f"{name} has no octave form"


def _name(node: fx.Node) -> str:
    return str(node.target) if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
