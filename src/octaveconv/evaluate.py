"""How many images a network classifies correctly: exact counts, on one process or on many."""

from __future__ import annotations

import itertools
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from . import processes
from ._modes import DTYPES, LAYOUTS, eval_mode
from ._progress import eta, live
from ._text import counted
from .data import loading
from .data.datasets import Images, Preprocessing, Stream, Transform, preprocessing
from .errors import UsageError

Log = Callable[[int, int], None]
MOST = 5000  # classes in a confusion matrix
COLUMNS = (  # of a results file
    "model",
    "alpha",
    "checkpoint",
    "data",
    "split",
    "top1",
    "top1_err",
    "top5",
    "top5_err",
    "top1_count",
    "top5_count",
    "images",
    "skipped",
    "param_count",
    "img_size",
    "crop_pct",
    "interpolation",
    "mean",
    "std",
    "images_per_s",
    "batch_size",
    "device",
    "dtype",
    "layout",
    "processes",
    "threads",
    "workers",
    "octaveconv",
    "torch",
    "timm",
    "cpu",
    "gpu",
)


@dataclass(frozen=True)
class EvalSettings:
    """How to score: ``size`` in pixels overrides the network's own, ``workers`` is the number of loading processes.

    ``confusion`` counts for each class what its images are taken for.
    """

    size: int | None = None
    batch_size: int = 64
    device: str = "cpu"
    dtype: str = "fp32"
    channels_last: bool = True
    workers: int = 0
    skip_corrupt: bool = False
    confusion: bool = False

    @property
    def layout(self) -> torch.memory_format:
        """The memory layout of images and weights."""
        return LAYOUTS["channels_last" if self.channels_last else "contiguous"]


@dataclass(frozen=True)
class Score:
    """The result of `evaluate`; ``top5_count`` counts the first ``k`` classes: 5, or all if there are fewer."""

    top1_count: int
    top5_count: int
    k: int
    images: int  # that were scored
    skipped: tuple[str, ...]
    announced: int | None  # the data set's own count, if it has one
    seconds: float  # time of the slowest process, loading included
    processes: int
    threads: int
    settings: EvalSettings
    preprocessing: Preprocessing
    confusion: Tensor | None = field(
        default=None, compare=False
    )  # [classes, classes]: images of the first class that are taken for the second

    @property
    def top1(self) -> float:
        """Percent of the scored images whose class comes first."""
        return 100 * self.top1_count / self.images

    @property
    def top5(self) -> float:
        """Percent of the scored images whose class is among the first ``k``."""
        return 100 * self.top5_count / self.images

    def to_dict(self) -> dict[str, Any]:
        """The result as plain data, without nesting."""
        own = asdict(replace(self, confusion=None))
        del own["confusion"], own["settings"]["confusion"]
        settings, prepared, files = own.pop("settings"), own.pop("preprocessing"), own.pop("skipped")
        prepared["img_size"] = prepared.pop("size")
        layout = "channels_last" if settings.pop("channels_last") else "contiguous"
        del settings["size"]
        return {
            "top1": self.top1,
            "top1_err": 100 - self.top1,
            "top5": self.top5,
            "top5_err": 100 - self.top5,
            **own,
            "images_per_s": self.images / self.seconds,
            "skipped": len(files),
            "skipped_files": files,
            **settings,
            "layout": layout,
            **prepared,
        }


def evaluate(
    model: nn.Module, dataset: Images | Stream, settings: EvalSettings = EvalSettings(), log: Log | None = None
) -> Score:
    """Score a network on labeled images, prepared as its pretrained configuration says.

    If there is a default process group, each of its n processes takes every n-th image; none is padded or repeated. Of
    classes with equal logits, the one with the lower index comes first.

    Args:
        model: a classifier ``[N, 3, H, W] -> [N, classes]``. It is moved to the device and the layout; its modules'
            training flags are restored.
        dataset: what `octaveconv.data.open_dataset` returns; its own transform is not used.
        settings: see `EvalSettings`.
        log: called on each process as ``log(images, correct)`` with its own running counts after each batch.

    Returns:
        The same `Score` on every process.

    Raises:
        CorruptImage: an image cannot be read, and ``skip_corrupt`` is off or the data set is a stream.
        UsageError: the network and the data set differ in their number of classes, or the output is not
            ``[N, classes]``.
        ValueError: a label is not a class of the network.
        RuntimeError: a logit is not finite, the number of images is not the data set's, the processes have different
            weights, or another process has ended.
    """
    check_classes(model, dataset)
    model.to(torch.device(settings.device), memory_format=settings.layout)  # type: ignore[call-overload]
    prepared = preprocessing(model, settings.size)
    start = time.perf_counter()
    with eval_mode(model):
        counts = _score_share(model, dataset, prepared.transform(), settings, log)
    seconds = time.perf_counter() - start
    shares = processes.gather({**counts, "seconds": seconds, "weights": _fingerprint(model)})
    if len({share["weights"] for share in shares}) > 1:
        raise RuntimeError("the processes have different weights: load the same ones, or use the same seed, on each")
    score = Score(
        top1_count=sum(share["top1"] for share in shares),
        top5_count=sum(share["top5"] for share in shares),
        k=max(share["k"] for share in shares),
        images=sum(share["images"] for share in shares),
        skipped=tuple(sorted(name for share in shares for name in share["skipped"])),
        announced=dataset.announced if isinstance(dataset, Stream) else len(dataset),
        seconds=max(share["seconds"] for share in shares),
        processes=len(shares),
        threads=torch.get_num_threads(),
        settings=settings,
        preprocessing=prepared,
        confusion=sum(share["confusion"] for share in shares) if settings.confusion else None,
    )
    _check_complete(score, dataset.source)
    return score


