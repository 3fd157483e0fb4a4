"""The first thing to run: train a small octave network and its dense twin side by side on real scans of digits.

Both start from the same weights, as an octave layer holds the weight of its dense twin, and see the same batches.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import _figure, _page, env
from ._modes import threads
from ._progress import live
from ._text import counted
from .bench.deployed import busy, latencies
from .cost import cost
from .errors import MissingExtra, require
from .look import look, maps
from .models import OctResNetV2

LATENCY_BATCHES = (1, 64)
SECONDS = 6.0  # of timing for each batch size, at most
WAYS = {"deployed": "deployed", "latency": "eager"}
NEXT = (
    "octaveconv train oct_resnet18 --data MY_FOLDER      # your own images: MY_FOLDER/train/CLASS/*.jpg",
    "octaveconv predict RUN_OR_FILE photo.jpg            # what a trained network sees",
    "octaveconv octavify resnet50 --out oct.safetensors  # a network that you have, as an octave network",
    "octaveconv choose oct_resnet50 --macs 0.7           # which alpha, by times on this machine",
    "octaveconv look oct_resnet18 photo.jpg              # the high and the low maps of every layer",
)
HELD_OUT = 360  # of 1,797 images
NETS = ("octave", "dense")
Data = dict[str, tuple[Tensor, Tensor]]
Log = Callable[[str, int, dict[str, float]], None]


@dataclass(frozen=True)
class QuickstartSettings:
    """How to train: the same settings give the same accuracies on the same CPU."""

    alpha: float = 0.5
    epochs: int = 8
    batch_size: int = 64
    lr: float = 0.1
    seed: int = 0
    width: int = 16
    threads: int = field(default_factory=torch.get_num_threads)


def run(
    settings: QuickstartSettings = QuickstartSettings(),
    log: Log | None = None,
    say: Callable[[str], None] = lambda line: None,
    page: Path | None = None,
) -> dict[str, Any]:
    """Train, test, deploy and measure both networks.

    Args:
        settings: see `QuickstartSettings`.
        log: called as ``log(net, epoch, figures)`` after each epoch of each network.
        say: called with a line of text about what comes next.
        page: an HTML file to write, which shows all of it.

    Returns:
        Plain data: ``settings``, ``env``, and for each network its accuracy, cost and curves, and its latencies in
        eager PyTorch (``latency``) and deployed (``deployed``).

    Raises:
        MissingExtra: scikit-learn, which brings the images, is not installed.
    """
    data = load_digits(settings.seed)
    with threads(settings.threads):
        nets = {name: make_net(settings, settings.alpha if name == "octave" else 0.0) for name in NETS}
        curves = {name: list[dict[str, float]]() for name in NETS}
        trainings = {name: _train(net, data, settings) for name, net in nets.items()}
        for epoch in range(1, settings.epochs + 1):
            for name, training in trainings.items():
                curves[name].append(next(training))
                if log:
                    log(name, epoch, curves[name][-1])
        shapes = [(batch, 1, 32, 32) for batch in LATENCY_BATCHES]
        times = latencies(nets, shapes, limit=SECONDS, say=say)
    figures = {}
    for name, net in nets.items():
        report = cost(net, input_size=(1, 32, 32))
        figures[name] = {
            "accuracy": curves[name][-1]["accuracy"],
            "params": report.params,
            "macs": report.macs,
            "activation_bytes": report.activation_bytes,
            "latency": times[name]["eager"],
            "deployed": times[name]["deployed"],
            "curves": curves[name],
        }
    result = {"settings": asdict(settings), "env": env.facts(), **figures}
    if page:
        _page.save(page, html(result, nets, data["test"][0][:1]))
    return result


def load_digits(seed: int = 0) -> Data:
    """scikit-learn's 1,797 scans of 8x8 pixels, upsampled to 32x32; ``seed`` chooses 1,437 to train on, 360 to test."""
    digits = require("sklearn.datasets", "demo").load_digits()
    images = torch.from_numpy(digits.images).float()[:, None] / 16  # [1797, 1, 8, 8] in 0 ... 1
    images = F.interpolate(images, size=(32, 32), mode="bilinear", align_corners=False)
    labels = torch.from_numpy(digits.target)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    held_out, train = order[:HELD_OUT], order[HELD_OUT:]
    images = (images - images[train].mean()) / images[train].std()
    return {"train": (images[train], labels[train]), "test": (images[held_out], labels[held_out])}


