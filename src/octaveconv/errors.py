"""The errors of this package that are not plain ValueError or TypeError, and the check for optional packages."""

import importlib
from types import ModuleType


class BackendUnavailable(RuntimeError):
    """A backend was asked for by name and cannot run this call; the message says why."""


class MissingExtra(ImportError):
    """An optional package is not installed; the message says what to install."""


class MXNetFormatError(ValueError):
    """A file is not what MXNet writes: broken, cut short, hostile, or of a kind that is not read here.

    Attributes:
        file: the file as it was given; for data inside an archive, also which member.
        offset: the byte the trouble starts at, counted from the start of ``file`` (inside an archive: of the member).
        field: what stands there.
    """

    def __init__(self, file: str, offset: int, field: str, problem: str):
        super().__init__(file, offset, field, problem)  # all of them, so that workers can pickle it
        self.file, self.offset, self.field, self.problem = file, offset, field, problem

    def __str__(self) -> str:
        return f"{self.file}: at byte {self.offset}, {self.field}: {self.problem}"


class UsageError(ValueError):
    """The user asked for something that does not exist; the command line prints it as one line and exits with 2."""


class Stopped(RuntimeError):
    """A run was asked to stop; it has saved where it was, and the message says how to continue it."""


def require(package: str, extra: str) -> ModuleType:
    """Import an optional ``package``, or raise `MissingExtra` naming the ``extra`` that brings it."""
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise MissingExtra(
            f"this needs {package.partition('.')[0]}, which is not installed: pip install 'octaveconv[{extra}]'"
        ) from error