@torch.inference_mode()
def _score_share(
    model: nn.Module, dataset: Images | Stream, transform: Transform, settings: EvalSettings, log: Log | None
) -> dict[str, Any]:
    """Score this process's images; return its counts."""
    device = torch.device(settings.device)
    counts: dict[str, Any] = {"top1": 0, "top5": 0, "k": 0, "images": 0, "skipped": [], "confusion": 0}
    batches = loading.batches(dataset, transform, settings.batch_size, settings.workers, device.type == "cuda")
    for images, labels, names, corrupt in batches:
        if corrupt and not (settings.skip_corrupt and isinstance(dataset, Images)):
            raise corrupt[0]
        counts["skipped"] += [error.file for error in corrupt]
        if not names:
            continue
        logits = logits_of(model, images, names, settings)
        place = _places(logits, labels.to(device), names)
        counts["k"] = min(5, logits.shape[1])
        counts["images"] += len(names)
        counts["top1"] += int((place < 1).sum())
        counts["top5"] += int((place < 5).sum())
        if settings.confusion:
            counts["confusion"] += _confusion(logits, labels.to(device)).cpu()
        if log:
            log(counts["images"], counts["top1"])
    return counts


def logits_of(model: nn.Module, images: Tensor, names: list[str], settings: EvalSettings) -> Tensor:
    """The logits ``[N, classes]`` of a network that is on the settings' device, in evaluation mode.

    Args:
        model: the network.
        images: ``[N, C, H, W]``, prepared for it, on the CPU.
        names: of the images, for messages.
        settings: where to compute, in which precision and layout.

    Raises:
        UsageError: the output is not ``[N, classes]``.
        RuntimeError: a logit is not finite.
    """
    device, dtype = torch.device(settings.device), DTYPES[settings.dtype]
    x = images.to(device, non_blocking=True).contiguous(memory_format=settings.layout)
    with (
        torch.backends.cudnn.flags(enabled=True, allow_tf32=False),  # fp32 means fp32
        torch.autocast(device.type, dtype, enabled=dtype != torch.float32),
    ):
        logits: Tensor = model(x)
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != len(names) or not logits.shape[1]:
        found = [*logits.shape] if isinstance(logits, Tensor) else f"a {type(logits).__name__}"
        raise UsageError(f"a classifier outputs logits [{len(names)}, classes], this network outputs {found}")
    if len(wrong := (~logits.isfinite().all(1)).nonzero()):
        raise RuntimeError(
            f"the network's logits for {names[wrong[0]]} are not finite: use dtype fp32 (or bf16 instead of fp16); if "
            f"it was fp32, the weights are damaged"
        )
    return logits


def _places(logits: Tensor, labels: Tensor, names: list[str]) -> Tensor:
    """The number of classes that come before each image's own: ``[N, classes], [N] -> [N]``."""
    classes = logits.shape[1]
    if len(wrong := ((labels < 0) | (labels >= classes)).nonzero()):
        raise ValueError(
            f"{names[wrong[0]]} has label {labels[wrong[0]].item()}, but the network has {classes} classes (0 to "
            f"{classes - 1}): use weights and images of the same classes"
        )
    own = logits.gather(1, labels[:, None])
    lower = torch.arange(classes, device=logits.device) < labels[:, None]
    return ((logits > own) | ((logits == own) & lower)).sum(1)


def _confusion(logits: Tensor, labels: Tensor) -> Tensor:
    """How many images of each class are taken for which: ``[N, classes], [N] -> [classes, classes]``."""
    classes = logits.shape[1]
    if classes > MOST:
        raise UsageError(f"a confusion matrix is for at most {MOST:,} classes, the network has {classes:,}: omit it")
    numbers = torch.arange(classes, device=logits.device)
    first = numbers.where(logits == logits.amax(1, keepdim=True), classes).amin(1)  # of equal logits, as in `_places`
    return (labels * classes + first).bincount(minlength=classes**2).view(classes, classes)


