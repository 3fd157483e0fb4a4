"""The original's figure: the top-1 that it published, over multiply-adds or over the latency of the deployed networks.

Top-1 is the original's, on ImageNet-1k. Multiply-adds and parameters are ours, counted exactly; the latency is measured
here, with random weights, on which it does not depend.
"""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .. import _figure, env
from .._atomic import replacing
from .._modes import threads as using_threads
from .._text import counted, did_you_mean, reason
from ..errors import UsageError
from ..models import COSTS, DENSE, PUBLISHED
from .cases import BenchSettings, make_cases
from .deployed import busy, latencies

TITLES = {
    "oct_densenet121": "DenseNet-121",
    "oct_resnetv2_26": "ResNet-26",
    "oct_resnetv2_50": "ResNet-50",
    "oct_seresnetv2_50": "SE-ResNet-50",
    "oct_resnextv2_50_32x4d": "ResNeXt-50",
    "oct_resnetv2_101": "ResNet-101",
    "oct_resnextv2_101_32x4d": "ResNeXt-101",
    "oct_resnetv2_200": "ResNet-200",
}
SIZE = 224
SECONDS = 20.0  # of timing for all alphas of one network, at most
KIND = "published_latency"
TICKS = (1, 2, 3, 5, 10, 15, 20, 30, 50, 100, 200, 300, 500, 1000, 2000, 5000)
_AREA = 6.0  # square points for a million parameters


@dataclass(frozen=True)
class Point:
    """A network of the original's table at one alpha; ``seconds`` is None where it was not measured."""

    network: str
    alpha: float
    top1: float
    macs: int
    params: int
    seconds: float | None = None


def points(measured: dict[str, Any] | None = None) -> list[Point]:
    """Every cell of the original's ablation; with ``measured``, what `measure` returned, those in it.

    Example:
        >>> [(point.alpha, point.top1) for point in points() if point.network == "oct_resnextv2_50_32x4d"]
        [(0.0, 78.4), (0.25, 78.8), (0.5, 78.4), (0.75, 77.5)]
    """
    found = []
    for network, (top1, _) in DENSE.items():
        cells = {0.0: top1} | {one.alpha: one.top1 for one in PUBLISHED.values() if one.network == network}
        known = None if measured is None else measured["networks"].get(network, {})
        for alpha, accuracy in sorted(cells.items()):
            if known is None or f"{alpha:g}" in known:
                seconds = None if known is None else known[f"{alpha:g}"]["median"]
                cost = COSTS[network]
                found.append(Point(network, alpha, accuracy, cost["macs"][f"{alpha:g}"], cost["params"], seconds))
    return found


def table(found: Iterable[Point]) -> list[list[str]]:
    """Rows of text: a line for each point."""
    found = list(found)
    timed = [["ms"]] if any(point.seconds for point in found) else []
    rows = [["network", "alpha", "top-1 %", "GMACs", "params M", *(name for [name] in timed)]]
    for point in found:
        rows.append(
            [
                TITLES[point.network],
                f"{point.alpha:g}",
                f"{point.top1:.1f}",
                f"{point.macs / 1e9:.3f}",
                f"{point.params / 1e6:.1f}",
                *([f"{point.seconds * 1e3:.2f}"] if point.seconds else []),
            ]
        )
    return rows


def draw(found: Iterable[Point], conditions: str = "") -> Any:
    """Top-1 over GMACs, or over milliseconds where all points have them; a circle's area stands for parameters."""
    found = list(found)
    timed = all(point.seconds for point in found)
    figure = _figure.new(8, 5.5)
    axis = figure.subplots()
    for number, network in enumerate(dict.fromkeys(point.network for point in found)):
        own = [point for point in found if point.network == network]
        x = [(point.seconds or 0) * 1e3 if timed else point.macs / 1e9 for point in own]
        y, color = [point.top1 for point in own], f"C{number}"
        faces = [color if point.alpha else "white" for point in own]
        axis.plot(x, y, color=color, linewidth=1, zorder=1)
        areas = [point.params / 1e6 * _AREA for point in own]
        axis.scatter(x, y, areas, color=faces, edgecolor=color, linewidth=1.5, alpha=0.8, zorder=2)
        axis.scatter([], [], 60, color=color, label=TITLES[network])
        for point, *place in zip(own, x, y):
            axis.annotate(f"{point.alpha:g}", place, ha="center", va="center", fontsize=6, zorder=3)
    places = [point.seconds or 0.0 if timed else float(point.macs) for point in found]
    wide = max(places) > 3 * min(places)
    if wide:
        axis.set_xscale("log")
        low, high = axis.get_xlim()
        axis.set_xticks([tick for tick in TICKS if low <= tick <= high], minor=False)
        axis.set_xticks([], minor=True)
        axis.xaxis.set_major_formatter("{x:g}")
    what = "milliseconds for one image, deployed" if timed else "multiply-adds in 1e9"
    axis.set(xlabel=f"{what}{' (log scale)' if wide else ''}", ylabel="top-1 on ImageNet in percent, as published")
    key = "alpha in the circle, white is dense; area = parameters"
    axis.set_title("\n".join(filter(None, (conditions, key))), fontsize=9)
    axis.grid(alpha=0.3)
    axis.legend(fontsize="small")
    return figure


