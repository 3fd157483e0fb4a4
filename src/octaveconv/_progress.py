"""The one progress bar of this package; what is shown without a terminal, or without rich, is each caller's own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from .errors import MissingExtra, require


@contextmanager
def live(*, in_bytes: bool = False, stderr: bool = False) -> Iterator[Any]:
    """A live display of tasks: description, bar, how much is done, and the text ``figures``.

    Args:
        in_bytes: tasks count bytes.
        stderr: show it on standard error, and leave nothing there at the end; for what is not the output of a verb.

    Yields:
        A ``rich.progress.Progress``, whose tasks take ``figures``; None without a terminal or without rich.
    """
    try:
        rich = require("rich.progress", "cli")
    except MissingExtra:
        yield None
        return
    console = require("rich.console", "cli").Console(stderr=True) if stderr else rich.get_console()
    if not console.is_terminal:
        yield None
        return
    done = rich.DownloadColumn() if in_bytes else rich.MofNCompleteColumn()
    texts = [rich.TextColumn(f"{{task.{text}}}", markup=False) for text in ("description", "fields[figures]")]
    columns = (texts[0], rich.BarColumn(None), done, texts[1])
    with rich.Progress(*columns, console=console, transient=stderr, expand=True) as bars:
        yield bars


def eta(done: float, total: float | None, seconds: float) -> str:
    """The time that is left after ``done`` of ``total`` took ``seconds``, as text; nothing if the total is unknown."""
    if not total or not done:
        return ""
    return f"ETA {timedelta(seconds=round(seconds / done * max(total - done, 0)))}"
