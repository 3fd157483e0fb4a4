"""What the native engine's programs of all sizes share: packed weights, their records, and facts of the layers."""

from __future__ import annotations

import ctypes
import hashlib
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..ir import Layer, Lowered, Map, Ref, Term
from . import records
from .memory import Outline
from .pack import Packed, Panel

Array = np.ndarray[Any, Any]


class Constants:
    """What the programs of all sizes share: the layers, their packed weights, and the records of these.

    Args:
        network: the layers.
        packed: their constants, in the same order; None for a layer without a sum.
        library: the engine; see `library.load`.
        dtype: that of maps and weights, for which the library was built.
    """

    def __init__(self, network: Lowered, packed: list[Packed | None], library: ctypes.CDLL, dtype: torch.dtype) -> None:
        self.network, self.library, self.dtype = network, library, dtype
        self.outline = Outline(network, dtype)
        self.numbers = {id(layer): i for i, layer in enumerate(network.layers)}
        self.packed = packed
        self.read = [Ref(given, 0, given.channels) for given in network.inputs]
        self.written = [ref for refs in network.outputs for ref in refs]
        self.keep: list[Any] = []  # what the records point to
        self.facts = [Facts(layer, self) if layer.sum is not None else None for layer in network.layers]
        self.panels = [self._panels(layer, each) if each else 0 for layer, each in zip(network.layers, packed)]
        self.weights = np.array([sum(map(_bytes, each.panels)) if each else 0 for each in packed])
        self.panel_counts = np.array([len(each.panels) if each else 0 for each in packed])
        self.phase_of = np.zeros(len(network.layers), int)
        for phase, layers in enumerate(self.outline.phases):
            self.phase_of[[self.numbers[id(layer)] for layer in layers]] = phase

    def digest(self) -> str:
        """A name of what the fastest choices depend on, besides sizes: the layers, not the values of their weights."""
        maps: dict[Map, int] = {}
        said = hashlib.sha256()
        for layer in self.network.layers:
            refs = [(maps.setdefault(ref.map, len(maps)), *ref[1:]) for ref in layer.sources]
            written = [
                [target and (maps.setdefault(target, len(maps)), target.channels, str(target.size)) for target in pair]
                for pair in ((output.full, output.pooled) for output in layer.outputs)
            ]
            if (total := layer.sum) is not None:
                facts: Any = [(tuple(term.weight.shape), *term[2:]) for term in (*total.terms, *total.coarse)]
                facts += [len(total.coarse), *(addend.coarse for addend in total.addends)]
            else:
                facts = layer.window and (layer.window.kind, *layer.window[2:])
            said.update(repr((refs, written, facts)).encode())
        return said.hexdigest()[:20]

    def row(self, term: Term) -> int:
        """How many numbers of a window's row are read at once: all, if they are contiguous, or else 0."""
        stride = self.outline.strides[term.source.map.whole]
        whole_input = term.source in self.read  # may have zeros beside it
        dense = stride == term.source.channels or whole_input
        return stride * term.weight.shape[3] if dense and term.groups == 1 and term.dilation[1] == 1 else 0

    def address(self, kept: Tensor | Array) -> int:
        """The address of something that is kept with the constants."""
        self.keep.append(kept)
        return kept.data_ptr() if isinstance(kept, Tensor) else int(kept.ctypes.data)

    def _panels(self, layer: Layer, packed: Packed) -> int:
        assert layer.sum is not None
        rows = [self.row(term) for term in (*layer.sum.terms, *layer.sum.coarse)]
        slices = np.array(
            [
                (self.address(piece.weights), piece.first, row or piece.inputs)
                for panel in packed.panels
                for piece, row in zip(panel.slices, rows)
            ],
            records.SLICE,
        )
        first, bias = self.address(slices), self.address(packed.bias)
        panels = []
        for i, panel in enumerate(packed.panels):
            weights = [piece.weights for piece in panel.slices]
            panels.append((
                first + i * len(rows) * slices.itemsize,
                bias + 4 * panel.channel,
                weights[0].data_ptr() if weights else 0,
                weights[-1].data_ptr() + weights[-1].nbytes if weights else 0,
                panel.channel,
                panel.vectors,
            ))  # fmt: skip
        return self.address(np.array(panels, records.PANEL))


def _bytes(panel: Panel) -> int:
    return sum(piece.weights.nbytes for piece in panel.slices)


class Facts:
    """What a sum's records need, whatever the size."""

    def __init__(self, layer: Layer, constants: Constants) -> None:
        assert layer.sum is not None
        terms = (*layer.sum.terms, *layer.sum.coarse)
        self.blocked = layer.blocked
        self.staged = bool(terms) and all(term.groups == 1 for term in terms)
        self.windows = [(term.weight.shape[2], 1 if constants.row(term) else term.weight.shape[3]) for term in terms]
        self.depthwise = [term.depthwise for term in terms]
