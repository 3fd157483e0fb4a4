"""How many images a network names rightly: exact counts, on one process or on many."""

from __future__ import annotations

import itertools
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from . import processes
from ._modes import DTYPES, eval_mode
from .data import loading
from .data.datasets import Images, Preprocessing, Stream, Transform, preprocessing
from .errors import MissingExtra, UsageError, require

Log = Callable[[int, int], None]
COLUMNS = (  # of a results file
    "model", "alpha", "checkpoint", "data", "split", "top1", "top1_err", "top5", "top5_err", "top1_count", "top5_count",
    "images", "skipped", "param_count", "img_size", "crop_pct", "interpolation", "mean", "std", "images_per_s",
    "batch_size", "device", "dtype", "layout", "processes", "threads", "workers", "octaveconv", "torch", "timm", "cpu",
    "gpu",
)  # fmt: skip


@dataclass(frozen=True)
class Settings:
    """How to score: ``size`` in pixels overrides the network's own, ``workers`` are processes that load images."""

    size: int | None = None
    batch_size: int = 64
    device: str = "cpu"
    dtype: str = "fp32"
    channels_last: bool = True
    workers: int = 0
    skip_corrupt: bool = False

    @property
    def layout(self) -> torch.memory_format:
        """How images and weights lie in memory."""
        return torch.channels_last if self.channels_last else torch.contiguous_format


@dataclass(frozen=True)
class Score:
    """What `evaluate` found. ``top5_count`` counts the first ``k`` classes: 5, or all of them where they are fewer."""

    top1_count: int
    top5_count: int
    k: int
    images: int  # scored, without the skipped ones
    skipped: tuple[str, ...]
    announced: int | None  # by the data set; None: it does not say
    seconds: float  # of the slowest process, loading included
    processes: int
    threads: int
    settings: Settings
    preprocessing: Preprocessing

    @property
    def top1(self) -> float:
        """Percent of the scored images whose class comes first."""
        return 100 * self.top1_count / self.images

    @property
    def top5(self) -> float:
        """Percent of the scored images whose class is among the first ``k``."""
        return 100 * self.top5_count / self.images

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain data, without nesting."""
        own = asdict(self)
        settings, prepared, files = own.pop("settings"), own.pop("preprocessing"), own.pop("skipped")
        prepared["img_size"] = prepared.pop("size")
        layout = "channels_last" if settings.pop("channels_last") else "contiguous"
        del settings["size"]
        return {
            "top1": self.top1, "top1_err": 100 - self.top1, "top5": self.top5, "top5_err": 100 - self.top5, **own,
            "images_per_s": self.images / self.seconds, "skipped": len(files), "skipped_files": files,
            **settings, "layout": layout, **prepared,
        }  # fmt: skip


def evaluate(
    model: nn.Module, dataset: Images | Stream, settings: Settings = Settings(), log: Log | None = None
) -> Score:
    """Score a network on labelled images, prepared as its pretrained configuration says.

    Each of the processes of the default process group, if there is one, takes every n-th image; none is padded or
    repeated. Of equal logits the class of the lower index comes first.

    Args:
        model: a classifier ``[N, 3, H, W] -> [N, classes]``. It is moved to the device and the layout, and its modules'
            training flags are restored.
        dataset: of `octaveconv.data.datasets.open_dataset`; its own transform is not used.
        settings: see `Settings`.
        log: called on each process as ``log(images, right)`` with its own running counts after each batch.

    Returns:
        The same `Score` on every process.

    Raises:
        CorruptImage: an image cannot be read and ``skip_corrupt`` is off, or the data set is a stream.
        UsageError: the network and the data set have another number of classes, or its output is no ``[N, classes]``.
        ValueError: a label that is no class of the network.
        RuntimeError: a logit that is not finite, another number of images than the data set's, processes with different
            weights, or another process that has ended.
    """
    _check_classes(getattr(model, "num_classes", None), dataset)
    model.to(torch.device(settings.device), memory_format=settings.layout)  # type: ignore[call-overload]
    prepared = preprocessing(model, settings.size)
    start = time.perf_counter()
    with eval_mode(model):
        counts = _score_share(model, dataset, prepared.transform(), settings, log)
    seconds = time.perf_counter() - start
    shares = processes.gather({**counts, "seconds": seconds, "weights": _fingerprint(model)})
    if len({share["weights"] for share in shares}) > 1:
        raise RuntimeError("the processes hold different weights: load the same ones, or use the same seed, on each")
    score = Score(
        top1_count=sum(share["top1"] for share in shares),
        top5_count=sum(share["top5"] for share in shares),
        k=max(share["k"] for share in shares),
        images=sum(share["images"] for share in shares),
        skipped=tuple(sorted(name for share in shares for name in share["skipped"])),
        announced=dataset.announced if isinstance(dataset, Stream) else len(dataset),
        seconds=max(share["seconds"] for share in shares),
        processes=len(shares), threads=torch.get_num_threads(), settings=settings, preprocessing=prepared,
    )  # fmt: skip
    _check_complete(score, dataset.source)
    return score


@torch.inference_mode()
def _score_share(
    model: nn.Module, dataset: Images | Stream, transform: Transform, settings: Settings, log: Log | None
) -> dict[str, Any]:
    """Score this process's images; return its counts."""
    device, dtype = torch.device(settings.device), DTYPES[settings.dtype]
    counts: dict[str, Any] = {"top1": 0, "top5": 0, "k": 0, "images": 0, "skipped": []}
    batches = loading.batches(dataset, transform, settings.batch_size, settings.workers, device.type == "cuda")
    for images, labels, names, corrupt in batches:
        if corrupt and not (settings.skip_corrupt and isinstance(dataset, Images)):
            raise corrupt[0]
        counts["skipped"] += [error.file for error in corrupt]
        if not names:
            continue
        x = images.to(device, non_blocking=True).contiguous(memory_format=settings.layout)
        with (
            torch.backends.cudnn.flags(enabled=True, allow_tf32=False),  # fp32 means fp32
            torch.autocast(device.type, dtype, enabled=dtype != torch.float32),
        ):
            logits = model(x)
        place = _places(logits, labels.to(device), names)
        counts["k"] = min(5, logits.shape[1])
        counts["images"] += len(names)
        counts["top1"] += int((place < 1).sum())
        counts["top5"] += int((place < 5).sum())
        if log:
            log(counts["images"], counts["top1"])
    return counts


