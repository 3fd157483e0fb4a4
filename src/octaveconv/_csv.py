"""Tables on disk: those that only grow, one row per result, and those that appear whole."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from . import _atomic
from ._text import one_line
from .errors import UsageError


def open_table(path: Path, columns: Sequence[str]) -> None:
    """Write the header of a new or empty file; call it before the work that yields a row.

    Raises:
        UsageError: the file has other columns.
        OSError: it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab+") as file:
        file.seek(0)
        found = file.readline()
        if not found:
            file.write(_line(columns))
        elif found.rstrip(b"\r\n") != _line(columns).rstrip():
            raise UsageError(f"{path} has other columns than this version writes: name another file")


def append_row(path: Path, columns: Sequence[str], figures: Mapping[str, Any]) -> None:
    """Append one row with a single write, so that the rows before it are safe."""
    with path.open("ab+", buffering=0) as file:
        file.seek(-1, os.SEEK_END)
        cut = file.read(1) != b"\n"  # by a crash
        file.write(b"\n" * cut + _line(_cell(figures[name]) for name in columns))
        os.fsync(file.fileno())


def write(path: Path, rows: Iterable[Iterable[Any]]) -> None:
    """Write a whole table, complete or not at all; OSError if it cannot be written."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    _atomic.write(path, text.getvalue())


def header(path: Path) -> list[str]:
    """The columns of a table; none if a crash cut the line off. ValueError if it is not a table."""
    with readable(path) as file:
        line = file.readline()
        return next(csv.reader([line])) if line.endswith("\n") else []


def rows(path: Path) -> list[dict[str, str]]:
    """The rows of a table, by column. ValueError if it is not a table."""
    with readable(path) as file:
        return list(csv.DictReader(file))


@contextmanager
def readable(path: Path) -> Iterator[TextIO]:
    """Open a table; what is not one raises ValueError, which names the file and the cure."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            yield file
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path} is not a table ({one_line(error)}): restore it, or move it away") from error


def _cell(value: Any) -> Any:
    if isinstance(value, float):
        return f"{value:.6g}"
    return " ".join(str(_cell(part)) for part in value) if isinstance(value, tuple) else value


def _line(values: Iterable[Any]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(values)
    return text.getvalue().encode()
