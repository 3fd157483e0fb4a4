"""The errors of this package that are not plain ValueError or TypeError, and the check for optional packages."""

import importlib
from types import ModuleType


class BackendUnavailable(RuntimeError):
    """A backend was asked for by name and cannot run this call; the message says why."""


class MissingExtra(ImportError):
    """An optional package is not installed; the message says what to install."""


class UsageError(ValueError):
    """The user asked for something that does not exist; the command line prints it as one line and exits with 2."""


def require(package: str, extra: str) -> ModuleType:
    """Import an optional ``package``, or raise `MissingExtra` naming the ``extra`` that brings it."""
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise MissingExtra(
            f"this needs {package.partition('.')[0]}, which is not installed: pip install 'octaveconv[{extra}]'"
        ) from error
