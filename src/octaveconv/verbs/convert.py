"""``octaveconv convert``: a checkpoint of the original, or any other, as safetensors."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ._arguments import add_model, add_model_args


def add(parser: argparse.ArgumentParser) -> None:
    """Convert a checkpoint to safetensors: the original's .params or .tar, d-li14's or any other .pth.

    Example: octaveconv convert oct_resnetv2_26 a02_resnet-26_alpha-0.250.tar --out resnet26.safetensors
    """
    parser.usage = "%(prog)s [MODEL] SRC --out FILE [options]"
    add_model(parser, "a network of timm's (the one that SRC records)")
    parser.add_argument(
        "source", metavar="SRC", type=Path, nargs="?", help="file or run folder; what it holds decides, not its name"
    )
    parser.add_argument("--alpha", type=float, help="low-frequency share of the channels (that of the weights)")
    add_model_args(parser)
    parser.add_argument("--out", metavar="FILE", type=Path, required=True, help="the safetensors file to write")


def run(args: argparse.Namespace) -> Any:
    """Convert, and print what was written; return its metadata."""
    from .._text import say
    from ..errors import UsageError
    from ..models.create import check, source
    from ..weights import files as weights

    if args.out.suffix != ".safetensors":
        raise UsageError(f"--out {args.out} must end in .safetensors, by which timm recognizes the format")
    if args.source is not None:
        check(args.model, args.alpha, None, None, args.model_args)  # before the file is read
    name, file = source(args.model, args.source)
    if file is None:
        raise UsageError(f"there is nothing to convert: octaveconv convert {name} SRC --out {args.out}")
    model = check(name, args.alpha, file, None, args.model_args)
    metadata = weights.convert(file.file, model, name, args.out)
    arrays, count = len(file.tensors), sum(p.numel() for p in model.parameters())
    say(f"{file.file}: all {arrays} arrays used, all {count:,} parameters of {name} filled")
    say(f"{args.out}: alpha {metadata.get('alpha', 0)}, sha256 of the source {metadata['sha256']}")
    return {"out": str(args.out), "arrays": arrays, "params": count, **metadata}
