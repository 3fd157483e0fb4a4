"""Figures of matplotlib, written as files: no window shows them, and the caller's backend and pyplot stay untouched."""

from __future__ import annotations

from pathlib import Path
from typing import Any, BinaryIO

from ._atomic import replacing
from .errors import UsageError, require

KINDS = (".png", ".svg")


def new(width: float, height: float) -> Any:
    """An empty figure, its sides in inches; MissingExtra if matplotlib is not installed."""
    require("matplotlib", "plots")
    return require("matplotlib.figure", "plots").Figure(figsize=(width, height), layout="constrained")


def write(figure: Any, file: BinaryIO, kind: str) -> None:
    """Write a figure as ``png`` or ``svg``; the same data give the same bytes."""
    with require("matplotlib", "plots").rc_context({"svg.hashsalt": "octaveconv"}):
        figure.savefig(file, format=kind, dpi=120, metadata={"Date": None} if kind == "svg" else {})


def check(path: Path) -> None:
    """Raise UsageError unless the name of a file to write ends in one of `KINDS`."""
    if path.suffix not in KINDS:
        raise UsageError(f"{path} must end in {' or '.join(KINDS)}")


def save(figure: Any, path: Path) -> None:
    """Write a figure to ``path``, whose ending says what it becomes.

    Raises:
        UsageError: it is not an ending of `KINDS`.
    """
    check(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        write(figure, file, path.suffix[1:])
