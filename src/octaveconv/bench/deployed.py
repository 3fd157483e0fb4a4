"""How long networks take in eager PyTorch and deployed, side by side: what the first run, `choose` and reports show."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .._modes import LAYOUTS, copied
from .measure import Timing, interleaved, unrest

BUSY = 1.25  # upper quartile over lower, from which on it is said that the machine was busy
RUNS = 30
FEW = 10  # runs, below which it is said how few they are
Times = dict[str, dict[str, Any]]


def latencies(
    nets: Mapping[str, nn.Module],
    shapes: Sequence[tuple[int, ...]],
    *,
    limit: float | None = None,
    eager: bool = True,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, dict[str, Times]]:
    """Seconds per call of each network on the CPU in float32, for each shape of a batch.

    Args:
        nets: networks of images, by name; they are not changed.
        shapes: of the batches, ``(N, C, H, W)``.
        limit: spend no more than about this many seconds on the runs of one shape; preparing takes what it takes.
        eager: time eager PyTorch as well, each network in its faster memory layout.
        say: is told what is about to happen.

    Returns:
        ``{name: {"deployed": {batch: figures}, "eager": {batch: figures}}}``, figures as of a `Timing`, with the
        ``engine`` or the ``layout``.

    Example:
        >>> found = latencies({"net": nn.Conv2d(1, 2, 3)}, [(1, 1, 8, 8)], limit=0)
        >>> found["net"]["deployed"]["1"]["median"] > 0, found["net"]["eager"]["1"]["runs"]
        (True, 2)
    """
    from ..deploy import deploy

    found: dict[str, dict[str, Times]] = {name: {"deployed": {}, **({"eager": {}} if eager else {})} for name in nets}
    deployed: dict[str, Any] = {}
    for name, net in nets.items():
        say(f"deploying {name}")
        deployed[name] = deploy(copied(net).eval(), torch.zeros(shapes[0]))
    laid_out = _laid_out(nets) if eager else {}
    for shape in shapes:
        x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        calls: dict[str, Callable[[], Any]] = {}
        for name, network in deployed.items():
            if hasattr(network, "tune"):
                network.tune(x)
            calls[f"{name}/deployed"] = partial(_call, network, x)
        for key, (network, layout) in laid_out.items():
            calls[key] = partial(_call, network, x.contiguous(memory_format=LAYOUTS[layout]))
        say(f"timing {len(calls)} networks at batch {shape[0]}")
        timings = interleaved(calls, RUNS, 1, limit=limit, isolate=True)
        for name in nets:
            batch = str(shape[0])
            found[name]["deployed"][batch] = {
                "engine": str(deployed[name].engine),
                **asdict(timings[f"{name}/deployed"]),
            }
            if eager:
                best = min(LAYOUTS, key=lambda layout: timings[f"{name}/{layout}"].median)
                found[name]["eager"][batch] = {"layout": best, **asdict(timings[f"{name}/{best}"])}
    return found


def busy(timings: Sequence[Mapping[str, Any]]) -> str:
    """What to know before trusting times: that they vary, or are few, because the machine was busy; usually nothing.

    Example:
        >>> busy([{"median": 2.0, "lower": 1.0, "upper": 3.0, "runs": 30}]).partition(":")[0]
        'The machine was busy with other work'
        >>> busy([{"median": 2.0, "lower": 1.9, "upper": 2.0, "runs": 3}])
        'Only 3 calls of each were timed, for want of time.'
        >>> busy([{"median": 2.0, "lower": 1.9, "upper": 2.0, "runs": 30}])
        ''
    """
    spread = unrest([Timing(one["median"], one["lower"], one["upper"], one["runs"]) for one in timings])
    fewest = min(one["runs"] for one in timings)
    varied = (
        f"The machine was busy with other work: the upper quartile of a call's times is {spread:.1f} times the lower "
        f"one, so take the milliseconds and their ratios as rough, and measure again when it is idle."
    )
    few = f"Only {fewest} calls of each were timed, for want of time."
    return " ".join([varied] * (spread >= BUSY) + [few] * (fewest < FEW))


def _laid_out(nets: Mapping[str, nn.Module]) -> dict[str, tuple[nn.Module, str]]:
    return {
        f"{name}/{layout}": (copied(net).eval().to(memory_format=memory_format), layout)  # type: ignore[call-overload]
        for name, net in nets.items()
        for layout, memory_format in LAYOUTS.items()
    }


def _call(network: nn.Module, x: Tensor) -> Any:
    with torch.inference_mode():
        return network(x)
