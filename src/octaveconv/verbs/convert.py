"""``octaveconv convert``: a checkpoint of the original, or any other, as safetensors."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ._arguments import add_model


def add(parser: argparse.ArgumentParser) -> None:
    """Convert a checkpoint to safetensors: the original's .params or .tar, d-li14's or any other .pth.

    Example: octaveconv convert oct_resnetv2_26 a02_resnet-26_alpha-0.250.tar --out resnet26.safetensors
    """
    add_model(parser, "a network of `octaveconv models`")
    parser.add_argument("source", metavar="SRC", type=Path, help="the file; what it holds decides, not its name")
    parser.add_argument("--alpha", type=float, help="low-frequency share of the channels (that of the weights)")
    parser.add_argument("--out", metavar="FILE", type=Path, required=True, help="the safetensors file to write")


def run(args: argparse.Namespace) -> Any:
    """Convert, and print what was written; return its metadata."""
    import torch

    from .._text import say
    from ..errors import UsageError
    from ..models.create import check, create
    from ..weights import files as weights

    if args.out.suffix != ".safetensors":
        raise UsageError(f"--out {args.out} must end in .safetensors, by which timm recognizes the format")
    check(args.model, args.alpha)
    read = weights.read(args.source)
    with torch.device("meta"):
        model = create(args.model, read.alpha if args.alpha is None else args.alpha, None, read.num_classes, False)
    metadata = weights.convert(args.source, model, args.model, args.out)
    arrays, count = len(read.tensors), sum(p.numel() for p in model.parameters())
    say(f"{args.source}: all {arrays} arrays used, all {count:,} parameters of {args.model} filled")
    say(f"{args.out}: alpha {metadata.get('alpha', 0)}, sha256 of the source {metadata['sha256']}")
    return {"out": str(args.out), "arrays": arrays, "params": count, **metadata}
