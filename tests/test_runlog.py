"""The folder of a run: nothing is lost when it dies, nothing is overwritten, and it shows how it goes."""

import contextlib
import errno
import json
import os
import random
import resource
import signal
import sys
import time
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

import filelock
import numpy as np
import pytest
import torch
from forks import Fork, wait_for
from rich.console import Console
from safetensors import safe_open

from octaveconv.errors import MissingExtra, UsageError
from octaveconv.train import lock as _lock
from octaveconv.train import progress as _progress
from octaveconv.train.folder import RunFolder

SAVE = torch.save


@pytest.fixture
def run(tmp_path):
    run = RunFolder.new(tmp_path, "run")
    run.write_config({"lr": 0.1})
    return run


def state(number):
    return {"number": number, "weights": torch.full((1000,), number)}


def number_of(path):
    found = torch.load(path, weights_only=True)
    assert (found["weights"] == found["number"]).all()
    return found["number"]


def parts(run):
    return sorted(path.name for path in run.path.glob("*.part"))


# The folder


def test_a_run_is_never_overwritten(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        runs = list(pool.map(lambda _: RunFolder.new(tmp_path / "runs", "a"), range(24)))
    assert {run.path.name for run in runs} == {"a", *(f"a-{number}" for number in range(2, 25))}


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/a"])
def test_a_name_is_a_name(tmp_path, name):
    with pytest.raises(UsageError, match="is not a name for a run"):
        RunFolder.new(tmp_path, name)
    assert not any(tmp_path.iterdir())


def test_opening_says_what_is_missing(tmp_path, run):
    with pytest.raises(
        UsageError, match=r"not a run folder, it has no config\.yaml: give one that octaveconv train made"
    ):
        RunFolder.open(tmp_path / "other")
    with pytest.raises(UsageError, match=r"has no checkpoint .* octaveconv train --recipe .*run/config\.yaml"):
        RunFolder.open(run.path)
    run.save(state(1))
    assert RunFolder.open(run.path).load()["number"] == 1


def test_config_and_env(run):
    config = {"model": "oct_resnet50", "lr": 1e-5, "mean": [0.5, 0.25], "mixup": None, "amp": True}
    with pytest.raises(FileExistsError, match="a run has one configuration"):
        run.write_config(config)
    (run.path / "config.yaml").unlink()
    run.write_config(config)
    assert run.config() == config
    assert list(run.config()) == list(config)
    for _ in range(3):  # starts
        run.write_env()
    assert sorted(path.name for path in run.path.glob("env*")) == ["env-2.json", "env-3.json", "env.json"]
    assert "torch" in json.loads((run.path / "env-3.json").read_text())
    assert parts(run) == []


@pytest.mark.parametrize(("text", "message"), [("a: [", "is not YAML"), ("", "does not hold settings")])
def test_a_broken_config_is_a_users_mistake(run, text, message):
    (run.path / "config.yaml").write_text(text)
    with pytest.raises(UsageError, match=message):
        run.config()


# One process at a time


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(_lock, "PATIENCE", 0.1)


@pytest.mark.usefixtures("impatient")
def test_a_folder_is_held_by_one(run):
    run.write_env()
    with run.alone():
        with pytest.raises(UsageError, match=rf"run is in use by process {os.getpid()} on \S+: wait until it ends"):
            RunFolder(run.path).alone()
        (run.path / "env.json").write_text("{}")
        with pytest.raises(UsageError, match=r"in use by another process: .* delete \S+train\.lock\)$"):
            RunFolder(run.path).alone()
    assert (run.path / "train.lock").exists()  # and locks nothing
    with run.alone():
        pass


def hold(path):
    os.setsid()
    with RunFolder(path).alone():
        if os.fork():  # as the loading workers are
            (path / "held").touch()
        time.sleep(60)


@pytest.mark.usefixtures("impatient")
def test_a_killed_process_holds_nothing(run):
    first = Fork(hold, run.path)
    wait_for(run.path / "held")
    with pytest.raises(UsageError, match="in use by another process"):
        run.alone()
    first.kill()
    first.wait()
    with run.alone():
        os.killpg(first.pid, signal.SIGKILL)  # its child was alive until here


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize(
    ("error", "message"),
    [
        (errno.EROFS, r"Read-only file system; .*: make it writable, or copy the folder, and resume: .*run$"),
        (errno.ENOSPC, r"No space left on device .*: make room and resume"),
    ],
)
def test_a_folder_that_cannot_be_written_is_explained(run, monkeypatch, error, message):
    run.save(state(1))
    monkeypatch.setattr(filelock.FileLock, "acquire", raising(OSError(error, os.strerror(error))))
    with pytest.raises(OSError, match=message):
        run.alone()


def test_without_locks_it_says_so_and_goes_on(run, monkeypatch, capsys):
    monkeypatch.setattr(filelock.FileLock, "acquire", raising(NotImplementedError))
    with run.alone():
        assert capsys.readouterr().err == (
            f"octaveconv: {run.path} cannot be locked: make sure that no other process trains in it\n"
        )


# Checkpoints


def test_save_keeps_the_previous_and_the_best(run):
    for number in (1, 2, 3):
        run.save(state(number), best=number == 1)
    assert [number_of(path) for path in (run.last, run.previous, run.best)] == [3, 2, 1]
    assert parts(run) == []


def test_all_that_a_training_needs_comes_back(run):
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.randn(2, 3, 8, 8)).sum().backward()
    optimizer.step()
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 3)
    scaler = torch.amp.GradScaler("cpu")
    _, keys, *others = np.random.RandomState(0).get_state()
    run.save(
        {
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "schedule": schedule.state_dict(),
            "scaler": scaler.state_dict(),
            "python": random.getstate(),
            "torch": torch.get_rng_state(),
            "numpy": (keys.tolist(), *others),
            "best": None,
            "epoch": 3,
            "bf16": torch.ones(2, dtype=torch.bfloat16),
        }
    )
    found = run.load()
    assert found["model"].keys() == model.state_dict().keys()
    assert found["model"]._metadata == model.state_dict()._metadata
    assert found["python"] == random.getstate()
    optimizer.load_state_dict(found["optimizer"])
    schedule.load_state_dict(found["schedule"])


