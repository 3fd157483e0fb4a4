"""Forms: a network for a range of sizes, its stretches ready to run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from ...errors import UsageError
from .. import plain
from ..capture import Captured
from ..eagerly import in_pytorch
from ..ir import Lowered, number
from ..lower import Unsupported, is_size
from ..report import Part, Report
from ..stretches import Eager, Stretch, divided, joined, multiply_adds
from . import records
from .constants import Constants
from .file import Saved
from .pack import Format, pack

SHARE = 0.5  # of the multiply-adds, at least, must be the engine's; Inductor runs the other networks


class Native:
    """A stretch that the engine runs."""

    def __init__(self, stretch: Stretch, library: Any, dtype: torch.dtype) -> None:
        assert stretch.network is not None
        self.inputs, self.outputs, self._last = stretch.inputs, stretch.outputs, stretch.last
        form = Format(library.lanes(), library.panel_vectors(), dtype)
        packed = [pack(layer, form) if layer.sum is not None else None for layer in stretch.network.layers]
        self.constants = Constants(stretch.network, packed, library, dtype)
        self.digest = self.constants.digest()
        self._mixes_groups = plain.mixes_groups(stretch.network)

    def numbers(self, symbols: Mapping[Any, int]) -> list[torch.Size]:
        """The shapes of the outputs, for the values of the input's symbols."""
        return [torch.Size(number(each, symbols) for each in shape) for shape in self.constants.network.shapes]

    def corrected(self, outputs: list[Tensor], inputs: Sequence[Tensor], symbols: Mapping[Any, int]) -> list[Tensor]:
        """The outputs, computed again if a NaN may have come from another group of a convolution."""
        if not self._mixes_groups:
            return outputs
        with in_pytorch():
            if not any(bool(y.isnan().any()) for y in outputs):
                return outputs
            made = plain.run(self.constants.network, inputs, self._last, symbols)
        return [y.to(self.constants.dtype) for y in made]

    def outside(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor], images: int) -> Any:
        """Where the inputs and the parts of the outputs are in memory."""
        strides_of = [_strides(x, last) for x, last in zip((*inputs, *outputs), self._last)]
        ends = [(x.data_ptr(), strides) for x, strides in zip(inputs, strides_of)]
        for output, strides, refs in zip(outputs, strides_of[len(inputs) :], self.constants.network.outputs):
            first = 0
            for ref in refs:
                ends.append((output.data_ptr() + output.itemsize * first * strides[1], strides))
                first += ref.channels
        return np.array([(data, strides, images * strides[0]) for data, strides in ends], records.OUTSIDE)


def _strides(x: Tensor, last: bool) -> tuple[int, ...]:
    """From an image, channel, row and column to the next."""
    image, *others = x.stride()
    channels_first = [others[-1], *others[:-1]] if last else others
    return (image, *channels_first, 0, 0)[:4]


class Form:
    """The network for a range of sizes.

    Args:
        captured: where it comes from.
        library: the engine.
        dtype: of maps and weights.

    Attributes:
        input, outputs: what the values of the input and of the outputs are kept under.
        stretches: in the order in which they run.
        dead: for each stretch, the values that nothing reads after it.
        report: what runs where.

    Raises:
        Unsupported: PyTorch would do most of the work.
    """

    def __init__(self, captured: Captured | Saved, library: Any, dtype: torch.dtype) -> None:
        self.captured = captured
        self.input: Any
        self.outputs: list[Any]
        if isinstance(captured, Saved):
            self._constants: Mapping[Any, Any] = {}
            self.input, self.outputs = captured.network.input, list(range(len(captured.network.outputs)))
            last = [False] * (1 + len(self.outputs))
            self.parts = [Stretch([], [self.input], self.outputs, captured.network, last, [])]
            self.report = Report([Part("native", len(captured.network.layers))])
        else:
            self._constants = captured.constants
            self.input, self.outputs, self.parts = captured.input, captured.outputs, divided(captured)
            self.report = self._report(captured)
        self.stretches = [
            Eager(part, self._constants) if part.network is None else Native(part, library, dtype)
            for part in self.parts
        ]
        self.natives = [stretch for stretch in self.stretches if isinstance(stretch, Native)]
        last_reader = {node: i for i, stretch in enumerate(self.stretches) for node in stretch.inputs}
        self.dead = [
            [node for node, end in last_reader.items() if end == i and node not in self.outputs]
            for i in range(len(self.stretches))
        ]

    def _report(self, captured: Captured) -> Report:
        report = Report(
            Part("eager" if part.network is None else "native", len(part.nodes), work, tuple(part.why))
            for part, work in zip(self.parts, [multiply_adds(captured, part) for part in self.parts])
        )
        ours = sum(part.multiply_adds for part in report if part.engine == "native")
        why = [reason for part in report for reason in part.why]
        if why and ours <= SHARE * sum(part.multiply_adds for part in report):
            raise Unsupported(f"{why[0]}; PyTorch would run most of the network's multiply-adds")
        return report

    def answer(self, values: Mapping[Any, Tensor], symbols: Mapping[Any, int], dtype: torch.dtype) -> Any:
        """The network's output, given what the stretches have made and the values of the input's symbols."""

        def found(output: Any) -> Any:
            if output in values:
                made = values[output]
            elif is_size(output):
                return number(output.meta["val"], symbols)
            else:
                made = self._constants.get(output, output)
                made = made.clone() if isinstance(made, Tensor) else made
            if isinstance(made, Tensor) and made.dtype == torch.float32 != dtype:
                with in_pytorch():
                    return made.to(dtype)
            return made

        return pytree.tree_unflatten(map(found, self.outputs), self.captured.out_spec)


def layers(captured: Captured | Saved, parts: list[Stretch] | None = None) -> Lowered:
    """The layers of a whole network.

    Raises:
        UsageError: PyTorch runs some of it.
    """
    if isinstance(captured, Saved):
        return captured.network
    try:
        return joined(captured, divided(captured) if parts is None else parts)
    except Unsupported as error:
        raise UsageError(f"a file cannot hold this network, of which PyTorch runs a part: {error}") from error
