"""The folder of a training run: settings, results, checkpoints, curves. Its contents survive a crash at any moment.

Every file is written under another name, and renamed when it is complete and on the disk.
"""

from __future__ import annotations

import csv
import errno
import itertools
import json
import math
import os
import platform
import shutil
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from .. import _atomic, _checksum, _csv, _figure, _yaml, env
from .._text import one_line, reason, say
from ..errors import UsageError, require
from ..weights import files as weights
from ..weights import pickles
from . import curves as _curves
from . import lock as _lock
from . import state as _state

_FULL, _DENIED = (errno.ENOSPC, errno.EDQUOT), (errno.EROFS, errno.EACCES, errno.EPERM)


class RunFolder:
    """A run on disk; create one with `new` or `open`, on one process only.

    Attributes:
        path: the folder.
        last, previous, best: paths of the checkpoints.
        results: path of the table, one row per epoch.
    """

    def __init__(self, path: Path, tensorboard: bool = False):
        if tensorboard:
            require("tensorboard", "tensorboard")
        self.path = path
        self.last, self.previous, self.best = (path / name for name in ("last.pth", "last.prev.pth", "best.pth"))
        self.results = path / "results.csv"
        self._has_saved = False
        self._made: list[Path] = []  # folders that `new` has made
        self._tensorboard = tensorboard
        self._writer: Any = None

    @classmethod
    def new(cls, parent: Path, name: str, tensorboard: bool = False) -> RunFolder:
        """Create the folder ``parent/name``, or ``name-2``, ``name-3`` ... if that exists.

        Args:
            parent: the folder of runs, created if it does not exist.
            name: the run's name.
            tensorboard: also write the results for TensorBoard.

        Raises:
            UsageError: ``name`` is not a folder's name.
            MissingExtra: TensorBoard is not installed.
            OSError: the folder cannot be created.
        """
        check_name(name)
        made = [folder for folder in (parent, *parent.parents) if not folder.exists()]
        parent.mkdir(parents=True, exist_ok=True)
        for number in itertools.count(1):
            run = cls(parent / (name if number == 1 else f"{name}-{number}"), tensorboard)
            try:
                run.path.mkdir()
            except FileExistsError:
                continue
            _atomic.sync(parent)
            run._made = [run.path, *made]
            return run
        raise AssertionError

    @classmethod
    def open(cls, path: Path, tensorboard: bool = False) -> RunFolder:
        """The folder of a run that can be resumed; nothing is written.

        Raises:
            UsageError: it is not a run folder, or has no checkpoint.
            MissingExtra: TensorBoard is not installed.
        """
        run = cls(path, tensorboard)
        if not (path / "config.yaml").is_file():
            raise UsageError(f"{path} is not a run folder, it has no config.yaml: give one that octaveconv train made")
        if not (run.last.exists() or run.previous.exists()):
            raise UsageError(
                f"{path} has no checkpoint to resume from: start again with octaveconv train --recipe "
                f"{path / 'config.yaml'}"
            )
        return run

    @contextmanager
    def started(self) -> Iterator[None]:
        """Remove the folder that `new` made if the block fails before there is anything worth keeping in it."""
        try:
            yield
        except BaseException:
            if self._made and not (self.last.exists() or self.results.exists()):
                shutil.rmtree(self.path, ignore_errors=True)
                with suppress(OSError):  # another run is in it
                    for folder in self._made[1:]:
                        folder.rmdir()
            raise

    def alone(self) -> AbstractContextManager[Any]:
        """Keep other processes from training in this folder, from this call to the end of a ``with`` block.

        Call it before `load`: another process that is still training may replace the checkpoint.

        Raises:
            UsageError: another process trains in it; the message names it.
            OSError: the folder cannot be written to.
        """
        with self._explained():
            return _lock.take(self.path)

    def write_config(self, config: Mapping[str, Any], again: bool = False) -> None:
        """Write the settings of a run, plain data, to config.yaml.

        Args:
            config: the settings.
            again: replace those that were written before: a run is to have more epochs.

        Raises:
            FileExistsError: they were written before.
            ValueError: they are not plain data.
            OSError: they cannot be written.
        """
        path = self.path / "config.yaml"
        if path.exists() and not again:
            raise FileExistsError(f"{path} exists: a run has one configuration")
        text = _yaml.dump(dict(config))
        with self._writing(path) as file:
            file.write(text.encode())

    def config(self) -> dict[str, Any]:
        """The settings that `write_config` got; tuples come back as lists.

        Raises:
            UsageError: the file does not hold settings.
        """
        path = self.path / "config.yaml"
        try:
            config = _yaml.read(path)
        except ValueError as error:
            raise UsageError(f"{path} is not YAML: {one_line(error)}") from error
        if not isinstance(config, dict):
            raise UsageError(f"{path} does not hold settings: it must consist of lines NAME: VALUE")
        return config

    def write_env(self) -> None:
        """Write the versions and the machine of this start to env.json; for the second start, env-2.json, and so on."""
        names = (f"env{f'-{number}' if number > 1 else ''}.json" for number in itertools.count(1))
        path = next(path for name in names if not (path := self.path / name).exists())
        text = json.dumps(env.facts() | {"process": os.getpid(), "host": platform.node()}, indent=1) + "\n"
        with self._writing(path) as file:
            file.write(text.encode())

    def save(self, state: Mapping[str, Any], best: bool = False) -> None:
        """Make ``state`` the last checkpoint, the old last one the previous, and with ``best`` also the best.

        Each of these files is complete at every instant.

        Args:
            state: tensors, text, numbers and None in dicts, lists and tuples, which ``weights_only=True`` can read.
            best: whether this is the best of the run so far.

        Raises:
            TypeError: the state holds something else; the message names it.
            OSError: it cannot be written; the checkpoints are as they were, and the message says how to resume.
        """
        _state.check(state)
        with self._explained(_state.size(state)), _atomic.replacing(self.last) as file:
            torch.save(dict(state), file)
            _atomic.flush(file)
            if best:  # before the last, which records that there is a best one
                _atomic.link(Path(file.name), self.best)
            if self._has_saved or _state.is_whole(self.last):  # a damaged file must not replace a good one
                _atomic.link(self.last, self.previous)
        self._has_saved = True

    def load(self) -> dict[str, Any]:
        """The last checkpoint, on the CPU; if it is damaged, the previous or the best, with a line on standard error.

        Raises:
            ValueError: none can be read.
        """
        problems = []
        for path in (self.last, self.previous, *([self.best] if self.best.exists() else [])):
            try:
                problem = _checksum.problem(path)
                state: Any = None if problem else pickles.read(path)
            except FileNotFoundError:
                problems.append(f"{path} does not exist")
                continue
            except (ValueError, OSError) as error:
                problem = reason(error)
            if problem:
                problems.append(f"{path} cannot be read ({problem})")
                continue
            if problems:
                say(f"octaveconv: {' and '.join(problems)}: resuming from {path}", error=True)
            if not isinstance(state, dict):
                raise ValueError(f"{path} is not a checkpoint of octaveconv train: start again")
            return state
        raise ValueError(f"{' and '.join(problems)}: there is nothing to resume from: start again")

    def append(self, row: Mapping[str, Any]) -> None:
        """Add a row to results.csv. Call it before `save`: `truncate` can drop a surplus row, not add a missing one.

        Args:
            row: figures by column, ``epoch`` among them; the first row decides the columns.

        Raises:
            ValueError: the row has other columns than the first.
            OSError: it cannot be written; the message says how to resume.
        """
        columns = (_csv.header(self.results) if self.results.exists() else None) or [*row]
        if "epoch" not in row or set(columns) != set(row):
            raise ValueError(f"{self.results} has columns {', '.join(columns)}; the row has {', '.join(row)}")
        with self._explained():
            _csv.open_table(self.results, columns)
            _csv.append_row(self.results, columns, row)
        if self._tensorboard:
            self._write_scalars(row)

    def truncate(self, epoch: int) -> None:
        """Drop the rows of this and later epochs, which a resumed run writes again, and a row cut off by a crash."""
        if not self.results.exists():
            return
        if not (columns := _csv.header(self.results)):
            return self.results.unlink()
        with _csv.readable(self.results) as file:
            lines = [line for line in file if line.endswith("\n")]
            kept = [line for line, cells in zip(lines, csv.reader(lines)) if _epoch(columns, cells) < epoch]
        with self._writing(self.results) as file:
            file.write("".join([lines[0], *kept]).encode())

    def rows(self) -> list[dict[str, str]]:
        """The rows of results.csv."""
        return _csv.rows(self.results) if self.results.exists() else []

    def curves(self) -> list[Path]:
        """Draw losses, accuracies and learning rate of results.csv over the epochs.

        Returns:
            The paths of curves.png and curves.svg; none if there is nothing to draw.

        Raises:
            MissingExtra: matplotlib is not installed.
            ValueError: the table is not one of epochs and numbers.
        """
        try:
            figure = _curves.draw(self.rows())
        except (KeyError, TypeError, OverflowError, ValueError) as error:
            raise ValueError(
                f"{self.results} cannot be drawn ({one_line(error)}): another program has changed it"
            ) from error
        paths = [self.path / "curves.png", self.path / "curves.svg"] if figure else []
        for path in paths:
            with self._writing(path) as file:
                _figure.write(figure, file, path.suffix[1:])
        return paths

    def finish(self, state_dict: Mapping[str, Tensor], metadata: Mapping[str, str]) -> Path:
        """Write the final weights to model.safetensors, with metadata such as ``model`` and ``alpha``."""
        path = self.path / "model.safetensors"
        with self._explained():
            weights.write(path, state_dict, metadata)
        return path

    def _write_scalars(self, row: Mapping[str, Any]) -> None:
        if self._writer is None:  # purge_step drops the rows that `truncate` dropped
            board = require("torch.utils.tensorboard", "tensorboard")
            self._writer = board.SummaryWriter(str(self.path / "tensorboard"), purge_step=row["epoch"])
        for name, value in row.items():
            if isinstance(value, (int, float)) and name != "epoch":
                self._writer.add_scalar(name, value, row["epoch"])
        self._writer.flush()

    @contextmanager
    def _writing(self, path: Path) -> Iterator[BinaryIO]:
        with self._explained(), _atomic.replacing(path) as file:
            yield file

    @contextmanager
    def _explained(self, needed: int = 0) -> Iterator[None]:
        """Make an error of the file system say what the user can do."""
        try:
            yield
        except (OSError, RuntimeError) as error:
            cause = _system_error(error)
            if cause is None:
                raise
            needs, first = "", ""
            if cause.errno in _FULL:
                needs = f" (a checkpoint needs {_mib(needed)}; " if needed else " ("
                needs += f"{_mib(shutil.disk_usage(self.path).free)} free)"
                first = "make room and "
            elif cause.errno in _DENIED:
                first = "make it writable, or copy the folder, and "
            kept, cure = "there is no checkpoint yet", "start again"
            if self.last.exists():
                kept, cure = f"{self.last} is unchanged", f"resume: octaveconv train --resume {self.path}"
            reason = cause.strerror or cause
            raise OSError(f"cannot write to {self.path}: {reason}{needs}; {kept}: {first}{cure}") from error


def check_name(name: str) -> None:
    """Raise UsageError unless a run can have this name."""
    if name != Path(name).name or name in ("", ".."):
        raise UsageError(f"{name!r} is not a name for a run: use letters, digits, - and _")


def _system_error(error: BaseException | None) -> OSError | None:
    """The error of the file system that caused this one: torch.save raises a RuntimeError after it."""
    while error and not isinstance(error, OSError):
        error = error.__context__
    return error if isinstance(error, OSError) else None


def _mib(size: int) -> str:
    return f"{size / 2**20:,.0f} MiB"


def _epoch(columns: list[str], cells: list[str]) -> float:
    """The epoch of a row; infinity for the header and for an incomplete row."""
    text = dict(zip(columns, cells)).get("epoch", "")
    return int(text) if text.isdecimal() and len(cells) == len(columns) else math.inf