@pytest.mark.parametrize(
    ("value", "name", "kind"),
    [
        (np.float64(1), r"\['x'\]", r"numpy\.float64"),
        (np.zeros(2), r"\['x'\]", r"numpy\.ndarray"),
        ({"b": [1, (2, {3})]}, r"\['x'\]\['b'\]\[1\]\[1\]", r"builtins\.set"),
        ({np.int64(1): 2}, r"a key of the state\['x'\]", r"numpy\.int64"),
        (OrderedDict(a=Path("b")), r"\['x'\]\['a'\]", "Path"),
        (torch.nn.Linear(1, 1), r"\['x'\]", r"Linear"),
    ],
)
def test_what_could_not_be_read_back_is_not_written(run, value, name, kind):
    run.save(state(1))
    with pytest.raises(TypeError, match=rf"{name} is a .*{kind}, which weights_only=True would not read"):
        run.save({"x": value})
    assert run.load()["number"] == 1


def raising(error):
    def call(*_, **__):
        raise error

    return call


class Killed(BaseException):
    pass


class Fate:
    """Let one of the steps on the disk fail, and with ``error=Killed`` all after it, as no process does any."""

    def __init__(self, monkeypatch, fatal, error=Killed):
        self.calls, self.fatal, self.error = 0, fatal, error
        for owner, name in [(os, "link"), (os, "replace"), (os, "fsync"), (Path, "unlink")]:
            monkeypatch.setattr(owner, name, self.mortal(getattr(owner, name)))
        monkeypatch.setattr(torch, "save", self.mortal(SAVE, self.half))

    def mortal(self, step, last_act=lambda *_: None):
        def act(*args, **kwargs):
            self.calls += 1
            if self.calls == self.fatal:
                last_act(*args)
            if self.calls == self.fatal or (self.calls > self.fatal and self.error is Killed):
                raise self.error
            return step(*args, **kwargs)

        return act

    @staticmethod
    def half(_, file):
        file.write(b"half a checkpoint")


def check_complete(run, last, best):
    assert RunFolder.open(run.path).load()["number"] in last
    assert number_of(run.last) in last
    assert number_of(run.best) in best
    assert number_of(run.previous) < max(last)


