"""``octaveconv cost``: what a network costs."""

from __future__ import annotations

import argparse
from typing import Any

from ._arguments import positive


def add(parser: argparse.ArgumentParser) -> None:
    """Print what a network costs: parameters, multiply-adds, activation bytes, by formula and by count.

    Example: octaveconv cost oct_resnet50 --alpha 0.5 --layers
    """
    parser.add_argument("model", metavar="MODEL", help="a network of `octaveconv models`, or any other of timm's")
    parser.add_argument("--alpha", type=float, help="low-frequency share of the channels (the network's own)")
    parser.add_argument(
        "--size", type=positive, default=224, help="height and width of the image in pixels (%(default)s)"
    )
    parser.add_argument("--layers", action="store_true", help="show every layer")


def run(args: argparse.Namespace) -> Any:
    """Print the report; return it as a dict."""
    import torch

    from .._text import text_table
    from ..cost import cost
    from ..models.create import create

    with torch.device("meta"):
        model = create(args.model, args.alpha, pretrained=False)
    report = cost(model, input_size=args.size)
    alpha = getattr(model, "alpha", 0)
    print(f"{args.model}, alpha {alpha:g}, one image of {args.size}x{args.size}\n")
    if args.layers:
        print(text_table(report.layer_table()), end="\n\n")
    print(text_table(report.table()))
    verdict = "equal" if report.macs == report.counted_macs else "NOT equal: layers of other kinds do work too"
    print(f"\nMACs by formula {report.macs:,}, counted by PyTorch {report.counted_macs:,}: {verdict}")
    return {"model": args.model, "alpha": alpha, **report.to_dict()}
