"""Shares of low-frequency channels, chosen so that a network meets a budget with the smallest error."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence

from torch import fx

from .calibrate import Batch, layer_errors
from .roles import Role
from .spaces import Net
from .splits import Splits

LEVELS = (0.125, 0.25, 0.375, 0.5, 0.625, 0.75)
_STEPS = 40  # of bisection: more than a float's precision of the price


def allocate(net: Net, batches: Sequence[Batch], budget: float) -> Callable[[fx.Node], float]:
    """Choose one of `LEVELS`, or 0, for each space of channels that convolutions write.

    The error of a level is what `layer_errors` measures with all convolutions at that level, squared and summed over
    those that write the space; the saving is that of this space alone. At a given price of error each space takes the
    level that is worth most. The highest price at which the network keeps within the budget decides.

    Args:
        net: the network, with its channels in the order in which they are to be split.
        batches: the sample to measure errors on.
        budget: multiply-accumulates, as a share of the dense network's.

    Raises:
        ValueError: no choice is within the budget.
    """
    spaces = {net.spaces.of(node) for node in net.nodes(Role.CONV) if net.runs.of(node) not in net.pinned}
    dense = _macs(Splits(net, lambda node: 0.0))
    value: dict[fx.Node, list[tuple[float, float, float]]] = {space: [(0.0, 0.0, 0.0)] for space in spaces}
    for level in LEVELS:
        errors = layer_errors(Splits(net, lambda node, a=level: a), batches)  # type: ignore[misc]
        of_space: dict[fx.Node, float] = defaultdict(float)
        for node, error in errors.items():
            of_space[net.spaces.of(node)] += error**2
        for space in spaces:
            alone = Splits(net, lambda node, s=space, a=level: a if net.spaces.of(node) is s else 0.0)  # type: ignore[misc]
            value[space].append((level, 1 - _macs(alone) / dense, of_space[space]))

    def at(price: float) -> dict[fx.Node, float]:
        return {s: max(rows, key=lambda row: row[1] - price * row[2])[0] for s, rows in value.items()}

    shares: dict[frozenset[tuple[fx.Node, float]], float] = {}

    def share(levels: dict[fx.Node, float]) -> float:
        key = frozenset(levels.items())
        if key not in shares:
            shares[key] = _macs(Splits(net, lambda node: levels.get(net.spaces.of(node), 0.0))) / dense
        return shares[key]

    chosen = at(0.0)
    if share(chosen) > budget:
        raise ValueError(f"macs={budget:g} is out of reach: the least is {share(chosen):.3f} of the dense network's")
    low, high = 0.0, 1.0
    while share(at(high)) <= budget:
        low, high = high, high * 16
    for _ in range(_STEPS):
        middle = (low + high) / 2
        if share(levels := at(middle)) <= budget:
            low, chosen = middle, levels
        else:
            high = middle
    return lambda node: chosen.get(net.spaces.of(node), 0.0)


def _macs(splits: Splits) -> int:
    return sum(map(splits.macs, splits.net.steps))
