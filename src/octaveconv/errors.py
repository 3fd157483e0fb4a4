"""The errors of this package that are not plain ValueError or TypeError, and the check for optional packages."""

import importlib
from collections.abc import Sequence
from types import ModuleType


class BackendUnavailable(RuntimeError):
    """A backend or engine was chosen by name and cannot run this call; the message says why.

    Example:
        >>> import octaveconv as oc
        >>> with oc.backend("cuda"):
        ...     pass
        Traceback (most recent call last):
        ...
        octaveconv.errors.BackendUnavailable: there is no backend 'cuda': choose one of triton, merged, reference
    """


class MissingExtra(ImportError):
    """An optional package is not installed; the message says what to install.

    Example:
        >>> require("rich_text", "cli")
        Traceback (most recent call last):
        ...
        octaveconv.errors.MissingExtra: this needs rich_text, which is not installed: pip install 'octaveconv[cli]'
    """


class MXNetFormatError(ValueError):
    """A file is not what MXNet writes: broken, truncated, hostile, or of a kind that this package does not read.

    Attributes:
        file: the file as it was given; for data inside an archive, also the member.
        offset: the byte where the problem starts, counted from the start of ``file`` (or of the archive's member).
        field: the part of the file that is wrong.
        problem: what is wrong with it.

    Example:
        >>> print(MXNetFormatError("net.params", 8, "the number of arrays", "is negative"))
        net.params: at byte 8, the number of arrays: is negative
    """

    def __init__(self, file: str, offset: int, field: str, problem: str):
        super().__init__(file, offset, field, problem)  # all four, so that workers can pickle it
        self.file, self.offset, self.field, self.problem = file, offset, field, problem

    def __str__(self) -> str:
        return f"{self.file}: at byte {self.offset}, {self.field}: {self.problem}"


class UsageError(ValueError):
    """The caller asked for something that does not exist; the command line prints the message and exits with 2.

    Example:
        >>> from octaveconv.models import create
        >>> create("oct_resnet51")
        Traceback (most recent call last):
        ...
        octaveconv.errors.UsageError: there is no network 'oct_resnet51': did you mean oct_resnet50?
    """


class Stopped(RuntimeError):
    """A run was asked to stop. It has saved its state; the message says how to resume it."""


def raise_together(found: Sequence[Exception]) -> None:
    """Raise the one error there is, or all of them as one UsageError; with none, do nothing.

    Example:
        >>> raise_together([UsageError("epochs must be at least 1, got 0"), ValueError("a.pth is damaged")])
        Traceback (most recent call last):
        ...
        octaveconv.errors.UsageError: 2 things are wrong: (1) epochs must be at least 1, got 0; (2) a.pth is damaged
    """
    if len(found) == 1:
        raise found[0]
    if found:
        listed = "; ".join(f"({number}) {error}" for number, error in enumerate(found, 1))
        raise UsageError(f"{len(found)} things are wrong: {listed}")


def require(package: str, extra: str) -> ModuleType:
    """Import an optional ``package``, or raise `MissingExtra` naming the ``extra`` that brings it."""
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise MissingExtra(
            f"this needs {package.partition('.')[0]}, which is not installed: pip install 'octaveconv[{extra}]'"
        ) from error
