"""Which alpha: what a network costs at several alphas on this machine, and which of them meets a budget."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from .. import _figure
from ..cost import cost
from .deployed import latencies
from .measure import peak_bytes

ALPHAS = (0.0, 0.125, 0.25, 0.5, 0.75)
SECONDS = 20.0  # of timing, at most
UNITS = {"latency": "ms", "macs": "of the dense multiply-adds", "memory": "MB"}


@dataclass(frozen=True)
class Option:
    """A network at one alpha.

    Attributes:
        share: its multiply-adds over those of the dense network.
        memory: the most bytes that maps hold at one moment in eager PyTorch.
        timing: of the deployed network: seconds per call, as of a `Timing`, and the engine.
        top1: in percent; None if it is not known.
    """

    alpha: float
    macs: int
    share: float
    memory: int
    timing: dict[str, Any]
    top1: float | None = None

    def amount(self, budget: str) -> float:
        """What a budget limits: ``latency`` in milliseconds, ``macs`` as a share, ``memory`` in MB."""
        amounts = {"latency": self.timing["median"] * 1e3, "macs": self.share, "memory": self.memory / 1e6}
        return float(amounts[budget])


def measure(
    nets: Mapping[float, nn.Module],
    shape: tuple[int, ...],
    top1: Mapping[float, float],
    say: Callable[[str], None] = lambda line: None,
) -> list[Option]:
    """What each network costs: all are deployed, and timed in turns for at most `SECONDS`.

    Args:
        nets: networks by alpha, the dense one at 0 among them.
        shape: of a batch of images, ``(N, C, H, W)``.
        top1: known accuracies in percent, by alpha.
        say: is told what comes next.
    """
    x = torch.zeros(shape)
    timings = latencies(
        {f"alpha {alpha:g}": net for alpha, net in nets.items()}, [shape], limit=SECONDS, eager=False, say=say
    )
    macs = {alpha: cost(net, torch.zeros(1, *shape[1:])).macs for alpha, net in nets.items()}
    options = []
    for alpha, net in sorted(nets.items()):
        timing = timings[f"alpha {alpha:g}"]["deployed"][str(shape[0])]
        with torch.no_grad():
            memory = peak_bytes(partial(net, x))
        options.append(Option(alpha, macs[alpha], macs[alpha] / macs[0.0], memory, timing, top1.get(alpha)))
    return options


def recommend(options: Sequence[Option], budget: str, limit: float) -> Option | None:
    """The option within the budget that is the most accurate or, where no accuracy is known, has the least alpha.

    Example:
        >>> timing = {"median": 0.01}
        >>> options = [Option(0, 100, 1.0, 9, timing, 70.0), Option(0.25, 80, 0.8, 8, timing, 71.0)]
        >>> recommend(options, "macs", 1.0).alpha, recommend(options, "macs", 0.7)
        (0.25, None)
    """
    within = [one for one in options if one.amount(budget) <= limit]
    known = [one for one in within if one.top1 is not None]
    if known:
        return max(known, key=lambda one: (one.top1, one.alpha))
    return min(within, key=lambda one: one.alpha, default=None)


def verdict(options: Sequence[Option], budget: str, limit: float) -> str:
    """The recommendation in words, and by what it was chosen."""
    chosen, unit = recommend(options, budget, limit), UNITS[budget]
    if chosen is None:
        least = min(options, key=lambda one: one.amount(budget))
        return (
            f"No alpha stays within {limit:g} {unit}. The nearest is alpha {least.alpha:g} with "
            f"{least.amount(budget):.3g}: allow more, use smaller images, or a smaller network."
        )
    why = "has the least alpha" if chosen.top1 is None else f"is the most accurate ({chosen.top1:.1f}% top-1)"
    lines = [f"Use alpha {chosen.alpha:g}: of those within {limit:g} {unit}, it {why}."]
    dense = options[0].timing["median"] / chosen.timing["median"]
    if chosen.alpha and dense < 1:
        lines.append(f"On this machine it is slower than the dense network: it takes {1 / dense:.2f} times as long.")
    if not chosen.alpha:
        lines.append("That is the dense network as it is.")
    return " ".join(lines)


def table(options: Sequence[Option]) -> list[list[str]]:
    """Rows of text: a line for each alpha."""
    accurate = any(one.top1 is not None for one in options)
    more = ["top-1 %"] if accurate else []
    rows = [["alpha", "GMACs", "share", "memory MB", "ms", "quartiles", "dense / octave", *more]]
    for one in options:
        timing = one.timing
        top1 = "-" if one.top1 is None else f"{one.top1:.1f}"
        rows.append(
            [
                f"{one.alpha:g}",
                f"{one.macs / 1e9:.3f}",
                f"{one.share:.2f}",
                f"{one.memory / 1e6:.1f}",
                f"{timing['median'] * 1e3:.2f}",
                f"{timing['lower'] * 1e3:.2f}-{timing['upper'] * 1e3:.2f}",
                f"{options[0].timing['median'] / timing['median']:.2f}",
                *([top1] if accurate else []),
            ]
        )
    return rows


def draw(options: Sequence[Option], budget: str, limit: float, title: str) -> Any:
    """Milliseconds over the share of multiply-adds, with a budget of these; the recommended point is filled."""
    figure, chosen = _figure.new(6, 4), recommend(options, budget, limit)
    axis = figure.subplots()
    x, y = [one.share for one in options], [one.timing["median"] * 1e3 for one in options]
    errors = [[one.timing[key] * 1e3 for one in options] for key in ("lower", "upper")]
    spread = [[a - low for a, low in zip(y, errors[0])], [high - a for a, high in zip(y, errors[1])]]
    axis.errorbar(x, y, yerr=spread, marker="o", markerfacecolor="white", capsize=3, label="median and quartiles")
    axis.plot([0, 1], [0, y[0]], color="0.5", linestyle="--", label="time in proportion to multiply-adds")
    if budget == "latency":
        axis.axhline(limit, color="C3", linewidth=1, label="budget")
    elif budget == "macs":
        axis.axvline(limit, color="C3", linewidth=1, label="budget")
    for one, *place in zip(options, x, y):
        axis.annotate(f"{one.alpha:g}", place, (5, -10), textcoords="offset points")
    if chosen:
        axis.plot(chosen.share, chosen.timing["median"] * 1e3, "o", color="C0", markersize=10, label="recommended")
    axis.set(xlabel="share of the dense network's multiply-adds", ylabel="ms, deployed", xlim=(0, 1.05), ylim=(0, None))
    axis.set_title(title, fontsize=9)
    axis.grid(alpha=0.3)
    axis.legend(fontsize="small")
    return figure
