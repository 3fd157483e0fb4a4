"""Which channels cost a network's answers least if they lose their fine detail, and how much they cost.

A reader of a low channel sees a blurred map. It can make up for what the other channels, or the blurred map itself,
tell of the rest. So the cost of a channel is the part of its detail that a linear fit to everything else cannot
predict, times how much the answers react to it at each layer that reads it. Channels are given up one after the other,
the cheapest first, as weights are in Optimal Brain Surgeon (Hassibi and Stork, NeurIPS 1992). How much the answers
react is their Fisher information: gradients for a class drawn from the network's own probabilities, without labels.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx

from .fisher import Moments, measure, reads
from .maps import is_map
from .roles import Role
from .sample import Batch
from .spaces import Net

_RIDGE = 1e-3  # of the mean variance
_STEPS = 64  # in which a space's channels are given up


class Saliency(NamedTuple):
    """What low channels cost in one space.

    Attributes:
        order: the space's channels, ``[C]``: in each block those that must stay high first, the first to give up last.
        costs: the expected divergence of the answers once the last k channels of each block are low, from k = 0 on.
    """

    order: Tensor
    costs: list[float]

    def cost(self, alpha: float) -> float:
        """That of a low share of the channels."""
        return self.costs[int(alpha * (len(self.costs) - 1))]


class _Reading(NamedTuple):
    """A run of channels of a value that somebody reads: ``channels`` of them from ``first`` on are a space's."""

    value: fx.Node
    first: int
    channels: int
    space: fx.Node


def saliencies(net: Net, batches: Sequence[Batch]) -> dict[fx.Node, Saliency]:
    """What low channels cost in each space that can have some.

    Raises:
        ValueError: the network's answers have no gradient.
    """
    found: dict[fx.Node, list[_Reading]] = defaultdict(list)
    for reading in _readings(net):
        found[reading.space].append(reading)
    if not found:
        return {}
    moments, depthwise = measure(net, {r.value for each in found.values() for r in each}, batches)
    metrics = {value: _metrics(net, noted) for value, noted in moments.items()}
    fixed: dict[fx.Node, Any] = defaultdict(float)
    for node, sums in depthwise.items():
        fixed[net.spaces.of(node)] += sums.costs()
    made = {}
    for space, each in found.items():
        fits = [fit for r in each for fit in _fits(moments[r.value], metrics[r.value], r)]
        fits[0].fixed = fits[0].fixed + fixed[space]
        made[space] = _saliency(net, space, fits)
    return made


def _readings(net: Net) -> Iterator[_Reading]:
    """Every value that is read by something that mixes channels, cut into the spaces of its channels."""
    for node, step in net.steps.items():
        is_free = is_map(node) and net.runs.of(node) not in net.pinned and step.role is not Role.PIECES
        if is_free and any(reads(net, user) for user in node.users):
            yield from _leaves(net, node, node, 0)


def _leaves(net: Net, value: fx.Node, part: fx.Node, first: int) -> Iterator[_Reading]:
    space = net.spaces.of(part)
    if not net.cats.get(space):
        yield _Reading(value, first, net.channels(part), space)
        return
    for piece in net.cats[space][0]:
        yield from _leaves(net, value, piece, first)
        first += net.channels(piece)


class _Fit:
    """What the readers of one value can make of it, with a linear fit to all its channels and their blurred twins.

    Args:
        covariance: of both, ``[2C, 2C]``.
        metric: how much the answers diverge for an error in the channels, ``[C, C]``.
        fixed: what each channel costs where nobody can make up for it, ``[C]``.
    """

    def __init__(self, covariance: Tensor, metric: Tensor, fixed: Tensor) -> None:
        self.channels, self.fixed = len(fixed), fixed
        ridge = _RIDGE * covariance.diagonal().mean() + 1e-12
        self.inverse = torch.linalg.inv(covariance + ridge * torch.eye(len(covariance)).to(covariance))
        self.guess = self.inverse @ covariance[:, : self.channels]  # of every channel from all of both: [2C, C]
        self.weighted = self.guess @ metric

    def prices(self) -> Tensor:
        """What it would cost to give up each channel alone, ``[C]``."""
        own = slice(self.channels)
        errors = (self.weighted[own] * self.guess[own]).sum(1) / self.inverse.diagonal()[own]
        prices: Tensor = self.fixed + errors / 2
        return prices

    def give_up(self, some: Tensor) -> float:
        """What it costs to give up some channels, so that only their blurred twins are left."""
        rows = self.inverse[some]
        within = torch.linalg.inv(rows[:, some])
        cost = (within @ self.weighted[some] * self.guess[some]).sum() / 2 + self.fixed[some].sum()
        factors = rows.T @ within
        for matrix in (self.guess, self.weighted, self.inverse):
            matrix -= factors @ matrix[some]
        for matrix in (self.guess, self.weighted, self.inverse, self.inverse.T):
            matrix[some] = 0.0
        self.inverse[some, some] = 1.0  # no longer used
        return float(cost)


