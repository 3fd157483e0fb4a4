"""``octaveconv predict``: what a trained network sees in images."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ._arguments import add_alpha, add_checkpoint, add_model, add_model_args, add_threads, positive, told_to_skip, whole

COLUMNS = ("image", "rank", "class", "label", "probability")


def add(parser: argparse.ArgumentParser) -> None:
    """Tell what a trained network sees in images: the likeliest classes of each.

    Example: octaveconv predict runs/oct_resnetv2_26-0.25 photos --top-k 3
    """
    parser.usage = "%(prog)s MODEL IMAGE... [options]"
    add_model(parser, "a run folder, a file of weights or .octave that records its network, or a network of timm's")
    parser.add_argument(
        "images", metavar="IMAGE", nargs="+", help="files, folders, patterns; - reads an image, or paths, from stdin"
    )
    add_alpha(parser)
    add_checkpoint(parser)
    add_model_args(parser)
    parser.add_argument("--pretrained", action="store_true", help="download timm's weights")
    parser.add_argument("--top-k", metavar="N", type=positive, default=5, help="classes to tell (%(default)s)")
    parser.add_argument("--labels", metavar="FILE", type=Path, help="names of the classes, one a line (those recorded)")
    parser.add_argument("--size", metavar="N", type=positive, help="height and width in pixels (the network's own)")
    parser.add_argument("--batch-size", metavar="N", type=positive, default=64, help="images per batch (%(default)s)")
    parser.add_argument("--device", choices=["cpu", "cuda"], help="where to compute (cuda if there is one)")
    parser.add_argument(
        "--dtype", metavar="D", choices=["fp32", "bf16", "fp16"], default="fp32", help="or bf16 or fp16 (fp32)"
    )
    parser.add_argument("--workers", metavar="N", type=whole, default=2, help="loading processes (%(default)s)")
    add_threads(parser)
    parser.add_argument("--skip-corrupt", action="store_true", help="skip damaged images; count and name them")
    parser.add_argument("--csv", metavar="FILE", type=Path, help="also write a row for each image and class here")


def run(args: argparse.Namespace) -> Any:
    """Print the classes of each image as they come, and on standard error all else; return them."""
    import torch

    from .._text import counted, say
    from ..data.loading import worker_count
    from ..data.unlabeled import find_images
    from ..predict import Classifier, read_labels

    if args.threads:
        torch.set_num_threads(args.threads)
    images = find_images(args.images)
    labels = read_labels(args.labels) if args.labels else None
    weights = dict(model_args=args.model_args, pretrained=args.pretrained or None)
    options = dict(labels=labels, size=args.size, dtype=args.dtype, device=args.device)
    classifier = Classifier.load(args.model, args.alpha, args.checkpoint, **weights, **options)
    say(classifier.origin, *images.notes, *filter(None, [classifier.assumed]), error=True)
    skipped: dict[str, str] = {}
    start = time.perf_counter()
    with told_to_skip():
        stream = classifier.stream(
            images, args.top_k, args.batch_size, worker_count(args.workers), skipped if args.skip_corrupt else None
        )
        found = [*_printed(_counted(stream, len(images)), images.names)]
    seconds = time.perf_counter() - start
    if not found:
        raise RuntimeError(f"none of the {len(images):,} images could be read")
    say(f"{counted(len(found), 'image')}, {len(found) / seconds:,.1f} images/s", error=True)
    if skipped:
        say("skipped:", *(f"  {name}: {reason}" for name, reason in skipped.items()), error=True)
    if args.csv:
        _write(args.csv, found)
    return {
        "model": args.model,
        "images": [{"image": one.image, "predictions": [*_rows(one)]} for one in found],
        "skipped": skipped,
        "images_per_s": len(found) / seconds,
    }


def _rows(one: Any) -> Iterator[dict[str, Any]]:
    for number, label, chance in zip(one.classes, one.labels, one.probabilities):
        yield {"class": number, "label": label, "probability": chance}


def _printed(found: Iterable[Any], names: Iterable[str]) -> Iterator[Any]:
    """Print a table on standard output, row by row: each image's name is in the first of its rows."""
    from .._text import shown

    width = max(5, *(len(shown(name)) for name in names))
    out = sys.stdout  # a progress bar redirects it
    print(f"{'image':{width}}  probability  class", file=out)
    for one in found:
        for row, name in zip(_rows(one), [shown(one.image), *[""] * len(one.classes)]):
            print(f"{name:{width}}  {row['probability']:11.2%}  {shown(row['label'])}", file=out)
        out.flush()
        yield one


def _counted(found: Iterable[Any], total: int) -> Iterator[Any]:
    """Show progress on standard error, unless the table itself is seen there."""
    from .._progress import eta, live

    if sys.stdout.isatty():
        yield from found
        return
    start = time.perf_counter()
    with live(stderr=True) as bars:
        task = bars and bars.add_task("predict", total=total, figures="")
        for done, one in enumerate(found, 1):
            if bars:
                seconds = time.perf_counter() - start
                figures = f"{done / seconds:,.1f} images/s  {eta(done, total, seconds)}"
                bars.update(task, completed=done, figures=figures)
            yield one


def _write(path: Path, found: Iterable[Any]) -> None:
    """Write the table, complete or not at all; names of files are as they are, not escaped."""
    from .. import _csv

    rows = ([one.image, rank, *row.values()] for one in found for rank, row in enumerate(_rows(one), 1))
    _csv.write(path, [COLUMNS, *rows])
