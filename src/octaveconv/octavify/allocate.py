"""Shares of low-frequency channels, chosen so that a network meets a budget of multiply-adds at the least cost."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import fx

from .roles import Role
from .saliency import Saliency
from .spaces import Net
from .splits import Splits

LEVELS = tuple(i / 16 for i in range(15))  # shares to choose from
_STEPS = 40  # of bisection: more than a float's precision of the price
_ROUNDS = 3  # of what a share saves beside the others' shares

Alphas = Callable[[fx.Node], float]


def allocate(net: Net, saliencies: Mapping[fx.Node, Saliency], budget: float) -> Alphas:
    """Choose one of `LEVELS` for each space of channels that convolutions write.

    At a given price of the answers' divergence, each space takes the level that is worth most, given what the others
    took in the round before. The highest price at which the network keeps within the budget decides.

    Args:
        net: the network.
        saliencies: what low channels cost in each space.
        budget: multiply-accumulates, as a share of the dense network's.

    Raises:
        ValueError: no choice is within the budget.
    """
    costs, shares = _costs(net, saliencies), _Shares(net)
    chosen = dict.fromkeys(costs, 0.0)
    if (least := shares.of(dict.fromkeys(costs, LEVELS[-1]))) > budget:
        raise ValueError(f"macs={budget:g} is out of reach: the least is {least:.3f} of the dense network's")
    for _ in range(_ROUNDS):
        rows = {space: _rows(shares, chosen, space, cost) for space, cost in costs.items()}
        found = _at_budget(rows, shares, budget)
        if found == chosen:
            break
        chosen = found
    return lambda node: chosen.get(net.spaces.of(node), 0.0)


def least_share(net: Net, saliencies: Mapping[fx.Node, Saliency]) -> float:
    """The least budget that `allocate` can keep within."""
    return _Shares(net).of(dict.fromkeys(_costs(net, saliencies), LEVELS[-1]))


def _costs(net: Net, saliencies: Mapping[fx.Node, Saliency]) -> dict[fx.Node, Callable[[float], float]]:
    """What an alpha costs in each space that can have low channels."""
    spaces = {net.spaces.of(node) for node in net.nodes(Role.CONV) if net.runs.of(node) not in net.pinned}
    return {space: cost for space in spaces if (cost := _cost(net, saliencies, space)) is not None}


class _Shares:
    """Multiply-accumulates at given levels, as a share of the dense network's."""

    def __init__(self, net: Net) -> None:
        self.net, self._known = net, dict[frozenset[tuple[fx.Node, float]], int]()
        self.dense = self.count({})

    def count(self, levels: Mapping[fx.Node, float]) -> int:
        key = frozenset((space, level) for space, level in levels.items() if level)
        if key not in self._known:
            splits = Splits(self.net, lambda node: levels.get(self.net.spaces.of(node), 0.0))
            self._known[key] = sum(map(splits.macs, self.net.steps))
        return self._known[key]

    def of(self, levels: Mapping[fx.Node, float]) -> float:
        return self.count(levels) / self.dense


def _cost(net: Net, saliencies: Mapping[fx.Node, Saliency], space: fx.Node) -> Callable[[float], float] | None:
    """What an alpha costs in a space; in all the pieces of one that is only cut into pieces."""
    if space in saliencies:
        return saliencies[space].cost
    pieces = [saliencies.get(net.spaces.of(part)) for part in (net.cats.get(space) or [[]])[0]]
    found = [piece for piece in pieces if piece is not None]
    return (lambda alpha: sum(piece.cost(alpha) for piece in found)) if found else None


def _rows(
    shares: _Shares, chosen: Mapping[fx.Node, float], space: fx.Node, cost: Callable[[float], float]
) -> list[tuple[float, float, float]]:
    """Of each level of one space: the level, what it saves beside the others' levels, and what it costs."""
    without = shares.of({**chosen, space: 0.0})
    return [(level, without - shares.of({**chosen, space: level}), cost(level)) for level in LEVELS]


def _at_budget(
    rows: Mapping[fx.Node, list[tuple[float, float, float]]], shares: _Shares, budget: float
) -> dict[fx.Node, float]:
    def at(price: float) -> dict[fx.Node, float]:
        return {space: max(each, key=lambda row: row[1] - price * row[2])[0] for space, each in rows.items()}

    low, high, chosen = 0.0, 1e-3, dict.fromkeys(rows, LEVELS[-1])
    while shares.of(found := at(high)) <= budget and high < 1e12:
        low, high, chosen = high, high * 16, found
    for _ in range(_STEPS):
        middle = (low + high) / 2
        if shares.of(found := at(middle)) <= budget:
            low, chosen = middle, found
        else:
            high = middle
    return chosen
