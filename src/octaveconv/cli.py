"""The command line: ``octaveconv VERB``. Exit codes: 0 done, 1 failed, 2 wrong use."""

from __future__ import annotations

import argparse
import difflib
import json
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar, NoReturn

from .errors import MissingExtra, UsageError

# A verb imports what it needs when it runs: timm, scikit-learn and matplotlib take their time.


class _Parser(argparse.ArgumentParser):
    """Wrong use is one line that names the nearest right word, and exit code 2."""

    words: ClassVar[set[str]] = set()  # every verb and option

    def add_argument(self, *names: Any, **kwargs: Any) -> argparse.Action:
        self.words.update(name for name in names if name.startswith("--"))
        return super().add_argument(*names, **kwargs)

    def error(self, message: str) -> NoReturn:
        near = (_did_you_mean(word.strip("':"), self.words | VERBS.keys()) for word in message.split())
        self.exit(2, f"{self.prog}: {message}{next(filter(None, near), '')}\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb and return its exit code."""
    parser = _Parser(prog="octaveconv", description="Octave convolution for PyTorch.", allow_abbrev=False)
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB", parser_class=_Parser)
    for name, (add, _) in VERBS.items():
        description, _, example = (add.__doc__ or "").partition("Example: ")
        verb = verbs.add_parser(
            name, help=description.split(":")[0], description=description, epilog=f"example: {example}",
            allow_abbrev=False,
        )  # fmt: skip
        add(verb)
        verb.add_argument("--json", metavar="FILE", type=Path, help="also write the figures here")
    args = parser.parse_args(argv)
    try:
        if args.json:  # a file that cannot be written is found before the work, not after it
            args.json.parent.mkdir(parents=True, exist_ok=True)
            args.json.open("a").close()
        figures = VERBS[args.verb][1](args)
        if args.json:
            args.json.write_text(json.dumps(figures, indent=1) + "\n")
    except UsageError as error:
        return _fail(error, 2)
    except (MissingExtra, OSError, ValueError, RuntimeError) as error:
        return _fail(error, 1)
    except KeyboardInterrupt:
        return _fail("interrupted", 1)
    return 0


def _fail(error: object, code: int) -> int:
    print(f"octaveconv: {' '.join(str(error).split())}", file=sys.stderr)
    return code


def _add_quickstart(parser: argparse.ArgumentParser) -> None:
    """Train a small octave network and its dense twin on real scans of digits: accuracy, cost, latency, ratios.

    Example: octaveconv quickstart --alpha 0.25 --json quickstart.json
    """
    parser.add_argument("--alpha", type=float, default=0.5, help="low-frequency share of the channels (%(default)s)")
    parser.add_argument(
        "--epochs", type=_positive, default=8, help="passes over the 1,437 training images (%(default)s)"
    )
    parser.add_argument("--batch-size", type=_positive, default=64, help="images per step (%(default)s)")
    parser.add_argument(
        "--seed", type=int, default=0, help="decides the split, the weights and the batches (%(default)s)"
    )
    parser.add_argument("--threads", type=_positive, default=2, help="threads to compute with (%(default)s)")
    parser.add_argument(
        "--out", metavar="DIR", type=Path, default=Path("runs/quickstart"), help="where curves.png goes (%(default)s)"
    )


def _quickstart(args: argparse.Namespace) -> Any:
    from . import quickstart
    from ._text import text_table

    if not 0 < args.alpha <= 1:
        raise UsageError(f"--alpha must be above 0 and at most 1, got {args.alpha}: the dense twin is trained anyway")
    settings = quickstart.Settings(
        alpha=args.alpha, epochs=args.epochs, batch_size=args.batch_size, seed=args.seed, threads=args.threads
    )
    with quickstart.progress(args.epochs) as log:
        result = quickstart.run(settings, log)
    print(f"\n{text_table(quickstart.table(result))}\n\n{quickstart.verdict(result)}\n{quickstart.conditions(result)}")
    try:
        quickstart.plot(result, args.out / "curves.png")
        print(f"curves: {args.out / 'curves.png'}")
    except MissingExtra as error:
        print(f"no curves: {error}")
    return result


def _add_models(parser: argparse.ArgumentParser) -> None:
    """List the octave networks: names to give to timm.create_model.

    Example: octaveconv models 'oct_resnetv2*'
    """
    parser.add_argument("glob", metavar="GLOB", nargs="?", default="oct_*", help="pattern of names (%(default)s)")


def _models(args: argparse.Namespace) -> Any:
    names = [name for name in _names(args.glob) if name.startswith("oct_")]
    if not names:
        raise UsageError(f"no network matches {args.glob!r}{_did_you_mean(args.glob, _names('oct_*'))}")
    print("\n".join(names))
    return names


def _add_cost(parser: argparse.ArgumentParser) -> None:
    """Print what a network costs: parameters, multiply-adds, activation bytes, by formula and by count.

    Example: octaveconv cost oct_resnet50 --alpha 0.5 --layers
    """
    parser.add_argument("model", metavar="MODEL", help="a network of `octaveconv models`, or any other of timm's")
    parser.add_argument("--alpha", type=float, help="low-frequency share of the channels (the network's own)")
    parser.add_argument(
        "--size", type=_positive, default=224, help="height and width of the image in pixels (%(default)s)"
    )
    parser.add_argument("--layers", action="store_true", help="show every layer")


def _cost(args: argparse.Namespace) -> Any:
    import torch

    from ._text import text_table
    from .cost import cost

    with torch.device("meta"):
        model = _create(args.model, {} if args.alpha is None else {"alpha": args.alpha})
    report = cost(model, args.size)
    alpha = getattr(model, "alpha", 0)
    print(f"{args.model}, alpha {alpha:g}, one image of {args.size}x{args.size}\n")
    if args.layers:
        print(text_table(report.layer_table()), end="\n\n")
    print(text_table(report.table()))
    verdict = "equal" if report.macs == report.counted_macs else "NOT equal: layers of other kinds do work too"
    print(f"\nMACs by formula {report.macs:,}, counted by PyTorch {report.counted_macs:,}: {verdict}")
    return {"model": args.model, "alpha": alpha, **report.to_dict()}


def _add_env(parser: argparse.ArgumentParser) -> None:
    """Print versions and machine: paste it into a bug report.

    Example: octaveconv env --json env.json
    """


def _env(args: argparse.Namespace) -> Any:
    from . import env

    facts = env.facts()
    for name, value in facts.items():
        print(f"{name:12}{value}")
    return facts


VERBS: dict[str, tuple[Callable[[argparse.ArgumentParser], None], Callable[[argparse.Namespace], Any]]] = {
    "quickstart": (_add_quickstart, _quickstart),
    "models": (_add_models, _models),
    "cost": (_add_cost, _cost),
    "env": (_add_env, _env),
}


def _create(name: str, kwargs: dict[str, Any]) -> Any:
    """Create a network by name; UsageError for a name or an alpha that does not exist."""
    import timm

    names = _names("*")
    if name not in names:
        near = _did_you_mean(name, names)
        raise UsageError(f"there is no network {name!r}{near or ': octaveconv models lists them'}")
    if kwargs and not name.startswith("oct_"):
        raise UsageError(f"{name} has no alpha: leave --alpha away, or name an octave network (octaveconv models)")
    try:
        return timm.create_model(name, **kwargs)
    except ValueError as error:
        raise UsageError(str(error)) from error


def _names(glob: str) -> list[str]:
    import timm

    from . import models  # noqa: F401  # registers ours

    return timm.list_models(glob)  # type: ignore[no-any-return]


def _did_you_mean(word: str, known: Iterable[str]) -> str:
    known = list(known)
    near = [] if word in known else difflib.get_close_matches(word, known, 1, 0.75)
    return f": did you mean {near[0]}?" if near else ""


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1 up, got {text!r}")
    return int(text)
