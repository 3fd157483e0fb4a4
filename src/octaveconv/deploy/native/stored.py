"""A lowered network as JSON and tensors, and back: `Writer` and `Reader`.

The C++ trusts the tables that are made of the layers, so `Reader` takes nothing on trust: each field has its type and
range, each reference has what it refers to, shapes agree, what a layer reads was written before, and nothing is written
twice. What depends on the size of an image is left to `geometry.check`.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Mapping
from typing import Any, TypeVar, get_args

import torch
from torch import Tensor

from ..ir import (
    INFINITY,
    Activation,
    Addend,
    Finish,
    Layer,
    Lowered,
    Map,
    Output,
    Padding,
    Pair,
    Ref,
    Sum,
    Term,
    Window,
)
from ..sizes import Size, checked, written

CHANNELS = 2**20  # of a map, at most
WINDOW = 2**15  # kernel, stride, padding and dilation, at most
_Item = TypeVar("_Item")


class Writer:
    """Writes networks; ``tensors`` collects what they refer to, equal tensors once.

    Args:
        dtype: of the networks; it is that of the convolutions' weights.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.tensors: dict[str, Tensor] = {}
        self._names: dict[Any, str] = {}  # of what is in the tensors

    def network(self, network: Lowered, names: Mapping[Any, str]) -> dict[str, Any]:
        """A network whose sizes are expressions of ``names``, or a `Size`."""
        self.symbols = names
        self.maps: list[Map] = []
        for target in (network.input, *(target for layer in network.layers for target in layer.targets)):
            for each in (target.whole, target):  # a home before its parts
                if each not in self.maps:
                    self.maps.append(each)
        return {
            "input": self.maps.index(network.input),
            "layers": [self._layer(layer) for layer in network.layers],
            "outputs": [[self._ref(ref) for ref in refs] for refs in network.outputs],
            "shapes": [[self._size(size) for size in shape] for shape in network.shapes],
            "maps": [
                {
                    "channels": each.channels,
                    "size": [self._size(size) for size in each.size],
                    "home": None if each.home is None else self.maps.index(each.home),
                    "offset": each.offset,
                }
                for each in self.maps
            ],
        }

    def _size(self, size: Any) -> Any:
        if isinstance(size, Size):
            return size.tree
        return written(size.node.expr, self.symbols) if isinstance(size, torch.SymInt) else int(size)

    def _ref(self, ref: Ref) -> list[int]:
        return [self.maps.index(ref.map), ref.first, ref.channels]

    def _tensor(self, tensor: Tensor, name: str) -> str:
        tensor = tensor.detach().contiguous()
        key = (tensor.dtype, tensor.shape, _digest(tensor))
        if key not in self._names:
            while name in self.tensors:
                name += "'"
            self._names[key], self.tensors[name] = name, tensor
        return self._names[key]

    def _vector(self, tensor: Tensor | None, name: str) -> str | None:
        return None if tensor is None else self._tensor(tensor.float(), name)

    def _term(self, term: Term, name: str) -> dict[str, Any]:
        # [kh, kw, in, out], the order in which it will be packed
        weight = self._tensor(term.weight.to(self.dtype).permute(2, 3, 1, 0), f"{name}.weight")
        return term._asdict() | {"source": self._ref(term.source), "weight": weight}

    def _layer(self, layer: Layer) -> dict[str, Any]:
        total, window = layer.sum, layer.window
        return {
            "name": layer.name,
            "outputs": [self._output(output, layer.name) for output in layer.outputs],
            "window": None if window is None else window._asdict() | {"source": self._ref(window.source)},
            "sum": None
            if total is None
            else {
                "channels": total.channels,
                "size": [self._size(size) for size in total.size],
                "terms": [self._term(term, layer.name) for term in total.terms],
                "coarse": [self._term(term, layer.name) for term in total.coarse],
                "addends": [
                    {
                        "source": self._ref(addend.source),
                        "coarse": addend.coarse,
                        "gate": None if addend.gate is None else self._ref(addend.gate),
                    }
                    for addend in total.addends
                ],
                "bias": self._vector(total.bias, f"{layer.name}.bias"),
            },
        }

    def _output(self, output: Output, name: str) -> dict[str, Any]:
        finish = output.finish
        return {
            "full": None if output.full is None else self.maps.index(output.full),
            "pooled": None if output.pooled is None else self.maps.index(output.pooled),
            "scale": self._vector(finish.scale, f"{name}.scale"),
            "shift": self._vector(finish.shift, f"{name}.shift"),
            "activation": finish.activation,
            "low": None if finish.low == -INFINITY else finish.low,
            "high": None if finish.high == INFINITY else finish.high,
        }


