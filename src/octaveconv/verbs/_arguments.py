"""What several verbs take, alike in each."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .. import _yaml
from ..errors import UsageError

_MAKE_FOLDERS = ("quickstart", "train")


def mapping(text: str) -> dict[str, Any]:
    """Names and values, in YAML."""
    try:
        found = _yaml.load(text)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        given = repr(text[:60])
        raise argparse.ArgumentTypeError(f"must be names and values, as in '{{stem: 3x3, width: 8}}', got {given}")
    return found


def positive(text: str) -> int:
    """A whole number from 1 up."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1 up, got {text!r}")
    return int(text)


def whole(text: str) -> int:
    """A whole number from 0 up."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"must be a whole number from 0 up, got {text!r}")
    return int(text)


def check_outputs(args: argparse.Namespace) -> list[Exception]:
    """Find out before the work whether what the options name can be written; an error for each that cannot."""
    found: list[Exception] = []
    for name in ("json", "out", "plot", "csv", "results_file", "confusion"):
        path: Path | None = getattr(args, name, None)
        if path is None or path.is_fifo() or path.is_char_device() or (name == "out" and getattr(args, "resume", None)):
            continue
        try:
            _check_output(f"--{name.replace('_', '-')} {path}", path, name == "out" and args.verb in _MAKE_FOLDERS)
        except (UsageError, OSError) as error:
            found.append(error)
    return found


def _check_output(option: str, path: Path, is_folder: bool) -> None:
    """Raise UsageError if a folder stands where a file is to be written, or the other way round; OSError if not."""
    if path.exists() and path.is_dir() != is_folder:
        what, wanted = ("file", "folder") if is_folder else ("folder", "file")
        raise UsageError(f"{option} is a {what}: name a {wanted}")
    above = next(place for place in (path, *path.absolute().parents)[not is_folder :] if place.exists())
    if not above.is_dir():
        raise UsageError(f"{option} cannot be written, because {above} is a file: name another place")
    try:
        tempfile.TemporaryFile(dir=above).close()
    except OSError as error:
        raise OSError(f"{option} cannot be written: {error.strerror}: name another place") from error


@contextmanager
def told_to_skip() -> Iterator[None]:
    """Add to the error about a damaged image how to go on without it."""
    from ..data.datasets import CorruptImage

    try:
        yield
    except CorruptImage as error:
        raise ValueError(f"{error}: repair or delete it, or skip such images with --skip-corrupt") from error


class _Misplaced(argparse.Action):
    """Refuse an option whose value is the first argument, and say so."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        parser.error(f"give the model as the first argument: {parser.prog} {values}")


def add_model(
    parser: argparse.ArgumentParser,
    text: str = "a network of timm's, or a run folder or file of weights that records its network",
    optional: bool = False,
) -> None:
    """MODEL, the first argument of every verb that has one."""
    parser.add_argument("model", metavar="MODEL", nargs="?" if optional else None, help=text)
    parser.add_argument("--model", action=_Misplaced, help=argparse.SUPPRESS)


def add_alpha(parser: argparse.ArgumentParser) -> None:
    """``--alpha A``."""
    parser.add_argument("--alpha", metavar="A", type=float, help="share of low channels (the network's own)")


def add_checkpoint(parser: argparse.ArgumentParser) -> None:
    """``--checkpoint FILE``."""
    parser.add_argument("--checkpoint", metavar="FILE", type=Path, help="its weights: a file, or a run folder")


def add_model_args(parser: argparse.ArgumentParser) -> None:
    """``--model-args V``."""
    parser.add_argument(
        "--model-args", metavar="V", type=mapping, help="its other arguments: '{width: 8}' (those recorded)"
    )


def add_size(parser: argparse.ArgumentParser) -> None:
    """``--size N``."""
    parser.add_argument(
        "--size", metavar="N", type=positive, default=224, help="height and width of the images (%(default)s)"
    )


def add_threads(parser: argparse.ArgumentParser) -> None:
    """``--threads N``."""
    parser.add_argument("--threads", metavar="N", type=positive, help="threads to compute with (PyTorch's choice)")
