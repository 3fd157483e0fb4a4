"""The program of the native engine, for one input size."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..ir import Addend, Layer, Map, Output, Pair, Ref, Term
from . import records
from .constants import Constants
from .memory import Memory, Place
from .tune import Work, ruled, tuned

Array = np.ndarray[Any, Any]
GEMM = records.KINDS.index("gemm")
POINTERS = {"terms": ["source"], "addends": ["source", "gate"], "outputs": ["full", "pooled"],
            "windows": ["source", "target"]}  # into the scratch memory, by record  # fmt: skip
KEPT = {"terms": records.TERM, "addends": records.ADDEND, "outputs": records.OUTPUT, "windows": records.WINDOW}


class Program:
    """What `images` images of one size need, wherever their scratch memory is: see `Frame`.

    Args:
        constants: what programs of other sizes share.
        symbols: what the symbols of the input's size are.
        images: how many run together; see `Memory`.

    Attributes:
        layers: the records, in which pointers to other records are the places of these in ``records``.
        records: the others, in which pointers into the scratch memory are offsets.
        scratch: bytes of scratch memory that a call needs.
        nbytes: bytes of tables.
        choices: how threads share each layer, by the number of threads; see `tune`.
        tuned: the numbers of threads whose choices were measured.
    """

    def __init__(self, constants: Constants, symbols: Mapping[Any, int], images: int) -> None:
        self.constants, self.images = constants, images
        self.memory = Memory(constants.outline, symbols, images)
        self.scratch = self.memory.count * constants.dtype.itemsize
        self.choices: dict[int, Array] = {}
        self.tuned: set[int] = set()
        self._rows: dict[str, list[Any]] = {name: [] for name in ("layers", *KEPT)}
        self._numbers: list[int] = []  # of each record, which layer of the network it is
        starts, phase_numbers = [0], []
        for number, step in self._steps():
            for of, row in step:
                self._rows["layers"].append(row)
                self._numbers.append(of)
            starts.append(len(self._numbers))
            phase_numbers.append(number)
        self.layers = np.array(self._rows["layers"], records.LAYER)
        self.records = {name: np.array(self._rows[name], dtype) for name, dtype in KEPT.items()}
        self.numbers, self.phase_numbers = np.array(self._numbers), np.array(phase_numbers)
        self.starts = np.array(starts, np.int32)
        self.nbytes = sum(table.nbytes for table in self.memory.tables)
        self.work = self._work()
        del self._rows, self._numbers, self._places, self._addresses

    def _steps(self) -> Iterator[tuple[int, Iterable[tuple[int, Any]]]]:
        """The phases, each with its number, or -1 for copies from and to the tensors outside."""
        memory = self.memory
        phases, cut = memory.outline.phases, memory.cut
        for image in range(self.images if cut else 0):
            self._use(1, memory.at(image))
            yield -1, self._reads(image)
            for i in range(cut):
                yield i, map(self._layer, phases[i])
        self._use(self.images, memory.places)
        if not cut:
            yield -1, self._reads(0)
        for i in range(cut, len(phases)):
            yield i, map(self._layer, phases[i])
        first = len(self.constants.read)
        yield -1, [self._copy("write", ref, slot) for slot, ref in enumerate(self.constants.written, first)]

    def _use(self, together: int, places: Mapping[Map, Place]) -> None:
        """From here on so many images run together, and maps are there."""
        self._together, self._places, size = together, places, self.constants.dtype.itemsize
        self._addresses = {target: place.origin * size for target, place in places.items()}

    def _layer(self, layer: Layer) -> tuple[int, Any]:
        number = self.constants.numbers[id(layer)]
        return number, self._sum(layer, number) if layer.sum is not None else self._window(layer)

    def _sum(self, layer: Layer, number: int) -> Any:
        total, packed, facts = layer.sum, self.constants.packed[number], self.constants.facts[number]
        assert total is not None
        assert packed is not None
        assert facts is not None
        grid, blocked = self.memory.sizes[id(layer)], facts.blocked
        coarse_grid = (-(-grid[0] // 2), -(-grid[1] // 2))
        unit_grid = coarse_grid if blocked else grid
        fine = len(total.terms)
        terms = [
            self._term(term, window, depthwise, *((grid, blocked) if i < fine else (coarse_grid, False)))
            for i, (term, window, depthwise) in enumerate(
                zip((*total.terms, *total.coarse), facts.windows, facts.depthwise)
            )
        ]
        addends = [
            self._addend(addend, coarse_grid if addend.coarse else grid, blocked and not addend.coarse)
            for addend in total.addends
        ]
        outputs = [
            self._output(output, finish, grid, coarse_grid, blocked)
            for output, finish in zip(layer.outputs, packed.finishes)
        ]
        return _row(
            records.LAYER,
            kind=GEMM,
            units=self._together * unit_grid[0] * unit_grid[1],
            blocks=blocked,
            term_count=fine,
            coarse_count=len(total.coarse),
            panel_count=len(packed.panels),
            addend_count=len(addends),
            output_count=len(outputs),
            staged=facts.staged,
            channel_split=1,
            terms=self._kept("terms", terms),
            panels=self.constants.panels[number],
            addends=self._kept("addends", addends),
            outputs=self._kept("outputs", outputs),
        )

    # These are made hundreds of times: their fields stand in the order of the records.
    def _term(self, term: Term, window: Pair, depthwise: bool, grid: Pair, blocked: bool) -> Any:
        place = self._places[term.source.map]
        pixels = self._table(place, grid, blocked, term.stride, term.padding)
        taps = self.memory.taps(place, window, term.dilation)
        return self._source(term.source), pixels, taps, window[0] * window[1], depthwise

    def _addend(self, addend: Addend, grid: Pair, blocked: bool) -> Any:
        gate = gate_pixels = 0
        if addend.gate is not None:  # the same for all pixels of an image
            gate = self._source(addend.gate)
            gate_pixels = self._table(self._places[addend.gate.map], grid, blocked, (0, 0))
        pixels = self._table(self._places[addend.source.map], grid, blocked)
        return self._source(addend.source), pixels, gate, gate_pixels, addend.coarse

    def _output(
        self, output: Output, finish: tuple[Tensor, Tensor] | None, grid: Pair, coarse_grid: Pair, blocked: bool
    ) -> Any:
        full, pixels, channels = self._target(output.full, grid, blocked)
        pooled, blocks, pooled_channels = self._target(output.pooled, coarse_grid, False)
        scale, shift = (0, 0) if finish is None else (finish[0].data_ptr(), finish[1].data_ptr())
        activation = records.ACTIVATIONS.index(output.finish.activation)
        counts = channels, pooled_channels
        return full, pixels, pooled, blocks, scale, shift, *counts, activation, output.finish.low, output.finish.high

    def _target(self, target: Map | None, grid: Pair, blocked: bool) -> tuple[int, int, int]:
        """Where it is, which pixels, and how many channels may be written."""
        if target is None:
            return 0, 0, 0
        table = self._table(self._places[target], grid, blocked)
        return self._addresses[target], table, target.channels if target.home else 2**30

    def _window(self, layer: Layer) -> Any:
        window, target = layer.window, layer.outputs[0].full
        assert window is not None
        assert target is not None
        source, place = self._places[window.source.map], self._places[target]
        record = _row(
            records.WINDOW,
            images=self._together,
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
        return _row(records.LAYER, kind=records.KINDS.index(window.kind), window=self._kept("windows", [record]))

    def _reads(self, image: int) -> list[tuple[int, Any]]:
        return [self._copy("read", ref, slot, image) for slot, ref in enumerate(self.constants.read)]

    def _copy(self, kind: str, ref: Ref, slot: int, first: int = 0) -> tuple[int, Any]:
        place = self._places[ref.map]
        record = _row(
            records.WINDOW,
            images=self._together,
            height=place.height,
            width=place.width,
            channels=ref.channels,
            slot=slot,
            first=first,
            **self._ends("target" if kind == "read" else "source", ref),
        )
        return -1, _row(records.LAYER, kind=records.KINDS.index(kind), window=self._kept("windows", [record]))

    def _ends(self, name: str, ref: Ref) -> dict[str, int]:
        place = self._places[ref.map]
        return {
            name: self._source(ref),
            f"{name}_image": place.image,
            f"{name}_row": place.row,
            f"{name}_stride": place.stride,
        }

    def _table(self, place: Place, *arguments: Any) -> int:
        return self.memory.pixels(place, self._together, *arguments)

    def _source(self, ref: Ref) -> int:
        """How many bytes from the beginning of the scratch memory the first pixel is."""
        return self._addresses[ref.map] + ref.first * self.constants.dtype.itemsize

    def _kept(self, name: str, rows: list[Any]) -> int:
        """How many bytes from the beginning of the records of this kind the first of some new ones is."""
        first = len(self._rows[name])
        self._rows[name] += rows
        return first * KEPT[name].itemsize

    def _work(self) -> Work:
        """What each layer of the network has to do, in one phase."""
        units = np.zeros(len(self.constants.numbers), int)
        pixels = np.zeros(len(units), int)
        gemm = self.layers["kind"] == GEMM
        units[self.numbers[gemm]] = self.layers["units"][gemm]
        pixels[self.numbers[gemm]] = (self.layers["units"] * np.where(self.layers["blocks"], 4, 1))[gemm]
        return Work(units, pixels, self.constants.panel_counts, self.constants.weights, self.constants.phase_of)

    def choice(self, threads: int) -> Array:
        """How so many threads share each layer: what was measured, or what the rules say."""
        if threads not in self.choices:
            self.choices[threads] = ruled(self.work, threads)
        return self.choices[threads]

    def remember(self, choices: Mapping[int, Array]) -> None:
        """Take over what was measured before, by the number of threads."""
        self.choices |= choices
        self.tuned |= set(choices)

    def tune(self, threads: int, scratch: Array) -> None:
        """Measure how the threads share each layer best, with an image of zeros."""
        frame = Frame(self, scratch)
        ends = []
        for ref in (*self.constants.read, *self.constants.written):
            place = self.memory.places[ref.map]
            ends.append(
                torch.zeros(self.images, ref.channels, place.height, place.width, dtype=self.constants.dtype)
            )  # fmt: skip
        outside = np.array([(end.data_ptr(), end.stride(), 0) for end in ends], records.OUTSIDE)
        seconds = np.zeros(len(self.phase_numbers))

        def run(choice: Array) -> Array:
            frame.share(choice)
            frame.run(outside, 1, threads, seconds)
            inside = self.phase_numbers >= 0
            return np.bincount(self.phase_numbers[inside], seconds[inside], minlength=len(self.memory.outline.phases))

        self.choices[threads] = tuned(self.work, threads, run)
        self.tuned.add(threads)


class Frame:
    """A program in its scratch memory, where one call at a time can run it."""

    def __init__(self, program: Program, scratch: Array) -> None:
        self.program, self.scratch = program, scratch
        program.memory.clear(scratch)
        self._layers = program.layers.copy()
        self._records = {name: array.copy() for name, array in program.records.items()}
        for name, array in self._records.items():
            for field in POINTERS[name]:
                array[field][array[field] != 0] += scratch.ctypes.data
            self._layers["window" if name == "windows" else name] += array.ctypes.data
        self._header = np.array(
            [(self._layers.ctypes.data, program.starts.ctypes.data, len(program.starts) - 1)], records.PROGRAM
        )
        self._at = self._header.ctypes.data
        self._inside = program.numbers >= 0
        self._numbers = program.numbers[self._inside]
        self._choice: Array | None = None

    def choose(self, threads: int) -> None:
        """Share the layers as is best for so many threads."""
        choice = self.program.choice(threads)
        if choice is not self._choice:
            self.share(choice)

    def share(self, choice: Array) -> None:
        """Share the layers as ``choice`` says."""
        splits, outside = choice[self._numbers].T
        self._layers["channel_split"][self._inside] = splits
        self._layers["pixels_outside"][self._inside] = outside
        self._choice = choice

    def run(self, outside: Array, passes: int, threads: int, seconds: Array | None = None) -> None:
        """Run on the tensors ``outside``, which are `records.OUTSIDE`: the inputs, then the parts of the outputs."""
        clock = None if seconds is None else seconds.ctypes.data
        self.program.constants.library.run(self._at, outside.ctypes.data, passes, threads, clock)


def _row(dtype: Any, **fields: Any) -> tuple[Any, ...]:
    """A record's fields in their order, 0 where nothing is given."""
    return tuple([fields.get(name, 0) for name in dtype.names])
