"""Whether a network out of a file can run images of one size: no layer reads or writes outside of its maps."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Mapping
from typing import Any, get_args

import torch

from ...errors import BackendUnavailable
from ..ir import Layer, Lowered, Map, Padding, Pair, Ref, Term, Window, number
from .stored import require

PIXELS = 2**20  # of a map's side, at most
MEMORY = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 2**34  # bytes
TOGETHER = 8  # images whose maps are in memory


def check(network: Lowered, sizes: Mapping[Any, int], shape: torch.Size) -> None:
    """Check every layer of a network that `stored.Reader` has read, for an input of this shape.

    Raises:
        ValueError: its layers contradict each other; the message says which layer does what.
        BackendUnavailable: images of this size are too small for it, or too large.
    """
    found = _Check(network, sizes)
    found.run(shape)
    if (needed := found.memory(shape[0])) > MEMORY:
        raise BackendUnavailable(f"it needs {needed / 1e9:,.0f} GB of memory, more than this machine has")


class _Check:
    def __init__(self, network: Lowered, sizes: Mapping[Any, int]) -> None:
        self.network, self.sizes = network, sizes
        self._known: dict[Map, Pair] = {}
        self._numbers: dict[Any, int] = {}

    def run(self, shape: torch.Size) -> None:
        given = self.network.input
        require((given.channels, *self.of(given)) == tuple(shape[1:]), "the input has another size")
        for layer in self.network.layers:
            try:
                self._layer(layer)
            except ValueError as error:
                raise ValueError(f"layer {layer.name!r}: {error}") from error
        for refs, symbolic in zip(self.network.outputs, self.network.shapes):
            self._output(refs, [self.number(size, 0) for size in symbolic], shape[0])

    def memory(self, images: int) -> int:
        """Bytes of maps and tables, about: maps that live at different times share memory if they are alike."""
        layers = self.network.layers
        halos: dict[Map, int] = Counter()
        for layer in layers:
            for term in (*layer.sum.terms, *layer.sum.coarse) if layer.sum else ():
                halos[term.source.map.whole] = max(halos[term.source.map.whole], *term.padding)
        ending: dict[int, list[Map]] = {}
        for target, end in self.network.last_uses([[layer] for layer in layers]).items():
            ending.setdefault(end, []).append(target)
        live: dict[tuple[int, ...], int] = Counter()  # by bytes and measures
        most: dict[tuple[int, ...], int] = Counter()
        seen: set[Map] = set()
        tables = 0
        for i, layer in enumerate(layers):
            for target in {ref.map.whole for ref in layer.sources} | {each.whole for each in layer.targets}:
                if target not in seen:
                    seen.add(target)
                    live[self._kind(target, halos[target])] += 1
            most.update({kind: count - most[kind] for kind, count in live.items() if count > most[kind]})
            for target in ending.get(i, ()):
                live[self._kind(target, halos[target])] -= 1
            tables += sum(math.prod(self.of(ref.map)) for ref in layer.sources)
            tables += sum(math.prod(self.of(target)) for target in layer.targets)
        return min(images, TOGETHER) * (sum(kind[0] * count for kind, count in most.items()) + 4 * tables)

    def _kind(self, target: Map, halo: int) -> tuple[int, ...]:
        """Bytes of one image's map, with its border, and what other maps must have in common with it."""
        height, width = self.of(target)
        stride = -(-target.channels // 16) * 16
        return 4 * stride * (height + 2 * halo) * (width + 2 * halo), height, width, halo, stride

    def number(self, size: Any, least: int = 1) -> int:
        if size in self._numbers:
            return self._numbers[size]
        try:
            found: int = number(size, self.sizes)
        except ZeroDivisionError as error:
            raise ValueError("a size is divided by zero") from error
        if not least <= found <= PIXELS:
            raise BackendUnavailable("a map would have no pixels" if found < least else "a map would be too large")
        if found:
            self._numbers[size] = found
        return found

    def pair(self, sizes: tuple[Any, Any]) -> Pair:
        height, width = sizes
        return self.number(height), self.number(width)

    def of(self, target: Map) -> Pair:
        """Height and width of a map; its home must have the same."""
        if target not in self._known:
            self._known[target] = self.pair(target.size)
            require(self.pair(target.whole.size) == self._known[target], "a map's size is not that of its home")
        return self._known[target]

    def _layer(self, layer: Layer) -> None:
        if layer.window is not None:
            target = layer.targets[0]
            return self._window(layer.window, self.of(target))
        assert layer.sum is not None
        grid = self.pair(layer.sum.size)
        half = (-(-grid[0] // 2), -(-grid[1] // 2))
        for term in layer.sum.terms:
            self._term(term, grid)
        for term in layer.sum.coarse:
            self._term(term, half)
        for addend in layer.sum.addends:
            expected = half if addend.coarse else grid
            require(self.of(addend.source.map) == expected, "what is added has another size than the sum")
            require(addend.gate is None or self.of(addend.gate.map) == (1, 1), "a gate has more than one pixel")
        for output in layer.outputs:
            require(output.full is None or self.of(output.full) == grid, "the sum has another size than its map")
            require(output.pooled is None or self.of(output.pooled) == half, "a pooled map has another size than half")
        return None

    def _term(self, term: Term, grid: Pair) -> None:
        for axis, (pixels, there) in enumerate(zip(grid, self.of(term.source.map))):
            last = (pixels - 1) * term.stride[axis] + (term.weight.shape[2 + axis] - 1) * term.dilation[axis]
            left = there + 2 * term.padding[axis] - 1 - last
            require(left >= 0, "a convolution reads beyond its map")
            require(left < term.stride[axis], "a convolution makes a larger map than its sum")  # as PyTorch would

    def _window(self, window: Window, grid: Pair) -> None:
        if window.kind == "mean":
            return require(grid == (1, 1) and self.of(window.source.map) >= (1, 1), "a mean has more than one pixel")
        if window.kind in get_args(Padding):
            return None  # it reads only what is there
        for axis, (pixels, there) in enumerate(zip(grid, self.of(window.source.map))):
            last = (pixels - 1) * window.stride[axis] - window.padding[axis]
            require(last < there + window.padding[axis], "a pooling window begins beyond its map")
        return None

    def _output(self, refs: list[Ref], shape: list[int], images: int) -> None:
        """The tensor that is returned must be what the parts fill."""
        channels = sum(ref.channels for ref in refs)
        require(2 <= len(shape) <= 4 and shape[:2] == [images, channels], "an output has another shape than its parts")
        require(len(shape) != 3 or shape[2] == 1, "an output has another shape than its parts")
        pixels = tuple(shape[2:]) if len(shape) == 4 else (1, 1)
        require(all(self.of(ref.map) == pixels for ref in refs), "an output has another size than its parts")
