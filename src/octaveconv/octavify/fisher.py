"""What a sample tells of a traced network's maps: their moments, and how much the network's answers react to them."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from typing import Any

import torch
from torch import Tensor, fx, nn

from .._modes import eval_mode
from ..nn.norm import at_least_single
from ..octave import ChannelSplit, Octave
from ..resolution import FACTORS, pool, upsample
from .answers import numbers, reading
from .layers import FITTED, conv_spec_of, oct_conv
from .maps import axes_of, is_channels_last, is_map
from .operations import channels_second
from .regression import Pixels, Sums, collect, solved
from .roles import Role
from .sample import Batch, cloned, images_in, pieces
from .spaces import Net

IMAGES = 64  # of the sample, to take gradients of
_AT_ONCE = 4  # images, whose activations are kept for the gradient
_PIXELS = 20_000  # of a map, at most
_RIDGE = 1e-2


@dataclass
class Moments:
    """Sums over pixels of one value.

    Attributes:
        square, total: of the channels and of their blurred twins, ``[2C, 2C]`` and ``[2C]``.
        readers: for each convolution that reads it and can be refitted, the products of its output's gradients,
            ``[O, O]``, summed over an image.
        plain: the value's own squared gradients, ``[C]``, if something else reads it, summed over an image.
    """

    count: int = 0
    square: Any = 0
    total: Any = 0
    readers: dict[fx.Node, Any] = field(default_factory=dict)
    plain: Any = 0

    @cached_property
    def covariance(self) -> Tensor:
        """Of the channels and of their blurred twins, once all is noted; in the host's memory."""
        mean = self.total / self.count
        covariance: Tensor = self.square / self.count - mean[:, None] * mean
        return covariance.cpu()


class Depthwise:
    """Sums for a depthwise convolution: how well one of the low map gives its blurred output, channel by channel."""

    def __init__(self, net: Net, node: fx.Node) -> None:
        layer: Any = net.module(node)
        low = ChannelSplit(0, layer.out_channels)
        self.spec = conv_spec_of(layer, low, low)
        self.start = layer.weight.detach().double().cpu().flatten(2).mT  # [C, taps, 1]
        self.sums = Sums()
        self.reaction: Any = 0

    def note(self, low: Tensor, y: Tensor, pixels: Pixels) -> None:
        """Note what it would read as a low map, and what it gave."""
        wanted = at_least_single(pool(y, self.spec.factor))
        some = pixels.of(tuple(wanted.shape[2:]), _PIXELS).to(y.device)
        collect(self.sums, self.spec, Octave(None, at_least_single(low)), wanted, True, some)

    def note_gradient(self, gradient: Tensor, images: int) -> None:
        """Note how the answers react to its output."""
        gradient = pool(gradient, self.spec.factor) * prod(self.spec.factor)
        self.reaction = self.reaction + gradient.flatten(2).square().sum((0, 2), dtype=torch.float64) / images

    def costs(self) -> Tensor:
        """What a low channel costs here, ``[C]``."""
        if isinstance(self.reaction, int):
            return torch.zeros(len(self.start), dtype=torch.float64)
        statistics = self.sums.statistics(centered=True).cpu()
        left = statistics.left(solved(statistics, self.start, _RIDGE))
        costs: Tensor = self.reaction.cpu() * left.flatten().clamp(min=0) / 2
        return costs


def reads(net: Net, node: fx.Node) -> bool:
    """Whether a node mixes the channels that it reads, or ends their octave."""
    return net.steps[node].role in (Role.CONV, Role.OTHER)


def refits(net: Net, node: fx.Node) -> bool:
    """Whether a node is a convolution that can be fitted to blurred inputs, mixing channels."""
    step = net.steps[node]
    return step.role is Role.CONV and not step.refusal and net.handler(node).make in FITTED


def is_depthwise(net: Net, node: fx.Node) -> bool:
    """Whether a node is a depthwise convolution of maps that may be octaves."""
    step = net.steps[node]
    is_conv = step.role is Role.SAME and step.handler is not None and step.handler.make is oct_conv
    return is_conv and not step.refusal and net.runs.of(step.inputs[0]) not in net.pinned


def measure(
    net: Net, values: Collection[fx.Node], batches: Sequence[Batch]
) -> tuple[dict[fx.Node, Moments], dict[fx.Node, Depthwise]]:
    """Run the network forward and backward over some of the sample.

    Args:
        net: the traced network.
        values: those whose moments are wanted.
        batches: the sample.

    Returns:
        The moments of each of the values, and the sums of each depthwise convolution.

    Raises:
        ValueError: the network's answers have no gradient.
    """
    draw = torch.Generator().manual_seed(0)
    moments = {value: Moments() for value in values}
    depthwise = {node: Depthwise(net, node) for node in net.steps if is_depthwise(net, node)}
    few: list[Batch] = []
    for batch in (piece for given in batches for piece in pieces(given, _AT_ONCE)):
        if sum(map(images_in, few)) < IMAGES:
            few.append(batch)
    module = fx.GraphModule(net.model, net.graph)
    watched = _Watched(net, module, moments, depthwise, Pixels(sum(map(images_in, few)), draw))
    with eval_mode(module), _frozen(module), torch.enable_grad():
        for batch in few:
            loss = _loss(numbers(watched.run(*cloned(batch))), draw)
            if loss is None:
                raise ValueError("its answers have no gradient")
            loss.backward()  # type: ignore[no-untyped-call]
            watched.note_gradients()
    return moments, depthwise


