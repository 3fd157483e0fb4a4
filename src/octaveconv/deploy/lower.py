"""Lower: a captured graph becomes layers, with norms folded and everything fused that one layer can do."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

from ..errors import BackendUnavailable
from .capture import Captured
from .ir import INFINITY, Activation, Addend, Finish, Lowered, Map, Pair, Ref, Sum, Term, Window
from .operations import ACTIVATIONS, METHODS, SAME, VIEWS
from .values import Cat, LayerBuilder, Value, mapped


class Unsupported(BackendUnavailable):
    """The engines do not know an operation; the message says which one, and in what module."""


def lower(captured: Captured) -> Lowered:
    """Turn the graph into layers.

    Raises:
        Unsupported: an operation that the engines do not know.
    """
    return _Walk(captured).network()


class _Walk:
    """Walks through the graph once; ``values`` holds what each node has become."""

    def __init__(self, captured: Captured) -> None:
        self.captured = captured
        self.out = LayerBuilder()
        shape = captured.input.meta["val"].shape
        if len(shape) != 4:
            raise Unsupported(f"the input has {len(shape)} dimensions, not 4")
        self.input = Map(shape[1], (shape[2], shape[3]))
        self.values: dict[fx.Node, Any] = {captured.input: Ref(self.input, 0, shape[1])}
        for node in captured.nodes:
            self.node = node
            self.values[node] = self.visit(node)

    def network(self) -> Lowered:
        if not all(node in self.values for node in self.captured.outputs):
            raise Unsupported("an output does not depend on the input, such as the absent part of an octave")
        refs = [self.out.refs(self.values[node], node.name) for node in self.captured.outputs]
        shapes = [tuple(node.meta["val"].shape) for node in self.captured.outputs]
        return Lowered(self.input, self.out.live_layers(refs), refs, shapes)

    def visit(self, node: fx.Node) -> Any:
        if isinstance(node.meta.get("val"), (torch.SymInt, int)):
            return None  # a size: maps know theirs
        if node.target in SAME:
            return self.values[node.args[0]]  # type: ignore[index]
        handler = self.handler(node.target)
        arguments = [
            self.values.get(a, self.captured.constants.get(a)) if isinstance(a, fx.Node) else a
            for a in map(self.listed, node.args)
        ]
        value = handler(*arguments, **node.kwargs)
        if isinstance(value, Sum) and len(node.users) > 1:
            value = self.ref(value)
        if getattr(getattr(node.target, "_schema", None), "is_mutable", False):  # later readers see the result
            if node.args[0].target in VIEWS:  # type: ignore[union-attr]
                raise self.unsupported("it changes a view in place")
            self.values[node.args[0]] = value  # type: ignore[index]
        return value

    def handler(self, operation: Any) -> Callable[..., Value]:
        if operation in ACTIVATIONS:
            return lambda x: self.activate(x, *ACTIVATIONS[operation])
        if operation in METHODS:
            return getattr(self, METHODS[operation])  # type: ignore[no-any-return]
        raise self.unsupported()

    def listed(self, argument: Any) -> Any:
        if isinstance(argument, (list, tuple)) and any(isinstance(a, fx.Node) and a in self.values for a in argument):
            return [self.values[a] if isinstance(a, fx.Node) else a for a in argument]
        return argument

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
        shape = self.node.meta["val"].shape
        return (shape[2], shape[3]) if len(shape) == 4 else (1, 1)

    def unsupported(self, why: str = "") -> Unsupported:
        stack = list(self.node.meta.get("nn_module_stack", {}).values())
        path = stack[-1][0] if stack else ""
        where = f" in module {path}" if path else ""
        return Unsupported(f"{self.node.target}{where} is not supported{why and ': '}{why}")

    # The operations: each method takes the operation's arguments, with values in place of nodes.

    def conv(
        self,
        x: Value,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: Any = (1, 1),
        padding: Any = (0, 0),
        dilation: Any = (1, 1),
        groups: int = 1,
    ) -> Sum:
        if not isinstance(weight, Tensor):
            raise self.unsupported("its weight depends on the input")
        parts = self.out.refs(x, self.node.name)
        if groups > 1 and len(parts) > 1:
            parts = [self.out.join(parts, self.node.name)]
        terms, first = [], 0
        for part in parts:
            block = weight if groups > 1 else weight[:, first : first + part.channels]
            first += part.channels
            terms.append(Term(part, block, pair(stride), pair(padding), pair(dilation), groups))
        return Sum(weight.shape[0], self.size, tuple(terms), bias=bias)

    def linear(self, x: Value, weight: Tensor, bias: Tensor | None = None) -> Sum:
        return self.conv(x, weight[:, :, None, None], bias)

    def batch_norm(
        self,
        x: Value,
        weight: Tensor | None,
        bias: Tensor | None,
        mean: Tensor,
        var: Tensor,
        training: bool,
        momentum: float,
        eps: float,
        cudnn: bool,
    ) -> Value:
        if training or mean is None:
            raise self.unsupported("it normalizes with the statistics of the batch")
        scale = (var.double() + eps).rsqrt() * (1 if weight is None else weight.double())
        shift = (0 if bias is None else bias.double()) - mean.double() * scale
        return self.affine(x, scale, shift)

    def affine(self, x: Value, scale: Tensor, shift: Tensor | None = None) -> Value:
        """``x * scale + shift``, folded into the weights of ``x`` if it is only convolutions."""
        if isinstance(x, Cat):
            x = self.out.join(self.out.refs(x, self.node.name), self.node.name)
        total = self.sum(x)
        if not total.addends:
            return scaled(total, scale, shift)
        shift = torch.zeros_like(scale) if shift is None else shift
        return total._replace(finish=Finish(scale.float(), shift.float()), size=self.size)

    def activate(self, x: Value, activation: Activation, low: float = -INFINITY, high: float = INFINITY) -> Value:
        if isinstance(x, Cat):
            return mapped(x, lambda part: self.ref(self.activate(part, activation, low, high)))
        if not isinstance(x, Sum) or x.finish.activates:
            x = self.sum(x)
        return x._replace(finish=x.finish._replace(activation=activation, low=low, high=high))

    def hardtanh(self, x: Value, low: float = -1.0, high: float = 1.0) -> Value:
        return self.activate(x, "clamp", low, high)

    def item(self, x: Any, index: int) -> Value:
        return x[index]  # type: ignore[no-any-return]

    def subtract(self, x: Value, y: Any, alpha: float = 1) -> Value:
        return self.add(x, y, -alpha)

    def add(self, x: Value, y: Any, alpha: float = 1) -> Value:
        if not isinstance(x, (Sum, Ref, Cat)):
            x, y = y, x
        a = self.sum(x)
        ones = torch.ones(a.channels, dtype=torch.float64)
        if not isinstance(y, (Sum, Ref, Cat)):
            return self.affine(a, ones, self.constant(y, a.channels) * alpha)
        b = self.sum(y if alpha == 1 else self.affine(y, ones * alpha))
        if a.channels != b.channels or not self.full_size(0) or not self.full_size(1):
            raise self.unsupported("it adds maps of different shapes")
        bias = b.bias if a.bias is None else a.bias if b.bias is None else a.bias + b.bias
        return Sum(a.channels, self.size, a.terms + b.terms, a.coarse + b.coarse, a.addends + b.addends, bias)

    def multiply(self, x: Value, y: Any) -> Value:
        if not isinstance(x, (Sum, Ref, Cat)):
            x, y = y, x
        if not isinstance(y, (Sum, Ref, Cat)):
            total = self.sum(x)
            return self.affine(total, self.constant(y, total.channels))
        if not self.full_size(0):
            x, y = y, x
        if isinstance(x, Cat) or (not self.full_size(0) and not self.full_size(1)):
            raise self.unsupported("it multiplies a concatenation, or maps that are both smaller than their product")
        source, gate = self.ref(x), self.ref(y)
        if gate.map.size != (1, 1) or source.channels != gate.channels:
            raise self.unsupported("of the two maps one must have a single pixel and all channels")
        return Sum(source.channels, self.size, addends=(Addend(source, gate=gate),))

    def constant(self, value: Any, channels: int) -> Tensor:
        """A number, or a constant that has one for each channel, as ``[C]`` in float64."""
        constant = torch.as_tensor(value, dtype=torch.float64)
        dimensions = self.node.meta["val"].dim()
        if constant.numel() != 1 and constant.shape[-dimensions + 1 :].numel() != constant.shape[-dimensions + 1]:
            raise self.unsupported(f"its constant of shape {list(constant.shape)} is not one value, or one per channel")
        return constant.flatten().expand(channels).clone()

    def full_size(self, argument: int) -> bool:
        other = self.node.args[argument]
        return isinstance(other, fx.Node) and other.meta["val"].shape == self.node.meta["val"].shape

    def cat(self, xs: list[Value], dim: int = 0) -> Cat:
        if dim not in (1, 1 - self.node.meta["val"].dim()):
            raise self.unsupported(f"it concatenates along dimension {dim}, not along the channels")
        return Cat(tuple(ref for x in xs for ref in self.out.refs(x, self.node.name)))

    def narrow(self, x: Value, dim: int, start: int, length: int) -> Value:
        if dim % self.node.meta["val"].dim() != 1:
            raise self.unsupported(f"it slices dimension {dim}, not the channels")
        if isinstance(x, Cat):
            x = self.out.join(self.out.refs(x, self.node.name), self.node.name)
        ref = self.ref(x)
        return Ref(ref.map, ref.first + start, length)

    def slice(self, x: Value, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1) -> Value:
        if not start and end in (None, sys.maxsize) and step == 1:
            return x
        if dim != 1 or step != 1:
            raise self.unsupported(f"it slices dimension {dim}, not the channels")
        channels = self.node.args[0].meta["val"].shape[1]  # type: ignore[union-attr]
        first, last, _ = slice(start, end).indices(channels)
        return self.narrow(x, dim, first, last - first)

    def split(self, x: Value, sizes: Any, dim: int = 0) -> tuple[Ref, ...]:
        parts = [val.shape[1] for val in self.node.meta["val"]]
        if dim not in (1, -3) or any(val.dim() not in (2, 4) for val in self.node.meta["val"]):
            raise self.unsupported(f"it splits dimension {dim}, not the channels")
        ref = self.out.join(self.out.refs(x, self.node.name), self.node.name)
        starts = [sum(parts[:i]) for i in range(len(parts))]
        return tuple(Ref(ref.map, ref.first + start, part) for start, part in zip(starts, parts))

    def avg_pool(
        self,
        x: Value,
        kernel: Any,
        stride: Any = (),
        padding: Any = (0, 0),
        ceil_mode: bool = False,
        count_include_pad: bool = True,
        divisor: int | None = None,
    ) -> Value:
        if divisor is not None:
            raise self.unsupported("it has a divisor of its own")
        kernel, stride, padding = pair(kernel), pair(stride or kernel), pair(padding)
        if (kernel, stride, padding, ceil_mode) == ((2, 2), (2, 2), (0, 0), True):
            return mapped(x, lambda part: self.out.pooled(part, self.size, self.node.name))
        return mapped(
            x,
            lambda part: self.window("average", part, kernel, stride, padding, count_include_pad and padding != (0, 0)),
        )

    def max_pool(
        self,
        x: Value,
        kernel: Any,
        stride: Any = (),
        padding: Any = (0, 0),
        dilation: Any = (1, 1),
        ceil_mode: bool = False,
    ) -> Value:
        if pair(dilation) != (1, 1):
            raise self.unsupported("it has a dilation")
        return mapped(x, lambda part: self.window("max", part, pair(kernel), pair(stride or kernel), pair(padding)))

    def window(self, kind: Any, x: Value, *arguments: Any) -> Ref:
        return self.out.window(Window(kind, self.ref(x), *arguments), self.size, self.node.name)

    def mean(self, x: Value, dim: Any, keepdim: bool = False) -> Value:
        if sorted(d % 4 for d in dim) != [2, 3]:
            raise self.unsupported("it is not the mean over height and width")
        return mapped(x, lambda part: self.window("mean", part))

    def adaptive_avg_pool(self, x: Value, size: Any) -> Value:
        if pair(size) != (1, 1):
            raise self.unsupported(f"it pools to {size}, not to one pixel")
        return mapped(x, lambda part: self.window("mean", part))

    def upsample(self, x: Value, size: Any, *scales: float | None) -> Sum:
        if scales not in ((2.0, 2.0),):
            raise self.unsupported("its factor is not 2")
        if isinstance(x, Cat):
            raise self.unsupported("its input is a concatenation")
        if isinstance(x, Sum) and x.finish == Finish() and not x.coarse and not x.addends:
            return Sum(x.channels, self.size, coarse=x.terms, bias=x.bias)
        ref = self.ref(x)
        return Sum(ref.channels, self.size, addends=(Addend(ref, coarse=True),))

    def flatten(self, x: Value, *arguments: Any) -> Value:
        before = self.node.args[0].meta["val"].shape  # type: ignore[union-attr]
        if tuple(before[2:]) not in ((), (1, 1)) or self.node.meta["val"].shape[:2] != before[:2]:
            raise self.unsupported("it changes the shape of maps of more than one pixel")
        return x


def pair(value: Any) -> Pair:
    """A number for both axes, or one for each."""
    values = (value,) if isinstance(value, int) else tuple(value)
    return (values[0], values[-1])


def scaled(total: Sum, scale: Tensor, shift: Tensor | None) -> Sum:
    """Fold ``* scale + shift`` into the weights of a sum that has no addends."""

    def fold(term: Term) -> Term:
        return term._replace(weight=(term.weight.double() * scale[:, None, None, None]).float())

    bias = torch.zeros(total.channels, dtype=torch.float64) if total.bias is None else total.bias.double()
    bias = bias * scale if shift is None else bias * scale + shift
    return total._replace(terms=tuple(map(fold, total.terms)), coarse=tuple(map(fold, total.coarse)), bias=bias.float())
