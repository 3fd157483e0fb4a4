"""Values while a graph is lowered: pending sums, maps, concatenations; and the layers that compute them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from .ir import Addend, Finish, Layer, Map, Output, Ref, Sum, Window

OUTPUTS = 3  # of one layer: a pre-activation block keeps its sum and the norm of that


class Cat(NamedTuple):
    """Maps side by side, each of which can be read in its place."""

    parts: tuple[Ref, ...]


Value = Sum | Ref | Cat


def mapped(x: Value, fn: Callable[[Sum | Ref], Ref]) -> Value:
    """Apply ``fn`` to a value, or to each part of a concatenation."""
    return Cat(tuple(fn(part) for part in x.parts)) if isinstance(x, Cat) else fn(x)


class LayerBuilder:
    """Collects the layers of a network."""

    def __init__(self) -> None:
        self.layers: list[Layer] = []
        self.made_by: dict[Map, tuple[Layer, Output]] = {}
        self.pools: dict[Ref, Ref] = {}
        self.homes: set[Map] = set()  # the maps that others are parts of

    def refs(self, value: Value, name: str) -> list[Ref]:
        """The maps that hold a value."""
        return list(value.parts) if isinstance(value, Cat) else [self.ref(value, name)]

    def ref(self, value: Value, name: str) -> Ref:
        """The one map that holds a value, which a layer computes now if none did."""
        if isinstance(value, Ref):
            return value
        if isinstance(value, Cat):
            return self.join(list(value.parts), name)
        layer, output = self._output(value, name)
        if output.full is None:
            output.full = Map(value.channels, value.size)
            self.made_by[output.full] = (layer, output)
        return Ref(output.full, 0, value.channels)

    def pooled(self, value: Sum | Ref, size: Any, name: str) -> Ref:
        """The value pooled 2x2, by the layer that computes it if there is one."""
        if isinstance(value, Ref) and value in self.pools:
            return self.pools[value]
        if isinstance(value, Sum):
            layer, output = self._output(value, name)
        elif (made := self._maker(value)) and made[1].full is value.map:
            layer, output = made
        else:
            layer, output = self._output(Sum(value.channels, value.map.size, addends=(Addend(value),)), name)
        output.pooled = Map(value.channels, size)
        pooled = Ref(output.pooled, 0, value.channels)
        self.made_by[output.pooled] = (layer, output)
        if isinstance(value, Ref):
            self.pools[value] = pooled
        return pooled

    def window(self, window: Window, size: Any, name: str) -> Ref:
        """A pooling of another kind."""
        target = Map(window.source.channels, size)
        output = Output(Finish(), target)
        self.layers.append(Layer(name, None, [output], window))
        self.made_by[target] = (self.layers[-1], output)
        return Ref(target, 0, target.channels)

    def _output(self, value: Sum, name: str) -> tuple[Layer, Output]:
        """An output that is this value: of the layer that made its only addend if possible, or of a new layer."""
        output = Output(value.finish)
        if len(value.addends) == 1 and not value.terms and not value.coarse and value.bias is None:
            source, coarse, gate = value.addends[0]
            made = self._maker(source)
            if not coarse and gate is None and made and made[1].full is source.map and made[1].finish == Finish():
                if value.finish == Finish():
                    return made
                if len(made[0].outputs) < OUTPUTS:
                    made[0].outputs.append(output)
                    return made[0], output
        self.layers.append(Layer(name, value, [output]))
        return self.layers[-1], output

    def _maker(self, ref: Ref) -> tuple[Layer, Output] | None:
        """The layer and output that made all channels of a map, unless it is a window."""
        made = self.made_by.get(ref.map)
        whole = ref.first == 0 and ref.channels == ref.map.channels
        return made if made is not None and whole and made[0].window is None else None

    def join(self, parts: list[Ref], name: str) -> Ref:
        """Make one map of concatenated ones: each is written to its place in it, or copied if that is impossible."""
        if len(parts) == 1:
            return parts[0]
        home = self._home_of(parts) or Map(0, parts[0].map.size)
        self.homes.add(home)
        offset = 0
        for part in parts:
            if _place(part) != (home, offset):
                if (
                    part.map.home is None
                    and part.map not in self.homes
                    and part.map in self.made_by
                    and (part.first == 0 and part.channels == part.map.channels)
                ):
                    part.map.home, part.map.offset = home, offset
                else:
                    copy = Sum(part.channels, part.map.size, addends=(Addend(part),))
                    target = Map(part.channels, part.map.size, home, offset)
                    self.layers.append(Layer(name, copy, [Output(Finish(), target)]))
            offset += part.channels
        home.channels = max(home.channels, offset)
        return Ref(home, 0, offset)

    def _home_of(self, parts: list[Ref]) -> Map | None:
        """The map that already begins with these parts, and ends or can grow where they continue."""
        home = _place(parts[0])[0]
        offset = 0
        for part in parts:
            if _place(part) != (home, offset):
                return home if home in self.homes and offset == home.channels else None
            offset += part.channels
        return home if home in self.homes else None

    def live_layers(self, outputs: list[list[Ref]]) -> list[Layer]:
        """The layers and outputs that something reads."""
        needed = {ref.map for refs in outputs for ref in refs}
        live = []
        for layer in reversed(self.layers):
            for output in layer.outputs:
                output.full = _if_read(output.full, needed)
                output.pooled = _if_read(output.pooled, needed)
            layer.outputs = [output for output in layer.outputs if output.full or output.pooled]
            if layer.outputs:
                needed |= {ref.map for ref in layer.sources}
                live.append(layer)
        return live[::-1]


def _place(ref: Ref) -> tuple[Map, int]:
    """The map in memory that a part is in, and at which channel it begins."""
    return (ref.map.home, ref.map.offset + ref.first) if ref.map.home else (ref.map, ref.first)


def _if_read(target: Map | None, needed: set[Map]) -> Map | None:
    return target if target is not None and (target in needed or target.home in needed) else None
