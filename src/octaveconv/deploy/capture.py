"""Capture: a module becomes a graph of aten operations, whose constants are computed and whose sizes are symbols."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram
from torch.utils import _pytree as pytree

from ..backends import backend


class Captured:
    """What `capture` returns.

    Attributes:
        nodes: the graph's nodes that depend on the input, in order; in-place operations are to be read as plain ones.
        constants: the values of the nodes that do not.
        input: the node of the input, whose ``meta["val"]`` has its shape.
        outputs: the nodes returned.
    """

    def __init__(self, program: ExportedProgram) -> None:
        self.constants: dict[fx.Node, Any] = {}
        self.nodes: list[fx.Node] = []
        signature = program.graph_signature
        state = {**program.state_dict, **program.constants}
        names = {**signature.inputs_to_parameters, **signature.inputs_to_buffers,
                 **signature.inputs_to_lifted_tensor_constants}  # fmt: skip
        for node in program.graph.nodes:
            if node.op == "placeholder" and node.name in names:
                self.constants[node] = state[names[node.name]].detach()
            elif node.op == "placeholder":
                self.input: fx.Node = node
            elif node.op == "output":
                self.outputs: list[fx.Node] = list(pytree.tree_leaves(node.args[0]))
            elif all(argument in self.constants for argument in node.all_input_nodes):
                self.constants[node] = node.target(*self.value(node.args), **self.value(node.kwargs))  # type: ignore[operator]
            else:
                self.nodes.append(node)
        self.out_spec = program.call_spec.out_spec

    def value(self, arguments: Any) -> Any:
        """The arguments with constants in place of their nodes."""
        return fx.node.map_arg(arguments, lambda node: self.constants.get(node, node))

    def sizes(self, shape: torch.Size) -> dict[Any, int] | None:
        """What the symbols of the input's shape are for an input of ``shape``, or None if it does not fit."""
        known: dict[Any, int] = {}
        if len(shape) != len(self.input.meta["val"].shape):
            return None
        for symbol, size in zip(self.input.meta["val"].shape, shape):
            expression = symbol.node.expr if isinstance(symbol, torch.SymInt) else symbol
            if known.setdefault(expression, size) != size if isinstance(symbol, torch.SymInt) else symbol != size:
                return None
        return known


def capture(model: nn.Module, example: Tensor, dynamic: bool = True) -> Captured:
    """Export ``model`` for the shape of ``example``, or if ``dynamic`` for every batch and image size.

    Raises:
        Whatever torch.export raises for a module that it cannot capture.
    """
    if dynamic and len(example) == 1:
        example = torch.cat([example, example])  # a size of 1 would be taken for fixed
    free = {0: Dim.AUTO, 2: Dim.AUTO, 3: Dim.AUTO} if dynamic else None
    with backend("reference"), torch.no_grad():  # its four paths are the terms of the engine's layers
        return Captured(torch.export.export(model, (example,), dynamic_shapes=(free,) if dynamic else None))
