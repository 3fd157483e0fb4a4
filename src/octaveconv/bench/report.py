"""Reports: what the files in results/ say, as a table and as a picture. Files are read, nothing is measured."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

from ..errors import UsageError
from . import speed_report
from ._drawing import drawing


def read(path: Path) -> dict[str, Any]:
    """What `octaveconv bench --json` wrote, or the runs of an ablation (examples/ablation.py).

    Raises:
        UsageError: the file holds neither.
    """
    try:
        result = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read: {error}") from error
    try:
        if points(result):
            table(result), more(result), notes(result)  # they find every figure that they show, or it is no such file
            return result  # type: ignore[no-any-return]
    except (KeyError, TypeError, ValueError, AttributeError, IndexError):
        pass
    raise UsageError(f"{path} is no report's file: give what octaveconv bench --json or examples/ablation.py wrote")


def is_bench(result: dict[str, Any]) -> bool:
    """Whether the file is one of `octaveconv bench`, and not an ablation."""
    return result.get("kind") == "bench"


def points(result: dict[str, Any]) -> list[dict[str, Any]]:
    """What is drawn: T, S and S/T of each batch size and alpha, or an ablation's figures by alpha."""
    return speed_report.points(result) if is_bench(result) else by_alpha(result)


def by_alpha(result: dict[str, Any]) -> list[dict[str, Any]]:
    """Of each alpha: MACs, number of seeds, mean and standard deviation of the accuracy in percent."""
    points = []
    for alpha in sorted({run["alpha"] for run in result["runs"]}):
        runs = [run for run in result["runs"] if run["alpha"] == alpha]
        top1 = [run["top1"] for run in runs]
        points.append(dict(
            alpha=alpha, macs=runs[0]["macs"], seeds=len(runs), mean=statistics.mean(top1),
            deviation=statistics.stdev(top1) if len(top1) > 1 else 0.0,
        ))  # fmt: skip
    return points


def table(result: dict[str, Any]) -> list[list[str]]:
    """Rows of text: one for each alpha, and of a bench for each batch size."""
    if is_bench(result):
        return speed_report.table(result)
    rows = [["alpha", "MACs M", "share", "seeds", "top-1 %", "deviation", "images/s"]]
    points, speed = by_alpha(result), result.get("images_per_s", {})
    for point in points:
        rows.append([
            f"{point['alpha']:g}", f"{point['macs'] / 1e6:.2f}", f"{point['macs'] / points[0]['macs']:.0%}",
            f"{point['seeds']}", f"{point['mean']:.2f}", f"{point['deviation']:.2f}",
            f"{speed[key]:.0f}" if (key := f"{point['alpha']:g}") in speed else "-",
        ])  # fmt: skip
    return rows


def more(result: dict[str, Any]) -> list[list[str]]:
    """A second table: of a bench on a GPU its roofline."""
    return speed_report.roofline_table(result) if is_bench(result) else []


def notes(result: dict[str, Any]) -> list[str]:
    """What stands below the table: of a bench the verdict of each row, and the conditions."""
    return [*speed_report.verdicts(result), speed_report.conditions(result)] if is_bench(result) else []


def plot(result: dict[str, Any], path: Path) -> None:
    """Draw S over T, or accuracy against MACs; MissingExtra if matplotlib is not installed."""
    if is_bench(result):
        return speed_report.plot(result, path)
    points = by_alpha(result)
    with drawing(path) as axis:
        axis.errorbar(
            [point["macs"] / 1e6 for point in points], [point["mean"] for point in points],
            yerr=[point["deviation"] for point in points], marker="o", capsize=3,
        )  # fmt: skip
        for point in points:
            axis.annotate(
                f"{point['alpha']:g}", (point["macs"] / 1e6, point["mean"]), (4, 6), textcoords="offset points"
            )
        axis.set(
            xlabel="multiply-adds in millions", ylabel="top-1 in percent", title=f"alpha, {points[0]['seeds']} seeds"
        )
