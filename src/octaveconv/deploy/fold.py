"""The captured network as a torch.fx module: constants computed, norms folded into convolutions, sums reordered."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from .capture import Captured, exported

_OPS = torch.ops.aten
_CONV, _ADD = _OPS.conv2d.default, _OPS.add.Tensor
_UPSAMPLE = (_OPS.upsample_nearest2d.default, _OPS.upsample_nearest2d.vec)
_NORM = _OPS._native_batch_norm_legit_no_training.default

Guard = Callable[[Tensor], Any]


def folded(
    model: nn.Module, example: Tensor, dynamic: Sequence[int] = (0, 2, 3), form: str = "reference"
) -> tuple[fx.GraphModule, Guard]:
    """Capture ``model``, which is in evaluation mode, and fold what does not depend on the input.

    Args:
        model: any module of one tensor; it is not changed.
        example: ``[N, C, H, W]``.
        dynamic: the dimensions of the input that may differ from the example's.
        form: the backend whose operations octave convolutions become: four convolutions, or with ``"merged"`` three.

    Returns:
        The module, whose parameters are new, and a function that raises AssertionError for an input of a shape that
        the capture does not cover.

    Raises:
        Exception: whatever torch.export raises for a module that it cannot capture.
    """
    if 0 in dynamic and len(example) == 1:
        example = torch.cat([example, example])
    program = exported(model, example, dynamic, form, decomposed=True)
    guard = getattr(program.module(), "_guards_fn", None)
    graph = _Graph(Captured(program))
    graph.fold()
    graph.order_sums()
    return graph.module(), guard if guard is not None else lambda x: None


class _Graph:
    """A graph and the tensors that it refers to by name."""

    def __init__(self, captured: Captured) -> None:
        self.graph = fx.Graph()
        self.tensors: dict[str, Tensor] = {}
        copies: dict[fx.Node, Any] = {captured.input: self.graph.placeholder("x")}
        constants: dict[fx.Node, Any] = {}

        def copied(node: fx.Node) -> Any:
            if node not in copies and node not in constants:
                value = captured.constants[node]
                constants[node] = self.constant(value) if isinstance(value, Tensor) else value
            return copies[node] if node in copies else constants[node]

        for node in captured.nodes:
            arguments = fx.node.map_arg((node.args, node.kwargs), copied)
            copies[node] = self.graph.call_function(node.target, *arguments)  # type: ignore[arg-type]
            copies[node].meta["val"] = node.meta["val"]
        outputs = fx.node.map_arg(captured.outputs, copied)
        self.graph.output(pytree.tree_unflatten(outputs, captured.out_spec))
        self.graph.eliminate_dead_code()

    def constant(self, value: Tensor) -> fx.Node:
        """Store a tensor under a name, and refer to it at the place where the graph is being written."""
        name = f"constant{len(self.tensors)}"
        self.tensors[name] = value
        return self.graph.get_attr(name)

    def module(self) -> fx.GraphModule:
        """The graph as a module with the tensors that it still needs."""
        self.graph.eliminate_dead_code()
        for node in self.graph.nodes:
            node.meta.clear()
        needed = {node.target for node in self.graph.nodes if node.op == "get_attr"}
        parameters = {name: nn.Parameter(self.tensors[name], requires_grad=False) for name in needed}
        return fx.GraphModule(parameters, self.graph).eval()

    def fold(self) -> None:
        """Scale and shift convolutions instead of applying the norms and biases after their sum; other norms stay."""
        for node in list(self.graph.nodes):
            if node.target is _NORM:
                self._fold_norm(node)
            elif node.target is _ADD and _is_constant(node.args[1]):
                self._fold_bias(node)

    def _fold_norm(self, norm: Any) -> None:
        x, *state, momentum, eps = norm.args
        output = next(iter(norm.users))  # the first of its three results; the others are for training
        convs = _convs_of(x) if all(map(_is_constant, state)) else None
        if convs is None:
            with self.graph.inserting_before(norm):
                x = self.graph.call_function(_OPS.batch_norm.default, (x, *state, False, momentum, eps, True))
        else:
            weight, bias, mean, var = (None if node is None else self.tensors[node.target].double() for node in state)
            assert mean is not None
            assert var is not None
            scale = (var + eps).rsqrt() * (1 if weight is None else weight)
            self._scale_and_shift(convs, scale, (0 if bias is None else bias) - mean * scale)
        x.meta["val"] = output.meta["val"]
        output.replace_all_uses_with(x)
        self.graph.erase_node(output)
        self.graph.erase_node(norm)

    def _fold_bias(self, node: Any) -> None:
        x, bias = node.args[0], self.tensors[node.args[1].target]
        convs = _convs_of(x) if isinstance(x, fx.Node) else None
        if convs and bias.shape == (len(self.tensors[convs[0].args[1].target]), 1, 1) and not node.kwargs:
            self._scale_and_shift(convs, torch.ones_like(bias[:, 0, 0]).double(), bias[:, 0, 0].double())
            node.replace_all_uses_with(x)
            self.graph.erase_node(node)

    def _scale_and_shift(self, convs: list[Any], scale: Tensor, shift: Tensor) -> None:
        """Give convolutions weights and biases with which their sum is ``sum * scale + shift``."""
        for conv in convs:
            weight, bias = (None if node is None else self.tensors[node.target] for node in (*conv.args, None)[1:3])
            assert weight is not None
            new_bias = (0 if bias is None else bias.double() * scale) + (shift if conv is convs[0] else 0)
            with self.graph.inserting_before(conv):
                new = self.constant((weight * scale[:, None, None, None]).to(weight.dtype))
                bias_node = self.constant(new_bias.to(weight.dtype)) if isinstance(new_bias, Tensor) else None
                conv.args = (conv.args[0], new, bias_node, *conv.args[3:])

    def order_sums(self) -> None:
        """Upsample once per sum, and add convolutions last: a runtime can let a convolution add to what is there.

        ``conv(h) + up(conv(l)) + x`` becomes ``conv(h) + (x + up(conv(l)))``, and where ``x`` is such a sum too,
        ``up(a) + up(b)`` becomes ``up(a + b)``.
        """
        for node in self.graph.find_nodes(op="call_function", target=_ADD):
            if _is_sum(node) and not (len(node.users) == 1 and _is_sum(next(iter(node.users)))):
                with self.graph.inserting_before(node):
                    total = self._sum([term for part in node.args for term in _terms(part)])
                total.meta["val"] = node.meta["val"]
                node.replace_all_uses_with(total)
        self.graph.eliminate_dead_code()

    def _sum(self, terms: list[Any]) -> Any:
        ours = [term for term in terms if len(term.users) == 1]  # nothing else reads them
        convs = [term for term in ours if term.target is _CONV]
        upsampled = [term for term in ours if term.target in _UPSAMPLE]
        others = [term for term in terms if term not in convs and term not in upsampled]
        for alike in _alike(upsampled):
            if len(alike) > 1:
                low = self._sum([term for up in alike for term in _terms(up.args[0])])
                others.append(self.graph.call_function(alike[0].target, (low, *alike[0].args[1:])))
            else:
                others += alike
        total = None
        for term in others:
            total = term if total is None else self.graph.call_function(_ADD, (total, term))
        for conv in convs:  # a copy, to come after what it is added to
            total = conv if total is None else self.graph.call_function(_ADD, (self.graph.node_copy(conv), total))
        assert total is not None
        return total


def _convs_of(node: Any) -> list[Any] | None:
    """The convolutions that ``node`` is the sum of, or None if it is something else or is also read elsewhere.

    An upsampled map may be scaled and shifted before upsampling as well as after.
    """
    if len(node.users) != 1:
        return None
    if node.target is _CONV:
        return [node] if all(_is_constant(argument) for argument in node.args[1:3]) and not node.kwargs else None
    if _is_sum(node):
        parts = [_convs_of(part) for part in node.args]
        return None if None in parts else [conv for part in parts for conv in part or ()]
    return _convs_of(node.args[0]) if node.target in _UPSAMPLE else None


def _is_constant(argument: Any) -> bool:
    return argument is None or (isinstance(argument, fx.Node) and argument.op == "get_attr")


def _is_sum(node: Any) -> bool:
    """Whether a node adds two different values."""
    if node.target is not _ADD or node.kwargs or not all(isinstance(part, fx.Node) for part in node.args):
        return False
    return node.args[0] is not node.args[1]


def _terms(node: Any) -> list[Any]:
    """What a value is the sum of; a sum that is also read elsewhere is not taken apart."""
    if not _is_sum(node) or len(node.users) != 1:
        return [node]
    return [term for part in node.args for term in _terms(part)]


def _alike(upsamplings: list[Any]) -> list[list[Any]]:
    """Group those with the same input and output size, so that the sum of their inputs can be upsampled instead."""
    groups: dict[Any, list[Any]] = {}
    for node in upsamplings:
        size = str(node.all_input_nodes[0].meta["val"].shape)  # symbols must not be compared as numbers
        groups.setdefault((node.target, size, str(node.args[1:])), []).append(node)
    return list(groups.values())
