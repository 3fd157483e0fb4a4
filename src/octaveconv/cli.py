"""The command line: ``octaveconv VERB``. Exit codes: 0 done, 1 failed, 2 wrong use."""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

from ._atomic import write
from ._text import did_you_mean, reason, say, shown
from .errors import MissingExtra, UsageError, raise_together, require
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
    predict,
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
    "predict": predict,
    "train": train,
    "export": export,
    "look": look,
    "report": report,
    "doctor": doctor,
    "env": env,
}
_NAME_FILES = ("model", "images", "data", "checkpoint")
_FILES = {"bash": "_shtab_compgen_files", "zsh": "_files", "tcsh": "f"}  # shtab's words for files
NAMED_BY_FILE = ("eval", "octavify", "export")  # MODEL may be left out if --checkpoint records it


class _Version(argparse.Action):
    """Print the version."""

    def __call__(self, *args: Any, **kwargs: Any) -> NoReturn:
        print(f"octaveconv {import_module(__package__).__version__}")
        raise SystemExit(0)


class _Completion(argparse.Action):
    """Print the completion of a shell."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: object, shell: Any, option: object = None
    ) -> NoReturn:
        shtab = require("shtab", "cli")
        print(shtab.complete(parser, shell))
        raise SystemExit(0)


class _Parser(argparse.ArgumentParser):
    """Wrong use is one line that names the nearest right word, and exit code 2."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {shown(self.cured(message))}\n")

    def cured(self, message: str) -> str:
        """A message, with the nearest right word if there is one."""
        known = {*self._option_string_actions, *(str(one) for action in self._actions for one in action.choices or ())}
        words = (word.strip("'():,").partition("=")[0] for word in message.split() if word[0] in "-'")
        near = (did_you_mean(word, known) for word in words)
        return message + next(filter(None, near), "")


class _VerbParser(_Parser):
    """Goes on after a wrong value: ``wrong`` has what it has found, to which the verb adds what else is wrong."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.wrong: list[UsageError] = []

    def error(self, message: str) -> NoReturn:
        if self.wrong:
            raise_together([*self.wrong, UsageError(self.cured(message))])
        super().error(message)

    def _get_value(self, action: argparse.Action, arg_string: str) -> Any:
        try:
            return super()._get_value(action, arg_string)  # type: ignore[misc]
        except argparse.ArgumentError as error:
            self.wrong.append(UsageError(self.cured(str(error))))
            return None

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        try:
            if value is not None:
                super()._check_value(action, value)  # type: ignore[misc]
        except argparse.ArgumentError as error:
            self.wrong.append(UsageError(self.cured(str(error))))


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb and return its exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # what its encoding lacks is escaped too
            stream.reconfigure(errors="backslashreplace")
    try:
        args = parse(argv)
        args.wrong += check_outputs(args)
        if args.verb != "train":  # which adds what is wrong with its recipe
            raise_together(args.wrong)
        figures = VERBS[args.verb].run(args)
        if args.json:
            write(args.json, json.dumps(figures, indent=1) + "\n")
        sys.stdout.flush()  # so that a reader who is gone shows here
        return int(args.verb == "doctor" and figures["problems"] > 0)
    except (UsageError, FileNotFoundError, FileExistsError, IsADirectoryError, NotADirectoryError) as error:
        return _fail(error, 2)
    except BrokenPipeError:  # whoever reads the output, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # where Python flushes what is left
        return 0
    except (MissingExtra, OSError, ValueError, RuntimeError, AssertionError) as error:  # the last is timm's
        return _fail(error, 1)
    except KeyboardInterrupt:
        return _fail("interrupted", 1)


def build_parser() -> tuple[_Parser, dict[str, _VerbParser]]:
    """The parser of the command line, and of each verb."""
    parser = _Parser(prog="octaveconv", description="Octave convolution for PyTorch.", allow_abbrev=False)
    parser.add_argument("--version", action=_Version, nargs=0, help="show the version and exit")
    parser.add_argument(
        "--print-completion", action=_Completion, choices=["bash", "zsh", "tcsh"], help="show a script for the shell"
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB", parser_class=_VerbParser)
    parsers: dict[str, _VerbParser] = {}
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
        for action in parsers[name]._actions:
            if action.type is Path or action.dest in _NAME_FILES:
                action.complete = _FILES  # type: ignore[attr-defined]  # for shtab
    return parser, parsers


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The arguments of a command line, its ``verb`` among them, and what is ``wrong`` with their values.

    Raises:
        UsageError: more than one thing is wrong, so that the arguments are not known.
        SystemExit: one thing is; it has been printed.
    """
    parser, parsers = build_parser()
    words = [*(sys.argv[1:] if argv is None else argv)]
    args, unknown = parser.parse_known_args(words or ["--help"])
    verb = parsers[args.verb]
    while unknown and not unknown[0].startswith("-") and (name := _missing(args)):
        # before Python 3.13, argparse finds an optional word only ahead of options
        word = unknown.pop(0)
        setattr(args, name, [*args.images, word] if name == "images" else word)
    if unknown:
        verb.error(f"unrecognized arguments: {' '.join(unknown)}")
    if getattr(args, "model", "") is None and args.verb in NAMED_BY_FILE:
        if args.checkpoint is None:
            verb.error("the following arguments are required: MODEL")
        args.model, args.checkpoint = str(args.checkpoint), None
    args.wrong = verb.wrong
    return args


def _missing(args: argparse.Namespace) -> str | None:
    """The argument that takes one more word."""
    return next((name for name in ("model", "source", "image") if getattr(args, name, "") is None), None) or (
        "images" if hasattr(args, "images") else None
    )


def _fail(error: object, code: int) -> int:
    file = getattr(error, "filename", None)
    text = f"{file}: {reason(error)}" if isinstance(error, OSError) and file else " ".join(str(error).split())
    say(f"octaveconv: {text}", error=True)
    return code
