"""Steps: a layer, or both layers of an octave convolution, as functions of tensors that run wherever PyTorch does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property, reduce
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ...octave import ChannelSplit, Octave
from ...resolution import FACTORS, pool, upsample
from ...spec import ConvSpec, Paths, conv_spec
from ..ir import INFINITY, Layer, Output, Pair, Term
from ..plain import ACTIVATIONS, windowed
from .groups import Group, Terms

Maps = Sequence[Tensor]
Sizes = tuple[Pair, ...]  # height and width of the outputs of each layer of the step

RELU = ("clamp", 0.0, INFINITY)
NOTHING = ("clamp", -INFINITY, INFINITY)


class Form(NamedTuple):
    """One way to compute a step: a function, the formula of plain numbers that it evaluates, and its constants."""

    function: Callable[[Any, Maps, Maps, Sizes], list[Tensor]]
    formula: Any
    constants: list[Tensor]

    def __call__(self, maps: Maps, sizes: Sizes) -> list[Tensor]:
        """The step's targets."""
        return self.function(self.formula, maps, self.constants, sizes)

    def placed(self, like: Tensor) -> Form:
        """With constants of the dtype and device of ``like``; a norm's scale and shift ``[C, 1, 1]`` stay float32."""
        dtypes = (torch.float32 if constant.dim() == 3 else like.dtype for constant in self.constants)
        placed = [constant.to(like.device, dtype) for constant, dtype in zip(self.constants, dtypes)]
        return self._replace(constants=placed)


class Conv(NamedTuple):
    """A convolution of maps side by side. Here and below, maps and constants are given by their indices."""

    sources: tuple[int, ...]
    weight: int
    bias: int | None
    way: Any  # stride, padding, dilation, groups

    def __call__(self, maps: Maps, constants: Maps) -> Tensor:
        bias = None if self.bias is None else constants[self.bias]
        return F.conv2d(_beside(maps, self.sources), constants[self.weight], bias, *self.way)


class Kept(NamedTuple):
    """An `ir.Output`."""

    scale: int | None
    shift: int | None
    activation: Any  # and its limits, as in `ir.Finish`
    full: bool
    pooled: bool

    def __call__(self, total: Tensor, constants: Maps) -> list[Tensor]:
        y = total
        if self.scale is not None and self.shift is not None:  # in float32, as a norm computes
            y = torch.addcmul(constants[self.shift], y, constants[self.scale]).to(y.dtype)
        name, low, high = self.activation
        if self.activation == RELU:
            y = F.relu(y)
        elif name != "clamp":
            y = ACTIVATIONS[name](y, low)
        elif self.activation != NOTHING:
            y = y.clamp(low, high)
        return self.keep(y)

    def keep(self, y: Tensor, pooled: Tensor | None = None) -> list[Tensor]:
        """What is kept of ``y``; it is ``pooled`` here unless that is given."""
        kept = [y] if self.full else []
        if self.pooled:
            kept.append(pool(y) if pooled is None else pooled)
        return kept


class Formula(NamedTuple):
    """An `ir.Layer` without its tensors: layers with the same formula and shapes take the same time."""

    convs: tuple[Conv, ...] = ()
    coarse: tuple[Conv, ...] = ()
    addends: tuple[tuple[int, bool, int | None], ...] = ()  # source, coarse, gate
    outputs: tuple[Kept, ...] = ()
    window: Any = None

    def __call__(self, maps: Maps, constants: Maps, size: Pair) -> list[Tensor]:
        if self.window is not None:
            return [windowed(maps[self.window.source], self.window, size)]
        parts = [conv(maps, constants) for conv in self.convs]
        if self.coarse:
            parts.append(upsample(reduce(torch.add, [conv(maps, constants) for conv in self.coarse]), FACTORS[2], size))
        return self.keep(reduce(torch.add, [*parts, *self.added(maps, size)]), constants)

    def added(self, maps: Maps, size: Pair) -> list[Tensor]:
        """What is added to the convolutions."""
        addends = []
        for source, coarse, gate in self.addends:
            y = maps[source] if gate is None else maps[source] * maps[gate]
            addends.append(upsample(y, FACTORS[2], size) if coarse else y)
        return addends

    def keep(self, total: Tensor, constants: Maps) -> list[Tensor]:
        """The layer's targets, given its sum."""
        return [y for output in self.outputs for y in output(total, constants)]