def per_class(score: Score, names: Sequence[str]) -> list[list[str]]:
    """Rows of text: each class, how many images it has, how many are classified correctly, what others are taken for.

    Args:
        score: one with ``confusion``.
        names: of the classes, or none.
    """
    assert score.confusion is not None
    rows = [["class", "images", "correct", "accuracy", "most often taken for"]]
    for number, counts in enumerate(score.confusion.tolist()):
        images, correct = sum(counts), counts[number]
        accuracy = f"{correct / images:.2%}" if images else ""
        counts[number] = 0
        other = counts.index(max(counts))
        taken = f"{names[other] if names else other}: {counts[other]:,}" if counts[other] else ""
        rows.append([names[number] if names else str(number), f"{images:,}", f"{correct:,}", accuracy, taken])
    return rows


def renamed(model: nn.Module, dataset: Images | Stream) -> bool:
    """Whether the network and a data set call their classes differently."""
    ours, theirs = label_names(model), dataset.classes
    return bool(ours and theirs) and ours != theirs


def label_names(model: nn.Module) -> list[str]:
    """The names of a network's classes, in order; none if it does not know them."""
    return [*((getattr(model, "pretrained_cfg", None) or {}).get("label_names") or ())]


def check_classes(model: nn.Module, dataset: Images | Stream) -> None:
    """Raise UsageError if the classes of a data set are not those of the network."""
    known = getattr(model, "num_classes", None)
    if known and dataset.num_classes and known != dataset.num_classes:
        raise UsageError(
            f"the network has {known} classes, {dataset.source} has {dataset.num_classes}: use weights that were "
            f"trained on these classes, or images with one folder for each class of the network"
        )
    ours, theirs = label_names(model), dataset.classes or []
    if renamed(model, dataset) and {*ours} & {*theirs}:  # shifted, so that an image would count for another class
        number = next(i for i, pair in enumerate(zip(ours, theirs)) if pair[0] != pair[1])
        raise UsageError(
            f"class {number} of the network is {ours[number]!r}, of {dataset.source} {theirs[number]!r}: use images "
            f"with a folder for each class of the network, named like it"
        )


def _check_complete(score: Score, source: str) -> None:
    seen = score.images + len(score.skipped)
    if score.announced is not None and seen != score.announced:
        raise RuntimeError(
            f"{source} announces {score.announced:,} images, but {score.images:,} were scored and "
            f"{len(score.skipped):,} skipped, so there is no exact score: a stream drops unreadable images silently"
        )
    if not score.images:
        raise RuntimeError(f"none of the {seen:,} images of {source} could be read")


def _fingerprint(model: nn.Module) -> int:
    """A number that differs if weights differ; 0 if there is only one process."""
    crc = 0
    if processes.world_size() > 1:
        for tensor in itertools.chain(model.parameters(), model.buffers()):
            crc = zlib.crc32(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data, crc)
    return crc


@contextmanager
def progress(dataset: Images | Stream) -> Iterator[Log | None]:
    """On the first process, its progress: a live bar on a terminal, elsewhere a line per tenth."""
    if processes.rank():
        yield None
        return
    total = None if isinstance(dataset, Stream) else -(-len(dataset) // processes.world_size())
    share = f"(process 1 of {processes.world_size()})" if processes.world_size() > 1 else ""
    start = time.perf_counter()

    def figures(images: int, correct: int) -> str:
        seconds = time.perf_counter() - start
        counts = f"top-1 {correct / images:.2%}  {images / seconds:,.1f} images/s"
        return "  ".join(filter(None, [counts, eta(images, total, seconds), share]))

    with live() as bars:
        if bars is None:
            yield _lines(total, figures)
            return
        task = bars.add_task("eval", total=total, figures="")
        yield lambda images, correct: bars.update(task, completed=images, figures=figures(images, correct))


def _lines(total: int | None, figures: Callable[[int, int], str]) -> Log:
    step, printed = (total or 100_000) / 10, 0

    def log(images: int, correct: int) -> None:
        nonlocal printed
        if images // step > printed:
            printed = int(images // step)
            print(f"{images:,}{f'/{total:,}' if total else ''} images  {figures(images, correct)}", flush=True)

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
    """The conditions of a score, in one line; ``figures`` are those of `Score.to_dict` and of the environment."""
    height, width = figures["img_size"]
    machine = figures["gpu"] if figures["device"].startswith("cuda") else figures["cpu"]
    return (
        f"{height}x{width} pixels, {figures['interpolation']}, crop {figures['crop_pct']:g}; PyTorch "
        f"{figures['torch']}, {figures['dtype']}, {figures['layout']}, batch {figures['batch_size']}; processes: "
        f"{figures['processes']}, each with {counted(figures['threads'], 'thread')} and "
        f"{counted(figures['workers'], 'loading worker')}; "
        f"loading included; {machine}"
    )
