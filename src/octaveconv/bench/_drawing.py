"""One picture in one file, the same bytes each time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import require


@contextmanager
def drawing(path: Path) -> Iterator[Any]:
    """Give axes to draw on and save them to ``path``; MissingExtra if matplotlib is not installed."""
    require("matplotlib", "plots").use("Agg")
    import matplotlib.pyplot as plt

    with plt.rc_context({"svg.hashsalt": "octaveconv"}):
        figure, axis = plt.subplots(figsize=(5, 3.5), layout="constrained")
        try:
            yield axis
            axis.grid(alpha=0.3)
            path.parent.mkdir(parents=True, exist_ok=True)
            figure.savefig(path, dpi=120, metadata={"Date": None} if path.suffix == ".svg" else None)
        finally:
            plt.close(figure)
