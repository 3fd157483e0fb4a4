"""Reports: what the files in results/ say, as a table and as a picture. Files are read, nothing is measured."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

from ..errors import UsageError, require


def read(path: Path) -> dict[str, Any]:
    """The runs of an ablation (examples/ablation.py).

    Raises:
        UsageError: the file holds none.
    """
    try:
        result = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read: {error}") from error
    if not isinstance(result, dict) or not all("top1" in run and "macs" in run for run in result.get("runs", [{}])):
        raise UsageError(f"{path} is no ablation: give a file that examples/ablation.py wrote")
    return result


def by_alpha(result: dict[str, Any]) -> list[dict[str, float]]:
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
    """Rows of text, one for each alpha."""
    rows = [["alpha", "MACs M", "share", "seeds", "top-1 %", "deviation", "images/s"]]
    points, speed = by_alpha(result), result.get("images_per_s", {})
    for point in points:
        rows.append([
            f"{point['alpha']:g}", f"{point['macs'] / 1e6:.2f}", f"{point['macs'] / points[0]['macs']:.0%}",
            f"{point['seeds']}", f"{point['mean']:.2f}", f"{point['deviation']:.2f}",
            f"{speed[key]:.0f}" if (key := f"{point['alpha']:g}") in speed else "-",
        ])  # fmt: skip
    return rows


def plot(result: dict[str, Any], path: Path) -> None:
    """Draw accuracy against MACs; MissingExtra if matplotlib is not installed."""
    require("matplotlib", "plots").use("Agg")
    import matplotlib.pyplot as plt

    points = by_alpha(result)
    with plt.rc_context({"svg.hashsalt": "octaveconv"}):  # the same file each time
        figure, axis = plt.subplots(figsize=(5, 3.5), layout="constrained")
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
        axis.grid(alpha=0.3)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=120, metadata={"Date": None} if path.suffix == ".svg" else None)
        plt.close(figure)
