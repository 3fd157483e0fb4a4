"""``octaveconv report``: accuracy or speed over multiply-adds or milliseconds, from files of results."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ._arguments import add_threads


def add(parser: argparse.ArgumentParser) -> None:
    """Show results as a table and a plot: those of a file, or of the original's networks.

    Example: octaveconv report --published --plot published.svg
    """
    parser.usage = "%(prog)s (FILE | --published | --latency FILE) [options]"
    parser.add_argument("file", metavar="FILE", nargs="?", type=Path, help="from bench --json or examples/ablation.py")
    parser.add_argument("--published", action="store_true", help="the original's top-1 over our multiply-adds")
    parser.add_argument(
        "--latency",
        metavar="FILE",
        type=Path,
        help="the same over the deployed networks' times on this machine; measures (minutes each) what FILE lacks",
    )
    parser.add_argument("--networks", metavar="GLOB", default="*", help="which of them to measure now (all)")
    add_threads(parser)
    parser.add_argument("--plot", metavar="FILE", type=Path, help="draw it here, as .png or .svg")


def run(args: argparse.Namespace) -> Any:
    """Print the table, draw the plot; return the points."""
    from .. import _figure
    from .._text import say
    from ..errors import UsageError

    if [args.file is not None, args.published, args.latency is not None].count(True) != 1:
        raise UsageError("octaveconv report shows one thing: name a FILE, or give --published or --latency FILE")
    if args.plot:
        _figure.check(args.plot)
    points = _of_a_file(args) if args.file else _of_the_original(args)
    if args.plot:
        say(f"plot: {args.plot}")
    return points


def _of_a_file(args: argparse.Namespace) -> Any:
    from .._text import say, text_table
    from ..bench import report

    result = report.read(args.file)
    print(text_table(report.table(result)))
    if rows := report.more(result):
        print(f"\n{text_table(rows)}")
    for note in report.notes(result):
        say("", note)
    if args.plot:
        report.plot(result, args.plot)
    return report.points(result)


def _of_the_original(args: argparse.Namespace) -> Any:
    from dataclasses import asdict

    from .. import _figure
    from .._text import say, text_table
    from ..bench import published

    result = published.measure(args.latency, args.networks, args.threads, say) if args.latency else None
    points = published.points(result)
    print(text_table(published.table(points)))
    for note in published.notes(result) if result else []:
        say("", note)
    if args.plot:
        title = published.conditions(result) if result else ""
        _figure.save(published.draw(points, title), args.plot)
    return [asdict(point) for point in points]
