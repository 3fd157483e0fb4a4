"""The curves of a training run, from the rows of its results.csv."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from .. import _figure

PANELS = {  # columns that share an axis
    "loss": ("train_loss", "val_loss"),
    "accuracy, %": ("top1", "ema_top1"),
    "learning rate": ("lr",),
}


def draw(rows: Sequence[Mapping[str, str]]) -> Any:
    """Draw the columns of `PANELS` over ``epoch``, one panel for each group that the rows have.

    Returns:
        A matplotlib figure, or None if there is nothing to draw.

    Raises:
        MissingExtra: matplotlib is not installed.
    """
    panels = {name: [column for column in columns if rows and column in rows[0]] for name, columns in PANELS.items()}
    panels = {name: columns for name, columns in panels.items() if columns}
    if not panels:
        return None
    figure = _figure.new(4.5 * len(panels), 3.5)
    epochs = [int(row["epoch"]) for row in rows]
    for axis, (name, columns) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items()):
        for column in columns:
            axis.plot(epochs, [float(row[column] or math.nan) for row in rows], marker=".", label=column)
        axis.set(xlabel="epoch", title=name)
        axis.grid(alpha=0.3)
        axis.legend()
    return figure
