"""How a training run goes: a live bar on a terminal, now and then a line in a log."""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor

from ..errors import MissingExtra, require

BAR_EVERY = 0.5  # seconds
LINE_EVERY = 30.0  # seconds, at least; then at the next tenth of an epoch
SILENT = 300.0  # seconds, at most


class Progress:
    """Shows nothing; also what the others have in common."""

    def step(
        self, epoch: int, step: int, loss: float | Tensor, lr: float, images: int, waited: float = 0.0
    ) -> None:  # fmt: skip
        """Say that a step is done.

        Args:
            epoch: its epoch, from 1.
            step: its number in the epoch, from 1.
            loss: read only when it is shown: a GPU is not waited for at every step.
            lr: learning rate.
            images: of this step, on all processes.
            waited: seconds that this step waited for its images.
        """

    def epoch(self, row: Mapping[str, Any]) -> None:
        """Say that an epoch is done, validation included; ``row`` is the one of results.csv."""


class _Shown(Progress):
    window = 2  # speed is measured over the last so many marks

    def __init__(self, steps: int, epochs: int):
        self.steps, self.epochs = steps, epochs
        self.start = time.perf_counter()
        self.done, self.images, self.waited = 0, 0, 0.0
        self.marks = deque([(self.start, 0, 0.0)], self.window)

    def step(
        self, epoch: int, step: int, loss: float | Tensor, lr: float, images: int, waited: float = 0.0
    ) -> None:  # fmt: skip
        self.done += 1
        self.images += images
        self.waited += waited
        now = time.perf_counter()
        if self.due(step, now - self.marks[-1][0]):
            self.marks.append((now, self.images, self.waited))
            self.show(epoch, step, self.figures(epoch, step, loss), lr)

    def epoch(self, row: Mapping[str, Any]) -> None:
        others = (f"{name} {_short(value)}" for name, value in row.items() if name != "epoch")
        self.line("  ".join([f"epoch {row['epoch']}/{self.epochs}", *others]))
        self.marks.clear()  # validation and saving are no part of the speed
        self.marks.append((time.perf_counter(), self.images, self.waited))

    def due(self, step: int, since: float) -> bool:
        raise NotImplementedError

    def show(self, epoch: int, step: int, figures: str, lr: float) -> None:
        raise NotImplementedError

    def line(self, text: str) -> None:
        print(text, flush=True)

    def figures(self, epoch: int, step: int, loss: float | Tensor) -> str:
        (since, images, waited), (now, *_) = self.marks[0], self.marks[-1]
        left = (self.epochs - epoch) * self.steps + self.steps - step
        eta = timedelta(seconds=round((now - self.start) / self.done * left))  # of the run, validation included
        loss = loss.item() if isinstance(loss, Tensor) else loss
        return (
            f"loss {loss:.4f}  {(self.images - images) / (now - since):,.0f} images/s  "
            f"wait {(self.waited - waited) / (now - since):.0%}  {_memory()}ETA {eta}"
        )


class _Lines(_Shown):
    tenth = 0

    def due(self, step: int, since: float) -> bool:
        if since < LINE_EVERY:
            return False
        before, self.tenth = self.tenth, step * 10 // self.steps % 10
        return before != self.tenth or since >= SILENT

    def show(self, epoch: int, step: int, figures: str, lr: float) -> None:
        self.line(f"epoch {epoch}/{self.epochs}  step {step:,}/{self.steps:,}  {figures}  lr {lr:.4g}")


class _Bar(_Shown):
    window = 20

    def __init__(self, steps: int, epochs: int, bars: Any):
        super().__init__(steps, epochs)
        self.bars = bars
        self.task = bars.add_task("starting", total=steps, figures="")

    def due(self, step: int, since: float) -> bool:
        return since >= BAR_EVERY or step == self.steps

    def show(self, epoch: int, step: int, figures: str, lr: float) -> None:
        self.bars.update(self.task, description=f"epoch {epoch}/{self.epochs}", completed=step, figures=figures)

    def line(self, text: str) -> None:
        self.bars.console.print(text, markup=False, highlight=False, soft_wrap=True)


@contextmanager
def progress(steps: int, epochs: int, quiet: bool = False) -> Iterator[Progress]:
    """A live bar on a terminal; elsewhere a line per tenth of an epoch, or every 30 s where those come faster.

    After each epoch its row is printed. Speed and wait are those of the last seconds, or since the last line.

    Args:
        steps: of an epoch.
        epochs: of the run.
        quiet: show nothing, on all processes but the first.
    """
    try:
        rich = None if quiet else require("rich.progress", "cli")
    except MissingExtra:
        rich = None
    if rich is None or not rich.get_console().is_terminal:
        yield Progress() if quiet else _Lines(steps, epochs)
        return
    columns = ("{task.description}", rich.BarColumn(None), rich.MofNCompleteColumn(), "{task.fields[figures]}")
    with rich.Progress(*columns, expand=True) as bars:
        yield _Bar(steps, epochs, bars)


def _short(value: Any) -> str:
    return f"{value:.5g}" if isinstance(value, float) else str(value)


def _memory() -> str:
    """The most that this process has held: of the GPU's memory where it uses one, else of the machine's."""
    if torch.cuda.is_initialized():
        peak = torch.cuda.max_memory_allocated()
    elif sys.platform == "win32":
        return ""
    else:
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return f"{peak / 2**30:.1f} GiB  "
