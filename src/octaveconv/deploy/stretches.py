"""Stretches: a captured graph in parts, of which the engines' layers express some and PyTorch runs the others."""

from __future__ import annotations

import math
import operator
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from .capture import Captured
from .handlers import Handlers
from .ir import Lowered, number
from .lower import Unsupported, is_size, unsupported

# Operations on memory as it was during the capture: maps of the engine lie there in an order of their own.
_PLAIN = {torch.ops.aten.view.default: torch.ops.aten.reshape.default}
_READS_STRIDES = {
    torch.ops.aten.as_strided.default,
    torch.ops.aten.as_strided_copy.default,
    torch.ops.aten.set_.default,
}


@dataclass(eq=False)
class Stretch:
    """Operations that run as one, after the stretches before it.

    Attributes:
        nodes: the operations, in order.
        inputs: the nodes of other stretches, or the graph's input, that it reads.
        outputs: its nodes that others read, or that the graph returns.
        network: its layers, from the maps of the inputs to those of the outputs; None if PyTorch runs it.
        last: whether the channels are in the last axis, for each input and then for each output of the network.
        why: for each operation that the engines do not know, what they do not know.
    """

    nodes: list[Any]
    inputs: list[Any]
    outputs: list[Any]
    network: Lowered | None
    last: list[bool]
    why: list[str]


def lower(captured: Captured) -> Lowered:
    """The layers of the whole graph.

    Raises:
        Unsupported: an operation that the engines do not know.
    """
    return joined(captured, divided(captured))


def joined(captured: Captured, stretches: list[Stretch]) -> Lowered:
    """The layers of the whole graph, which is a single stretch.

    Raises:
        Unsupported: there is one that PyTorch runs.
    """
    why = [reason for stretch in stretches for reason in stretch.why]
    if any(each for stretch in stretches for each in stretch.last):
        why.append("an input or output of the network has its channels in the last axis")
    made_here = [node for stretch in stretches for node in stretch.outputs]
    why += [
        f"the output {each} is not a tensor that depends on the input"
        for each in captured.outputs
        if each not in made_here
    ]
    if why:
        raise Unsupported(why[0])
    (only,) = stretches
    assert only.network is not None
    made, places = only.network, [only.outputs.index(node) for node in captured.outputs]
    return Lowered(made.inputs, made.layers, [made.outputs[i] for i in places], [made.shapes[i] for i in places])


def divided(captured: Captured) -> list[Stretch]:
    """The stretches of a graph, in an order in which they can run.

    Raises:
        Unsupported: the graph has something that neither an engine nor PyTorch can run in this way.
    """
    left_out: dict[fx.Node, str] = {}
    while True:
        stretches = _Division(captured, left_out).stretches()
        idle = [stretch for stretch in stretches if stretch.network is not None and not _convolves(stretch.network)]
        nodes = [node for stretch in idle for node in stretch.nodes]
        if len(stretches) == 1 or not nodes:
            return stretches
        for node in nodes:
            left_out[node] = f"{unsupported(node)}: it would be copied to the engine and back without a convolution"


def _convolves(network: Lowered) -> bool:
    return any(layer.sum is not None and (layer.sum.terms or layer.sum.coarse) for layer in network.layers)


class _Division:
    """Puts each operation at a level: at even ones the engines' layers, at odd ones PyTorch.

    A level's operations read only from it and those before, so that each level is a stretch.
    """

    def __init__(self, captured: Captured, left_out: Mapping[fx.Node, str]) -> None:
        self.captured, self.left_out = captured, left_out
        self.lowerings: dict[int, Handlers] = defaultdict(lambda: Handlers(captured))
        self.levels: dict[fx.Node, int] = {}
        self.why: dict[int, list[str]] = defaultdict(list)
        self.symbols = {symbol for size in captured.input.meta["val"].shape for symbol in _symbols(size)}
        for node in captured.nodes:
            self._check(node)
            if not is_size(node):
                self._place(node)

    def stretches(self) -> list[Stretch]:
        levels = set(self.levels.values()) | ({0} if self.captured.input in self.captured.outputs else set())
        found = [self._stretch(level) for level in sorted(levels)]
        return [stretch for stretch in found if stretch.outputs]

    def _stretch(self, level: int) -> Stretch:
        nodes = [node for node, at in self.levels.items() if at == level]
        read = {each for node, at in self.levels.items() if at != level for each in node.all_input_nodes}
        read.update(self.captured.outputs)
        outputs = [node for node in nodes if node in read]
        if level == 0 and self.captured.input in self.captured.outputs:
            outputs.append(self.captured.input)
        if level % 2:
            network, last = None, []
            inside = set(nodes)
            inputs = [each for node in nodes for each in node.all_input_nodes if each not in inside]
            inputs = [each for each in dict.fromkeys(inputs) if each in self.levels or each is self.captured.input]
        else:
            lowering = self.lowerings[level]
            network = lowering.network(outputs)
            inputs, last = [node for node, _ in lowering.inputs], [last for _, last in lowering.inputs]
            last += [node in lowering.last for node in outputs]
        return Stretch(nodes, inputs, outputs, network, last, self.why[level])

    def _check(self, node: fx.Node) -> None:
        """Refuse what could not run outside of its place in the graph."""
        known = isinstance(node.target, torch._ops.OpOverload) or is_size(node) or node.target is operator.getitem
        if node.target in _READS_STRIDES:
            raise unsupported(node, "it reads memory as the capture had it")
        schema = getattr(node.target, "_schema", None)
        if not known or (schema is not None and (schema.is_mutable or not schema.returns)):
            raise unsupported(node, "it does something else than return a result")
        for val in pytree.tree_leaves(node.meta.get("val")):
            sizes = val.shape if isinstance(val, Tensor) else (val,)
            if not {symbol for size in sizes for symbol in _symbols(size)} <= self.symbols:
                raise unsupported(node, "the size of its result depends on the values of its arguments")

    def _place(self, node: fx.Node) -> None:
        level = self._first_level(node, 0)
        try:
            if node in self.left_out:
                raise Unsupported(self.left_out[node])
            self.lowerings[level].visit(node)
        except Unsupported as error:
            level = self._first_level(node, 1)
            self.why[level].append(str(error))
        self.levels[node] = level

    def _first_level(self, node: fx.Node, parity: int) -> int:
        levels = [self.levels[each] for each in node.all_input_nodes if each in self.levels]
        return max((level + (level % 2 != parity) for level in levels), default=parity)


