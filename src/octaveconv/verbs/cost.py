"""``octaveconv cost``: what a network costs."""

from __future__ import annotations

import argparse
from typing import Any

from ._arguments import add_alpha, add_model, positive


def add(parser: argparse.ArgumentParser) -> None:
    """Print what a network costs: parameters, multiply-adds and activation bytes, by formula and by count.

    Example: octaveconv cost oct_resnet50 --alpha 0.5 --layers
    """
    add_model(parser)
    add_alpha(parser)
    parser.add_argument("--size", metavar="N", type=positive, help="height and width of the images (the network's own)")
    parser.add_argument("--layers", action="store_true", help="show every layer")


def run(args: argparse.Namespace) -> Any:
    """Print the report; return it as a dict."""
    import torch

    from .._text import text_table
    from ..cost import cost
    from ..data.datasets import preprocessing
    from ..models.create import create, source

    name, file = source(args.model)
    with torch.device("cpu" if file else "meta"):
        model = create(name, args.alpha, file, pretrained=False)
    size = args.size or preprocessing(model).size[0]
    report = cost(model, input_size=size)
    alpha = getattr(model, "alpha", 0)
    kind = "octavified" if file and file.about.octavify else f"alpha {alpha:g}"
    print(f"{name}, {kind}, one image of {size}x{size}\n")
    if args.layers:
        print(text_table(report.layer_table()), end="\n\n")
    print(text_table(report.table()))
    verdict = "equal" if report.macs == report.counted_macs else "NOT equal: other kinds of layers do work too"
    print(f"\nMACs by formula {report.macs:,}, counted by PyTorch {report.counted_macs:,}: {verdict}")
    return {"model": name, "alpha": alpha, **report.to_dict()}