def _places(logits: Tensor, labels: Tensor, names: list[str]) -> Tensor:
    """How many classes come before each image's own: ``[N, classes], [N] -> [N]``."""
    if logits.ndim != 2 or len(logits) != len(names) or not logits.shape[1]:
        raise UsageError(f"a classifier gives logits [{len(names)}, classes], this network gives {[*logits.shape]}")
    classes = logits.shape[1]
    if len(wrong := ((labels < 0) | (labels >= classes)).nonzero()):
        raise ValueError(
            f"{names[wrong[0]]} has label {labels[wrong[0]].item()}, but the network has {classes} classes (0 to "
            f"{classes - 1}): give weights and images of the same classes"
        )
    if len(wrong := (~logits.isfinite().all(1)).nonzero()):
        raise RuntimeError(
            f"the network's logits for {names[wrong[0]]} are not finite: use dtype fp32 (or bf16 instead of fp16); if "
            f"it was fp32, the weights are broken"
        )
    own = logits.gather(1, labels[:, None])
    lower = torch.arange(classes, device=logits.device) < labels[:, None]
    return ((logits > own) | ((logits == own) & lower)).sum(1)


def _check_classes(known: int | None, dataset: Images | Stream) -> None:
    if known and dataset.num_classes and known != dataset.num_classes:
        raise UsageError(
            f"the network has {known} classes, {dataset.source} has {dataset.num_classes}: give weights that were "
            f"trained on these classes, or images with one folder for each class of the network"
        )


def _check_complete(score: Score, source: str) -> None:
    seen = score.images + len(score.skipped)
    if score.announced is not None and seen != score.announced:
        raise RuntimeError(
            f"{source} announces {score.announced:,} images, but {score.images:,} were scored and "
            f"{len(score.skipped):,} skipped: this is no score. A stream drops unreadable images without a word"
        )
    if not score.images:
        raise RuntimeError(f"none of the {seen:,} images of {source} could be read")


def _fingerprint(model: nn.Module) -> int:
    """A number that differs where weights differ; not computed for a process that is alone."""
    crc = 0
    if processes.world_size() > 1:
        for tensor in itertools.chain(model.parameters(), model.buffers()):
            crc = zlib.crc32(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data, crc)
    return crc


@contextmanager
def progress(dataset: Images | Stream) -> Iterator[Log | None]:
    """A live bar on a terminal, a line per tenth elsewhere; both show this process's share, and only the first's."""
    if processes.rank():
        yield None
        return
    total = None if isinstance(dataset, Stream) else -(-len(dataset) // processes.world_size())
    share = f"  (process 1 of {processes.world_size()})" if processes.world_size() > 1 else ""
    start = time.perf_counter()

    def figures(images: int, right: int) -> str:
        return f"top-1 {right / images:.2%}  {images / (time.perf_counter() - start):,.1f} images/s{share}"

    try:
        rich = require("rich.progress", "cli")
    except MissingExtra:
        rich = None
    if rich is None or not rich.get_console().is_terminal:
        yield _lines(total, figures)
        return
    columns = ("{task.description}", rich.BarColumn(), rich.MofNCompleteColumn(), "{task.fields[figures]}",
               rich.TimeElapsedColumn(), rich.TimeRemainingColumn())  # fmt: skip
    with rich.Progress(*columns) as bars:
        task = bars.add_task("eval", total=total, figures="")
        yield lambda images, right: bars.update(task, completed=images, figures=figures(images, right))


def _lines(total: int | None, figures: Callable[[int, int], str]) -> Log:
    step, printed = (total or 100_000) / 10, 0

    def log(images: int, right: int) -> None:
        nonlocal printed
        if images // step > printed:
            printed = int(images // step)
            print(f"{images:,}{f'/{total:,}' if total else ''} images  {figures(images, right)}", flush=True)

    return log


def table(score: Score) -> list[list[str]]:
    """Rows of text for `text_table`."""
    size = "" if score.announced is not None else " (size not announced)"
    return [
        ["top-1", f"{score.top1:.3f} %", f"{score.top1_count:,}"],
        [f"top-{score.k}", f"{score.top5:.3f} %", f"{score.top5_count:,}"],
        ["images", "", f"{score.images:,}{size}"],
        ["skipped", "", f"{len(score.skipped):,}"],
        ["images/s", "", f"{score.images / score.seconds:,.1f}"],
    ]


def conditions(figures: Mapping[str, Any]) -> str:
    """What a score was measured with, in one line; ``figures`` are `Score.to_dict` and the environment's."""
    height, width = figures["img_size"]
    machine = figures["gpu"] if figures["device"].startswith("cuda") else figures["cpu"]
    return (
        f"{height}x{width} pixels, {figures['interpolation']}, crop {figures['crop_pct']:g}; PyTorch "
        f"{figures['torch']}, {figures['dtype']}, {figures['layout']}, batch {figures['batch_size']}; processes: "
        f"{figures['processes']}, each with {figures['threads']} threads and {figures['workers']} loading workers; "
        f"loading included; {machine}"
    )
