"""Conditions on shapes and dtypes that a network has in its code, such as assertions, while torch.fx traces it.

A condition that reads only sizes and dtypes has one answer for the example. Where the other answer would lead to the
same graph, or to an error, the condition does not decide what the network computes, and tracing passes it.
"""

from __future__ import annotations

import linecache
import operator
import sys
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from .._modes import eval_mode

Place = tuple[str, int]  # file and line
_FACTS = ("shape", "dtype", "device", "ndim", "is_cuda")
_SIZES = ("size", "dim", "numel")
_OURS = ("torch.fx.", f"{__package__}.")  # packages that trace


@dataclass
class Decisions:
    """Answers to conditions.

    Attributes:
        values: the inputs of the example.
        flipped: places whose conditions get the other answer.
        refused: places whose conditions cannot be passed.
        guarded: places whose conditions are asked again when the graph runs.
        met: places whose conditions were answered.
        running: whether the example runs, so that nothing is traced.
    """

    values: tuple[Any, ...]
    flipped: frozenset[Place] = frozenset()
    refused: frozenset[Place] = frozenset()
    guarded: frozenset[Place] = frozenset()
    met: dict[Place, None] = field(default_factory=dict)
    running: bool = False
    _run: fx.Interpreter | None = None

    def answer(self, root: nn.Module, node: fx.Node) -> bool | None:
        """The answer to a condition; None if it depends on more than sizes and dtypes."""
        place = _place()
        if place in self.refused:
            return None
        value = self._value(root, node)
        if not isinstance(value, int) or not self._reads_facts(node):
            return None
        value = bool(value)
        self.met[place] = None
        if place in self.guarded:
            node.graph.call_function(agree, (node, value))
        return value is not (place in self.flipped)

    def _value(self, root: nn.Module, node: fx.Node) -> Any:
        """What the example has in place of ``node``."""
        if self._run is None:
            self._run = fx.Interpreter(root, garbage_collect_values=False, graph=node.graph)
            self._run.env = {}
            self._run.args_iter = iter(self.values)
        self.running = True
        try:
            with torch.no_grad(), eval_mode(root):  # which changes no statistics
                for each in node.graph.nodes:
                    if each not in self._run.env:
                        self._run.env[each] = self._run.run_node(each)
        finally:
            self.running = False
        return self._run.env[node]

    def _reads_facts(self, node: fx.Node) -> bool:
        assert self._run is not None
        tensors = [x for x in node.all_input_nodes if isinstance(self._run.env[x], Tensor)]
        if tensors:
            is_fact = node.target is getattr and node.args[1] in _FACTS
            return is_fact or (node.op == "call_method" and node.target in _SIZES)
        return node.op != "placeholder" and all(map(self._reads_facts, node.all_input_nodes))


def agree(found: bool, expected: bool) -> None:
    """Refuse inputs for which a condition in the network's code has another answer than for the example."""
    if bool(found) is not expected:
        raise ValueError(
            "the network refuses inputs of this size or dtype, or takes another way than for the example: octavify it "
            "with example_inputs like these"
        )


def _place() -> Place:
    """Where the network's code asks: neither in torch.fx nor in octavify itself."""
    frame = sys._getframe(1)
    while frame.f_back is not None and f"{frame.f_globals.get('__name__', '')}.".startswith(_OURS):
        frame = frame.f_back
    return frame.f_code.co_filename, frame.f_lineno


def is_check(place: Place) -> bool:
    """Whether a condition is an assertion, or the next line raises an error: only one answer leads anywhere."""
    file, number = place
    line, after = (linecache.getline(file, number + i).strip() for i in (0, 1))
    return line.startswith("assert ") or (line.startswith("if ") and after.startswith("raise "))


def canonical(graph: fx.Graph) -> list[Any]:
    """What a graph computes, in a form that can be compared: names and memory layouts do not count."""
    number: dict[fx.Node, int] = {}
    found: list[Any] = []
    for node in graph.nodes:
        if node.target == "contiguous":
            number[node] = number[node.args[0]]
            continue
        number[node] = len(found)
        args = fx.node.map_arg((node.args, dict(node.kwargs)), lambda x: f"%{number[x]}")
        found.append((node.op, node.target if node.op != "placeholder" else "", repr(args)))
    return found


def drop_unread(graph: fx.Graph) -> None:
    """Remove what only conditions have read."""
    pure = (getattr, operator.getitem, *(getattr(operator, name) for name in ("eq", "ne", "lt", "le", "gt", "ge")))
    pure += (operator.mod, operator.floordiv, operator.add, operator.sub, operator.mul, operator.and_, operator.or_)
    for node in reversed(graph.nodes):
        is_size = node.op == "call_method" and node.target in _SIZES
        if not node.users and (is_size or (node.op == "call_function" and node.target in pure)):
            graph.erase_node(node)
