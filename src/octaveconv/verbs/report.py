"""``octaveconv report``: accuracy or speed over multiply-adds, from a file of results."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any


def add(parser: argparse.ArgumentParser) -> None:
    """Show a file of results: an ablation's accuracy or a bench's speed over multiply-adds, as a table and a plot.

    Example: octaveconv report results/ablation.json --plot docs/ablation.svg
    """
    parser.add_argument("file", metavar="FILE", type=Path, help="from bench --json or examples/ablation.py")
    parser.add_argument("--plot", metavar="FILE", type=Path, help="draw it here, as .png or .svg")


def run(args: argparse.Namespace) -> Any:
    """Print the table, draw the plot; return the points."""
    from .. import _figure
    from .._text import say, text_table
    from ..bench import report

    if args.plot:
        _figure.check(args.plot)
    result = report.read(args.file)
    print(text_table(report.table(result)))
    if rows := report.more(result):
        print(f"\n{text_table(rows)}")
    for note in report.notes(result):
        say("", note)
    if args.plot:
        report.plot(result, args.plot)
        say(f"plot: {args.plot}")
    return report.points(result)