def _loss(found: Sequence[Tensor], draw: torch.Generator) -> Tensor | None:
    """A number whose squared derivatives are, on average, twice how fast the answers diverge."""
    found = [y for y in found if y.requires_grad]
    if not found:
        return None
    if (read := reading(found)) is not None:
        logs = read(found[0]).flatten(0, 1)
        labels = torch.multinomial(logs.detach().exp().cpu(), 1, generator=draw).to(logs.device)
        return -logs.gather(1, labels).sum()
    images = len(found[0]) if found[0].dim() else 1
    variance = sum(float((y - y.mean()).detach().double().square().sum()) for y in found) / images
    scale = (2 / variance) ** 0.5 if variance else 1.0
    return sum(
        ((y * torch.randn(y.shape, generator=draw).to(y)).sum() * scale for y in found), torch.zeros(()).to(found[0])
    )


@contextmanager
def _frozen(module: nn.Module) -> Iterator[None]:
    """Parameters take no gradient inside the ``with`` block."""
    flags = {parameter: parameter.requires_grad for parameter in module.parameters()}
    for parameter in flags:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter, flag in flags.items():
            parameter.requires_grad_(flag)


class _Watched(fx.Interpreter):
    """Runs the dense network and notes moments; keeps the values whose gradients are wanted until they are there."""

    def __init__(
        self,
        net: Net,
        module: fx.GraphModule,
        moments: Mapping[fx.Node, Moments],
        depthwise: Mapping[fx.Node, Depthwise],
        pixels: Pixels,
    ) -> None:
        super().__init__(module, graph=net.graph)
        self.net, self.moments, self.depthwise, self.pixels = net, moments, depthwise, pixels
        self.outputs: dict[fx.Node, Tensor] = {}
        self.lows: dict[fx.Node, Tensor] = {}  # the maps that there would be if all channels were low
        self._of_reader = {user: value for value in moments for user in value.users if refits(net, user)}
        self._plain = {v for v in moments if any(reads(net, user) and not refits(net, user) for user in v.users)}

    def run_node(self, n: fx.Node) -> Any:
        low = self._low_before(n)
        result = super().run_node(n)
        if is_map(n) and self.net.runs.of(n) not in self.net.pinned:
            self.lows[n] = pool(channels_second(n, result.detach()), FACTORS[axes_of(n)]) if low is None else low
        if n in self.depthwise:
            self.depthwise[n].note(self.lows[n.args[0]], result.detach(), self.pixels)  # type: ignore[index]
        if n in self.moments:
            self._note(n, channels_second(n, result.detach()))
        if n not in self._of_reader and n not in self._plain and n not in self.depthwise:
            return result
        if result.requires_grad:
            result.retain_grad()
        else:
            result = result.detach().requires_grad_()
        self.outputs[n] = result
        return result.clone()  # which an operation in place may change

    def _low_before(self, n: fx.Node) -> Tensor | None:
        """The low map behind an activation or a norm: what these make of the low map in front of them.

        Behind anything else it is the blurred value: pooling and convolving can change places, a fit does the rest.
        """
        step = self.net.steps[n]
        x = step.inputs[0] if step.role is Role.SAME else None
        if x is None or x not in self.lows or is_channels_last(n) or is_channels_last(x):
            return None
        if step.resizes or n in self.depthwise or n.meta["shape"] != x.meta["shape"]:
            return None
        args = fx.node.map_arg((n.args, n.kwargs), lambda a: self.lows[a].clone() if a is x else self.env[a])
        with torch.no_grad():
            low: Tensor = getattr(self, n.op)(n.target, *args)
        return low

    def _note(self, value: fx.Node, x: Tensor) -> None:
        x, noted = at_least_single(x), self.moments[value]
        blurred = upsample(at_least_single(self.lows[value]), FACTORS[x.dim() - 2], x.shape[2:])
        some = self.pixels.of(tuple(x.shape[2:]), _PIXELS).to(x.device)
        both = torch.cat([x.flatten(2)[:, :, some], blurred.flatten(2)[:, :, some]], 1)  # [N, 2C, pixels]
        rows = both.transpose(0, 1).flatten(1)
        noted.count += rows.shape[1]
        noted.square = noted.square + (rows @ rows.T).double()
        noted.total = noted.total + rows.sum(1, dtype=torch.float64)

    def note_gradients(self) -> None:
        """After the backward pass."""
        for node, result in self.outputs.items():
            if result.grad is None:
                continue
            gradient = at_least_single(channels_second(node, result.grad))
            if node in self.depthwise:
                self.depthwise[node].note_gradient(gradient, self.pixels.images)
            rows = gradient.transpose(0, 1).flatten(1)  # [C, N * pixels]
            if node in self._of_reader:
                readers = self.moments[self._of_reader[node]].readers
                readers[node] = readers.get(node, 0) + (rows @ rows.T).double() / self.pixels.images
            if node in self._plain:
                noted = self.moments[node]
                noted.plain = noted.plain + rows.square().sum(1, dtype=torch.float64) / self.pixels.images
        self.outputs.clear()
        self.lows.clear()
