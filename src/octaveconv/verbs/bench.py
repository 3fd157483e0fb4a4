"""``octaveconv bench``: how much of the saved work is saved time."""

from __future__ import annotations

import argparse
from typing import Any

from ._arguments import add_model, add_size, add_threads, positive


def add(parser: argparse.ArgumentParser) -> None:
    """Time an octave network against its dense twin: each in its fastest runtime.

    Example: octaveconv bench oct_resnet50 --alpha 0.25 0.5 --json speed.json
    """
    parser.usage = "%(prog)s MODEL [options]"
    add_model(parser, "a network of `octaveconv models`")
    parser.add_argument("--alpha", metavar="A", type=float, nargs="+", help="one or more shares (the network's own)")
    add_size(parser)
    parser.add_argument("--batch-size", metavar="N", type=positive, nargs="+", default=[1], help="images per call (1)")
    parser.add_argument(
        "--device", metavar="D", choices=["cpu", "cuda"], default="cpu", help="place: cpu or cuda (cpu)"
    )
    parser.add_argument(
        "--dtype",
        metavar="D",
        choices=["fp32", "bf16", "fp16"],
        default="fp32",
        help="precision: fp32, bf16 or fp16 (fp32)",
    )
    add_threads(parser)
    parser.add_argument(
        "--mode",
        metavar="M",
        choices=["infer", "train"],
        default="infer",
        help="work: infer, or train: a step (infer)",
    )
    parser.add_argument(
        "--runtimes",
        metavar="R",
        nargs="+",
        default=[],
        help="of eager compiled deployed openvino onnxruntime (all)",
    )
    parser.add_argument("--rivals", metavar="R", nargs="+", default=[], help="runtimes for dense networks only")
    parser.add_argument("--dense", metavar="NAME", help="also beat torchvision's network, or any of timm's")
    parser.add_argument("--runs", metavar="N", type=positive, default=30, help="timed calls of each (%(default)s)")


def run(args: argparse.Namespace) -> Any:
    """Measure, print the tables, what did not run, and the verdict; return all figures."""
    import torch

    from .._text import say, text_table
    from ..bench import report, speed, speed_report
    from ..bench.cases import BenchSettings

    settings = BenchSettings(
        args.model,
        tuple(args.alpha or ()),
        args.size,
        tuple(args.batch_size),
        threads=args.threads or torch.get_num_threads(),
        device=args.device,
        dtype=args.dtype,
        mode=args.mode,
        runtimes=tuple(args.runtimes),
        rivals=tuple(args.rivals),
        dense=args.dense,
        runs=args.runs,
    )
    result = speed.run(settings, say)
    for batch in result["batches"]:
        print(f"\nAll candidates at batch {batch['batch_size']}, {speed.QUICK_RUNS} runs each:")
        print(text_table(speed_report.candidate_table(batch)))
        for line in speed_report.not_run(batch):
            say(line)
    print(f"\nThe fastest, {args.runs} runs each:\n{text_table(report.table(result))}\n")
    if rows := report.more(result):
        print(f"{text_table(rows)}\n")
    say(*report.notes(result))
    return result
