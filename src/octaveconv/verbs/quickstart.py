"""``octaveconv quickstart``: the main job on real data."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ..errors import MissingExtra, UsageError
from ._arguments import positive


def add(parser: argparse.ArgumentParser) -> None:
    """Train a small octave network and its dense twin on real scans of digits: accuracy, cost, latency, ratios.

    Example: octaveconv quickstart --alpha 0.25 --json quickstart.json
    """
    parser.usage = "%(prog)s [options]"
    parser.add_argument(
        "--alpha", metavar="A", type=float, default=0.5, help="low-frequency share of the channels (%(default)s)"
    )
    parser.add_argument("--epochs", metavar="N", type=positive, default=8, help="passes over the data (%(default)s)")
    parser.add_argument("--batch-size", metavar="N", type=positive, default=64, help="images per step (%(default)s)")
    parser.add_argument("--threads", metavar="N", type=positive, default=2, help="computing threads (%(default)s)")
    parser.add_argument(
        "--seed", metavar="N", type=int, default=0, help="decides split, weights and batches (%(default)s)"
    )
    parser.add_argument(
        "--out", metavar="DIR", type=Path, default=Path("runs/quickstart"), help="where curves.png goes (%(default)s)"
    )


def run(args: argparse.Namespace) -> Any:
    """Train, print the table, draw the curves; return all figures."""
    from .. import quickstart
    from .._text import say, text_table

    if not 0 < args.alpha <= 1:
        raise UsageError(f"--alpha must be above 0 and at most 1, got {args.alpha}: the dense twin is trained anyway")
    settings = quickstart.QuickstartSettings(
        alpha=args.alpha, epochs=args.epochs, batch_size=args.batch_size, seed=args.seed, threads=args.threads
    )
    with quickstart.progress(args.epochs) as log:
        result = quickstart.run(settings, log)
    print(f"\n{text_table(quickstart.table(result))}\n\n{quickstart.verdict(result)}\n{quickstart.conditions(result)}")
    try:
        quickstart.plot(result, args.out / "curves.png")
        say(f"curves: {args.out / 'curves.png'}")
    except MissingExtra as error:
        print(f"no curves: {error}")
    return result
