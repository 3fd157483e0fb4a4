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
    parser.add_argument("--threads", metavar="N", type=positive, help="computing threads (PyTorch's choice, at most 2)")
    parser.add_argument(
        "--seed", metavar="N", type=int, default=0, help="decides split, weights and batches (%(default)s)"
    )
    parser.add_argument(
        "--out", metavar="DIR", type=Path, default=Path("runs/quickstart"), help="where report.html goes (%(default)s)"
    )


def run(args: argparse.Namespace) -> Any:
    """Train, deploy, print the table, write the page and the curves; return all figures."""
    import torch

    from .. import quickstart
    from .._text import say, text_table

    if not 0 < args.alpha <= 1:
        raise UsageError(f"--alpha must be above 0 and at most 1, got {args.alpha}: the dense twin is trained anyway")
    threads = args.threads or min(2, torch.get_num_threads())
    settings = quickstart.QuickstartSettings(
        alpha=args.alpha, epochs=args.epochs, batch_size=args.batch_size, seed=args.seed, threads=threads
    )
    page = args.out / "report.html"
    with quickstart.progress(args.epochs) as log:
        result = quickstart.run(settings, log, say, page)
    print(f"\n{text_table(quickstart.table(result))}\n")
    say(*filter(None, (quickstart.disturbed(result), quickstart.verdict(result), quickstart.conditions(result))))
    try:
        quickstart.plot(result, args.out / "curves.png")
    except MissingExtra as error:
        print(f"no curves: {error}")
    say("", "next:", *(f"  {line}" for line in quickstart.NEXT), "", f"report: {page} (open it in a browser)")
    return result