def _symbols(size: Any) -> set[Any]:
    return (
        set(size.node.expr.free_symbols) if isinstance(size, (torch.SymInt, torch.SymFloat, torch.SymBool)) else set()
    )


class Eager(nn.Module):
    """A stretch that PyTorch runs.

    Args:
        stretch: its operations.
        constants: the values of the nodes that do not depend on the input.
    """

    def __init__(self, stretch: Stretch, constants: Mapping[fx.Node, Any]) -> None:
        super().__init__()
        self.inputs, self.outputs = stretch.inputs, stretch.outputs
        graph = fx.Graph()
        made = {node: graph.placeholder(f"x{i}") for i, node in enumerate(stretch.inputs)}
        read = dict.fromkeys(each for node in stretch.nodes for each in node.all_input_nodes)
        self.sizes = [node for node in read if is_size(node) and node not in constants]
        made |= {node: graph.placeholder(f"n{i}") for i, node in enumerate(self.sizes)}
        tensors: dict[str, Any] = {}
        for node in read:
            if isinstance(value := constants.get(node), Tensor):
                tensors[f"c{len(tensors)}"] = value
                made[node] = graph.get_attr(f"c{len(tensors) - 1}")

        def copied(node: fx.Node) -> Any:
            return made[node] if node in made else constants[node]

        for node in stretch.nodes:
            target = _PLAIN.get(node.target, node.target)
            made[node] = graph.create_node(node.op, target, *fx.node.map_arg((node.args, node.kwargs), copied))
        graph.output([made[node] for node in stretch.outputs])
        self.module = fx.GraphModule(tensors, graph)

    def numbers(self, symbols: Mapping[Any, int]) -> list[Any]:
        """The sizes that the operations read, for the values of the input's symbols."""
        return [number(node.meta["val"], symbols) for node in self.sizes]

    def forward(self, inputs: list[Tensor], numbers: list[Any]) -> list[Tensor]:
        """The outputs."""
        given = [x.to(node.meta["val"].dtype) for x, node in zip(inputs, self.inputs)]
        return self.module(*given, *numbers)  # type: ignore[no-any-return]


def multiply_adds(captured: Captured, stretch: Stretch) -> int:
    """Those of its convolutions and matrix products, for the example of the capture."""
    sizes = [size.node for size in captured.input.meta["val"].shape if isinstance(size, torch.SymInt)]
    symbols: dict[Any, Any] = {size.expr: size.hint for size in sizes}
    counts: list[int] = [_multiply_adds(node, symbols) for node in stretch.nodes]
    return sum(counts)


def _multiply_adds(node: fx.Node, symbols: Mapping[Any, int]) -> int:
    name = getattr(getattr(node.target, "_schema", None), "name", "").removeprefix("aten::")
    if name not in ("linear", "matmul", "mm", "bmm", "conv1d", "conv2d", "conv3d", "conv_transpose2d"):
        return 0
    x, weight = (argument.meta["val"].shape for argument in node.args[:2])  # type: ignore[union-attr]
    pixels = x if "transpose" in name else node.meta["val"].shape
    factors = [*pixels, *(weight[1:] if name.startswith("conv") else x[-1:])]
    return math.prod(number(size, symbols) for size in factors)
