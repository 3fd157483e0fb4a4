"""Plain text for terminals and documents."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


def text_table(rows: Sequence[Sequence[str]]) -> str:
    """Rows in columns, the first column aligned to the left, the others to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    aligned = ([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])] for row in rows)
    return "\n".join("  ".join(row).rstrip() for row in aligned)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The end of an error message: the known word nearest to a misspelled one, or nothing."""
    known = list(known)
    near = [] if word in known else difflib.get_close_matches(word, known, 1, 0.75)
    return f": did you mean {near[0]}?" if near else ""


def counted(number: int, noun: str) -> str:
    """A number and what it counts: ``1 thread``, ``2 threads``."""
    return f"{number} {noun}{'s' * (number != 1)}"


def reason(error: BaseException) -> str:
    """What an error says, in one line; of one of the file system only what is wrong, without number and path."""
    return error.strerror or "" if isinstance(error, OSError) and error.filename else one_line(error)


def one_line(error: BaseException, length: int = 300) -> str:
    """What an error says, in one line of at most ``length`` characters."""
    return " ".join(str(error).split())[:length]
