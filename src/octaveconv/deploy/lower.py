"""Lower: operations of a captured graph become layers, with norms folded and everything fused that one layer can do."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from .._text import one_line
from ..errors import BackendUnavailable
from .capture import Captured
from .ir import Addend, Finish, Lowered, Map, Pair, Ref, Sum
from .operations import ACTIVATIONS, EITHER_AXIS, METHODS, READS_IMAGES, READS_LAST, READS_SEVERAL, READS_SIZES, SAME
from .values import Cat, LayerBuilder, Value


class Unsupported(BackendUnavailable):
    """The engines do not know an operation; the message says which one, and in what module."""


def unsupported(node: fx.Node, why: str = "") -> Unsupported:
    """The error for an operation that the engines do not know."""
    stack = list(node.meta.get("nn_module_stack", {}).values())
    path = stack[-1][0] if stack else ""
    where = f" in module {path}" if path else ""
    return Unsupported(f"{node.target}{where} is not supported{why and ': '}{why}")


class Lowering:
    """Lowers the operations of one stretch of a graph, in order.

    The channels of a node are in its second axis, or in its last one: ``[N, H, W, C]`` or ``[N, pixels, C]``.

    Attributes:
        values: what each node has become.
        last: the nodes whose channels are in the last axis.
        inputs: the maps from outside that were read, by their nodes and whether their channels are in the last axis.
    """

    def __init__(self, captured: Captured) -> None:
        self.captured = captured
        self.out, self.node = LayerBuilder(), captured.input
        self.values: dict[fx.Node, Any] = {}
        self.last: set[fx.Node] = set()
        self.inputs: dict[tuple[fx.Node, bool], Map] = {}
        self.pads: dict[Value, tuple[Value, Pair]] = {}  # of maps with zeros around them, as many at both ends

    def network(self, outputs: Iterable[fx.Node]) -> Lowered:
        """The layers that make these nodes."""
        nodes, refs = list(outputs), []
        for node in nodes:
            self.is_last = node in self.last
            refs.append(self.out.refs(self.value(node), node.name))
        layers = self.out.live_layers(refs)
        read = {ref.map for layer in layers for ref in layer.sources} | {ref.map for each in refs for ref in each}
        self.inputs = {key: given for key, given in self.inputs.items() if given in read}
        shapes = [tuple(node.meta["val"].shape) for node in nodes]
        return Lowered(list(self.inputs.values()), layers, refs, shapes)

    def visit(self, node: fx.Node) -> None:
        """Lower an operation.

        Raises:
            Unsupported: the engines do not know it.
        """
        self.node, self.is_last = node, any(argument in self.last for argument in node.all_input_nodes)
        if node.target in READS_LAST and node.meta["val"].dim() > 2:
            self.is_last = True
        if self.is_last and node.target not in EITHER_AXIS:
            raise self.unsupported("it reads channels in the last axis")
        handler = self.handler(node.target)
        if node.target not in READS_SIZES and any(map(is_size, pytree.tree_leaves((node.args, node.kwargs)))):
            raise self.unsupported("an argument depends on the size of the input")
        arguments, named = fx.node.map_arg((node.args, node.kwargs), self.value)
        self.check(handler, arguments, named)
        value = handler(*arguments, **named)
        if isinstance(value, Sum) and len(node.users) > 1:
            value = self.ref(value)
        self.values[node] = value
        if self.is_last:
            self.last.add(node)

    def check(self, handler: Callable[..., Value], arguments: Any, named: Any) -> None:
        """Refuse arguments that the handler has no words for, and results that are not maps of float32."""
        if any(isinstance(val, Tensor) and val.dtype != torch.float32 for val in _leaves(self.node.meta["val"])):
            raise self.unsupported("its result is not in float32")
        try:
            inspect.signature(handler).bind(*arguments, **named)
        except TypeError as error:
            raise self.unsupported(one_line(error)) from None
        if self.node.target in READS_SEVERAL:
            return
        every = [*arguments, *named.values()]
        if not all(map(is_value, _leaves(every[0]))) or any(map(is_value, _leaves(every[1:]))):
            raise self.unsupported("its first argument alone may depend on the input")
        if self.node.target in READS_IMAGES and self.node.all_input_nodes[0].meta["val"].dim() != 4:
            raise self.unsupported("its input is not [N, C, H, W]")

    def value(self, argument: fx.Node) -> Any:
        """What a node has become: a value, a constant, or None for a size."""
        if argument in self.captured.constants:
            return self.captured.constants[argument]
        if is_size(argument):
            return None
        if argument in self.values:
            if (argument in self.last) != self.is_last:
                raise self.unsupported("the channels of its maps are in different axes")
            return self.values[argument]
        key = argument, self.is_last
        if key not in self.inputs:
            self.inputs[key] = self.given(argument)
        return Ref(self.inputs[key], 0, self.inputs[key].channels)

    def given(self, argument: fx.Node) -> Map:
        """A map from outside of the stretch."""
        val: Any = argument.meta.get("val")
        batch = self.captured.input.meta["val"].shape[0]
        is_map = (
            isinstance(val, Tensor) and val.dtype == torch.float32 and val.dim() in ((3, 4) if self.is_last else (2, 4))
        )
        if is_map and alike(val.shape[0], batch):
            channels, *size = (val.shape[-1], *val.shape[1:-1]) if self.is_last else val.shape[1:]
            if isinstance(channels, int):
                return Map(channels, (*size, 1, 1)[:2])
        raise self.unsupported(f"{argument.name}, which it reads, is not a float32 map of all images")

    def handler(self, operation: Any) -> Callable[..., Value]:
        """The method of a subclass that takes the operation's arguments."""
        if operation in SAME:
            return lambda x, *others, **named: x
        name = "activate" if operation in ACTIVATIONS else METHODS.get(operation)
        if name is None:
            raise self.unsupported()
        method: Callable[..., Value] = getattr(self, name)
        return (lambda x: method(x, *ACTIVATIONS[operation])) if operation in ACTIVATIONS else method

    def ref(self, value: Value) -> Ref:
        """Let a value be computed, unless it is a map already."""
        return self.out.ref(value, self.node.name)

    def sum(self, value: Value) -> Sum:
        """A value as a sum that more can be added to."""
        if isinstance(value, Sum) and value.finish == Finish():
            return value
        ref = self.ref(value)
        return Sum(ref.channels, self.size, addends=(Addend(ref),))

    @property
    def size(self) -> tuple[Any, Any]:
        made = self.node.meta["val"]
        shape = made[0].shape if isinstance(made, tuple) else made.shape  # a norm also returns statistics
        size = shape[1:-1] if self.is_last else shape[2:]
        return (*size, 1, 1)[:2]

    def unsupported(self, why: str = "") -> Unsupported:
        return unsupported(self.node, why)


def is_value(argument: Any) -> bool:
    """Whether it is a map, rather than a constant or a size."""
    return isinstance(argument, (Sum, Ref, Cat))


def is_size(argument: Any) -> bool:
    """Whether it is a node of a number that follows from the input's sizes."""
    numbers = (torch.SymInt, torch.SymFloat, torch.SymBool, int, float)
    return isinstance(argument, fx.Node) and isinstance(argument.meta.get("val"), numbers)


def _leaves(arguments: Any) -> list[Any]:
    leaves: list[Any] = pytree.tree_leaves(arguments, is_leaf=is_value)
    return leaves


def alike(one: Any, other: Any) -> bool:
    """Whether two sizes are the same for every input that the capture covers; ``==`` would ask for the example's."""
    expressions = [size.node.expr if isinstance(size, torch.SymInt) else size for size in (one, other)]
    if expressions[0] == expressions[1] or all(isinstance(each, int) for each in expressions):
        return bool(expressions[0] == expressions[1])
    from torch.fx.experimental.symbolic_shapes import statically_known_true  # imports SymPy

    return statically_known_true(one == other)
