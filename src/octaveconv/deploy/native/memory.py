"""Memory: where every map of a network is in the scratch memory of a call, for one input size."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from ...errors import BackendUnavailable
from ..ir import Layer, Lowered, Map, Pair, number
from .pack import grain

Array = np.ndarray[Any, Any]
SLACK = 64  # numbers after a map's end that whole vectors may read
GAP = 0  # more numbers after that, which nothing may read: for tests
LARGE = 2_500_000  # bytes of one image's maps in a phase; those of several images would not fit in the cache


class Place(NamedTuple):
    """Where a map is: all images with a border of ``halo`` zeros, ``stride`` numbers per pixel."""

    start: int  # numbers from the beginning of the scratch memory
    height: int
    width: int
    halo: int
    stride: int
    images: int
    row: int  # numbers from one row to the next
    image: int  # numbers from one image to the next
    channel: int = 0  # the first one of the map
    first: int = 0  # the image that a pass over single images has reached

    @property
    def origin(self) -> int:
        """Where the first pixel of the first image is."""
        return self.start + self.first * self.image + self.halo * (self.row + self.stride) + self.channel


class Outline:
    """What is the same for all sizes: phases, borders, how far pixels are apart, and which sizes there are."""

    def __init__(self, network: Lowered, dtype: torch.dtype) -> None:
        self.network, self.dtype = network, dtype
        self.phases = phases_of(network)
        self.halos = _halos(network)
        self.last = network.last_uses(self.phases)
        for given in network.inputs:
            self.last[given] = len(self.phases)  # nothing else uses its place: zeros beside its channels must stay
        homes = {*network.inputs, *(target.whole for layer in network.layers for target in layer.targets)}
        self.strides = {home: self._stride(home) for home in homes}
        self.maps = [
            {ref.map for layer in layers for ref in layer.sources}
            | {each for layer in layers for each in layer.targets}
            for layers in self.phases
        ]
        self._sizes: list[Any] = []  # every height and width, once
        self._known: dict[Any, int] = {}  # where in that list
        self._pairs: dict[Any, tuple[int, int]] = {}
        for target in [*network.inputs, *(each for maps in self.maps for each in maps)]:
            for each in (target, target.whole):
                self._pairs[each] = self._pair(each.size)
        for layer in network.layers:
            if layer.sum is not None:
                self._pairs[id(layer)] = self._pair(layer.sum.size)

    def sizes(self, symbols: Mapping[Any, int]) -> dict[Any, Pair]:
        """Height and width of each map, and of each layer's sum (by its id), for the values of the symbols.

        Raises:
            BackendUnavailable: images of this size are too small for the network.
        """
        numbers = [number(size, symbols) for size in self._sizes]
        if min(numbers, default=1) < 1:
            raise BackendUnavailable("a map would have no pixels")
        return {key: (numbers[height], numbers[width]) for key, (height, width) in self._pairs.items()}

    def _pair(self, size: tuple[Any, Any]) -> tuple[int, int]:
        height, width = map(self._index, size)
        return height, width

    def _index(self, size: Any) -> int:
        key = size.node.expr if isinstance(size, torch.SymInt) else size
        if key not in self._known:
            self._known[key] = len(self._sizes)
            self._sizes.append(size)
        return self._known[key]

    def _stride(self, home: Map) -> int:
        """Numbers per pixel: whole vectors, but not a multiple of 1 KiB, at which pixels would collide in the cache."""
        if home in self.network.inputs:
            together = grain(self.dtype)
            return -(-home.channels // together) * together
        count = -(-home.channels // 16) * 16
        return count + 16 if count * self.dtype.itemsize % 1024 == 0 else count


class Memory:
    """The maps of ``images`` images at a time, whose sizes follow from the values of the symbols.

    The first phases, up to ``cut``, run image by image, which keeps their large maps in the cache. The others take all
    images at once, which reads their weights once and leaves fewer pixels in partial tiles.

    Attributes:
        count: numbers of scratch memory.
        places: of each map.
        tables: where windows and pixels are; each is made once.
    """

    LIMIT = 2**31  # numbers in a map, whose places are counted in 32 bits

    def __init__(self, outline: Outline, symbols: Mapping[Any, int], images: int) -> None:
        self.outline, self.images = outline, images
        self.sizes = outline.sizes(symbols)
        self.tables: list[Array] = []
        self._known: dict[Any, int] = {}  # their addresses, by what they are of
        self.cut = self._cut() if images > 1 else 0
        self._align = 64 // outline.dtype.itemsize
        self.count = self._align  # so that no place is at 0, which means "none"
        self.owners: dict[int, Place] = {}  # the blocks of memory, by their start
        self.places = self._allocate()

    def at(self, image: int) -> dict[Map, Place]:
        """The places for the pass over one image: maps that hold all images begin at that one."""
        return {
            target: place._replace(first=image) if target in self.shared else place
            for target, place in self.places.items()
        }

    def clear(self, scratch: Array) -> None:
        """Set to zero what must be zero and is never written: borders, and the numbers beside the inputs' channels.

        Args:
            scratch: bytes; other programs may have used them.
        """
        numbers = scratch.view({2: np.uint16, 4: np.uint32}[self.outline.dtype.itemsize])
        whole = {self.places[given].start for given in self.outline.network.inputs}
        for start, place in self.owners.items():
            block = numbers[start : start + place.images * place.image]
            halo = place.halo
            if start in whole:
                block[:] = 0
            elif halo:
                rows = block.reshape(place.images, place.height + 2 * halo, place.width + 2 * halo, place.stride)
                rows[:, :halo] = rows[:, -halo:] = 0
                rows[:, :, :halo] = rows[:, :, -halo:] = 0

    def _cut(self) -> int:
        """The phase after the last one whose maps are large."""
        cut = 0
        for i, maps in enumerate(self.outline.maps[:-1], start=1):
            if sum(each.channels * math.prod(self.sizes[each]) for each in maps) * self.outline.dtype.itemsize >= LARGE:
                cut = i
        return cut

    def _allocate(self) -> dict[Map, Place]:
        """Give every map its memory; maps of the same shape take turns, so that the borders stay zero.

        A sum takes the place of a map that is only added to it and never read again, which saves a pass over memory.
        """
        outline, last = self.outline, dict(self.outline.last)
        places: dict[Map, Place] = {}
        free: dict[Any, list[Place]] = defaultdict(list)
        self.shared: set[Map] = set()  # maps of all images that passes over single ones write

        def shape(home: Map) -> tuple[int, ...]:
            images = 1 if last[home] < self.cut else self.images
            return (*self.sizes[home], outline.halos[home], outline.strides[home], images)

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

        for given in outline.network.inputs:
            place(given, 0)
        ends: dict[int, list[Map]] = defaultdict(list)
        for home, end in last.items():
            ends[end].append(home)
        for i, layers in enumerate(outline.phases):
            for layer in layers:
                added = _only_added(layer, layers)
                for output in layer.outputs:
                    if output.full is not None:
                        place(output.full, i, added)
                    if output.pooled is not None:
                        place(output.pooled, i)
            for home in ends[i]:
                if home in places and last[home] == i:
                    free[shape(home)].append(places[home])
        return places

    def _place(self, height: int, width: int, halo: int, stride: int, images: int) -> Place:
        row = (width + 2 * halo) * stride
        image = (height + 2 * halo) * row
        if images * image >= self.LIMIT:
            raise BackendUnavailable(
                f"a map of {images} images, {height}x{width} pixels and {stride} channels is too large for the native "
                f"engine"
            )
        place = Place(self.count, height, width, halo, stride, images, row, image)
        self.owners[place.start] = place
        self.count += -(-(images * image + SLACK + GAP) // self._align) * self._align
        return place

    def pixels(
        self, place: Place, images: int, grid: Pair, blocked: bool, step: Pair = (1, 1), shift: Pair = (0, 0)
    ) -> int:
        """The address of a table: where the window of each pixel of ``grid`` begins, at pixel * step - shift."""
        key = (place.image, place.row, place.stride, images, grid, blocked, step, shift)
        return self._known.get(key) or self._keep(key, _pixels(place, images, grid, blocked, step, shift))

    def taps(self, place: Place, window: Pair, dilation: Pair) -> int:
        """The address of a table: how far each tap of a window is from its first one."""
        key = (place.row, place.stride, window, dilation)
        return self._known.get(key) or self._keep(key, _taps(place, window, dilation))

    def _keep(self, key: Any, table: Array) -> int:
        self.tables.append(table)
        return self._known.setdefault(key, table.ctypes.data)


def _pixels(place: Place, images: int, grid: Pair, blocked: bool, step: Pair, shift: Pair) -> Array:
    """From the map's first pixel; in 2x2 blocks, beyond an odd edge the pixels at the edge are repeated."""
    height, width = grid
    y, x = (np.arange(size + size % 2 if blocked else size) for size in grid)
    if blocked:
        y, x = np.minimum(y, height - 1), np.minimum(x, width - 1)
    starts = (np.arange(images) * place.image).astype(np.int32)[:, None, None]
    rows = ((y * step[0] - shift[0]) * place.row).astype(np.int32)[:, None]
    columns = ((x * step[1] - shift[1]) * place.stride).astype(np.int32)
    if not blocked:
        return starts + rows + columns
    table = np.empty((images, len(y) // 2, len(x) // 2, 2, 2), np.int32)
    for i in (0, 1):
        for j in (0, 1):
            np.add(starts + rows[i::2], columns[j::2], out=table[..., i, j])
    return table


def _taps(place: Place, window: Pair, dilation: Pair) -> Array:
    y, x = np.arange(window[0])[:, None], np.arange(window[1])
    return (y * (dilation[0] * place.row) + x * (dilation[1] * place.stride)).astype(np.int32)


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
    written: dict[Map, list[tuple[int, int, int]]] = {given: [(0, given.channels, 0)] for given in network.inputs}
    phases: list[list[Layer]] = []
    for layer in network.layers:
        level = 0
        for ref in layer.sources:
            first = ref.first + ref.map.offset
            writers = [
                after for start, end, after in written[ref.map.whole] if start < first + ref.channels and first < end
            ]
            level = max([level, *writers])
        for target in layer.targets:
            written.setdefault(target.whole, []).append((target.offset, target.offset + target.channels, level + 1))
        if level == len(phases):
            phases.append([])
        phases[level].append(layer)
    return phases