def make_net(settings: QuickstartSettings, alpha: float) -> nn.Module:
    """A pre-activation residual network of four bottleneck blocks; one seed gives the same weights at every alpha."""
    torch.manual_seed(settings.seed)
    net = OctResNetV2((1, 1, 1, 1), alpha=alpha, width=settings.width, stem="3x3", num_classes=10, in_chans=1)
    return net.to(memory_format=torch.channels_last)


def _train(net: nn.Module, data: Data, settings: QuickstartSettings) -> Iterator[dict[str, float]]:
    """Train one epoch at each ``next``; yield the training loss and the accuracy on the held-out images."""
    images, labels = data["train"]
    generator = torch.Generator().manual_seed(settings.seed)
    optimizer = torch.optim.SGD(net.parameters(), settings.lr, momentum=0.9, nesterov=True, weight_decay=1e-4)
    steps = math.ceil(len(labels) / settings.batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, settings.lr, total_steps=steps * settings.epochs)
    for _ in range(settings.epochs):
        net.train()
        total = 0.0
        for batch in torch.randperm(len(labels), generator=generator).split(settings.batch_size):
            x = images[batch].contiguous(memory_format=torch.channels_last)
            loss = F.cross_entropy(net(x), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item() * len(batch)
        yield {"loss": total / len(labels), "accuracy": _accuracy(net, *data["test"])}


@torch.no_grad()
def _accuracy(net: nn.Module, images: Tensor, labels: Tensor) -> float:
    net.eval()
    right = sum(int((net(x).argmax(1) == y).sum()) for x, y in zip(images.split(120), labels.split(120)))
    return right / len(labels)


def table(result: dict[str, Any]) -> list[list[str]]:
    """Rows of text: each figure for both networks, and the ratio dense / octave (above 1, octave is cheaper)."""
    octave, dense = result["octave"], result["dense"]
    difference = (octave["accuracy"] - dense["accuracy"]) * 100
    rows = [
        ["", f"octave {result['settings']['alpha']:g}", "dense", "dense / octave"],
        ["test accuracy", f"{octave['accuracy']:.2%}", f"{dense['accuracy']:.2%}", f"{difference:+.2f} points"],
    ]

    def row(name: str, text: str, one: float, other: float) -> None:
        rows.append([name, text.format(one), text.format(other), f"{other / one:.2f}"])

    row("parameters", "{:,}", octave["params"], dense["params"])
    row("multiply-adds", "{:,}", octave["macs"], dense["macs"])
    row("activation bytes", "{:,}", octave["activation_bytes"], dense["activation_bytes"])
    for way, name in WAYS.items():
        for batch in octave.get(way, ()):
            one, other = (result[net][way][batch]["median"] * 1e3 for net in NETS)
            row(f"{name}, batch {batch}", "{:.2f} ms", one, other)
    return rows


def verdict(result: dict[str, Any]) -> str:
    """Which network is faster, and which is more accurate: a sentence each."""
    theory = result["dense"]["macs"] / result["octave"]["macs"]
    sentences = [f"A ratio above 1 favors octave; its multiply-adds allow {theory:.2f}."]
    for way in WAYS:
        for batch in result["octave"].get(way, ()):
            ratio = result["dense"][way][batch]["median"] / result["octave"][way][batch]["median"]
            which = f"is {ratio:.2f} times as fast as" if ratio >= 1 else f"takes {1 / ratio:.2f} times as long as"
            where = "Deployed" if way == "deployed" else "In eager PyTorch"
            sentences.append(f"{where}, at batch {batch}, the octave network {which} its dense twin.")
    wrong = [round((1 - result[name]["accuracy"]) * HELD_OUT) for name in NETS]
    sentences.append(
        f"Of {HELD_OUT} held-out images the octave network gets {wrong[0]} wrong, the dense one {wrong[1]}."
    )
    return " ".join(sentences)


def disturbed(result: dict[str, Any]) -> str:
    """A sentence if the machine was busy while the networks were timed; otherwise nothing."""
    return busy([one for name in NETS for way in WAYS for one in result[name].get(way, {}).values()])


def conditions(result: dict[str, Any]) -> str:
    """What the figures were measured with, in one line."""
    facts, settings = result["env"], result["settings"]
    engines = sorted({one["engine"] for name in NETS for one in result[name].get("deployed", {}).values()})
    deployed = f"; deployed by octaveconv.deploy ({', '.join(engines)} engine)" if engines else ""
    return (
        f"PyTorch {facts['torch']}, float32, {counted(settings['threads'], 'thread')}, {facts['cpu']}; medians "
        f"of interleaved runs, in eager PyTorch each network in its faster memory layout{deployed}; "
        f"{counted(settings['epochs'], 'epoch')}, seed {settings['seed']}"
    )


def plot(result: dict[str, Any], path: Path) -> None:
    """Draw loss and accuracy over the epochs, and what octave saves, into a .png or .svg file.

    Raises:
        MissingExtra: matplotlib is not installed.
        UsageError: the file's name has another ending.
    """
    _figure.save(_draw(result), path)


def html(result: dict[str, Any], nets: dict[str, nn.Module], image: Tensor) -> str:
    """The page: the verdict, the table, the curves, and the octave network's maps of an ``image`` ``[1, 1, H, W]``."""
    try:
        curves = _page.figure(_draw(result), "training loss, test accuracy, and what octave saves")
    except MissingExtra as error:
        curves = _page.paragraph(f"No curves: {error}", "note")
    seen = [layer for layer in look(nets["octave"], image) if layer.channels[1]]
    chosen = [seen[len(seen) // 4], seen[3 * len(seen) // 4]] if seen else []  # a tiny alpha may leave no low channel
    gray = ((image[0, 0] - image.min()) / (image.max() - image.min()) * 255).byte().numpy()
    with torch.no_grad():
        answers = ", ".join(f"{name} {net.eval()(image).argmax().item()}" for name, net in nets.items())
    return _page.page(
        "Octave and dense, trained side by side",
        _page.paragraph(
            f"A small network with {result['settings']['alpha']:.0%} of its channels at half resolution, and its dense "
            f"twin, from the same weights on the same scans of digits. Not a benchmark of accuracy: digits are easy."
        ),
        _page.table(table(result), "figures"),
        *(_page.paragraph(text) for text in (disturbed(result), verdict(result)) if text),
        curves,
        _page.heading("What the high and the low maps hold"),
        _page.caption(_page.image(gray, "the image", 96), f"A held-out scan. The answers: {answers}."),
        *(
            _page.caption(
                maps(layer),
                f"{layer.cost.name}: {layer.channels[0]} high and {layer.channels[1]} low maps; those with the most "
                f"variance, high ones on the left. The low ones hold {layer.low_energy:.0%} of it.",
            )
            for layer in chosen
        ),
        _page.heading("Next"),
        _page.commands(NEXT),
        _page.paragraph(f"{conditions(result)}.", "note"),
    )


def _draw(result: dict[str, Any]) -> Any:
    figure = _figure.new(11, 3.5)
    *axes, bars = figure.subplots(1, 3)
    for axis, key in zip(axes, ("loss", "accuracy")):
        for name in NETS:
            values = [point[key] for point in result[name]["curves"]]
            axis.plot(range(1, len(values) + 1), values, marker="o", label=name)
        axis.set(xlabel="epoch", title={"loss": "training loss", "accuracy": "test accuracy"}[key])
        axis.grid(alpha=0.3)
        axis.legend()
    rows = [row for row in table(result)[3:] if row[3]]
    ratios = [float(row[3]) for row in rows]
    bars.barh([row[0] for row in rows], ratios, color=["C0" if ratio >= 1 else "C1" for ratio in ratios])
    bars.axvline(1, color="0.3", linewidth=1)
    bars.invert_yaxis()
    bars.set(title="dense / octave", xlabel="above 1 octave wins")
    return figure


@contextmanager
def progress(epochs: int) -> Iterator[Log]:
    """A live bar for each network on a terminal; one line per epoch elsewhere, or where rich is not installed."""
    with live() as bars:
        if bars is None:
            yield lambda net, epoch, f: print(f"{net:6}  epoch {epoch}/{epochs}  {_shown(f)}", flush=True)
            return
        tasks = {net: bars.add_task(f"{net:6}", total=epochs, figures="") for net in NETS}
        yield lambda net, epoch, f: bars.update(tasks[net], completed=epoch, figures=_shown(f))


def _shown(figures: dict[str, float]) -> str:
    return f"loss {figures['loss']:.4f}  accuracy {figures['accuracy']:.2%}"
