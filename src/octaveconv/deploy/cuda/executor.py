"""The executor: it runs the steps of a captured network one after another on tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from ..capture import Captured
from ..ir import Map, Ref, number
from ..stretches import lower
from .groups import groups
from .steps import Form, Sizes, Step

Values = dict[Map, Tensor]
Choose = Callable[[Step, list[Tensor], Sizes], Form]


class Executor:
    """The steps of a network, for all sizes that the capture covers.

    Args:
        captured: the network.

    Raises:
        Unsupported: an operation that the engines do not know.
    """

    def __init__(self, captured: Captured) -> None:
        self.network, self.out_spec = lower(captured), captured.out_spec
        self.steps = [Step(group) for group in groups(self.network)]
        last = self.network.last_uses([step.group.layers for step in self.steps])
        self.dead = [[home for home, end in last.items() if end == i] for i in range(len(self.steps))]

    def run(self, x: Tensor, sizes: Mapping[Any, int], choose: Choose) -> Any:
        """The network's output.

        Args:
            x: ``[N, C, H, W]``.
            sizes: the values of the capture's symbols; see `Captured.sizes`.
            choose: returns the form in which a step is to run, given its maps and the sizes of its outputs.
        """
        values: Values = {self.network.input: x}
        for step, dead in zip(self.steps, self.dead):
            maps = [_read(values, ref) for ref in step.sources]
            shapes = tuple((number(height, sizes), number(width, sizes)) for height, width in step.sizes)
            made = choose(step, maps, shapes)(maps, shapes)
            for target, y in zip(step.targets, made, strict=True):
                _write(values, target, y)
            for home in dead:
                values.pop(home, None)
        outputs = []
        for refs, shape in zip(self.network.outputs, self.network.shapes):
            parts = [_read(values, ref) for ref in refs]
            y = parts[0] if len(parts) == 1 else torch.cat(parts, 1)
            outputs.append(y.reshape(len(x), *(number(size, sizes) for size in shape[1:])))
        return pytree.tree_unflatten(outputs, self.out_spec)


def _read(values: Values, ref: Ref) -> Tensor:
    whole = values[ref.map.whole]
    return whole.narrow(1, ref.map.offset + ref.first, ref.channels) if ref.channels < whole.shape[1] else whole


def _write(values: Values, target: Map, y: Tensor) -> None:
    """Keep a map, or copy it to its place in the concatenation that it is a part of."""
    if target.home is None:
        values[target] = y
        return
    if target.home not in values:
        shape = len(y), target.home.channels, *y.shape[2:]
        values[target.home] = torch.empty(shape, dtype=y.dtype, device=y.device, memory_format=torch.channels_last)
    values[target.home].narrow(1, target.offset, y.shape[1]).copy_(y)
