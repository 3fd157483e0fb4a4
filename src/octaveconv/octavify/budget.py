"""Budgets of ``alpha="auto"``: multiply-adds, the deployed network's latency, or agreement with the dense network.

Multiply-adds can be counted before anything is converted. The other two are measured, on networks of fewer and fewer
multiply-adds: the search halves the interval between those that keep within the budget and those that do not.
"""

from __future__ import annotations

from collections.abc import Callable
from numbers import Real
from typing import Any, NamedTuple, TypeVar

from torch import nn

TRIES = 5  # networks, until the share of multiply-adds is known to some percent
T = TypeVar("T")
Clock = Callable[[nn.Module, nn.Module, tuple[Any, ...]], float]
_clocks: list[Clock] = []


class Budget(NamedTuple):
    """What may be spent, or has to be kept: ``kind`` is ``"macs"``, ``"latency"`` or ``"agreement"``."""

    kind: str
    value: float

    @classmethod
    def of(cls, alpha: Any, calibrate: object, **given: float | None) -> Budget | None:
        """The budget that the caller gave; None for other alphas than ``"auto"``.

        Raises:
            ValueError: there is none, or more than one, or it does not lie between 0 and 1, or there is no sample.
        """
        found = [cls(kind, value) for kind, value in given.items() if value is not None]
        if alpha != "auto":
            if found:
                raise ValueError(f'{found[0].kind} is a budget of alpha="auto", got alpha={alpha!r}')
            return None
        if len(found) != 1 or calibrate is None:
            raise ValueError(
                'alpha="auto" needs a sample and one budget: give calibrate=batches and macs=0.7, for instance, or '
                "latency=0.8, or agreement=0.98"
            )
        kind, value = found[0]
        if not isinstance(value, Real) or not 0 < value < 1:
            raise ValueError(f'{kind} is a budget of alpha="auto", above 0 and below 1, got {kind}={value!r}')
        return found[0]


def set_clock(clock: Clock) -> None:
    """Measure latency so: ``clock(octave, dense, inputs)`` is a share of the dense network's. Deploying sets it."""
    _clocks[:] = [clock]


def latency(octave: nn.Module, dense: nn.Module, inputs: tuple[Any, ...]) -> float:
    """The deployed network's latency, as a share of that of the dense one."""
    return _clocks[0](octave, dense, inputs)


def searched(attempt: Callable[[float], tuple[float, bool, T]], least: float, budget: Budget) -> T:
    """What ``attempt`` makes at the last share of multiply-adds that keeps within the budget.

    For latency that is the largest one, which costs the answers least; for agreement the smallest.

    Args:
        attempt: takes a share; returns what was measured, whether that is within the budget, and what it made.
        least: the least share that the network can have.
        budget: of latency or of agreement.

    Raises:
        ValueError: none that was tried keeps within the budget.
    """
    low, high = least, 1.0
    best: list[T] = []
    for _ in range(TRIES):
        middle = (low + high) / 2
        measured, fits, made = attempt(middle)
        best = [made] if fits else best
        if fits == (budget.kind == "latency"):
            low = middle
        else:
            high = middle
    if not best:
        raise ValueError(
            f"{budget.kind}={budget.value:g} is out of reach: at {middle:.1%} of the multiply-adds it is {measured:.3f}"
        )
    return best[0]
