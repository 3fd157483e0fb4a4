"""What a bench compares: one network at several alphas, its dense twin and, if asked for, another dense network."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from .._text import did_you_mean
from ..cost import cost
from ..errors import UsageError
from ..models.create import create, family_of, names, source

RUNTIMES = {"infer": ("eager", "compiled", "deployed", "openvino", "onnxruntime"), "train": ("eager", "compiled")}
SEED = 0
_CALIBRATION_IMAGES = 4  # more than one: a map of one pixel has no deviation otherwise


@dataclass(frozen=True)
class BenchSettings:
    """What to measure, and how.

    Args:
        model: name of an octave network in timm's registry.
        alphas: low-frequency shares to measure; by default the network's own.
        size: height and width of the images in pixels.
        batch_sizes: images per call; each batch size is measured on its own.
        threads: threads of every runtime.
        device: ``"cpu"`` or ``"cuda"``.
        dtype: ``"fp32"``, ``"bf16"`` or ``"fp16"``.
        mode: ``"infer"``, or ``"train"`` for a step of forward, loss, backward and SGD.
        runtimes: runtimes that must run; by default all that can.
        runs: timed calls of each finalist.
        rivals: further runtimes that must run, for dense networks only.
        dense: another dense network to beat: ``"torchvision"`` for its network of the same name,
            ``"torchvision/resnet50"`` for any other of its networks, or the name of one of timm's.

    Example:
        >>> settings = BenchSettings("oct_resnet50", alphas=(0.25, 0.5), batch_sizes=(1, 8), dense="torchvision")
    """

    model: str
    alphas: tuple[float, ...] = ()
    size: int = 224
    batch_sizes: tuple[int, ...] = (1,)
    threads: int = field(default_factory=torch.get_num_threads)
    device: str = "cpu"
    dtype: str = "fp32"
    mode: str = "infer"
    runtimes: tuple[str, ...] = ()
    runs: int = 30
    dense: str | None = None
    rivals: tuple[str, ...] = ()

    def tried(self, dense: bool) -> list[str]:
        """The runtimes that get a network."""
        return list(dict.fromkeys((*(self.runtimes or RUNTIMES[self.mode]), *(self.rivals if dense else ()))))

    def checked(self) -> BenchSettings:
        """Return these settings with the alphas filled in; UsageError if they ask for what does not exist."""
        known = RUNTIMES[self.mode]
        for name in (*self.runtimes, *self.rivals):
            if name not in known:
                hint = did_you_mean(name, known) or f": choose from {', '.join(known)}"
                raise UsageError(f"mode {self.mode!r} has no runtime {name!r}{hint}")
        for alpha in self.alphas:
            if not 0 < alpha <= 1:
                raise UsageError(f"alpha must be above 0 and at most 1, got {alpha:g}: the dense twin is timed anyway")
        if self.runs < 2:
            raise UsageError(f"runs must be at least 2, for quartiles, got {self.runs}")
        if self.mode == "train" and self.dtype == "fp16":
            raise UsageError("a training step in fp16 needs its loss scaled: use bf16")
        if self.device == "cuda" and not torch.cuda.is_available():
            raise UsageError("device cuda: PyTorch sees no GPU here")
        if source(self.model)[1] is not None:
            raise UsageError(
                f"{self.model} is a file or folder, and the networks timed have random weights: name a network, or "
                f"time this one with octaveconv export"
            )
        with torch.device("meta"):
            own = create(self.model, pretrained=False)
            if not self.model.startswith("oct_"):
                raise UsageError(f"{self.model} has no alpha: name an octave network (octaveconv models lists them)")
            alphas = self.alphas or (getattr(own, "alpha", 0.0),)
            for alpha in alphas:
                create(self.model, alpha, pretrained=False)
        if self.dense:
            _other(self.dense, family_of(self.model))
        return replace(self, alphas=tuple(sorted(set(alphas))))


@dataclass(frozen=True)
class Case:
    """One of the compared networks, in float32 and evaluation mode. Alpha 0 means a dense network."""

    name: str
    alpha: float
    macs: int  # of one image
    model: nn.Module
    params: int = 0
    map_elements: int = 0  # outputs of convolutions and linear layers for one image


def make_cases(settings: BenchSettings) -> Iterator[Case]:
    """Make the dense twin first, then the other dense network if there is one, then an octave network for each alpha.

    All have random weights from the same seed. No norm multiplies by zero, so every layer affects the logits. The
    statistics of the norms come from random images, so activations stay in the usual range.

    Example:
        >>> [case.name for case in make_cases(BenchSettings("oct_resnet18", alphas=(0.5,), size=32))]
        ['dense twin', 'alpha 0.5']
    """
    family = family_of(settings.model)
    made: list[tuple[str, float, Any]] = [("dense twin", 0.0, lambda: create(family, 0.0, pretrained=False))]
    if settings.dense:
        name, other = _other(settings.dense, family)
        made.append((name, 0.0, other))
    for alpha in settings.alphas:
        made.append((f"alpha {alpha:g}", alpha, lambda alpha=alpha: create(family, alpha, pretrained=False)))
    for name, alpha, make in made:
        torch.manual_seed(SEED)
        model = make()
        _calibrate(model, settings.size)
        report = cost(model, input_size=settings.size)
        elements = report.activation_bytes // torch.float32.itemsize
        yield Case(name, alpha, report.counted_macs, model, report.params, elements)


def images(settings: BenchSettings, batch_size: int) -> Tensor:
    """Random images ``[batch_size, 3, size, size]`` in float32, the same for every network."""
    generator = torch.Generator().manual_seed(SEED)
    return torch.randn(batch_size, 3, settings.size, settings.size, generator=generator)


def _other(name: str, family: str) -> tuple[str, Any]:
    """The other dense network's name, and how to make it."""
    if name.partition("/")[0] != "torchvision":
        if name.startswith("oct_"):
            raise UsageError(
                f"{name} is an octave network: name a dense one to beat; the dense twin of {family} is timed anyway"
            )
        known = [*names("*"), "torchvision"]
        if name.partition(".")[0] not in known:
            cure = did_you_mean(name.partition("/")[0], known) or ": torchvision/resnet50 is one, for instance"
            raise UsageError(f"neither timm nor torchvision has a network {name!r}{cure}")
        with torch.device("meta"):
            create(name, pretrained=False)
        return name, lambda: create(name, pretrained=False)
    from torchvision import models

    known = models.list_models(module=models)
    wanted = name.partition("/")[2] or family.removeprefix("oct_")
    if wanted not in known:
        hint = did_you_mean(wanted, known) or ": name another one, as torchvision/resnet50"
        raise UsageError(f"torchvision has no classifier {wanted!r}{hint}")
    return f"torchvision {wanted}", lambda: models.get_model(wanted, weights=None)


@torch.no_grad()
def _calibrate(model: nn.Module, size: int) -> None:
    """Give every norm a random scale and bias and the statistics of random images; turn dropout off.

    The biases keep most ReLUs open. With the zero biases of a new network, a deep random network is chaotic: rounding
    errors of 1e-7 grow to 4e-4 of the logits in `oct_resnet152f`; with these biases, to 1e-6.
    """
    norms = [module for module in model.modules() if isinstance(getattr(module, "running_mean", None), Tensor)]
    momenta = [norm.momentum for norm in norms]
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    for norm in norms:
        norm.momentum = 1.0  # type: ignore[assignment]
        if isinstance(norm.weight, Tensor) and isinstance(norm.bias, Tensor):
            norm.weight.uniform_(0.5, 1.5)
            norm.bias.uniform_(0.5, 1.0)
    model.train()
    model(torch.randn(_CALIBRATION_IMAGES, 3, size, size))
    model.eval()
    for norm, momentum in zip(norms, momenta):
        norm.momentum = momentum