def measure(
    path: Path, glob: str = "*", threads: int | None = None, say: Callable[[str], None] = lambda line: None
) -> dict[str, Any]:
    """Measure the deployed networks whose names match at every published alpha, and write them to a file.

    Args:
        path: the file, which is written after each network. What it holds already is not measured again.
        glob: pattern of names, as ``oct_resnetv2_*``.
        threads: to compute with; by default those of the file, or PyTorch's choice.
        say: is told what comes next.

    Returns:
        The file's content.

    Raises:
        UsageError: no network matches, or the file is another one, or of other conditions.
    """
    wanted = fnmatch.filter(DENSE, glob)
    if not wanted:
        raise UsageError(f"no network of the table matches {glob!r}{did_you_mean(glob, DENSE)}: {', '.join(DENSE)}")
    result = read(path) if path.exists() else None
    if threads is None:
        threads = result["threads"] if result else torch.get_num_threads()
    facts = env.facts()
    mine = {"threads": threads, "size": SIZE, "cpu": facts["cpu"], "torch": facts["torch"]}
    if result is None:
        result = {"kind": KIND, "threads": threads, "size": SIZE, "batch_size": 1, "env": facts, "networks": {}}
    theirs = {"threads": result["threads"], "size": result["size"], **{k: result["env"][k] for k in ("cpu", "torch")}}
    if theirs != mine:
        differs = ", ".join(f"{key} {theirs[key]} and not {mine[key]}" for key in mine if theirs[key] != mine[key])
        raise UsageError(f"{path} was measured with {differs}: name another file")
    _write(path, result)  # at once: it may not be possible
    for network in wanted:
        if network in result["networks"]:
            continue
        alphas = tuple(sorted(one.alpha for one in PUBLISHED.values() if one.network == network))
        say(f"{network}:")
        nets = {f"alpha {case.alpha:g}": case.model for case in make_cases(BenchSettings(network, alphas, SIZE))}
        with using_threads(threads):
            found = latencies(nets, [(1, 3, SIZE, SIZE)], limit=SECONDS, eager=False, say=say)
        result["networks"][network] = {
            name.removeprefix("alpha "): times["deployed"]["1"] for name, times in found.items()
        }
        _write(path, result)
    return result


def read(path: Path) -> dict[str, Any]:
    """A file that `measure` wrote; UsageError if it is another one."""
    try:
        result = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read: {reason(error)}") from error
    try:
        if result["kind"] == KIND:
            points(result), conditions(result)
            return result  # type: ignore[no-any-return]
    except (KeyError, TypeError, AttributeError):
        pass
    raise UsageError(f"{path} is not a file that octaveconv report --latency wrote: name another one")


def conditions(result: dict[str, Any]) -> str:
    """What the latencies were measured with, in one line."""
    facts = result["env"]
    return (
        f"octaveconv {facts['octaveconv']}, PyTorch {facts['torch']}, float32, batch 1, {SIZE}x{SIZE} pixels, "
        f"{counted(result['threads'], 'thread')}, {facts['cpu']}"
    )


def notes(result: dict[str, Any]) -> list[str]:
    """The conditions, what is not measured yet, and whether the machine was busy."""
    missing = [network for network in DENSE if network not in result["networks"]]
    timings = [one for network in result["networks"].values() for one in network.values()]
    lines = [conditions(result), busy(timings) if timings else ""]
    if missing:
        lines.append(f"not measured yet: {', '.join(missing)}")
    return [*filter(None, lines)]


def _write(path: Path, result: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        file.write((json.dumps(result, indent=1) + "\n").encode())
