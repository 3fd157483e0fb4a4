"""``octaveconv export``: a network as a file for another runtime, checked and timed there."""

from __future__ import annotations

import argparse
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from ._arguments import add_alpha, add_checkpoint, add_model, add_model_args, add_threads, positive


def add(parser: argparse.ArgumentParser) -> None:
    """Export a network to ONNX, OpenVINO or a PyTorch archive: checked, and timed beside its dense twin.

    Example: octaveconv export oct_resnet50 --alpha 0.5 --out resnet50.onnx
    """
    parser.usage = "%(prog)s MODEL --out FILE [options]"
    add_model(parser, optional=True)
    add_alpha(parser)
    add_checkpoint(parser)
    add_model_args(parser)
    parser.add_argument("--size", metavar="N", type=positive, help="height and width of the images (the network's own)")
    parser.add_argument("--batch-size", metavar="N", type=positive, default=1, help="images per call (%(default)s)")
    add_threads(parser)
    parser.add_argument("--runs", metavar="N", type=positive, default=20, help="timed calls of each (%(default)s)")
    parser.add_argument("--no-timing", action="store_true", help="export and check only")
    parser.add_argument("--format", metavar="F", help="onnx, openvino, pt2, aoti or octave (that of FILE; .pt2 is pt2)")
    parser.add_argument(
        "--out", metavar="FILE", type=Path, required=True, help="to write: .onnx, .xml (OpenVINO), .pt2 or .octave"
    )


def run(args: argparse.Namespace) -> Any:
    """Export, print how far the outputs differ, and the times; return all figures."""
    import torch

    from .. import env
    from .._text import say, text_table
    from ..data.datasets import preprocessing
    from ..errors import UsageError
    from ..export import check, export
    from ..models import published
    from ..models.create import create, source

    args.format = check(args.format, args.out)
    if args.runs < 2:
        raise UsageError(f"--runs must be at least 2, for quartiles, got {args.runs}")
    torch.manual_seed(0)  # random weights are the same each time
    args.model, file = source(args.model, args.checkpoint)
    model = create(args.model, args.alpha, file, model_args=args.model_args).eval()
    weights = str(file.file) if file else "published" if published(args.model) else "random, seed 0"
    asked = file.about.overridden(alpha=args.alpha, size=args.size, **(args.model_args or {})) if file else ""
    args.size = args.size or preprocessing(model).size[0]
    figures = {
        "model": args.model,
        "alpha": None if _is_octavified(model) else getattr(model, "alpha", 0),
        "weights": weights,
        "format": args.format,
        "out": str(args.out),
        "size": args.size,
        **env.facts(),
    }
    x = torch.randn(args.batch_size, _channels(model), args.size, args.size)
    differences = export(model, x, args.out, format=args.format)
    figures |= {"difference": differences}
    kind = "octavified" if figures["alpha"] is None else f"alpha {figures['alpha']:g}"
    say(
        f"{args.out}: {args.model}, {kind}, weights {weights}{asked}; batches of any size of images of "
        f"{args.size}x{args.size} pixels"
    )
    print(
        "read back, it outputs what the network does: largest difference / standard deviation "
        + ", ".join(f"{value:.1e} at batch {batch}" for batch, value in differences.items())
    )
    if not args.no_timing:
        figures |= _timed(args, model, x, args.threads or torch.get_num_threads())
        print(f"\n{text_table(table(figures))}\n\n{verdict(figures)}\n{conditions(figures)}")
    return figures


def table(figures: dict[str, Any]) -> list[list[str]]:
    """Rows of text: the network and, if it has one, its dense twin."""
    rows = [["", "ms", "quartiles", "MACs"]]
    for name, timing in figures["seconds"].items():
        median, lower, upper = (f"{timing[key] * 1e3:.2f}" for key in ("median", "lower", "upper"))
        rows.append([name, median, f"{lower} to {upper}", f"{figures['macs'][name]:,}"])
    return rows


def verdict(figures: dict[str, Any]) -> str:
    """How much faster the network is than its dense twin, or that it is slower, in one sentence."""
    if "s" not in figures:
        return "It is a dense network: there is no twin to compare it with."
    s, t = figures["s"], figures["t"]
    gain = f"{s:.3f} times as fast as" if s > 1 else f"slower: it takes {1 / s:.3f} times as long as"
    return f"In {figures['format']} it is {gain} its dense twin; T = {t:.3f}, S = {s:.3f}, S/T = {s / t:.3f}"


def conditions(figures: dict[str, Any]) -> str:
    """What the times were measured with, in one line."""
    from .._text import counted
    from ..bench.measure import protocol

    timing = protocol(figures["runs"], figures["pause_s"], figures["warm_s"])
    runtimes = ", ".join(f"{name} {version}" for name, version in figures["runtime"].items())
    return (
        f"Conditions: batch {figures['batch_size']}, {figures['size']}x{figures['size']} pixels, fp32, "
        f"{counted(figures['threads'], 'thread')}, {runtimes}, {figures['cpu']}; medians and quartiles of {timing}"
    )


def _timed(args: argparse.Namespace, model: Any, x: Any, count: int) -> dict[str, Any]:
    """Time the file beside that of the dense twin, with ``count`` threads."""
    from .._modes import threads
    from ..bench.measure import PAUSE, WARM, interleaved
    from ..cost import cost
    from ..export import RUNTIMES, export, load

    is_octave = _is_octavified(model) or bool(getattr(model, "alpha", False))
    networks = {"octave" if is_octave else "dense": model}
    files = dict.fromkeys(networks, args.out)
    with threads(count), tempfile.TemporaryDirectory() as folder:
        if "octave" in networks:
            networks["dense twin"], files["dense twin"] = _twin(args, model), Path(folder) / args.out.name
            export(networks["dense twin"], x, files["dense twin"], format=args.format)
        calls = {name: partial(load(file, format=args.format, threads=count), x) for name, file in files.items()}
        timings = interleaved(calls, args.runs, isolate=True)
        del calls  # before the folder goes: a runtime may have its file open
    macs = {name: cost(network, x[:1]).counted_macs for name, network in networks.items()}
    figures = {
        "seconds": {name: vars(timing) for name, timing in timings.items()},
        "macs": macs,
        "runs": args.runs,
        "pause_s": PAUSE,
        "warm_s": WARM,
        "batch_size": args.batch_size,
        "threads": count,
        "runtime": _versions(RUNTIMES[args.format]),
    }
    if len(timings) == 2:
        figures |= {
            "s": timings["dense twin"].median / timings["octave"].median,
            "t": macs["dense twin"] / macs["octave"],
        }
    return figures


def _twin(args: argparse.Namespace, model: Any) -> Any:
    """The same network at alpha 0, with random weights, which do not affect its time."""
    from ..models.create import create, family_of

    name, alpha = (args.model, None) if _is_octavified(model) else (family_of(args.model), 0.0)
    return create(name, alpha, None, model.num_classes, pretrained=False, model_args=model.model_args).eval()


def _is_octavified(model: Any) -> bool:
    return getattr(model, "conversion", None) is not None


def _channels(model: Any) -> int:
    """Channels of the images that the network takes."""
    return next(int(parameter.shape[1]) for parameter in model.parameters() if parameter.dim() == 4)


def _versions(packages: tuple[str, ...]) -> dict[str, str]:
    from importlib import metadata

    return {package: metadata.version(package) for package in packages}