class Fusion(NamedTuple):
    """An octave convolution computed by the Triton kernel."""

    high: tuple[int, ...]
    pooled: tuple[int, ...]
    low: tuple[int, ...]
    weight: int
    bias: int | None
    spec: ConvSpec
    finishes: bool  # whether the kernel applies the activation and pools; otherwise the formulas do
    relu: bool
    formulas: tuple[Formula, ...]  # without their convolutions


class Step:
    """The layers of a group, and the forms in which they can run.

    Attributes:
        sources: the parts of maps that it reads, which its forms take.
        targets: the maps that it writes, which its forms return.
        sizes: height and width of the outputs of each of its layers, as symbols of the input's size.
        spec: the octave convolution that it is, or ``None``.
    """

    def __init__(self, group: Group) -> None:
        self.group = group
        self.sources = list(dict.fromkeys(ref for layer in group.layers for ref in layer.sources))
        self.targets = [target for layer in group.layers for target in layer.targets]
        self.sizes = [layer.targets[0].size if layer.sum is None else layer.sum.size for layer in group.layers]
        self.spec = _spec(group) if group.hh else None

    @cached_property
    def aten(self) -> Form:
        """With PyTorch's operators, one after another."""
        constants: list[Tensor] = []
        formulas = tuple(self._formula(layer, constants) for layer in self.group.layers)
        return Form(_in_turn, formulas, constants)

    @cached_property
    def triton(self) -> Form:
        """With our kernel, for an octave convolution only."""
        assert self.spec is not None
        constants: list[Tensor] = []
        formulas = tuple(self._formula(layer, constants, convolved=False) for layer in self.group.layers)
        high, *others = (formula.outputs for formula in formulas)
        plain = len(high) == 1 and high[0].scale is None and high[0].activation in (RELU, NOTHING)
        alike = all(len(low) == 1 and low[0][:3] == high[0][:3] for low in others)
        weight, bias = _dense(self.group, self.spec)
        fusion = Fusion(
            high=self._numbers(self.group.hh),
            pooled=self._numbers(self.group.hl),
            low=self._numbers(self.group.lh),
            weight=_number(weight.contiguous(memory_format=torch.channels_last), constants),
            bias=None if bias is None else _number(bias, constants),
            spec=self.spec,
            finishes=plain and alike,
            relu=plain and alike and high[0].activation == RELU,
            formulas=formulas,
        )
        return Form(_fused, fusion, constants)

    def _formula(self, layer: Layer, constants: list[Tensor], convolved: bool = True) -> Formula:
        if layer.window is not None:
            return Formula(window=layer.window._replace(source=self.sources.index(layer.window.source)))  # type: ignore[arg-type]
        total = layer.sum
        assert total is not None
        convs: tuple[Conv, ...] = ()
        coarse: tuple[Conv, ...] = ()
        if convolved:
            convs = self._convs(total.terms, total.bias, constants)
            coarse = self._convs(total.coarse, None if convs else total.bias, constants)
        addends = tuple(
            (self.sources.index(source), up, None if gate is None else self.sources.index(gate))
            for source, up, gate in total.addends
        )
        return Formula(convs, coarse, addends, tuple(_kept(output, constants) for output in layer.outputs))

    def _convs(self, terms: Terms, bias: Tensor | None, constants: list[Tensor]) -> tuple[Conv, ...]:
        """Terms that differ only in their input channels become one convolution; the first has the bias."""
        alike: dict[Any, list[Term]] = {}
        for number, term in enumerate(terms):
            way = (*term[2:], term.weight.shape[2:], str(term.source.map.size))
            alike.setdefault(way if term.groups == 1 else number, []).append(term)
        convs: list[Conv] = []
        for joined in alike.values():
            weight = torch.cat([term.weight for term in joined], 1).contiguous(memory_format=torch.channels_last)
            number_of_bias = None if bias is None or convs else _number(bias, constants)
            convs.append(Conv(self._numbers(joined), _number(weight, constants), number_of_bias, joined[0][2:]))
        return tuple(convs)

    def _numbers(self, terms: Sequence[Term]) -> tuple[int, ...]:
        return tuple(self.sources.index(term.source) for term in terms)