def _digest(tensor: Tensor) -> bytes:
    return hashlib.sha256(tensor.flatten().view(torch.uint8).numpy().data).digest()


class Reader:
    """Reads networks. Every method raises ValueError for what is not as it should be.

    Args:
        tensors: by name.
        dtype: of the networks.
    """

    def __init__(self, tensors: Mapping[str, Tensor], dtype: torch.dtype) -> None:
        self.tensors, self.dtype = tensors, dtype
        self.unused = set(tensors)
        self._sizes: dict[Any, Size] = {}  # one object for all equal ones

    def network(self, data: Any, names: Collection[str]) -> Lowered:
        """A network whose sizes are expressions of ``names``."""
        self.names = names
        maps, first, layers, outputs, shapes = fields(data, "maps", "input", "layers", "outputs", "shapes")
        self.maps: list[Map] = []
        for each in items(maps):
            self.maps.append(self._map(each))
        whole = {each.whole for each in self.maps if each.home is not None}
        network_input = self._whose(first)
        require(network_input not in whole and network_input.home is None, "the input is a part of another map")
        self._written: dict[Map, list[tuple[int, int]]] = {network_input: [(0, network_input.channels)]}
        made = [self._layer(layer, whole) for layer in items(layers)]
        refs = [[self._read(ref) for ref in items(part)] for part in items(outputs)]
        sizes = [tuple(self._size(size) for size in items(shape)) for shape in items(shapes)]
        require(len(refs) == len(sizes), "there are more outputs than shapes, or fewer")
        return Lowered([network_input], made, refs, sizes)

    def _map(self, data: Any) -> Map:
        channels, size, home, offset = fields(data, "channels", "size", "home", "offset")
        whole = None if home is None else self._whose(home)
        found = Map(integer(channels, 1, CHANNELS), self._pair_of_sizes(size), whole, integer(offset, 0, CHANNELS))
        if whole is None:
            require(found.offset == 0, "a map has an offset, but no home")
        else:
            require(whole.home is None and found.offset + found.channels <= whole.channels, "a map exceeds its home")
        return found

    def _whose(self, number: Any) -> Map:
        return self.maps[integer(number, 0, len(self.maps) - 1)]

    def _size(self, size: Any) -> Any:
        tree = checked(size, self.names)
        return tree if type(tree) is int else self._sizes.setdefault(tree, Size(tree))

    def _pair_of_sizes(self, data: Any) -> tuple[Any, Any]:
        height, width = items(data, 2)
        return self._size(height), self._size(width)

    def _read(self, data: Any) -> Ref:
        """Channels that are read, of which each must have been written."""
        number, first, channels = items(data, 3)
        source = self._whose(number)
        ref = Ref(source, integer(first, 0, CHANNELS), integer(channels, 1, CHANNELS))
        require(ref.first + ref.channels <= source.channels, "more channels are read than the map has")
        reached, end = source.offset + ref.first, source.offset + ref.first + ref.channels
        for start, stop in sorted(self._written.get(source.whole, [])):
            if start <= reached:
                reached = max(reached, stop)
        require(reached >= end, "a map is read that nothing has written")
        return ref

    def _write(self, target: Map, whole: Collection[Map]) -> None:
        require(target not in whole, "a map is written whole and in parts")
        start, end = target.offset, target.offset + target.channels
        ranges = self._written.setdefault(target.whole, [])
        require(all(end <= first or last <= start for first, last in ranges), "a map is written twice")
        ranges.append((start, end))

    def _tensor(self, name: Any, dimensions: int) -> Tensor:
        require(type(name) is str and name in self.tensors, "a layer's tensor is missing")
        tensor = self.tensors[name]
        require(tensor.dim() == dimensions and tensor.numel() > 0, f"{name!r} has another number of dimensions")
        self.unused.discard(name)
        return tensor

    def _vector(self, name: Any, channels: int) -> Tensor | None:
        if name is None:
            return None
        vector = self._tensor(name, 1)
        require(vector.dtype == torch.float32 and len(vector) == channels, f"{name!r} is not one float per channel")
        return vector

    def _layer(self, data: Any, whole: Collection[Map]) -> Layer:
        name, total, window, outputs = fields(data, "name", "sum", "window", "outputs")
        require(type(name) is str and len(name) < 1000, "a layer has no name")
        require((total is None) != (window is None), "a layer has either a sum or a window")
        layer = Layer(
            name,
            None if total is None else self._sum(total),
            window=None if window is None else self._window(window),
        )
        channels = layer.sum.channels if layer.sum else layer.sources[0].channels
        layer.outputs = [self._output(output, channels) for output in items(outputs)]
        if layer.window is not None:
            target = layer.outputs[0].full if len(layer.outputs) == 1 else None
            require(target is not None and layer.outputs == [Output(Finish(), target)], "a window has one plain output")
        for target in layer.targets:
            self._write(target, whole)
        return layer

    def _sum(self, data: Any) -> Sum:
        channels, size, terms, coarse, addends, bias = fields(
            data, "channels", "size", "terms", "coarse", "addends", "bias"
        )
        count = integer(channels, 1, CHANNELS)
        total = Sum(
            count,
            self._pair_of_sizes(size),
            tuple(self._term(term, count) for term in items(terms)),
            tuple(self._term(term, count) for term in items(coarse)),
            tuple(self._addend(addend, count) for addend in items(addends)),
            self._vector(bias, count),
        )
        require(bool(total.terms or total.coarse or total.addends), "a sum is empty")
        return total

    def _term(self, data: Any, channels: int) -> Term:
        source, name, stride, padding, dilation, groups = fields(data, *Term._fields)
        ref, weight = self._read(source), self._tensor(name, 4).permute(3, 2, 0, 1)
        term = Term(ref, weight, pair(stride), pair(padding, 0), pair(dilation), integer(groups, 1, CHANNELS))
        require(weight.dtype == self.dtype, f"{name!r} is {weight.dtype}")
        fits = weight.shape[0] == channels and weight.shape[1] * term.groups == ref.channels
        require(fits and channels % term.groups == 0, f"{name!r} does not fit its layer")
        require(max(weight.shape[2:]) <= WINDOW, f"{name!r} has too large a kernel")
        return term

    def _addend(self, data: Any, channels: int) -> Addend:
        source, coarse, gate = fields(data, *Addend._fields)
        addend = Addend(self._read(source), boolean(coarse), None if gate is None else self._read(gate))
        counts = {ref.channels for ref in (addend.source, addend.gate) if ref is not None}
        require(counts == {channels}, "what is added has another number of channels")
        require(not (addend.coarse and addend.gate), "what is added has a gate and half the size")
        return addend

    def _window(self, data: Any) -> Window:
        kind, source, kernel, stride, padding, count_padding = fields(data, *Window._fields)
        require(kind in ("mean", "max", "average", *get_args(Padding)), "there is no such pooling")
        return Window(kind, self._read(source), pair(kernel), pair(stride), pair(padding, 0), boolean(count_padding))

    def _output(self, data: Any, channels: int) -> Output:
        full, pooled, scale, shift, activation, low, high = fields(
            data, "full", "pooled", "scale", "shift", "activation", "low", "high"
        )
        require((scale is None) == (shift is None), "a scale has no shift, or a shift no scale")
        require(activation in get_args(Activation), "there is no such activation")
        finish = Finish(
            self._vector(scale, channels),
            self._vector(shift, channels),
            activation,
            -INFINITY if low is None else real(low),
            INFINITY if high is None else real(high),
        )
        output = Output(
            finish,
            None if full is None else self._whose(full),
            None if pooled is None else self._whose(pooled),
        )
        targets = [target for target in (output.full, output.pooled) if target is not None]
        require(bool(targets), "an output is kept nowhere")
        require(all(target.channels == channels for target in targets), "a map has another number of channels")
        return output


