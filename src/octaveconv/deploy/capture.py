"""Capture: a module becomes a graph of aten operations, whose constants are computed and whose sizes are symbols."""

from __future__ import annotations

import copy
import threading
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram
from torch.utils import _pytree as pytree

from .._text import one_line
from ..backends import backend
from ..errors import BackendUnavailable, UsageError

_exporting = threading.Lock()  # torch.export swaps the model's weights meanwhile, and sets flags of the whole process


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
        names = {
            **signature.inputs_to_parameters,
            **signature.inputs_to_buffers,
            **signature.inputs_to_lifted_tensor_constants,
        }
        for node in program.graph.nodes:
            if node.op == "placeholder" and node.name in names:
                self.constants[node] = state[names[node.name]].detach()
            elif node.op == "placeholder":
                self.input: fx.Node = node
            elif node.target is torch.ops.aten._assert_tensor_metadata.default:
                continue  # torch.export's assertion about a conversion's input, which was true during the capture
            elif node.op == "output":
                self.outputs: list[fx.Node] = list(pytree.tree_leaves(node.args[0]))
            elif all(argument in self.constants for argument in node.all_input_nodes):
                self.constants[node] = node.target(*self.value(node.args), **self.value(node.kwargs))  # type: ignore[operator]
            else:
                self.nodes.append(node)
        self.out_spec = program.call_spec.out_spec
        self.guard = getattr(program.module(), "_guards_fn", None)

    def value(self, arguments: Any) -> Any:
        """The arguments with constants in place of their nodes."""
        return fx.node.map_arg(arguments, lambda node: self.constants.get(node, node))

    def sizes(self, shape: torch.Size) -> dict[Any, int] | None:
        """The values of the input's symbols for an input of ``shape``, or None if the graph does not cover it.

        A graph covers a range of sizes, which ends, for instance, where a map shrinks to one pixel.
        """
        symbols = self.input.meta["val"].shape
        if len(shape) != len(symbols):
            return None
        example = torch.empty(max(shape[0], 2), *shape[1:], device="meta")  # any batch will do
        try:
            if self.guard is not None:
                self.guard(example)
        except AssertionError:
            return None
        known: dict[Any, int] = {}
        for i, (symbol, size) in enumerate(zip(symbols, shape)):
            if isinstance(symbol, torch.SymInt):
                if known.setdefault(symbol.node.expr, size) != size:
                    return None
            elif i and symbol != size:
                return None
        return known


def only_input(example_inputs: Tensor | tuple[Tensor]) -> Tensor:
    """The tensor that ``example_inputs`` is or holds.

    Raises:
        UsageError: it is something else.
    """
    inputs = example_inputs if isinstance(example_inputs, tuple) else (example_inputs,)
    if len(inputs) != 1 or not isinstance(inputs[0], Tensor):
        got = f"({', '.join(type(x).__name__ for x in inputs)})" if isinstance(example_inputs, tuple) else ""
        raise UsageError(
            f"example_inputs must be one tensor of images [N, C, H, W], or a tuple of one, got "
            f"{got or type(example_inputs).__name__}: a network of several inputs runs as it is, or with torch.compile"
        )
    return inputs[0]


def exported(
    model: nn.Module, example: Tensor, dynamic: Sequence[int], form: str, decomposed: bool = False
) -> ExportedProgram:
    """The graph of ``model``, from torch.export. Threads take turns.

    Args:
        model: in evaluation mode.
        example: its input; a size of 1 is fixed, even if it is dynamic.
        dynamic: the dimensions of the input that may differ from the example's.
        form: the backend whose operations octave convolutions become.
        decomposed: whether compound operations become simpler ones.

    Raises:
        Exception: whatever torch.export raises for a module that it cannot capture.
    """
    sizes: dict[int, Any] = dict.fromkeys(dynamic, Dim.AUTO)
    with _exporting, backend(form), torch.no_grad():
        program = torch.export.export(model, (example,), dynamic_shapes=(sizes,))
        return program.run_decompositions({}) if decomposed else program


def capture(model: nn.Module, example: Tensor) -> Captured:
    """Capture ``model`` for the shape of ``example``, and for as many other batch and image sizes as torch.export can.

    Raises:
        Exception: whatever torch.export raises for a module that it cannot capture.
    """
    if len(example) < 2:
        example = torch.zeros(2, *example.shape[1:])
    for dynamic in ((0, 2, 3), (0,), ()):
        captured = Captured(exported(model, example, dynamic, "reference"))  # its four paths are the terms of layers
        if captured.sizes(example.shape) is not None:
            break
    return captured


class Captures:
    """A model, captured as often as the shapes that come require: each capture covers a range of sizes.

    Args:
        model: in evaluation mode. It is copied to the CPU and to float32, in which norms are folded; later changes
            of its weights have no effect.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = copy.deepcopy(model).cpu().float()
        self._all: list[Captured] = []

    def of(self, shape: torch.Size) -> tuple[Captured, dict[Any, int]]:
        """The capture that covers an input's shape, and the values of its symbols.

        Raises:
            BackendUnavailable: torch.export cannot capture the model for this shape.
        """
        for captured in self._all:
            if (sizes := captured.sizes(shape)) is not None:
                return captured, sizes
        try:
            captured = capture(self.model, torch.zeros(shape))
        except Exception as error:  # torch.export raises many kinds
            raise BackendUnavailable(f"torch.export cannot capture the network: {one_line(error)}") from error
        self._all.append(captured)
        sizes = captured.sizes(shape)
        assert sizes is not None
        return captured, sizes
