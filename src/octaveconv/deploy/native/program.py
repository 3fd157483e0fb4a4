"""The program of the native engine, for one input size and number of threads."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..ir import Addend, Layer, Lowered, Pair, Ref
from . import records
from .memory import Memory
from .pack import Packed, Panel
from .tune import tune

Array = np.ndarray[Any, Any]


class Program:
    """A program that is ready to run for ``images`` images at a time.

    Args:
        network: the layers.
        packed: their constants, by layer.
        sizes: what the symbols of the input's size are.
        images: how many run together; see `Memory`.
        threads: how many run it.
        library: the engine; see `library.load`.
        dtype: that of maps and weights, for which the library was built.
    """

    def __init__(
        self,
        network: Lowered,
        packed: Mapping[int, Packed],
        sizes: Mapping[Any, int],
        images: int,
        threads: int,
        library: ctypes.CDLL,
        dtype: torch.dtype,
    ) -> None:
        self.network, self.packed, self.threads = network, packed, threads
        self.library, self.dtype = library, dtype
        self.keep: list[Any] = []  # what the program points to
        self.memory = Memory(network, sizes, images, dtype)
        self.size = self.memory.size
        phases, cut = self.memory.phases, self.memory.cut
        parts = [ref for refs in network.outputs for ref in refs]
        steps: list[list[Array]] = []
        for image in range(images if cut else 0):
            self.images, self.places = 1, self.memory.at(image)
            steps += [[self._read(image)], *map(self._phase, phases[:cut])]
        self.images, self.places = images, self.memory.places
        steps += [[self._read(0)]] * (cut == 0) + [*map(self._phase, phases[cut:])]
        steps.append([self._copy("write", ref, slot=slot) for slot, ref in enumerate(parts, start=1)])
        self.layers = np.concatenate([layer for step in steps for layer in step])
        starts = np.cumsum([0, *map(len, steps)], dtype=np.int32)
        self.program = self._struct(
            records.PROGRAM, layers=self._pointer(self.layers), phases=self._pointer(starts), phase_count=len(steps)
        )
        head = np.tile(np.arange(cut + 1), images) if cut else np.arange(0)
        self._tune(parts, starts, np.append(head, cut + 1 + np.arange(len(steps) - len(head))))

    def run(self, outside: Array, passes: int) -> None:
        """Run on the tensors ``outside``, which are `records.OUTSIDE`: the input, then the parts of the outputs."""
        self.library.run(self.program.ctypes.data, outside.ctypes.data, passes, self.threads, None)

    def _phase(self, layers: list[Layer]) -> list[Array]:
        return [self._layer(layer) if layer.sum else self._window(layer) for layer in layers]

    def _layer(self, layer: Layer) -> Array:
        total, packed = layer.sum, self.packed[id(layer)]
        assert total is not None
        grid = self.size(total.size)
        coarse_grid = (-(-grid[0] // 2), -(-grid[1] // 2))
        blocked = layer.blocked
        terms = [self._term(term, grid, blocked) for term in total.terms]
        terms += [self._term(term, coarse_grid, False) for term in total.coarse]
        panels = [self._panel(panel, packed, [row for _, row in terms]) for panel in packed.panels]
        addends = [
            self._addend(addend, coarse_grid if addend.coarse else grid, blocked and not addend.coarse)
            for addend in total.addends
        ]
        outputs = [
            self._output(output, finish, grid, coarse_grid, blocked)
            for output, finish in zip(layer.outputs, packed.finishes)
        ]
        staged = bool(terms) and all(term.groups == 1 for term in (*total.terms, *total.coarse))
        units = self.images * (coarse_grid[0] * coarse_grid[1] if blocked else grid[0] * grid[1])
        return self._struct(
            records.LAYER,
            kind=records.KINDS.index("gemm"),
            units=units,
            blocks=blocked,
            term_count=len(total.terms),
            coarse_count=len(total.coarse),
            panel_count=len(panels),
            addend_count=len(addends),
            output_count=len(outputs),
            staged=staged,
            channel_split=1,
            terms=self._array([record for record, _ in terms]),
            panels=self._array(panels),
            addends=self._array(addends),
            outputs=self._array(outputs),
        )

    def _term(self, term: Any, grid: Pair, blocked: bool) -> tuple[Array, int]:
        """The record, and how many numbers of a window's row are read at once: all, if they are contiguous."""
        place = self.places[term.source.map]
        kh, kw = term.weight.shape[2:]
        whole_input = term.source == (self.network.input, 0, self.network.input.channels)  # may have zeros beside it
        dense = place.stride == term.source.channels or whole_input
        row = place.stride * kw if dense and term.groups == 1 and term.dilation[1] == 1 else 0
        rows, columns = np.indices((kh, 1 if row else kw)).reshape(2, -1)
        taps = rows * term.dilation[0] * place.row + columns * term.dilation[1] * place.stride
        record = self._struct(
            records.TERM,
            source=self._source(term.source),
            taps=self._pointer(taps.astype(np.int32)),
            pixels=self._table(term.source, grid, blocked, term.stride, term.padding),
            tap_count=len(taps),
            depthwise=term.depthwise,
        )
        return record, row

    def _panel(self, panel: Panel, packed: Packed, window_rows: list[int]) -> Array:
        slices = [
            self._struct(
                records.SLICE, weights=self._address(piece.weights), first=piece.first, count=row or piece.inputs
            )
            for piece, row in zip(panel.slices, window_rows)
        ]
        weights = [piece.weights for piece in panel.slices]
        return self._struct(
            records.PANEL,
            slices=self._array(slices),
            bias=self._address(packed.bias) + 4 * panel.channel,
            weights=weights[0].data_ptr() if weights else 0,
            weights_end=weights[-1].data_ptr() + weights[-1].nbytes if weights else 0,
            channel=panel.channel,
            vectors=panel.vectors,
        )

    def _addend(self, addend: Addend, grid: Pair, blocked: bool) -> Array:
        gate = {}
        if addend.gate is not None:  # the same for all pixels of an image
            gate = dict(
                gate=self._source(addend.gate), gate_pixels=self._table(addend.gate, grid, blocked, step=(0, 0))
            )
        return self._struct(
            records.ADDEND,
            source=self._source(addend.source),
            per_block=addend.coarse,
            pixels=self._table(addend.source, grid, blocked),
            **gate,
        )

    def _output(
        self, output: Any, finish: tuple[Tensor, Tensor] | None, grid: Pair, coarse_grid: Pair, blocked: bool
    ) -> Array:
        fields: dict[str, Any] = {}
        for name, table, target, shape, order in (
            ("full", "pixels", output.full, grid, blocked),
            ("pooled", "blocks", output.pooled, coarse_grid, False),
        ):
            if target is not None:
                fields[name] = self.places[target].pointer()
                fields[table] = self._table(Ref(target, 0, target.channels), shape, order)
                fields[f"{name}_channels"] = target.channels if target.home else 2**30
        if finish is not None:
            fields.update(scale=self._address(finish[0]), shift=self._address(finish[1]))
        activation = records.ACTIVATIONS.index(output.finish.activation)
        return self._struct(
            records.OUTPUT, activation=activation, low=output.finish.low, high=output.finish.high, **fields
        )

    def _window(self, layer: Layer) -> Array:
        window, target = layer.window, layer.outputs[0].full
        assert window is not None
        assert target is not None
        source, place = self.places[window.source.map], self.places[target]
        record = self._struct(
            records.WINDOW,
            images=self.images,
            height=source.height,
            width=source.width,
            out_height=place.height,
            out_width=place.width,
            channels=target.channels,
            kernel=window.kernel,
            stride=window.stride,
            padding=window.padding,
            count_padding=window.count_padding,
            **self._ends("source", window.source),
            **self._ends("target", Ref(target, 0, target.channels)),
        )
        return self._struct(records.LAYER, kind=records.KINDS.index(window.kind), window=self._pointer(record))

    def _read(self, image: int) -> Array:
        network_input = self.network.input
        return self._copy("read", Ref(network_input, 0, network_input.channels), first=image)

    def _copy(self, kind: str, ref: Ref, slot: int = 0, first: int = 0) -> Array:
        place = self.places[ref.map]
        record = self._struct(
            records.WINDOW,
            images=self.images,
            height=place.height,
            width=place.width,
            channels=ref.channels,
            slot=slot,
            first=first,
            **self._ends("target" if kind == "read" else "source", ref),
        )
        return self._struct(records.LAYER, kind=records.KINDS.index(kind), window=self._pointer(record))

    def _ends(self, name: str, ref: Ref) -> dict[str, int]:
        place = self.places[ref.map]
        return {
            name: place.pointer(place.origin + ref.first),
            f"{name}_image": place.image,
            f"{name}_row": place.row,
            f"{name}_stride": place.stride,
        }

    def _table(self, ref: Ref, *arguments: Any, **options: Any) -> int:
        return self._pointer(self.memory.pixels(ref, self.images, *arguments, **options))

    def _source(self, ref: Ref) -> int:
        return self.places[ref.map].pointer()

    def _struct(self, dtype: Any, **fields: Any) -> Array:
        record = np.zeros(1, dtype)
        for name, value in fields.items():
            record[name] = value
        return record

    def _array(self, records: list[Array]) -> int:
        return self._pointer(np.concatenate(records)) if records else 0

    def _pointer(self, array: Array) -> int:
        self.keep.append(array)
        return array.ctypes.data

    def _address(self, tensor: Tensor) -> int:
        self.keep.append(tensor)
        return tensor.data_ptr()

    def _tune(self, parts: list[Ref], starts: Array, same: Array) -> None:
        """Choose how the threads share each layer, with images of zeros."""
        ends = []
        for ref in (Ref(self.network.input, 0, self.network.input.channels), *parts):
            place = self.places[ref.map]
            ends.append(torch.zeros(self.images, ref.channels, place.height, place.width, dtype=self.dtype))
        outside = np.array([(end.data_ptr(), end.stride(), 0) for end in ends], records.OUTSIDE)

        def run(seconds: Array) -> None:
            self.library.run(self.program.ctypes.data, outside.ctypes.data, 1, self.threads, seconds.ctypes.data)

        tune(self.layers, starts, same, self.layers["kind"] == records.KINDS.index("gemm"), self.threads, run)
