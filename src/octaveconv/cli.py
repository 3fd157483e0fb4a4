"""The command line: ``octaveconv VERB``. Exit codes: 0 done, 1 failed, 2 wrong use."""

from __future__ import annotations

import argparse
import io
import json
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

from ._text import did_you_mean, reason, say, shown
from .errors import MissingExtra, UsageError
from .verbs import (
    bench,
    choose,
    convert,
    cost,
    doctor,
    env,
    eval,
    export,
    look,
    models,
    octavify,
    quickstart,
    report,
    train,
)
from .verbs._arguments import check_outputs

# A verb imports what it needs when it runs: timm, scikit-learn and matplotlib take their time.
VERBS = {
    "quickstart": quickstart,
    "models": models,
    "cost": cost,
    "bench": bench,
    "choose": choose,
    "convert": convert,
    "octavify": octavify,
    "eval": eval,
    "train": train,
    "export": export,
    "look": look,
    "report": report,
    "doctor": doctor,
    "env": env,
}


class _Version(argparse.Action):
    """Print the version."""

    def __call__(self, *args: Any, **kwargs: Any) -> NoReturn:
        print(f"octaveconv {import_module(__package__).__version__}")
        raise SystemExit(0)


class _Parser(argparse.ArgumentParser):
    """Wrong use is one line that names the nearest right word, and exit code 2."""

    def error(self, message: str) -> NoReturn:
        known = {*self._option_string_actions, *(str(one) for action in self._actions for one in action.choices or ())}
        words = (word.strip("'():,").partition("=")[0] for word in message.split() if word[0] in "-'")
        near = (did_you_mean(word, known) for word in words)
        self.exit(2, f"{self.prog}: {shown(message)}{next(filter(None, near), '')}\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb and return its exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # what its encoding lacks is escaped too
            stream.reconfigure(errors="backslashreplace")
    args = parse(argv)
    try:
        check_outputs(args)
        figures = VERBS[args.verb].run(args)
        if args.json:
            args.json.parent.mkdir(parents=True, exist_ok=True)
            args.json.write_text(json.dumps(figures, indent=1) + "\n")
        return int(args.verb == "doctor" and figures["problems"] > 0)
    except (UsageError, FileNotFoundError, FileExistsError, IsADirectoryError, NotADirectoryError) as error:
        return _fail(error, 2)
    except (MissingExtra, OSError, ValueError, RuntimeError, AssertionError) as error:  # the last is timm's
        return _fail(error, 1)
    except KeyboardInterrupt:
        return _fail("interrupted", 1)


def build_parser() -> tuple[argparse.ArgumentParser, dict[str, argparse.ArgumentParser]]:
    """The parser of the command line, and of each verb."""
    parser = _Parser(prog="octaveconv", description="Octave convolution for PyTorch.", allow_abbrev=False)
    parser.add_argument("--version", action=_Version, nargs=0, help="show the version and exit")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB", parser_class=_Parser)
    parsers: dict[str, argparse.ArgumentParser] = {}
    for name, module in VERBS.items():
        description, _, example = (module.add.__doc__ or "").partition("Example: ")
        parsers[name] = verbs.add_parser(
            name,
            help=description.split(":")[0],
            description=description,
            epilog=f"example: {example}",
            allow_abbrev=False,
        )
        module.add(parsers[name])
        parsers[name].add_argument("--json", metavar="FILE", type=Path, help="also write the figures here")
    return parser, parsers


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The arguments of a command line, its ``verb`` among them; wrong use ends the process with exit code 2."""
    parser, parsers = build_parser()
    args, unknown = parser.parse_known_args(argv)
    for name in (
        "model",
        "source",
        "image",
    ):  # before Python 3.13, argparse finds an optional word only ahead of options
        if unknown and getattr(args, name, "") is None and not unknown[0].startswith("-"):
            setattr(args, name, unknown.pop(0))
    if unknown:
        parsers[args.verb].error(f"unrecognized arguments: {' '.join(unknown)}")
    return args


def _fail(error: object, code: int) -> int:
    file = getattr(error, "filename", None)
    text = f"{file}: {reason(error)}" if isinstance(error, OSError) and file else " ".join(str(error).split())
    say(f"octaveconv: {text}", error=True)
    return code
