"""Train an octave network to compute what the dense one does, layer by layer, on a sample without labels.

Hinton et al. (2015) train with another network's answers. A few hundred images tell little by their answers alone, and
a network that follows them forgets the rest; what the layers compute tells much more (Romero et al., ICLR 2015).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn

from .._modes import eval_mode
from ..nn.norm import at_least_single
from ..resolution import pool
from ..spec import ConvSpec
from .answers import divergence, numbers, reading
from .operations import channels_second
from .refit import nodes_of, targets
from .rewrite import OctavifiedGraph
from .sample import Batch, cloned, images_in, pieces
from .spaces import Net

RATE = 2e-4  # of a parameter's size, by which Adam changes it at a step
_SMALLEST = 1e-3  # size
_WARM_UP = 5  # steps
IMAGES = 16  # of a step
_MIXED = 0.5  # of the steps mix images


class _Pair(NamedTuple):
    """A value of both networks.

    Attributes:
        node: of the dense graph.
        nodes: of the octave graph: one, or those of the two parts.
        spec: of the convolution that writes it.
    """

    node: fx.Node
    nodes: list[fx.Node]
    spec: ConvSpec


def distill(
    net: Net,
    dense: nn.Module,
    octave: OctavifiedGraph,
    values: Mapping[fx.Node, Any],
    batches: Sequence[Batch],
    epochs: int,
    say: Callable[[str], object],
) -> None:
    """Change the weights of ``octave``, so that its layers and answers come closer to the dense network's.

    Args:
        net, dense, octave, values: as of `refit`.
        batches: the sample.
        epochs: how often all of it is seen. Norms keep their statistics.
        say: is told of each epoch.
    """
    draw = torch.Generator().manual_seed(0)
    pairs, twin = list(_pairs(net, dense, octave, values)), fx.GraphModule(dense, net.graph)
    parameters = [p for p in octave.parameters() if p.is_floating_point()]
    flags = [p.requires_grad for p in parameters]
    groups = [{"params": [p], "size": max(float(p.detach().square().mean()) ** 0.5, _SMALLEST)} for p in parameters]
    optimizer = torch.optim.Adam(groups, lr=0.0, betas=(0.9, 0.99))
    steps = [piece for batch in batches for piece in pieces(batch, IMAGES)]
    total, done = epochs * len(steps), 0
    try:
        for p in parameters:
            p.requires_grad_(True)
        for epoch in range(epochs):
            for batch in _epoch(steps, draw):
                rate = RATE * min((done + 1) / _WARM_UP, (1 + math.cos(math.pi * done / total)) / 2)
                for group in optimizer.param_groups:
                    group["lr"] = rate * group["size"]
                optimizer.zero_grad()
                with eval_mode(octave), eval_mode(twin):
                    loss = _loss(octave, twin, pairs, batch)
                if loss.requires_grad:
                    loss.backward()  # type: ignore[no-untyped-call]
                    optimizer.step()
                done += 1
            say(f"distilled {epoch + 1} of {epochs} epochs")
    finally:
        for p, flag in zip(parameters, flags):
            p.requires_grad_(flag)
            p.grad = None


def _loss(octave: OctavifiedGraph, twin: fx.GraphModule, pairs: Sequence[_Pair], batch: Batch) -> Tensor:
    with torch.no_grad():
        teacher = _Teacher(twin, pairs)
        expected = numbers(teacher.run(*cloned(batch)))
    with torch.enable_grad():
        student = _Student(octave, pairs, teacher.found)
        found = numbers(student.run(*batch))
        parts = torch.stack(student.losses).mean() if student.losses else torch.zeros(())
        return _distance(found, expected) + parts


def _pairs(net: Net, dense: nn.Module, octave: OctavifiedGraph, values: Mapping[fx.Node, Any]) -> Iterator[_Pair]:
    for conv, target in targets(net, dense, values).items():
        spec: Any = octave.get_submodule(str(conv.target)).spec
        yield _Pair(target.node, nodes_of(values[target.node]), spec)


def _epoch(steps: Sequence[Batch], draw: torch.Generator) -> Iterator[Batch]:
    """The sample in another order; half of it flipped, and half of it mixed with other images of it."""
    for i in torch.randperm(len(steps), generator=draw).tolist():
        flip, mix, share = torch.rand(3, generator=draw).tolist()
        order = torch.randperm(images_in(steps[i]), generator=draw)
        yield tuple(_varied(x, order, flip < 0.5, 1 - share / 2 if mix < _MIXED else 1.0) for x in steps[i])


def _varied(x: Any, order: Tensor, flip: bool, share: float) -> Any:
    if not isinstance(x, Tensor) or not x.is_floating_point() or x.dim() < 3 or len(x) != len(order):
        return x.clone() if isinstance(x, Tensor) else x
    x = x.flip(-1) if flip and x.dim() == 4 else x
    return share * x + (1 - share) * x[order]


def _distance(found: Sequence[Tensor], expected: Sequence[Tensor]) -> Tensor:
    """As of `Judge`."""
    if (read := reading(expected)) is not None:
        return divergence(read(found[0]), read(expected[0])) / len(found[0])
    return sum((_relative(y, z) for y, z in zip(found, expected)), torch.zeros(()))


def _relative(y: Tensor, z: Tensor) -> Tensor:
    spread = z.var(correction=0) if z.numel() > 1 else z.square().mean()
    return (y - z).square().mean() / spread.clamp(min=1e-12)


class _Teacher(fx.Interpreter):
    """Runs the dense network, and keeps what the octave one is to compute."""

    def __init__(self, module: fx.GraphModule, pairs: Sequence[_Pair]) -> None:
        super().__init__(module)
        self.pairs = {pair.node: pair for pair in pairs}
        self.found: dict[fx.Node, tuple[Tensor, ...]] = {}

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if (pair := self.pairs.get(n)) is not None:
            y = at_least_single(channels_second(n, result))
            if len(pair.nodes) == 1:
                self.found[n] = (y.clone(),)  # which an operation in place may change
            else:
                high, low = pair.spec.outputs.split(y, 1)
                self.found[n] = high.clone(), pool(low, pair.spec.factor)
        return result


class _Student(fx.Interpreter):
    """Runs the octave network, and notes how far its values are from the dense ones."""

    def __init__(
        self, module: fx.GraphModule, pairs: Sequence[_Pair], expected: Mapping[fx.Node, tuple[Tensor, ...]]
    ) -> None:
        super().__init__(module)
        self.expected: dict[fx.Node, list[tuple[fx.Node, Tensor]]] = {}
        for pair in pairs:
            for node, part in zip(pair.nodes, expected[pair.node]):
                self.expected.setdefault(node, []).append((pair.node, part))
        self.losses: list[Tensor] = []

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        for node, part in self.expected.get(n, ()):
            y = channels_second(node, result) if result.shape != part.shape else result
            self.losses.append(_relative(at_least_single(y), part))
        return result
