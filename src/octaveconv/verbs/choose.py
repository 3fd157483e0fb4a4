"""``octaveconv choose``: which alpha meets a budget on this machine."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ._arguments import add_model, add_threads, positive


def add(parser: argparse.ArgumentParser) -> None:
    """Choose alpha for a budget: measures the deployed networks at several alphas on this machine, and recommends one.

    Example: octaveconv choose oct_resnet50 --latency 25 --plot choose.svg
    """
    parser.usage = "%(prog)s MODEL (--latency MS | --macs SHARE | --memory MB) [options]"
    add_model(parser, "an octave network; or a dense one, from timm or a file, which is octavified")
    budget = parser.add_mutually_exclusive_group(required=True)
    budget.add_argument("--latency", metavar="MS", type=_amount, help="at most so many milliseconds for a batch")
    budget.add_argument("--macs", metavar="SHARE", type=_amount, help="at most this share of the dense multiply-adds")
    budget.add_argument("--memory", metavar="MB", type=_amount, help="at most so much for maps at one moment")
    parser.add_argument("--alpha", metavar="A", type=float, nargs="+", help="alphas to measure (0 .125 .25 .5 .75)")
    parser.add_argument(
        "--data", metavar="DIR", help="images to octavify a dense network with and to score it on, for its accuracy"
    )
    parser.add_argument("--images", metavar="N", type=positive, default=256, help="to octavify with (%(default)s)")
    parser.add_argument("--size", metavar="N", type=positive, help="height and width of the images (the network's own)")
    parser.add_argument("--batch-size", metavar="N", type=positive, default=1, help="images per call (%(default)s)")
    add_threads(parser)
    parser.add_argument("--plot", metavar="FILE", type=Path, help="draw it here, as .png or .svg")


def run(args: argparse.Namespace) -> Any:
    """Measure, print the table and the recommendation, draw the plot; return all figures."""
    from dataclasses import asdict

    import torch

    from .. import _figure, env
    from .._modes import threads
    from .._text import counted, say, text_table
    from ..bench import choose
    from ..bench.deployed import busy

    if args.plot:
        _figure.check(args.plot)
    count = args.threads or torch.get_num_threads()
    budget, limit = next((key, getattr(args, key)) for key in ("latency", "macs", "memory") if getattr(args, key))
    with threads(count):
        name, nets, top1, shape = _networks(args)
        options = choose.measure(nets, shape, top1, say)
    facts = env.facts()
    conditions = (
        f"{name}, batch {shape[0]}, {shape[3]}x{shape[2]} pixels, float32, {counted(count, 'thread')}, {facts['cpu']}"
    )
    print(f"\n{text_table(choose.table(options))}\n")
    say(*filter(None, (busy([one.timing for one in options]), choose.verdict(options, budget, limit), conditions)))
    if args.plot:
        _figure.save(choose.draw(options, budget, limit, conditions), args.plot)
        say(f"plot: {args.plot}")
    chosen = choose.recommend(options, budget, limit)
    return {
        "model": name,
        "budget": {budget: limit},
        "recommended": chosen and chosen.alpha,
        "shape": list(shape),
        "threads": count,
        "options": [asdict(one) for one in options],
        "env": facts,
    }


def _networks(args: argparse.Namespace) -> tuple[str, dict[float, Any], dict[float, float], tuple[int, ...]]:
    """The network's name, the networks by alpha, known accuracies, and the shape of a batch."""
    import torch

    from .._text import say
    from ..bench import choose
    from ..data.datasets import preprocessing
    from ..errors import UsageError
    from ..models import DENSE, PUBLISHED
    from ..models.create import create, family_of, source

    name, file = source(args.model)
    octave = name.startswith("oct_")
    if octave and (file or args.data):
        raise UsageError(
            f"{name} is an octave network, which must be trained at each alpha: give its name alone, train it at the "
            f"alpha recommended; or name a dense network's file with --data"
        )
    if args.data and file is None:
        raise UsageError(f"--data scores trained weights: name a file or run folder of {name} in place of the name")
    torch.manual_seed(0)
    model = create(family_of(name) if octave else name, 0.0 if octave else None, file, pretrained=False).eval()
    if file is not None and file.about.octavify is not None:
        raise UsageError(f"{file.file} holds an octavified network already: name the dense weights it was made from")
    shape = (args.batch_size, *_channels_and_size(model, preprocessing(model, args.size).size))
    nets, top1 = {0.0: model}, {}
    for alpha in sorted({*(args.alpha or choose.ALPHAS)} - {0.0}):
        try:
            if octave:
                nets[alpha] = create(family_of(name), alpha, pretrained=False).eval()
            else:
                nets[alpha] = _octavified(model, alpha, shape, args)
        except ValueError as error:
            if args.alpha:
                raise
            say(f"alpha {alpha:g} is left out: {error}")
    if octave and family_of(name) in DENSE:
        top1 = {0.0: DENSE[family_of(name)][0]}
        top1 |= {one.alpha: one.top1 for one in PUBLISHED.values() if one.network == family_of(name)}
        say("top-1 is what the original published, on ImageNet")
    if args.data:
        top1 = {alpha: _score(net, args) for alpha, net in nets.items()}
    return name, nets, top1, shape


def _octavified(model: Any, alpha: float, shape: tuple[int, ...], args: argparse.Namespace) -> Any:
    import warnings

    import torch

    from ..errors import UsageError
    from ..octavify.octavify import octavify
    from .octavify import _sample

    if not 0 < alpha < 1:
        raise UsageError(f"alpha of an octavified network must be above 0 and below 1, got {alpha:g}")
    sample = _sample(model, args) if args.data else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that nothing becomes octave, which is an error here
        net, plan = octavify(model, alpha, torch.zeros(1, *shape[1:]), calibrate=sample)
    if not net.conversion["octave"]:
        raise UsageError(f"it stays dense: {plan.nothing()}")
    return net.eval()


def _score(net: Any, args: argparse.Namespace) -> float:
    """Top-1 in percent."""
    from .. import evaluate
    from ..data.datasets import open_dataset

    settings = evaluate.EvalSettings(args.size, 64, "cpu", "fp32", workers=0)
    return float(evaluate.evaluate(net, open_dataset(args.data), settings).top1)


def _channels_and_size(model: Any, size: tuple[int, int]) -> tuple[int, int, int]:
    return next((p.shape[1] for p in model.parameters() if p.dim() == 4), 3), *size


def _amount(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a number above 0, got {text!r}")
    return value
