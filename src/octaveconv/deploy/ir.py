"""The captured network as a list of layers: each a sum of convolutions and maps, and what is kept of that sum."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from .sizes import Size

Pair = tuple[int, int]
Activation = Literal[
    "clamp", "sigmoid", "hardswish", "hardsigmoid", "silu", "leaky", "elu", "tanh", "gelu", "gelu_tanh", "mish"
]
Padding = Literal["zeros", "reflect", "replicate", "circular"]
INFINITY = float("inf")


@dataclass(eq=False)
class Map:
    """A feature map in memory: ``channels`` at ``size``, height and width as numbers or symbols of the input's size.

    A map that is part of a concatenation is stored in its ``home``, starting at channel ``offset``.
    """

    channels: int
    size: tuple[Any, Any]
    home: Map | None = None
    offset: int = 0

    @property
    def whole(self) -> Map:
        """The map in memory that this one is, or is a part of."""
        return self.home or self


class Ref(NamedTuple):
    """Some channels of a map."""

    map: Map
    first: int
    channels: int


class Term(NamedTuple):
    """A convolution of ``source`` with ``weight`` ``[out, in / groups, kh, kw]``."""

    source: Ref
    weight: Tensor
    stride: Pair
    padding: Pair
    dilation: Pair
    groups: int

    @property
    def depthwise(self) -> bool:
        """One filter per channel."""
        return self.groups > 1 and self.groups == self.source.channels == self.weight.shape[0]


class Addend(NamedTuple):
    """A map that is added: upsampled by 2 if it is ``coarse``, times a ``gate`` ``[N, C, 1, 1]`` if there is one."""

    source: Ref
    coarse: bool = False
    gate: Ref | None = None


class Finish(NamedTuple):
    """What is done to a sum: ``activation(sum * scale + shift)``; "clamp" is to ``[low, high]``.

    ``low`` is the slope of "leaky" below zero, and the ``alpha`` of "elu".
    """

    scale: Tensor | None = None
    shift: Tensor | None = None
    activation: Activation = "clamp"
    low: float = -INFINITY
    high: float = INFINITY

    @property
    def activates(self) -> bool:
        """Whether there is an activation."""
        return self[2:] != ("clamp", -INFINITY, INFINITY)


class Sum(NamedTuple):
    """A value that is not computed yet. The ``coarse`` terms are at half the size, and their sum is upsampled."""

    channels: int
    size: tuple[Any, Any]
    terms: tuple[Term, ...] = ()
    coarse: tuple[Term, ...] = ()
    addends: tuple[Addend, ...] = ()
    bias: Tensor | None = None
    finish: Finish = Finish()


@dataclass
class Output:
    """One way in which a layer keeps its sum: at full size, 2x2-pooled, or both."""

    finish: Finish
    full: Map | None = None
    pooled: Map | None = None


class Window(NamedTuple):
    """A pooling over windows, or over the whole image ("mean"); or a padding, whose sizes at the top left are given."""

    kind: Literal["mean", "max", "average"] | Padding
    source: Ref
    kernel: Pair = (1, 1)
    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    count_padding: bool = False


@dataclass
class Layer:
    """One step: a ``sum`` with its outputs, or a ``window`` with one."""

    name: str
    sum: Sum | None
    outputs: list[Output] = field(default_factory=list)
    window: Window | None = None

    @property
    def sources(self) -> list[Ref]:
        """Everything that is read."""
        if self.window is not None:
            return [self.window.source]
        assert self.sum is not None
        refs = [term.source for term in (*self.sum.terms, *self.sum.coarse)]
        for addend in self.sum.addends:
            refs += [addend.source] if addend.gate is None else [addend.source, addend.gate]
        return refs

    @property
    def targets(self) -> list[Map]:
        """Everything that is written."""
        return [target for output in self.outputs for target in (output.full, output.pooled) if target is not None]

    @property
    def blocked(self) -> bool:
        """Whether its pixels are processed in 2x2 blocks."""
        return self.sum is not None and bool(
            self.sum.coarse
            or any(addend.coarse for addend in self.sum.addends)
            or any(output.pooled is not None for output in self.outputs)
        )


@dataclass
class Lowered:
    """A lowered network: layers in an order in which they can run, from the inputs to the parts of each output."""

    inputs: list[Map]
    layers: list[Layer]
    outputs: list[list[Ref]]
    shapes: list[tuple[Any, ...]]  # of the outputs

    @property
    def input(self) -> Map:
        """The only input of a whole network; a stretch of one may have several."""
        (only,) = self.inputs
        return only

    def last_uses(self, parts: Sequence[Iterable[Layer]]) -> dict[Map, int]:
        """For each map in memory, which of the ``parts``, lists of layers that run in turn, uses it last.

        Outputs are used after all of them.
        """
        last: dict[Map, int] = {}
        for i, layers in enumerate(parts):
            for layer in layers:
                last.update({target.whole: i for target in layer.targets})
                last.update({ref.map.whole: i for ref in layer.sources})
        return last | {ref.map.whole: len(parts) for refs in self.outputs for ref in refs}


_KINDS = {torch.SymInt: int, torch.SymFloat: float, torch.SymBool: bool}


def number(size: Any, sizes: Mapping[Any, int]) -> Any:
    """A size as a number, given the values of its symbols."""
    if isinstance(size, Size):
        return size.value(sizes)
    if (kind := _KINDS.get(type(size))) is not None:
        from torch.utils._sympy.interp import sympy_interp  # ten times as fast as SymPy's subs
        from torch.utils._sympy.reference import PythonReferenceAnalysis

        return kind(sympy_interp(PythonReferenceAnalysis, dict(sizes), size.node.expr))
    return size
