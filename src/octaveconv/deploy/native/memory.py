"""Memory: where every map of a network is, for one input size."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..ir import Layer, Lowered, Map, Pair, Ref, number
from .pack import grain

Array = np.ndarray[Any, Any]
SLACK = 64  # numbers after a map's end that whole vectors may read
LARGE = 2_500_000  # bytes of one image's maps in a phase; those of several images would not fit in the cache


class Place(NamedTuple):
    """Where a map is: all images with a border of ``halo`` zeros, ``stride`` numbers per pixel."""

    buffer: Tensor
    height: int
    width: int
    halo: int
    stride: int
    channel: int  # the first one of the map
    first: int = 0  # the image that a pass over single images has reached

    @property
    def row(self) -> int:
        """Numbers from one row to the next."""
        return (self.width + 2 * self.halo) * self.stride

    @property
    def image(self) -> int:
        """Numbers from one image to the next."""
        return (self.height + 2 * self.halo) * self.row

    @property
    def origin(self) -> int:
        """How many numbers come before the first pixel of the first image."""
        return self.halo * (self.row + self.stride) + self.channel

    def pointer(self, offset: int = 0) -> int:
        """The address of a number."""
        return self.buffer.data_ptr() + self.buffer.itemsize * (self.first * self.image + offset)


class Memory:
    """The maps of ``images`` images at a time, whose sizes follow from the values of the symbols in ``sizes``.

    The first phases, up to ``cut``, run image by image, which keeps their large maps in the cache. The others take all
    images at once, which reads their weights once and leaves fewer pixels in partial tiles.
    """

    def __init__(self, network: Lowered, sizes: Mapping[Any, int], images: int, dtype: torch.dtype) -> None:
        self.images, self.sizes, self.dtype = images, sizes, dtype
        self.phases = phases_of(network)
        self.tables: dict[Any, Array] = {}
        self.halos = _halos(network)
        self.cut = self._cut() if images > 1 else 0
        self.places = self._allocate(network)

    def at(self, image: int) -> dict[Map, Place]:
        """The places for the pass over one image: maps that hold all images begin at that one."""
        return {
            target: place._replace(first=image) if target in self.shared else place
            for target, place in self.places.items()
        }

    def _cut(self) -> int:
        """The phase after the last one whose maps are large."""
        cut = 0
        for i, layers in enumerate(self.phases[:-1], start=1):
            maps = {ref.map for layer in layers for ref in layer.sources}
            maps |= {target for layer in layers for target in layer.targets}
            if sum(each.channels * math.prod(self.size(each.size)) for each in maps) * self.dtype.itemsize >= LARGE:
                cut = i
        return cut

    def size(self, symbolic: tuple[Any, Any]) -> Pair:
        """Height and width as numbers."""
        height, width = (number(size, self.sizes) for size in symbolic)
        return height, width

    def _allocate(self, network: Lowered) -> dict[Map, Place]:
        """Give every map its memory; maps of the same shape take turns, so that the borders stay zero.

        A sum takes the place of a map that is only added to it and never read again, which saves a pass over memory.
        """
        last = network.last_uses(self.phases)
        last[network.input] = len(self.phases)  # nothing else uses its place: the zeros beside its channels must stay
        places: dict[Map, Place] = {}
        free: dict[Any, list[Place]] = defaultdict(list)
        self.shared: set[Map] = set()  # maps of all images that passes over single ones write

        def shape(home: Map) -> tuple[int, ...]:
            images = 1 if last[home] < self.cut else self.images
            return (images, *self.size(home.size), self.halos[home], self._stride(home, network))

        def place(target: Map, phase: int, added: Sequence[Map] = ()) -> None:
            home = target.whole
            if phase < self.cut <= last[home]:
                self.shared |= {home, target}
            if home not in places:
                over = [old for old in added if last[old] == phase and shape(old) == shape(home) and home is target]
                if over:
                    last[over[0]] = -1  # its place is not to be freed
                    places[home] = places[over[0]]
                else:
                    places[home] = free[shape(home)].pop() if free[shape(home)] else self._place(*shape(home))
            if home is not target:
                places[target] = places[home]._replace(channel=target.offset)

        place(network.input, 0)
        for i, layers in enumerate(self.phases):
            for layer in layers:
                added = _only_added(layer, layers)
                for output in layer.outputs:
                    if output.full is not None:
                        place(output.full, i, added)
                    if output.pooled is not None:
                        place(output.pooled, i)
            for home in [home for home, end in last.items() if end == i and home in places]:
                free[shape(home)].append(places[home])
        return places

    def _place(self, images: int, height: int, width: int, halo: int, stride: int) -> Place:
        count = images * (height + 2 * halo) * (width + 2 * halo) * stride
        if count >= 2**31:
            raise ValueError(
                f"a map of {images} images, {height}x{width} pixels and {stride} channels is too large for the native "
                f"engine: give it fewer images at once"
            )
        return Place(torch.zeros(count + SLACK, dtype=self.dtype), height, width, halo, stride, 0)

    def _stride(self, home: Map, network: Lowered) -> int:
        """Numbers per pixel: whole vectors, but not a multiple of 1 KiB, at which pixels would collide in the cache."""
        if home is network.input:
            together = grain(self.dtype)
            return -(-home.channels // together) * together
        count = -(-home.channels // 16) * 16
        return count + 16 if count * self.dtype.itemsize % 1024 == 0 else count

    def pixels(
        self, ref: Ref, images: int, grid: Pair, blocked: bool, step: Pair = (1, 1), shift: Pair = (0, 0)
    ) -> Array:
        """Where in ``ref`` the window of each pixel of ``grid`` begins: at pixel * step - shift."""
        place = self.places[ref.map]
        key = (place[1:6], ref.first, images, grid, blocked, step, shift)
        if key not in self.tables:
            n, y, x = _blocks(images, *grid) if blocked else np.indices((images, *grid)).reshape(3, -1)
            offsets = n * place.image + (y * step[0] - shift[0]) * place.row + (x * step[1] - shift[1]) * place.stride
            self.tables[key] = (offsets + place.origin + ref.first).astype(np.int32)
        return self.tables[key]


def _only_added(layer: Layer, phase: list[Layer]) -> list[Map]:
    """Whole maps that a layer adds pixel by pixel and that nothing else in its phase reads."""
    read = [ref.map.whole for other in phase for ref in other.sources]
    added = [addend.source for addend in layer.sum.addends if not addend.coarse] if layer.sum else []
    return [ref.map for ref in added if ref.first == 0 and read.count(ref.map) == 1]


def _halos(network: Lowered) -> dict[Map, int]:
    """The border that each map in memory needs: the widest padding of the convolutions that read it."""
    halos: dict[Map, int] = defaultdict(int)
    for layer in network.layers:
        if layer.sum is not None:
            for term in (*layer.sum.terms, *layer.sum.coarse):
                home = term.source.map.whole
                halos[home] = max(halos[home], *term.padding)
    return halos


def phases_of(network: Lowered) -> list[list[Layer]]:
    """Layers by phase: each as early as possible, after everything that it reads."""
    written: dict[Map, list[tuple[int, int, int]]] = {network.input.whole: [(0, network.input.channels, 0)]}
    phases: list[list[Layer]] = []
    for layer in network.layers:
        level = 0
        for ref in layer.sources:
            first = ref.first + ref.map.offset
            level = max(
                level,
                *(
                    after
                    for start, end, after in written[ref.map.whole]
                    if start < first + ref.channels and first < end
                ),
            )
        for target in layer.targets:
            written.setdefault(target.whole, []).append((target.offset, target.offset + target.channels, level + 1))
        if level == len(phases):
            phases.append([])
        phases[level].append(layer)
    return phases


def _blocks(images: int, height: int, width: int) -> Array:
    """Image, row and column of pixels in 2x2 blocks; beyond an odd edge the pixels at the edge are repeated."""
    n, y, x, i, j = np.indices((images, -(-height // 2), -(-width // 2), 2, 2)).reshape(5, -1)
    return np.stack([n, np.minimum(2 * y + i, height - 1), np.minimum(2 * x + j, width - 1)])