def require(fact: bool, otherwise: str) -> None:
    """Raise ValueError unless it is so."""
    if not fact:
        raise ValueError(otherwise)


def fields(data: Any, *names: str) -> list[Any]:
    """The values of an object that has exactly these keys."""
    require(type(data) is dict and data.keys() == set(names), f"there should be an object of {', '.join(names)}")
    return [data[name] for name in names]


def items(data: Any, count: int | None = None) -> list[Any]:
    """A list, of this length if one is given."""
    require(type(data) is list and count in (None, len(data)), f"there should be a list of {count or 'things'}")
    return data  # type: ignore[no-any-return]


def integer(value: Any, least: int, most: int) -> int:
    """An integer in a range."""
    require(type(value) is int and least <= value <= most, f"there should be a number from {least} to {most}")
    return value  # type: ignore[no-any-return]


def pair(data: Any, least: int = 1) -> Pair:
    """Two of a window's measures."""
    height, width = items(data, 2)
    return integer(height, least, WINDOW), integer(width, least, WINDOW)


def boolean(value: Any) -> bool:
    """True or false."""
    require(type(value) is bool, "there should be true or false")
    return value  # type: ignore[no-any-return]


def real(value: Any) -> float:
    """A finite number."""
    require(type(value) in (int, float) and abs(value) < 1e38 and math.isfinite(value), "there should be a number")
    return float(value)