def _fits(moments: Moments, metrics: Mapping[int, Tensor], reading: _Reading) -> Iterator[_Fit]:
    """One for all the readers that see the same groups of channels."""
    channels, total = reading.channels, len(moments.covariance) // 2
    own = torch.arange(reading.first, reading.first + channels)
    both = torch.cat([own, own + total])
    covariance = moments.covariance[both][:, both]
    fixed = torch.zeros(channels, dtype=torch.float64)
    if not isinstance(moments.plain, int):
        sharp, blurred = covariance.diagonal().view(2, -1)
        lost = sharp + blurred - 2 * covariance[:channels, channels:].diagonal()
        fixed = moments.plain.cpu()[own] * lost / 2
    for groups, metric in metrics.items() or [(1, torch.zeros(total, total, dtype=torch.float64))]:
        group = (own * groups // total).repeat(2)
        yield _Fit(covariance * (group[:, None] == group), metric[own][:, own], fixed)
        fixed = torch.zeros_like(fixed)


def _metrics(net: Net, moments: Moments) -> dict[int, Tensor]:
    """The metric of a value's channels for its readers, summed over those that have equally many groups."""
    metrics: dict[int, Tensor] = {}
    for node, gradients in moments.readers.items():
        layer: Any = net.module(node)
        groups = net.groups(node)
        metric = _metric(layer.weight.detach().double().cpu(), gradients.cpu(), groups)
        metrics[groups] = metrics.get(groups, 0) + metric
    return metrics


def _metric(weight: Tensor, gradients: Tensor, groups: int) -> Tensor:
    """How much the answers diverge for an error in the channels that a convolution reads, ``[C, C]``.

    An error's neighbours count as independent of it.
    """
    taps = weight.flatten(2) if weight.dim() > 2 else weight[..., None]
    grouped: Tensor = taps.unflatten(0, (groups, -1))  # type: ignore[no-untyped-call]  # [groups, O / groups, ...]
    blocks = gradients.view(groups, len(weight) // groups, groups, -1).diagonal(dim1=0, dim2=2).movedim(-1, 0)
    found = torch.einsum("goct,gop,gpdt->gcd", grouped, blocks, grouped)
    metric: Tensor = torch.block_diag(*found)  # type: ignore[no-untyped-call]
    return metric


def _saliency(net: Net, space: fx.Node, fits: list[_Fit]) -> Saliency:
    given = net.blocks(space)
    if given is None:
        blocks = max(net.cuts.get(space) or {1})
        return _give_up(fits, blocks, torch.arange(fits[0].channels))
    blocks, movable = given
    if not movable or blocks == 1:
        return _give_up(fits, blocks)
    return _give_up(fits, 1, _by_block(_prices(fits).view(blocks, -1)))  # a norm's groups stay together


def _by_block(prices: Tensor) -> Tensor:
    """Channels from the dearest to the cheapest: first the blocks, ``[blocks, C / blocks]``, then inside each."""
    order = prices.argsort(dim=1, descending=True, stable=True) + torch.arange(len(prices))[:, None] * prices.shape[1]
    return order[prices.mean(1).argsort(dim=0, descending=True, stable=True)].flatten()


def _prices(fits: list[_Fit]) -> Tensor:
    return torch.stack([fit.prices() for fit in fits]).sum(0)


def _give_up(fits: list[_Fit], blocks: int, order: Tensor | None = None) -> Saliency:
    """Give up all channels, in each block equally many at a time: the cheapest, or the last in ``order``."""
    size = fits[0].channels // blocks
    first = torch.arange(blocks)[:, None] * size
    left = torch.ones(blocks, size, dtype=torch.bool)
    queue = None if order is None else order.view(blocks, size) - first
    gone: list[Tensor] = []
    costs = [0.0]
    while (done := len(costs) - 1) < size:
        prices = _prices(fits).view(blocks, size).masked_fill(~left, torch.inf)
        count = min(max(size // _STEPS, 1), size - done)
        if queue is None:
            some = prices.topk(count, largest=False, sorted=True).indices
        else:
            some = queue[:, size - done - count : size - done].flip(1)
        left.scatter_(1, some, False)
        cost = max(sum(fit.give_up((first + some).flatten()) for fit in fits), 0.0)
        parts = prices.gather(1, some).sum(0).clamp(min=1e-30).cumsum(0)
        costs += [costs[done] + cost * float(part / parts[-1]) for part in parts]
        gone.append(some)
    return Saliency((torch.cat(gone, 1).flip(1) + first).flatten(), costs)
