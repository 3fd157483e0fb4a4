"""``octaveconv eval``: the score of a network on labeled images."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from ._arguments import add_checkpoint, add_model, add_model_args, positive, told_to_skip, whole

LONGEST = 30  # classes in the table of them


def add(parser: argparse.ArgumentParser) -> None:
    """Score a network on labeled images: exact top-1 and top-5; with torchrun, on several processes.

    Example: octaveconv eval runs/oct_resnetv2_26-0.25 --data cifar10
    """
    parser.usage = "%(prog)s MODEL --data SRC [options]"
    add_model(parser, optional=True)
    parser.add_argument("--alpha", type=float, help="low-frequency share of the channels")
    add_checkpoint(parser)
    add_model_args(parser)
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
    parser.add_argument("--confusion", metavar="FILE", type=Path, help="write the confusion matrix to this CSV file")


def run(args: argparse.Namespace) -> Any:
    """Score, print the table, append the row; return all figures."""
    import torch

    from .. import _csv, env, evaluate, processes
    from .._text import say, text_table
    from ..data.datasets import Stream, open_dataset

    if args.threads:
        torch.set_num_threads(args.threads)
    best = "cuda" if torch.cuda.is_available() and not args.model.endswith(".octave") else "cpu"
    with processes.joined(args.device or best) as device:
        is_first = processes.rank() == 0  # prints and writes
        if not is_first:
            args.json = None
        elif args.results_file:
            _csv.open_table(args.results_file, evaluate.COLUMNS)
        name, weights, asked, make = _network(args)  # at once; listing the images may take minutes
        dataset = open_dataset(args.data, args.split)
        model = make(dataset.num_classes)
        notes = _notes_on_classes(evaluate.label_names(model), dataset.classes or [], weights)
        if evaluate.renamed(model, dataset) and {*evaluate.label_names(model)} & {*(dataset.classes or ())}:
            dataset = open_dataset(args.data, args.split, classes=evaluate.label_names(model))  # some have no images
        options = dict(workers=args.workers, skip_corrupt=args.skip_corrupt, confusion=args.confusion is not None)
        settings = evaluate.EvalSettings(args.size, args.batch_size, device, args.dtype, **options)
        if is_first:
            say(f"{name}, {weights}{asked}; {dataset.source}", *dataset.notes, *notes)
            if evaluate.renamed(model, dataset):
                say("its classes have other names than those of the weights: they are taken in the same order")
        is_stream = isinstance(dataset, Stream)  # which ends at its first error
        with evaluate.progress(dataset) as log, nullcontext() if is_stream else told_to_skip():
            score = evaluate.evaluate(model, dataset, settings, log)
    figures = {
        "model": name,
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
        if score.confusion is not None:
            _tell_confusion(args.confusion, score, evaluate.label_names(model) or [*(dataset.classes or ())])
        if score.skipped:
            say("skipped:", *(f"  {name}" for name in score.skipped))
        if args.results_file:
            _csv.append_row(args.results_file, evaluate.COLUMNS, figures)
    return figures


def _notes_on_classes(known: list[str], found: list[str], weights: str) -> list[str]:
    """What is to be said of the order of the classes: the names that the weights know, and those of the folders."""
    if known and known != found and {*known} == {*found}:
        return ["its classes are numbered as in the weights, which is not the natural order of the folders' names"]
    if known or found == sorted(found) or not Path(weights).is_file():
        return []
    number = next(i for i, pair in enumerate(zip(found, sorted(found))) if pair[0] != pair[1])
    return [
        f"{weights} does not name its classes: they are taken in natural order, class {number} is {found[number]!r}; "
        f"torchvision's ImageFolder sorts names as text, so there it is {sorted(found)[number]!r}: if the weights were "
        f"trained so, put the names into the checkpoint, as its entry 'classes'"
    ]


def _tell_confusion(path: Path, score: Any, names: list[str]) -> None:
    """Print a row for each class, and write the matrix: a row for each, a column for each answer."""
    from .. import _csv
    from .._text import say, text_table
    from ..evaluate import per_class

    print(f"\n{text_table(_worst(per_class(score, names)))}")
    names = names or [str(number) for number in range(len(score.confusion))]
    rows = ([name, *row] for name, row in zip(names, score.confusion.tolist()))
    _csv.write(path, [["class", *names], *rows])
    say(f"confusion matrix: {path}")


def _worst(rows: list[list[str]]) -> list[list[str]]:
    """A table of classes in order, or if there are many, its worst ones first."""
    head, *rows = rows
    if len(rows) > LONGEST:
        seen = [row for row in rows if row[3]]
        rows = sorted(seen, key=lambda row: float(row[3].rstrip("%")))[:LONGEST]
        head = [f"the {len(rows)} worst classes", *head[1:]]
    return [head, *rows]


def _network(args: argparse.Namespace) -> tuple[str, str, str, Callable[[int | None], Any]]:
    """The network's name, its weights, what was asked instead of what they record, and what makes the network.

    Random weights need the number of classes.
    """
    import torch

    from ..deploy import load_deployed
    from ..errors import UsageError
    from ..models import published
    from ..models.create import check, create, source

    if args.model.endswith(".octave"):
        if args.alpha is not None or args.checkpoint or args.model_args or args.dtype != "fp32":
            raise UsageError(f"{args.model} is deployed: its network, weights and precision are what they are")
        model: Any = load_deployed(args.model)
        return model.about.model or "a network", args.model, model.about.overridden(size=args.size), lambda _: model
    name, file = source(args.model, args.checkpoint)
    check(name, args.alpha, file, None, args.model_args)
    random = file is None and published(name) is None
    weights, asked = "random weights, seed 0" if random else "published", ""
    if file is not None:
        asked = file.about.overridden(alpha=args.alpha, size=args.size, **(args.model_args or {}))
        weights = str(file.file)

    def make(classes: int | None) -> Any:
        torch.manual_seed(0)  # random weights are the same on every process
        return create(name, args.alpha, file, classes if random else None, model_args=args.model_args)

    return name, weights, asked, make
