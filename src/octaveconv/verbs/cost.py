"""``octaveconv cost``: what a network costs."""

from __future__ import annotations

import argparse
from typing import Any

from ._arguments import add_alpha, add_model, add_size


def add(parser: argparse.ArgumentParser) -> None:
    """Print what a network costs: parameters, multiply-adds and activation bytes, by formula and by count.

    Example: octaveconv cost oct_resnet50 --alpha 0.5 --layers
    """
    add_model(parser)
    add_alpha(parser)
    add_size(parser)
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
    verdict = "equal" if report.macs == report.counted_macs else "NOT equal: other kinds of layers do work too"
    print(f"\nMACs by formula {report.macs:,}, counted by PyTorch {report.counted_macs:,}: {verdict}")
    return {"model": args.model, "alpha": alpha, **report.to_dict()}