@pytest.mark.parametrize("fatal", range(1, 20))
def test_killed_at_any_step_the_run_goes_on(run, monkeypatch, fatal):
    for number in (1, 2):
        run.save(state(number), best=number == 1)
    with monkeypatch.context() as patch:
        fate = Fate(patch, fatal)
        with contextlib.suppress(Killed):
            run.save(state(3), best=True)
    check_complete(run, {3} if fate.calls < fatal else {2, 3}, {1, 3})
    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", lambda _, file: (Fate.half(_, file), file.flush()))
        patch.setattr(os, "fsync", raising(Killed))  # half of the next one is on the disk: the leftovers of
        with pytest.raises(Killed):  # the first crash may be linked to files in use
            run.save(state(4))
    check_complete(run, {2, 3}, {1, 3})
    run.save(state(5), best=True)
    assert (number_of(run.last), number_of(run.best), parts(run)) == (5, 5, [])


@pytest.mark.parametrize("fatal", range(1, 20))
@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_interrupted_at_any_step_it_cleans_up(run, monkeypatch, fatal, error):
    for number in (1, 2):
        run.save(state(number), best=number == 1)
    with monkeypatch.context() as patch:
        Fate(patch, fatal, error)
        with contextlib.suppress(error):
            run.save(state(3), best=True)
    check_complete(run, {2, 3}, {1, 3})
    run.save(state(4), best=True)
    assert (number_of(run.last), number_of(run.best), parts(run)) == (4, 4, [])


def save_for_ever(path, number, log):
    run = RunFolder(path)
    while True:
        number += 1
        run.save({"number": number, "weights": torch.full((100_000,), number)}, best=number % 2 == 0)
        with log.open("ab", 0) as saved:
            saved.write(b"s")


def test_sigkill_loses_no_saved_checkpoint(run, tmp_path):
    number, deaths = 0, random.Random(0)
    run.save({"number": 0, "weights": torch.zeros(100_000)}, best=True)
    for death in range(10):
        log = tmp_path / str(death)
        child = Fork(save_for_ever, run.path, number, log)
        wait_for(log)
        time.sleep(deaths.uniform(0, 0.05))
        child.kill()
        child.wait()
        saved = number + log.stat().st_size
        run = RunFolder.open(run.path)
        number = run.load()["number"]
        assert saved <= number <= saved + 1, (saved, number)
        for path in (run.last, run.previous, run.best):
            assert number - 2 <= number_of(path) <= number + 1
    assert number >= 10


def test_without_hard_links_it_copies(run, monkeypatch):
    monkeypatch.setattr(os, "link", raising(PermissionError(1, "Operation not permitted")))
    for number in (1, 2, 3):
        run.save(state(number), best=number == 2)
    assert [number_of(path) for path in (run.last, run.previous, run.best)] == [3, 2, 2]
    assert parts(run) == []


def full_disk(state, file):
    with open("/dev/full", "wb") as full:
        SAVE(state, full)


@pytest.mark.parametrize("size", [10, 10_000_000])  # found when the file is closed, and in the middle
def test_a_full_disk_is_explained_and_the_old_checkpoint_survives(run, monkeypatch, size):
    monkeypatch.setattr(torch, "save", full_disk)
    big = {"x": torch.zeros(size)}
    with pytest.raises(OSError, match=r"there is no checkpoint yet: make room and start again$"):
        run.save(big)
    monkeypatch.setattr(torch, "save", SAVE)
    run.save(state(1))
    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(
        OSError, match=r"No space left on device \(a checkpoint needs \d+ MiB; [\d,]+ MiB free\)"
    ) as info:
        run.save(big)
    assert str(info.value).endswith(f"make room and resume: octaveconv train --resume {run.path}")
    assert "\n" not in str(info.value)
    assert run.load()["number"] == 1
    assert parts(run) == []


