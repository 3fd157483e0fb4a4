"""``octaveconv octavify``: turn a dense network from timm into an octave network with the same weights."""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path
from typing import Any

from ._arguments import add_model, add_model_args, positive


def add(parser: argparse.ArgumentParser) -> None:
    """Turn a dense network into an octave network with the same weights; train and eval take the file as --checkpoint.

    Example: octaveconv octavify resnet50 --checkpoint r50.pth --data imagenet --out r50_oct.safetensors
    """
    parser.usage = "%(prog)s MODEL --out FILE [options]"
    add_model(parser, optional=True)
    parser.add_argument("--alpha", metavar="A", default="0.25", help="share, or auto with a budget (%(default)s)")
    budget = parser.add_mutually_exclusive_group()
    budget.add_argument("--macs", metavar="S", type=float, help="budget for auto: share of the dense MACs")
    budget.add_argument("--latency", metavar="S", type=float, help="or of the dense network's time, both deployed")
    budget.add_argument("--agreement", metavar="S", type=float, help="or share of answers to keep, as cheap as can be")
    parser.add_argument("--checkpoint", metavar="FILE", type=Path, help="file of its weights (random, seed 0)")
    add_model_args(parser)
    parser.add_argument("--pretrained", action="store_true", help="download timm's weights")
    parser.add_argument("--data", metavar="SRC", help="images to order channels and refit layers with")
    parser.add_argument("--images", metavar="N", type=positive, default=256, help="images to take (%(default)s)")
    parser.add_argument(
        "--distill", metavar="N", type=positive, default=0, help="then train on them for N epochs (%(default)s)"
    )
    parser.add_argument("--size", metavar="N", type=positive, help="height and width of the images (the network's own)")
    parser.add_argument("--keep", metavar="P", nargs="+", default=[], help="patterns of layers that stay dense")
    parser.add_argument("--out", metavar="FILE", type=Path, required=True, help="safetensors file to write")


def run(args: argparse.Namespace) -> Any:
    """Octavify, print the plan, write the weights; return the plan as a dict."""
    import torch

    from .._text import say
    from ..about import About
    from ..data.datasets import preprocessing
    from ..errors import UsageError
    from ..models.create import create, source
    from ..octavify.octavify import octavify
    from ..weights import files as weights

    if args.out.suffix != ".safetensors":
        raise UsageError(f"--out {args.out} must end in .safetensors: timm tells the format by it")
    if args.pretrained and args.checkpoint:
        raise UsageError("pretrained and a checkpoint are two sources of weights: give one")
    args.model, file = source(args.model, args.checkpoint)
    if args.model.startswith("oct_"):
        raise UsageError(f"{args.model} is an octave network already: load dense weights into it with --checkpoint")
    alpha = _alpha(args)
    torch.manual_seed(0)
    model = create(args.model, None, file, pretrained=args.pretrained, model_args=args.model_args).eval()
    if file is not None and file.about.octavify is not None:
        raise UsageError(
            f"{file.file} holds an octavified network already: fine-tune it with octaveconv train {args.model} "
            f"--checkpoint {file.file}, or octavify the dense weights that it was made from"
        )
    size = preprocessing(model, args.size).size
    model.pretrained_cfg["input_size"] = (3, *size)  # which the file records
    sample = _sample(model, args) if args.data else None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that nothing becomes octave, which is an error here
            budget = {kind: getattr(args, kind) for kind in ("macs", "latency", "agreement")}
            work = dict(calibrate=sample, distill=args.distill, say=say)
            octave, plan = octavify(model, alpha, torch.zeros(1, 3, *size), args.keep, **budget, **work)
    except ValueError as error:
        raise UsageError(str(error)) from error
    print(plan)
    if alpha and not octave.conversion["octave"]:
        raise UsageError(f"nothing was written: {plan.nothing()}")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    metadata = weights.write(args.out, octave.state_dict(), About.of(octave, args.model).metadata())
    say("", f"{args.out}: fine-tune with octaveconv train {args.model} --checkpoint {args.out} --data SRC")
    return {"out": str(args.out), "model": metadata["model"], **plan.to_dict()}


def _alpha(args: argparse.Namespace) -> float | str:
    from ..errors import UsageError

    if args.alpha == "auto":
        if args.macs is args.latency is args.agreement is None or not args.data:
            raise UsageError(
                "--alpha auto needs a budget and a sample: give --macs 0.7, for instance, or --latency or --agreement, "
                "and --data SRC"
            )
        return "auto"
    try:
        return float(args.alpha)
    except ValueError as error:
        raise UsageError(f"--alpha must be a number in [0, 1), or auto, got {args.alpha!r}") from error


def _sample(model: Any, args: argparse.Namespace) -> list[Any]:
    """Images spread over the data, prepared as for scoring, in batches of 32."""
    import itertools

    import torch

    from .._text import say
    from ..data.datasets import Stream, open_dataset, preprocessing

    data = open_dataset(args.data, _train_split(args.data), preprocessing(model, args.size).transform())
    for note in data.notes:
        say(note)
    if isinstance(data, Stream):
        images = [image for image, _ in itertools.islice(data, args.images)]
    else:
        step = max(len(data) // args.images, 1)
        images = [data[i][0] for i in range(0, min(len(data), step * args.images), step)]
    return [torch.stack(images[i : i + 32]) for i in range(0, len(images), 32)]


def _train_split(source: str) -> str | None:
    """The split with the training images, if the folder has one."""
    return "train" if (Path(source) / "train").is_dir() else None