def _number(constant: Tensor, constants: list[Tensor]) -> int:
    constants.append(constant.detach())
    return len(constants) - 1


def _kept(output: Output, constants: list[Tensor]) -> Kept:
    scale, shift = (None if each is None else _number(each[:, None, None], constants) for each in output.finish[:2])
    return Kept(scale, shift, output.finish[2:], output.full is not None, output.pooled is not None)


def _in_turn(formulas: tuple[Formula, ...], maps: Maps, constants: Maps, sizes: Sizes) -> list[Tensor]:
    return [y for formula, size in zip(formulas, sizes) for y in formula(maps, constants, size)]


def _fused(fusion: Fusion, maps: Maps, constants: Maps, sizes: Sizes) -> list[Tensor]:
    from ...backends import triton

    sums = [formula.added(maps, size) for formula, size in zip(fusion.formulas, sizes)]
    residual = [reduce(torch.add, addends) if addends else None for addends in sums]
    high, pooled, low = (_beside(maps, numbers) if numbers else None for numbers in fusion[:3])
    y, y_pooled = triton.fused(
        Octave(high, low),
        constants[fusion.weight],
        None if fusion.bias is None else constants[fusion.bias],
        fusion.spec,
        pooled=pooled,
        residual=Octave(*residual, *[None] * (2 - len(residual))),
        relu=fusion.relu,
        with_pooled=fusion.finishes and fusion.formulas[0].outputs[0].pooled,
    )
    made: list[Tensor] = []
    for formula, part, of_kernel in zip(fusion.formulas, y, (y_pooled, None)):
        assert part is not None
        if fusion.finishes:
            made += formula.outputs[0].keep(part, of_kernel)
        else:
            made += formula.keep(part, constants)
    return made


def _spec(group: Group) -> ConvSpec:
    """The octave convolution that a group is."""
    high, low = (sum(term.source.channels for term in terms) for terms in (group.hh, group.lh))
    to_high, to_low = (len(terms[0].weight) if terms else 0 for terms in (group.hh, group.hl))
    _, weight, stride, padding, dilation, count = group.hh[0]
    return conv_spec(
        2,
        high + low,
        to_high + to_low,
        tuple(weight.shape[2:]),
        stride,
        padding,
        dilation,
        count,
        "zeros",
        ChannelSplit(high, low, count),
        ChannelSplit(to_high, to_low, count),
        None,
        None,
    )


def _dense(group: Group, spec: ConvSpec) -> tuple[Tensor, Tensor | None]:
    """Its one weight and bias."""
    blocks = (torch.cat([term.weight for term in terms], 1) if terms else None for terms in group[1:])
    biases = [layer.sum.bias for layer in group.layers if layer.sum is not None]
    weight = spec.join_paths(Paths(*blocks))
    if all(bias is None for bias in biases):
        return weight, None
    high, low, *_ = (
        torch.zeros(channels) if bias is None else bias for bias, channels in zip([*biases, None], spec.outputs[:2])
    )
    return weight, spec.outputs.join(high, low if spec.outputs.low else None)


def _beside(maps: Maps, numbers: tuple[int, ...]) -> Tensor:
    return maps[numbers[0]] if len(numbers) == 1 else torch.cat([maps[number] for number in numbers], 1)
