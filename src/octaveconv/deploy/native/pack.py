"""Pack: the weights of a layer in the order in which the kernel reads them, panel by panel."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..ir import Layer, Term

DEPTH = 32  # input channels that the matrix unit multiplies at once, as in matrix.h


class Format(NamedTuple):
    """What a build of the engine reads: floats per vector, vectors of its widest panel, the weights' dtype."""

    lanes: int
    widest: int
    dtype: torch.dtype

    @property
    def grain(self) -> int:
        """Input channels that are interleaved in the weights."""
        return grain(self.dtype)


def grain(dtype: torch.dtype) -> int:
    """How many numbers the engine multiplies as one: those of 32 bits."""
    return 4 // dtype.itemsize


class Slice(NamedTuple):
    """What a panel takes from a term: its weights, and ``inputs`` channels starting at ``first``."""

    weights: Tensor
    first: int
    inputs: int


class Panel(NamedTuple):
    """Some vectors of output channels."""

    channel: int
    vectors: int
    slices: list[Slice]


class Packed(NamedTuple):
    """The constants of a layer, padded to whole vectors of output channels."""

    panels: list[Panel]
    bias: Tensor
    finishes: list[tuple[Tensor, Tensor] | None]  # scale and shift of each output


def pack(layer: Layer, form: Format) -> Packed:
    """Pack a layer that computes a sum."""
    total, lanes = layer.sum, form.lanes
    assert total is not None
    vectors = -(-total.channels // lanes)
    terms = [*total.terms, *total.coarse]
    grouped = any(term.groups > 1 and not term.depthwise for term in terms)
    panels, first = [], 0
    for width in [1] * vectors if grouped else panel_widths(vectors, form.widest):
        rows = (first * lanes, (first + width) * lanes)
        slices = [_slice(term, *rows, form) for term in terms]
        if form.grain > 1:
            fine = len(total.terms)
            slices = _whole_depth(slices[:fine], width * lanes) + _whole_depth(slices[fine:], width * lanes)
        panels.append(Panel(rows[0], width, slices))
        first += width
    panels = _side_by_side(panels)
    bias = torch.zeros(total.channels) if total.bias is None else total.bias
    finishes = [
        None
        if output.finish.scale is None or output.finish.shift is None
        else (_vector(output.finish.scale, vectors * lanes), _vector(output.finish.shift, vectors * lanes))
        for output in layer.outputs
    ]
    return Packed(panels, _vector(bias, vectors * lanes), finishes)


def panel_widths(vectors: int, widest: int) -> list[int]:
    """Divide vectors into panels; where there are enough, into two equal halves that two threads can share."""
    if vectors > widest:
        return [width for half in (vectors - vectors // 2, vectors // 2) for width in _even(half, widest)]
    return [vectors]


def _even(vectors: int, widest: int) -> list[int]:
    panels = -(-vectors // widest)
    return [vectors // panels + (i < vectors % panels) for i in range(panels)]


def _whole_depth(slices: list[Slice], columns: int) -> list[Slice]:
    """Zeros after the last weights, so that all input channels together are whole tiles of the matrix unit."""
    if slices:
        rest = -sum(piece.weights.numel() for piece in slices) % (DEPTH * columns)
        slices[-1] = slices[-1]._replace(weights=F.pad(slices[-1].weights.flatten(), (0, rest)))
    return slices


def _side_by_side(panels: list[Panel]) -> list[Panel]:
    """Bring all weights of a layer into one tensor, in the order in which they are read."""
    pieces = [piece for panel in panels for piece in panel.slices]
    if not pieces:
        return panels
    counts = [piece.weights.numel() for piece in pieces]
    joined = torch.empty(sum(counts), dtype=pieces[0].weights.dtype).split(counts)
    for part, piece in zip(joined, pieces):
        part.view(piece.weights.shape).copy_(piece.weights)  # the only copy, which may change the order of axes
    parts = iter(joined)
    return [panel._replace(slices=[piece._replace(weights=next(parts)) for piece in panel.slices]) for panel in panels]


def _slice(term: Term, first: int, last: int, form: Format) -> Slice:
    """The rows ``[first, last)`` of the weight as ``[kh, kw, in, out]``, zeros beyond its end."""
    weight = term.weight[first:last].float()  # [rows, in / groups, kh, kw]
    if term.depthwise:
        return Slice(_padded(weight.permute(2, 3, 1, 0), last - first).to(form.dtype), first, 0)
    if term.groups == 1:
        return Slice(_interleaved(_padded(weight.permute(2, 3, 1, 0), last - first), form), 0, weight.shape[1])
    rows, width = term.weight.shape[0] // term.groups, weight.shape[1]
    groups = range(first // rows, (first + len(weight) - 1) // rows + 1)
    block = torch.zeros(*weight.shape[2:], len(groups) * width, last - first)
    for i, row in enumerate(weight, start=first):  # each row meets the inputs of its own group only
        place = (i // rows - groups[0]) * width
        block[:, :, place : place + width, i - first] = row.permute(1, 2, 0)
    return Slice(_interleaved(block, form), groups[0] * width, block.shape[2])


def _interleaved(weight: Tensor, form: Format) -> Tensor:
    """``[kh, kw, in, out]`` as ``[kh, kw, in / grain, out, grain]``, zeros beside an odd input channel."""
    if form.grain == 1:
        return weight.to(form.dtype)
    weight = F.pad(weight, (0, 0, 0, -weight.shape[2] % form.grain))
    kh, kw, inputs, outputs = weight.shape
    return weight.view(kh, kw, inputs // form.grain, form.grain, outputs).transpose(3, 4).to(form.dtype)


def _padded(x: Tensor, width: int) -> Tensor:
    """Floats in the last axis, zeros after them up to ``width``."""
    return F.pad(x.float(), (0, width - x.shape[-1])) if x.shape[-1] < width else x.float()


def _vector(x: Tensor, width: int) -> Tensor:
    return _padded(x, width).contiguous()