def test_another_failure_of_the_disk_is_no_full_disk(run):
    run.save(state(1))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(OSError, match=r"File too large; .*last\.pth is unchanged: resume: ") as info:
            run.save({"x": torch.zeros(1_000_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "free" not in str(info.value)
    assert run.load()["number"] == 1


def test_an_error_of_torch_stays_one(run, monkeypatch):
    monkeypatch.setattr(torch, "save", raising(RuntimeError("CUDA error")))
    with pytest.raises(RuntimeError, match=r"^CUDA error$"):
        run.save(state(1))


def damage(path, how):
    if how == "missing":
        path.unlink()
    else:
        data = path.read_bytes()
        path.write_bytes({"empty": b"", "cut": data[: len(data) // 2], "text": b"no checkpoint"}[how])


@pytest.mark.parametrize("how", ["missing", "empty", "cut", "text"])
def test_a_damaged_checkpoint_falls_back_to_the_previous(run, capsys, how):
    for number in (1, 2):
        run.save(state(number))
    damage(run.last, how)
    assert RunFolder.open(run.path).load()["number"] == 1
    problem = {"missing": "does not exist", "empty": "cannot be read (EOFError)"}.get(how, "cannot be read (")
    error = capsys.readouterr().err
    assert error.startswith(f"octaveconv: {run.last} {problem}")
    assert error.endswith(f": resuming from {run.previous}\n")
    RunFolder.open(run.path).save(state(3))  # the damaged one must not become the previous one
    assert [number_of(path) for path in (run.last, run.previous)] == [3, 1]
    damage(run.last, "cut")
    damage(run.previous, "missing")
    with pytest.raises(
        ValueError, match=r"last\.pth cannot be read .* and .*last\.prev\.pth does not exist: there is nothing"
    ):
        run.load()


def test_a_checkpoint_with_code_in_it_is_not_run(run):
    SAVE({"x": Path("a")}, run.last)
    with pytest.raises(ValueError, match="cannot be read"):
        run.load()


# Results


def row(epoch, **others):
    return {"epoch": epoch, "train_loss": 2 / (1 + epoch), "val_loss": 1.5, "top1": 10.0 * epoch, "lr": 0.1, **others}


def test_each_epoch_has_one_row_after_any_crash(run):
    assert run.rows() == []
    run.truncate(1)
    for epoch in (1, 2, 3):
        run.append(row(epoch))
    before = run.results.read_text()
    run.truncate(3)  # the row of epoch 3 was written, its checkpoint was not
    run.append(row(3))
    run.truncate(4)  # so was its checkpoint
    assert run.results.read_text() == before
    with run.results.open("a") as file:
        file.write("4,0.4,1.5")
    run.truncate(4)
    assert run.results.read_text() == before
    assert [found["epoch"] for found in run.rows()] == ["1", "2", "3"]
    assert run.results.read_text().splitlines()[1] == "1,1,1.5,10,0.1"
    assert parts(run) == []


def test_a_cut_header_is_written_again(run):
    run.results.write_text("epoch,tra")
    run.truncate(1)
    run.append(row(1))
    assert len(run.rows()) == 1


def test_the_first_row_decides_the_columns(run):
    run.append(row(1))
    run.append(dict(reversed(row(2).items())))
    assert run.rows()[1]["epoch"] == "2"
    with pytest.raises(ValueError, match=r"has columns epoch, train_loss, .*; the row has .*, ema_top1"):
        run.append(row(3, ema_top1=1.0))
    assert len(run.rows()) == 2


def test_tensorboard(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(MissingExtra, match=r"octaveconv\[tensorboard\]"):
        RunFolder.new(run.path, "board", tensorboard=True)
    assert not (run.path / "board").exists()
    calls = []

    class SummaryWriter:
        def __init__(self, folder, purge_step):
            calls.append((folder, purge_step))

        def add_scalar(self, *args):
            calls.append(args)

        def flush(self):
            calls.append("flush")

    fake = ModuleType("torch.utils.tensorboard")
    fake.SummaryWriter = SummaryWriter
    monkeypatch.setitem(sys.modules, "tensorboard", ModuleType("tensorboard"))
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", fake)
    board = RunFolder.new(run.path, "board", tensorboard=True)
    board.append({"epoch": 5, "top1": 1.5, "note": "x"})
    assert calls == [(str(board.path / "tensorboard"), 5), ("top1", 1.5, 5), "flush"]


def test_curves(run, monkeypatch):
    assert run.curves() == []
    for epoch in (1, 2, 3):
        run.append(row(epoch, ema_top1=None if epoch == 1 else float("nan"), seconds=1.0))
    paths = run.curves()
    assert [path.name for path in paths] == ["curves.png", "curves.svg"]
    first = [path.read_bytes() for path in paths]
    assert first[0].startswith(b"\x89PNG")
    assert [path.read_bytes() for path in run.curves()] == first
    assert parts(run) == []
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingExtra, match=r"octaveconv\[plots\]"):
        run.curves()


def test_the_final_weights(run):
    weights = torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last)
    path = run.finish({"w": torch.nn.Parameter(weights)}, {"model": "oct_resnet50", "alpha": "0.5"})
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
        assert len(metadata.pop("checksum")) == 64
        assert metadata == {"format": "pt", "model": "oct_resnet50", "alpha": "0.5"}
        assert torch.equal(file.get_tensor("w"), weights)


# Progress


@pytest.fixture
def clock(monkeypatch):
    """Seconds; the test moves the hand."""

    class Clock:
        now = 100.0

    monkeypatch.setattr(_progress.time, "perf_counter", lambda: Clock.now)
    return Clock


def train(log, clock, epochs, steps, seconds):
    for epoch in range(1, epochs + 1):
        for step in range(1, steps + 1):
            clock.now += seconds
            log.step(epoch, step, torch.tensor(2.0, requires_grad=True), 0.1, 8, seconds / 4)
        log.epoch({"epoch": epoch, "train_loss": 1.234567, "top1": 50.0})


def test_a_log_has_a_line_per_tenth(capsys, clock):
    with _progress.progress(100, 2) as log:
        train(log, clock, 2, 100, 4.0)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 22
    assert lines[0].startswith("epoch 1/2  step 10/100  loss 2.0000  2 images/s  wait 25%  ")
    assert lines[0].endswith("  ETA 0:12:40  lr 0.1")
    assert lines[10] == "epoch 1/2  train_loss 1.2346  top1 50"
    assert lines[11].startswith("epoch 2/2  step 10/100  ")


@pytest.mark.parametrize(
    ("seconds", "lines"),
    [(0.01, []), (1.0, [30, 60, 90]), (60.0, [*range(5, 101, 5)])],
    ids=["short epochs have no lines", "30 seconds apart", "no five minutes of silence"],
)
def test_lines_come_neither_too_often_nor_too_rarely(capsys, clock, seconds, lines):
    with _progress.progress(100, 1) as log:
        train(log, clock, 1, 100, seconds)
    found = capsys.readouterr().out.splitlines()[:-1]
    assert [int(line.split("step ")[1].split("/")[0]) for line in found] == lines


def test_a_loss_is_read_only_when_it_is_shown(clock):
    class Unread(torch.Tensor):
        def item(self):
            raise AssertionError

    with _progress.progress(100, 1) as log:
        log.step(1, 1, torch.zeros(()).as_subclass(Unread), 0.1, 8)


def test_a_terminal_has_a_bar(monkeypatch, clock):
    console = Console(force_terminal=True, width=120, record=True)
    monkeypatch.setattr("rich._console", console)
    with _progress.progress(100, 2) as log:
        train(log, clock, 1, 100, 1.0)
    text = console.export_text()
    assert "100/100 loss 2.0000  8 images/s  wait 25%  " in text
    assert "ETA 0:01:40" in text
    assert "epoch 1/2  train_loss 1.2346  top1 50" in text


def test_quiet_shows_nothing(monkeypatch, capsys, clock):
    console = Console(force_terminal=True, record=True)
    monkeypatch.setattr("rich._console", console)
    with _progress.progress(100, 1, quiet=True) as log:
        train(log, clock, 1, 100, 60.0)
    assert console.export_text() + capsys.readouterr().out == ""


def test_without_rich_there_are_lines(monkeypatch, capsys, clock):
    monkeypatch.setitem(sys.modules, "rich.progress", None)
    with _progress.progress(10, 1) as log:
        train(log, clock, 1, 10, 60.0)
    assert len(capsys.readouterr().out.splitlines()) == 11
