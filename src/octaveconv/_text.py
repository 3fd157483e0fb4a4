"""Plain text for terminals and documents."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Iterable, Sequence


def shown(text: object) -> str:
    """Text as it can be shown in one line of a terminal: what does not print is escaped, as in ``repr``.

    That is all text whose origin is not this package, such as names of files, classes and tensors, metadata, and what a
    server says: it may hold newlines, commands to the terminal, marks that reverse the reading direction, or bytes that
    are not Unicode.

    Example:
        >>> print(shown("cat\\n\\x1b[2J\\u202e \u00e9"))
        cat\\n\\x1b[2J\\u202e \u00e9
    """
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in str(text))


def say(*lines: object, error: bool = False) -> None:
    """Print lines that may hold foreign text, on standard output or on standard error."""
    print(*map(shown, lines), sep="\n", file=sys.stderr if error else sys.stdout, flush=True)


def some(names: Sequence[object], count: int = 3) -> str:
    """The first names of many, for a message."""
    return ", ".join(map(str, names[:count])) + (f" and {len(names) - count:,} more" if len(names) > count else "")


def text_table(rows: Sequence[Sequence[str]]) -> str:
    """Rows in columns, the first column aligned to the left, the others to the right."""
    rows = [[shown(cell) for cell in row] for row in rows]
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


def one_line(error: object, length: int = 300) -> str:
    """What an error says, in one line of at most ``length`` characters."""
    return " ".join(str(error).split())[:length]
