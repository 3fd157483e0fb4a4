"""Training: a short loop between timm's parts and PyTorch's processes.

A run is a function of its recipe. Random numbers depend on (seed, step) or (seed, epoch, image) alone, the learning
rate on the step; so a checkpoint consists of weights, averaged weights, the states of optimizer and scaler, and the
position in the run. A run that is resumed on the CPU, even from the middle of an epoch, ends bit-identical.
"""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from timm.data import Mixup
from timm.optim import create_optimizer_v2
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from .. import evaluate, processes
from .._modes import DTYPES
from .._text import counted, one_line, say
from ..about import About
from ..data import loading
from ..data.augment import STREAMS, generators_kept, seed_generators, train_transform, training_batches
from ..data.datasets import Images, Stream, open_dataset, preprocessing
from ..errors import MissingExtra, Stopped, UsageError, raise_together
from ..weights import Weights
from .check import complaints, unit
from .defaults import settle
from .folder import RunFolder
from .network import network, norms
from .progress import progress
from .recipe import Recipe


class Training:
    """One run: network, data, optimizer, and position (``epoch``, and ``step`` within it).

    Attributes:
        recipe: what it does, without open fields.
        chosen: what of that was chosen for the number of images, in words.
        workers: processes that load images.

    Args:
        recipe: see `Recipe`; `defaults.settle` says how open fields are chosen.
        device: ``cpu`` or ``cuda``, or one GPU such as ``cuda:1``.
        start: weights in place of the recipe's checkpoint, which a run that is resumed does not need again.

    Raises:
        UsageError: the recipe names a network, data or a batch that cannot be; the message lists all that is wrong.
        ValueError, OSError: the weights to start from cannot be read, or do not fit.
    """

    def __init__(self, recipe: Recipe, device: str, start: Weights | None = None) -> None:
        self.device = torch.device(device)
        raise_together(complaints(recipe, device, start))
        self.train_set, self.val_set = _data(recipe)
        count = len(self.train_set)
        self.recipe, self.chosen = settle(recipe, count, unit(recipe))
        recipe = self.recipe
        if recipe.batch_size > count:
            raise UsageError(
                f"batch_size {recipe.batch_size} is more than the {count} training images: lower or omit it"
            )
        self.steps = count // recipe.batch_size  # of an epoch
        self.workers = loading.worker_count(recipe.workers)
        self.model: Any = network(recipe, _num_classes(recipe, self.train_set), self.train_set.classes, start)
        self.about = About.of(self.model, recipe.model).metadata()
        evaluate.check_classes(self.model, self.val_set)
        self.model.to(self.device, memory_format=torch.channels_last)
        self.optimizer = create_optimizer_v2(
            self.model,
            opt=recipe.opt,
            lr=recipe.scaled_lr(),
            weight_decay=recipe.weight_decay,
            momentum=recipe.momentum,
            filter_bias_and_bn=not recipe.decay_norms,
            layer_decay=recipe.layer_decay if recipe.layer_decay != 1 else None,
        )
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=recipe.dtype == "fp16")
        self.ema = ModelEmaV3(self.model, decay=recipe.ema) if recipe.ema else None
        self.parallel: Any = self._wrapped()
        self.epoch = self.step = 0
        self.best = -1.0
        self.loss_sum = 0.0
        self.skipped: dict[str, str] = {}  # damaged images, with the reason
        self.told: set[str] = set()  # those of them that were printed

    def _wrapped(self) -> nn.Module:
        """What is called in a training step: compiled, and averaging gradients over processes."""
        called: nn.Module = self.model
        if self.recipe.compile:
            called = torch.compile(called)  # type: ignore[assignment]
        if processes.world_size() > 1:
            called = DistributedDataParallel(called, device_ids=[self.device] if self.device.type == "cuda" else None)
        return called

    def state(self) -> dict[str, Any]:
        """All that `restore` needs; `torch.load` reads it with ``weights_only=True``."""
        return {
            "model": self.model.state_dict(),
            "ema": self.ema.module.state_dict() if self.ema else None,
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "epoch": self.epoch,
            "step": self.step,
            "best": self.best,
            "loss_sum": self.loss_sum,
            "recipe": self.recipe.to_dict(),
            "about": self.about,
            "streams": STREAMS,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Take over the state of a run with the same recipe.

        Raises:
            UsageError: a version of octaveconv with other random streams wrote it, or it is another run's.
        """
        if state.get("streams") != STREAMS:
            raise UsageError(
                "this run was started by another version of octaveconv, in which the same seed gives another order and "
                "augmentation: finish it with that version (env.json names it), start again, or give its last.pth "
                "as the checkpoint of a new run"
            )
        try:
            self._restore(state)
        except Exception as error:  # PyTorch raises anything about a state that is not what it should be
            problem = f"{type(error).__name__}: {one_line(error)}"
            raise UsageError(f"the checkpoint does not fit this run ({problem}): are its data the same?") from error

    def _restore(self, state: Mapping[str, Any]) -> None:
        epoch, step = state["epoch"], state["step"]
        if not all(type(count) is int and count >= 0 for count in (epoch, step)) or step > self.steps:
            raise ValueError(f"it is in epoch {epoch!r}, step {step!r} of {self.steps}")
        self.best, self.loss_sum = float(state["best"]), float(state["loss_sum"])
        self.model.load_state_dict(state["model"])
        if self.ema:
            self.ema.module.load_state_dict(state["ema"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.epoch, self.step = epoch, step

    def learning_rate(self) -> float:
        """The learning rate of this step: a linear warm-up, then a cosine to 0."""
        done, warm = self.epoch * self.steps + self.step, self.recipe.warmup_epochs * self.steps
        total = self.recipe.epochs * self.steps
        if done < warm:
            return self.recipe.scaled_lr() * (done + 1) / warm
        return self.recipe.scaled_lr() * 0.5 * (1 + math.cos(math.pi * (done - warm) / max(total - warm, 1)))

    def batches(self) -> Any:
        """The rest of this epoch's training batches."""
        recipe, prepared = self.recipe, preprocessing(self.model)
        transform = train_transform(
            recipe.size,
            recipe.crop,
            recipe.crop_area,
            recipe.color_jitter,
            recipe.lighting,
            prepared.interpolation,
            prepared.mean,
            prepared.std,
        )
        return training_batches(
            self.train_set,
            transform,
            seed=recipe.seed,
            epoch=self.epoch,
            start=self.step,
            batch_size=recipe.batch_size,
            parts=recipe.accumulate,
            workers=self.workers,
            pin_memory=self.device.type == "cuda",
            skipped=self.skipped if recipe.skip_corrupt else None,
        )

    def train_step(self, parts: list[tuple[Tensor, Tensor, Tensor]]) -> float:
        """One step of the optimizer on the batches of that step; returns this process's mean loss."""
        recipe, lr = self.recipe, self.learning_rate()
        self.parallel.train()
        if recipe.freeze_bn:
            for norm in norms(self.model):
                norm.eval()
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group.get("lr_scale", 1.0)
        total = torch.zeros((), device=self.device)
        with generators_kept():
            seed_generators(recipe.seed, self.epoch, self.step, processes.rank())  # for dropout and mixup
            for i, (images, labels, _) in enumerate(parts):
                is_last = i == len(parts) - 1
                waits = isinstance(self.parallel, DistributedDataParallel) and not is_last
                with self.parallel.no_sync() if waits else nullcontext():
                    loss = self._loss(images, labels) / len(parts)
                    self.scaler.scale(loss).backward()
                total += loss.detach()
        self.scaler.unscale_(self.optimizer)
        if recipe.clip_grad:
            nn.utils.clip_grad_norm_(self.model.parameters(), recipe.clip_grad)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        if self.ema:
            self.ema.update(self.model)
        return float(total)

    def _loss(self, images: Tensor, labels: Tensor) -> Tensor:
        recipe = self.recipe
        x = images.to(self.device, non_blocking=True).contiguous(memory_format=torch.channels_last)
        y = labels.to(self.device, non_blocking=True)
        smoothing = recipe.label_smoothing
        if (recipe.mixup or recipe.cutmix) and self.epoch < recipe.epochs - recipe.mix_off_epochs:
            mix = Mixup(recipe.mixup, recipe.cutmix, label_smoothing=smoothing, num_classes=self.model.num_classes)
            (x, y), smoothing = mix(x, y), 0.0
        dtype = DTYPES[recipe.dtype]
        with torch.autocast(self.device.type, dtype, enabled=dtype != torch.float32):
            logits = self.parallel(x)
        return F.cross_entropy(logits.float(), y, label_smoothing=smoothing)

    def validate(self, model: nn.Module) -> evaluate.Score:
        """Score a network exactly, over all processes."""
        for buffer in model.buffers() if processes.world_size() > 1 else ():
            dist.broadcast(buffer, 0)  # statistics are of each process's own images: take the first's
        settings = evaluate.EvalSettings(
            None,
            max(1, self.recipe.batch_size // processes.world_size() // self.recipe.accumulate),
            str(self.device),
            self.recipe.dtype,
            workers=self.workers,
            skip_corrupt=self.recipe.skip_corrupt,
        )
        score = evaluate.evaluate(model, self.val_set, settings)
        self.skipped |= dict.fromkeys(score.skipped, "not scored")
        return score

    def tell_skipped(self) -> None:
        """Print the damaged images that were not printed before."""
        shares = processes.gather(self.skipped) if self.recipe.skip_corrupt else []
        self.skipped |= {name: reason for share in shares for name, reason in share.items()}
        found = sorted(self.skipped.keys() - self.told)
        self.told |= {*found}
        if found and processes.rank() == 0:
            say(
                f"skipped {counted(len(found), 'damaged image')}, {len(self.told):,} so far; in training, others take "
                f"their place:",
                *(f"  {name}: {self.skipped[name]}" for name in found),
            )


def train(training: Training, folder: RunFolder | None) -> dict[str, Any]:
    """Train to the recipe's last epoch, and keep the run in ``folder``.

    Args:
        training: a new run, or one whose state was restored.
        folder: on the first process where the run is kept, or None for nowhere; None on all others.

    Returns:
        The last epoch's row of results.csv; nothing if the run was finished before.

    Raises:
        Stopped: by Ctrl-C or SIGTERM, after saving.
        RuntimeError: the loss is not finite; the message names step, learning rate and images.
        OSError: a checkpoint cannot be written; the one before it is still there.
    """
    row: dict[str, Any] = {}
    quiet = processes.rank() > 0
    with _stop_signals() as asked, progress(training.steps, training.recipe.epochs, quiet=quiet) as log:
        while training.epoch < training.recipe.epochs:
            start = time.perf_counter()
            images, waited = _train_epoch(training, folder, asked, log)
            row, is_best = _finish_epoch(training, folder, images, waited, time.perf_counter() - start)
            log.epoch(row)
            _save(training, folder, is_best)
    if folder is not None:
        best = training.ema.module if training.ema else training.model
        folder.finish(best.state_dict(), training.about)
        try:
            folder.curves()
        except MissingExtra as error:
            say(f"no curves: {error}")
    return row | ({"skipped": len(training.told)} if training.recipe.skip_corrupt else {})


def _train_epoch(training: Training, folder: RunFolder | None, asked: list[int], log: Any) -> tuple[int, float]:
    """Train the rest of an epoch; returns the number of images, and the seconds waited for them."""
    recipe, images, waited = training.recipe, 0, 0.0
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    step_waited, before = 0.0, time.perf_counter()
    for batch in training.batches():
        step_waited += time.perf_counter() - before
        parts.append(batch)
        if len(parts) == recipe.accumulate:
            lr = training.learning_rate()
            loss = training.train_step(parts)
            loss, stop = _agree(loss, bool(asked))
            if not math.isfinite(loss):
                raise RuntimeError(_not_finite(training, loss, lr, parts))
            training.loss_sum += loss
            training.step += 1
            images += recipe.batch_size
            log.step(training.epoch + 1, training.step, loss, lr, recipe.batch_size, step_waited)
            parts, waited, step_waited = [], waited + step_waited, 0.0
            if stop or (training.step % recipe.save_steps == 0 and training.step < training.steps):
                _save(training, folder, best=False)
            if stop:
                raise Stopped(f"stopped in epoch {training.epoch + 1}, step {training.step} of {training.steps}")
        before = time.perf_counter()
    return images, waited


def _finish_epoch(
    training: Training, folder: RunFolder | None, images: int, waited: float, seconds: float
) -> tuple[dict[str, Any], bool]:
    """Validate, write the epoch's row, and advance to the next; returns the row, and whether it is the best."""
    score = training.validate(training.model)
    row = {
        "epoch": training.epoch + 1,
        "lr": training.learning_rate(),
        "train_loss": training.loss_sum / training.steps,
        "top1": score.top1,
        "top5": score.top5,
        "images_per_s": images / seconds,
        "data_wait": waited / seconds,
    }
    if training.ema:
        row["ema_top1"] = training.validate(training.ema.module).top1
    training.tell_skipped()
    top1 = row.get("ema_top1", row["top1"])
    is_best, training.best = top1 > training.best, max(training.best, top1)
    training.epoch, training.step, training.loss_sum = training.epoch + 1, 0, 0.0
    if folder is not None:
        folder.append(row)
    return row, is_best


def _save(training: Training, folder: RunFolder | None, best: bool) -> None:
    if folder is not None:
        folder.save(training.state(), best)


def _agree(loss: float, stop: bool) -> tuple[float, bool]:
    """The mean loss, and whether any process was asked to stop: the same on all of them."""
    if processes.world_size() == 1:
        return loss, stop
    both = torch.tensor([loss, float(stop)], dtype=torch.float64)
    dist.all_reduce(both)  # through gloo, also beside NCCL
    return float(both[0]) / processes.world_size(), bool(both[1])


def _not_finite(training: Training, loss: float, lr: float, parts: list[tuple[Tensor, Tensor, Tensor]]) -> str:
    names = [training.train_set.filename(int(i)) for i in parts[0][2][:3]]
    return (
        f"the loss is {loss} in epoch {training.epoch + 1}, step {training.step + 1}, at learning rate {lr:g} (images "
        f"{', '.join(names)} ...): lower lr, clip the gradient (clip_grad), or use bf16 instead of fp16"
    )


@contextmanager
def _stop_signals() -> Iterator[list[int]]:
    """The signals that asked to stop: the step is finished first, but a second Ctrl-C stops at once."""
    asked: list[int] = []

    def note(number: int, frame: Any) -> None:
        if asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        asked.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _data(recipe: Recipe) -> tuple[Images, Images | Stream]:
    has_parts = not recipe.data.endswith(".rec") and not recipe.val_data
    train_set = open_dataset(recipe.data, "train" if has_parts else None)
    if isinstance(train_set, Stream):
        raise UsageError(
            f"{recipe.data} is a stream, in which a run cannot be resumed where it stopped: unpack it to a folder"
        )
    return train_set, open_dataset(recipe.val_data or recipe.data, classes=train_set.classes)


def _num_classes(recipe: Recipe, train_set: Images) -> int:
    """The data's number of classes, or the recipe's where the data do not say."""
    if train_set.num_classes and recipe.num_classes not in (0, train_set.num_classes):
        raise UsageError(
            f"{train_set.source} has {train_set.num_classes} classes, but num_classes is {recipe.num_classes}: omit it"
        )
    return train_set.num_classes or recipe.num_classes
