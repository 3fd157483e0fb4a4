"""How a training run is going: a live bar on a terminal, a line now and then in a log."""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from .._progress import eta, live

BAR_EVERY = 0.5  # seconds
LINE_EVERY = 30.0  # seconds at least between lines; then at the next tenth of an epoch
SILENT = 300.0  # seconds at most between lines


class Progress:
    """Shows nothing; the interface of the others."""

    def step(self, epoch: int, step: int, loss: float | Tensor, lr: float, images: int, waited: float = 0.0) -> None:
        """Report that a step is done.

        Args:
            epoch: its epoch, from 1.
            step: its number in the epoch, from 1.
            loss: read only when it is shown, so that not every step waits for the GPU.
            lr: learning rate.
            images: images of this step, on all processes.
            waited: seconds that this step waited for its images.
        """

    def epoch(self, row: Mapping[str, Any]) -> None:
        """Report that an epoch is done, validation included; ``row`` is its row in results.csv."""


class _Shown(Progress):
    window = 2  # number of marks over which speed is measured

    def __init__(self, steps: int, epochs: int):
        self.steps, self.epochs = steps, epochs
        self.start = time.perf_counter()
        self.done, self.images, self.waited = 0, 0, 0.0
        self.marks = deque([(self.start, 0, 0.0)], self.window)

    def step(self, epoch: int, step: int, loss: float | Tensor, lr: float, images: int, waited: float = 0.0) -> None:
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
        self.marks.clear()  # speed excludes validation and saving
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
        loss = loss.item() if isinstance(loss, Tensor) else loss
        return (
            f"loss {loss:.4f}  {(self.images - images) / (now - since):,.0f} images/s  "
            f"wait {(self.waited - waited) / (now - since):.0%}  {_memory()}"
            f"{eta(self.done, self.done + left, now - self.start)}"  # of the run, validation included
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
        steps: steps of an epoch.
        epochs: epochs of the run.
        quiet: show nothing, as on all processes but the first.
    """
    if quiet:
        yield Progress()
        return
    with live() as bars:
        yield _Lines(steps, epochs) if bars is None else _Bar(steps, epochs, bars)


def _short(value: Any) -> str:
    return f"{value:.5g}" if isinstance(value, float) else str(value)


def _memory() -> str:
    """Peak memory of this process: the GPU's where it uses one, otherwise the machine's."""
    if torch.cuda.is_initialized():
        peak = torch.cuda.max_memory_allocated()
    elif sys.platform == "win32":
        return ""
    else:
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return f"{peak / 2**30:.1f} GiB  "
