"""``octaveconv eval``: the score of a network on labeled images."""

from __future__ import annotations

import argparse
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from ._arguments import add_model, positive, told_to_skip, whole


def add(parser: argparse.ArgumentParser) -> None:
    """Score a network on labeled images: exact top-1 and top-5; with torchrun, on several processes.

    Example: octaveconv eval oct_resnetv2_26_a250 --data imagenet/val
    """
    parser.usage = "%(prog)s MODEL --data SRC [options]"
    add_model(parser)
    parser.add_argument("--alpha", type=float, help="low-frequency share of the channels")
    parser.add_argument(
        "--checkpoint", metavar="FILE", type=Path, help="file of weights (the published ones, or random)"
    )
    parser.add_argument("--data", metavar="SRC", required=True, help="a folder, .tar, .rec, or a name: hfds/NAME ...")
    parser.add_argument("--split", metavar="S", help="part of the data (val, validation or test)")
    parser.add_argument("--size", metavar="N", type=positive, help="height and width in pixels (the network's own)")
    parser.add_argument("--batch-size", metavar="N", type=positive, default=64, help="images per batch (%(default)s)")
    parser.add_argument("--device", choices=["cpu", "cuda"], help="where to compute (cuda if there is one)")
    parser.add_argument("--dtype", choices=["fp32", "bf16", "fp16"], default="fp32", help="precision (%(default)s)")
    parser.add_argument("--workers", metavar="N", type=whole, default=2, help="loading processes (%(default)s)")
    parser.add_argument("--threads", metavar="N", type=positive, help="threads to compute with (PyTorch's choice)")
    parser.add_argument("--skip-corrupt", action="store_true", help="skip damaged images; count and name them")
    parser.add_argument("--results-file", metavar="FILE", type=Path, help="append a row to this CSV file")


def run(args: argparse.Namespace) -> Any:
    """Score, print the table, append the row; return all figures."""
    import torch

    from .. import _csv, env, evaluate, processes
    from .._text import say, text_table
    from ..data.datasets import Stream, open_dataset
    from ..models import published
    from ..models.create import check, create

    if args.threads:
        torch.set_num_threads(args.threads)
    with processes.joined(args.device or ("cuda" if torch.cuda.is_available() else "cpu")) as device:
        is_first = processes.rank() == 0  # prints and writes
        if not is_first:
            args.json = None
        elif args.results_file:
            _csv.open_table(args.results_file, evaluate.COLUMNS)
        check(args.model, args.alpha, args.checkpoint)  # at once; listing the images may take minutes
        dataset = open_dataset(args.data, args.split)
        weights = str(args.checkpoint or ("published" if published(args.model) else "random weights, seed 0"))
        torch.manual_seed(0)  # random weights are the same on every process
        classes = dataset.num_classes if weights.startswith("random") else None
        model = create(args.model, args.alpha, args.checkpoint, classes)
        settings = evaluate.EvalSettings(
            args.size, args.batch_size, device, args.dtype, workers=args.workers, skip_corrupt=args.skip_corrupt
        )
        if is_first:
            say(f"{args.model}, {weights}; {dataset.source}", *dataset.notes)
        is_stream = isinstance(dataset, Stream)  # which ends at its first error
        with evaluate.progress(dataset) as log, nullcontext() if is_stream else told_to_skip():
            score = evaluate.evaluate(model, dataset, settings, log)
    figures = {
        "model": args.model,
        "alpha": getattr(model, "alpha", None),
        "checkpoint": weights,
        "data": args.data,
        "split": args.split,
        "param_count": sum(p.numel() for p in model.parameters()),
        **score.to_dict(),
        **env.facts(),
    }
    if is_first:
        print(f"\n{text_table(evaluate.table(score))}\n\n{evaluate.conditions(figures)}")
        if score.skipped:
            say("skipped:", *(f"  {name}" for name in score.skipped))
        if args.results_file:
            _csv.append_row(args.results_file, evaluate.COLUMNS, figures)
    return figures
