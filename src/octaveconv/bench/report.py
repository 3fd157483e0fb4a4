"""Reports: what the files in results/ say, as a table and as a plot. Files are read, nothing is measured."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

from .. import _figure
from .._text import reason
from ..errors import UsageError
from . import speed_report


def read(path: Path) -> dict[str, Any]:
    """Read what `octaveconv bench --json` wrote, or the runs of an ablation (examples/ablation.py).

    Raises:
        UsageError: the file holds neither.
    """
    try:
        result = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read: {reason(error)}") from error
    try:
        if points(result):
            table(result), more(result), notes(result)  # if one misses a figure, it is not such a file
            return result  # type: ignore[no-any-return]
    except (KeyError, TypeError, ValueError, AttributeError, IndexError):
        pass
    raise UsageError(
        f"{path} is not a file of results: give one that octaveconv bench --json or examples/ablation.py wrote"
    )


def is_bench(result: dict[str, Any]) -> bool:
    """Whether `octaveconv bench` wrote the file; otherwise it is an ablation's."""
    return result.get("kind") == "bench"


def points(result: dict[str, Any]) -> list[dict[str, Any]]:
    """The plotted points: T, S and S/T for each batch size and alpha, or an ablation's figures by alpha."""
    return speed_report.points(result) if is_bench(result) else by_alpha(result)


def by_alpha(result: dict[str, Any]) -> list[dict[str, Any]]:
    """For each alpha: MACs, number of seeds, mean and standard deviation of the accuracy in percent."""
    points = []
    for alpha in sorted({run["alpha"] for run in result["runs"]}):
        runs = [run for run in result["runs"] if run["alpha"] == alpha]
        top1 = [run["top1"] for run in runs]
        points.append(
            dict(
                alpha=alpha,
                macs=runs[0]["macs"],
                seeds=len(runs),
                mean=statistics.mean(top1),
                deviation=statistics.stdev(top1) if len(top1) > 1 else 0.0,
            )
        )
    return points


def table(result: dict[str, Any]) -> list[list[str]]:
    """Rows of text: one for each alpha, in a bench for each batch size and alpha."""
    if is_bench(result):
        return speed_report.table(result)
    rows = [["alpha", "MACs M", "share", "seeds", "top-1 %", "deviation", "images/s"]]
    points, speed = by_alpha(result), result.get("images_per_s", {})
    for point in points:
        rows.append(
            [
                f"{point['alpha']:g}",
                f"{point['macs'] / 1e6:.2f}",
                f"{point['macs'] / points[0]['macs']:.0%}",
                f"{point['seeds']}",
                f"{point['mean']:.2f}",
                f"{point['deviation']:.2f}",
                f"{speed[key]:.0f}" if (key := f"{point['alpha']:g}") in speed else "-",
            ]
        )
    return rows


def more(result: dict[str, Any]) -> list[list[str]]:
    """A second table: the roofline of a bench on a GPU."""
    return speed_report.roofline_table(result) if is_bench(result) else []


def notes(result: dict[str, Any]) -> list[str]:
    """The text below the table: for a bench the verdict of each row, and the conditions."""
    return [*speed_report.verdicts(result), speed_report.conditions(result)] if is_bench(result) else []


def plot(result: dict[str, Any], path: Path) -> None:
    """Draw S over T, or accuracy over MACs, into a .png or .svg file.

    Raises:
        MissingExtra: matplotlib is not installed.
        UsageError: the file's name has another ending.
    """
    figure = _figure.new(5, 3.5)
    axis = figure.subplots()
    if is_bench(result):
        speed_report.draw(result, axis)
    else:
        _draw_ablation(by_alpha(result), axis)
    axis.grid(alpha=0.3)
    _figure.save(figure, path)


def _draw_ablation(points: list[dict[str, Any]], axis: Any) -> None:
    axis.errorbar(
        [point["macs"] / 1e6 for point in points],
        [point["mean"] for point in points],
        yerr=[point["deviation"] for point in points],
        marker="o",
        capsize=3,
    )
    for point in points:
        axis.annotate(f"{point['alpha']:g}", (point["macs"] / 1e6, point["mean"]), (4, 6), textcoords="offset points")
    axis.set(xlabel="multiply-adds in millions", ylabel="top-1 in percent", title=f"alpha, {points[0]['seeds']} seeds")
