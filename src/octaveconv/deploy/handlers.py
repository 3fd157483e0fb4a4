"""Handlers: what each operation that the engines know becomes."""

from __future__ import annotations

import math
import sys
from typing import Any

import torch
from torch import Tensor, fx

from .ir import INFINITY, Activation, Addend, Finish, Pair, Ref, Sum, Term, Window
from .lower import Lowering, alike, is_value
from .values import Cat, Value, mapped


class Handlers(Lowering):
    """A method for each kind of operation. It takes the operation's arguments, with values in place of nodes."""

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
        padding = pair(padding)
        if isinstance(x, (Ref, Cat)) and x in self.pads:
            x, (top, left) = self.pads[x]
            padding = (padding[0] + top, padding[1] + left)
        parts = self.out.refs(x, self.node.name)
        if groups > 1 and len(parts) > 1:
            parts = [self.out.join(parts, self.node.name)]
        terms, first = [], 0
        for part in parts:
            block = weight if groups > 1 else weight[:, first : first + part.channels]
            first += part.channels
            terms.append(Term(part, block, pair(stride), padding, pair(dilation), groups))
        return Sum(weight.shape[0], self.size, tuple(terms), bias=bias)

    def conv_padded(
        self, x: Value, weight: Tensor, bias: Any = None, stride: Any = 1, padding: str = "valid", *others: Any
    ) -> Sum:
        """Padding is a word here; "same" pads one pixel more at the end where it cannot be equal at both."""
        if padding != "same":
            return self.conv(x, weight, bias, stride, 0, *others)
        dilation = pair(others[0]) if others else (1, 1)
        total = [d * (k - 1) for k, d in zip(weight.shape[2:], dilation)]
        if any(each % 2 for each in total):
            size = self.node.args[0].meta["val"].shape[2:]  # type: ignore[union-attr]
            start = (total[0] // 2, total[1] // 2)
            grown = tuple(n + each for n, each in zip(size, total))
            x = mapped(
                x, lambda part: self.out.window(Window("zeros", self.ref(part), padding=start), grown, self.node.name)
            )
            total = [0, 0]
        return self.conv(x, weight, bias, stride, (total[0] // 2, total[1] // 2), *others)

    def pad(self, x: Value, pads: list[int], mode: str = "constant", value: float | None = None) -> Value:
        if self.node.meta["val"].dim() != 4 or len(pads) not in (2, 4) or min(pads) < 0 or value:
            raise self.unsupported("it pads more than height and width, or with a number, or it crops")
        left, right, top, bottom = (*pads, 0, 0)[:4]
        kind: Any = "zeros" if mode == "constant" else mode
        x = mapped(x, self.ref)
        padded = mapped(x, lambda part: self.window(kind, part, (1, 1), (1, 1), (top, left)))
        if kind == "zeros" and (top, left) == (bottom, right):
            self.pads[padded] = (x, (top, left))
        return padded

    def linear(self, x: Value, weight: Tensor, bias: Tensor | None = None) -> Sum:
        return self.conv(x, weight[:, :, None, None], bias)

    def norm(
        self,
        x: Value,
        weight: Tensor | None,
        bias: Tensor | None,
        mean: Tensor,
        var: Tensor,
        momentum: float,
        eps: float,
    ) -> tuple[Value, None, None]:
        scale = (var.double() + eps).rsqrt() * (1 if weight is None else weight.double())
        shift = (0 if bias is None else bias.double()) - mean.double() * scale
        return self.affine(x, scale, shift), None, None

    def affine(self, x: Value, scale: Tensor, shift: Tensor | None = None) -> Value:
        """``x * scale + shift``, folded into the weights of ``x`` if it is only convolutions."""
        factors = scale if shift is None else torch.cat([scale, shift])
        if not factors.float().isfinite().all():
            raise self.unsupported("it multiplies by, or adds, what is infinite or NaN in float32")
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

    def clamp(self, x: Value, low: float | None = None, high: float | None = None) -> Value:
        low, high = -INFINITY if low is None else low, INFINITY if high is None else high
        if math.isnan(low) or math.isnan(high):
            raise self.unsupported("a bound is NaN")
        return self.activate(x, "clamp", low, high)

    def leaky_relu(self, x: Value, slope: float = 0.01) -> Value:
        return self.activate(x, "leaky", slope)

    def prelu(self, x: Value, slope: Tensor) -> Value:
        if slope.numel() > 1:
            raise self.unsupported("it has a slope for each channel")
        return self.leaky_relu(x, slope.item())

    def elu(self, x: Value, alpha: float = 1.0, scale: float = 1.0, input_scale: float = 1.0) -> Value:
        if input_scale != 1 or scale != 1:
            raise self.unsupported("it scales")
        return self.activate(x, "elu", alpha)

    def selu(self, x: Value) -> Value:
        y = self.sum(self.activate(x, "elu", 1.6732632423543772))
        return self.affine(y, self.ones(y) * 1.0507009873554805)

    def celu(self, x: Value, alpha: float = 1.0) -> Value:
        if alpha != 1:
            raise self.unsupported("its alpha is not 1")
        return self.activate(x, "elu", 1.0)

    def gelu(self, x: Value, approximate: str = "none") -> Value:
        return self.activate(x, "gelu" if approximate == "none" else "gelu_tanh")

    def negate(self, x: Value) -> Value:
        return self.multiply(x, -1)

    def divide(self, x: Value, y: Any) -> Value:
        if not is_value(x) or is_value(y):
            raise self.unsupported("it does not divide a map by a constant")
        return self.multiply(x, 1 / torch.as_tensor(y, dtype=torch.float64))

    def item(self, x: Any, index: int) -> Value:
        return x[index]  # type: ignore[no-any-return]

    def subtract(self, x: Value | Any, y: Value | Any, alpha: float = 1) -> Value:
        return self.add(x, y, -alpha)

    def add(self, x: Value | Any, y: Value | Any, alpha: float = 1) -> Value:
        """``x + alpha * y``, one of which may be a constant."""
        if not is_value(y):
            a = self.whole(0, x)
            return self.affine(a, self.ones(a), self.constant(y, a.channels) * alpha)
        if not is_value(x):
            b = self.whole(1, y)
            return self.affine(b, self.ones(b) * alpha, self.constant(x, b.channels))
        a, b = self.whole(0, x), self.whole(1, y)
        if alpha != 1:
            b = self.sum(self.affine(b, self.ones(b) * alpha))
        bias = b.bias if a.bias is None else a.bias if b.bias is None else a.bias + b.bias
        return Sum(a.channels, self.size, a.terms + b.terms, a.coarse + b.coarse, a.addends + b.addends, bias)

    def subtract_from(self, x: Value, y: Any, alpha: float = 1) -> Value:
        total = self.whole(0, x)
        return self.affine(total, self.ones(total) * -alpha, self.constant(y, total.channels))

    def whole(self, argument: int, value: Value) -> Sum:
        """An operand as a sum; it must have the shape of the result."""
        if not self.full_size(argument):
            raise self.unsupported("its maps have different shapes")
        return self.sum(value)

    def ones(self, total: Sum) -> Tensor:
        return torch.ones(total.channels, dtype=torch.float64)

    def multiply(self, x: Value, y: Any) -> Value:
        for number, (value, other) in enumerate(((x, y), (y, x))):
            if not is_value(other):
                total = self.whole(number, value)
                return self.affine(total, self.constant(other, total.channels))
        dimensions = {each.meta["val"].dim() for each in self.node.args}  # type: ignore[union-attr]
        if len(dimensions) > 1:
            raise self.unsupported("its maps have different numbers of dimensions")
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
        axis = dimensions - 1 if self.is_last else 1
        shape = (*[1] * (dimensions - constant.dim()), *constant.shape)
        if len(shape) != dimensions or any(n != 1 for i, n in enumerate(shape) if i != axis):
            raise self.unsupported(f"its constant of shape {list(constant.shape)} is not one value, or one per channel")
        return constant.flatten().expand(channels).clone()

    def full_size(self, argument: int) -> bool:
        other = self.node.args[argument]
        return isinstance(other, fx.Node) and same_sizes(other.meta["val"].shape, self.node.meta["val"].shape)

    def permute(self, x: Value, axes: list[int]) -> Value:
        """Between ``[N, C, H, W]`` and ``[N, H, W, C]``, which are the same map."""
        if [axis % 4 for axis in axes] != ([0, 3, 1, 2] if self.is_last else [0, 2, 3, 1]):
            raise self.unsupported("it does not move the channels to the last axis, or back")
        self.is_last = not self.is_last
        return x

    def cat(self, xs: list[Value], dim: int = 0) -> Cat:
        if dim not in (1, 1 - self.node.meta["val"].dim()):
            raise self.unsupported(f"it concatenates along dimension {dim}, not along the channels")
        if not all(map(is_value, xs)):
            raise self.unsupported("it concatenates constants")
        return Cat(tuple(ref for x in xs for ref in self.out.refs(x, self.node.name)))

    def narrow(self, x: Value, dim: int, start: int, length: int) -> Value:
        if dim % self.node.meta["val"].dim() != 1:
            raise self.unsupported(f"it slices dimension {dim}, not the channels")
        if isinstance(x, Cat):
            x = self.out.join(self.out.refs(x, self.node.name), self.node.name)
        ref = self.ref(x)
        return Ref(ref.map, ref.first + (start if start >= 0 else start + ref.channels), length)

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
        if dim not in (1, 1 - self.node.meta["val"][0].dim()) or any(
            val.dim() not in (2, 4) for val in self.node.meta["val"]
        ):
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
        if self.node.args[0].meta["val"].dim() != 4 or dim is None or sorted(d % 4 for d in dim) != [2, 3]:  # type: ignore[union-attr]
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

    def upsample_by(self, x: Value, size: Any, factors: Any) -> Sum:
        return self.upsample(x, size, *(factors or ()))

    def flatten(self, x: Value, *arguments: Any) -> Value:
        before = self.node.args[0].meta["val"].shape  # type: ignore[union-attr]
        if tuple(before[2:]) not in ((), (1, 1)) or not same_sizes(self.node.meta["val"].shape[:2], before[:2]):
            raise self.unsupported("it changes the shape of maps of more than one pixel")
        return x


def same_sizes(one: Any, other: Any) -> bool:
    """Whether two shapes are the same at every size of the input, not at the example's alone."""
    return len(one) == len(other) and all(map(alike, one, other))


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
