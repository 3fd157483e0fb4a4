"""octavify: any convolutional network becomes an octave network, and keeps its weights."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping
from fnmatch import fnmatchcase
from numbers import Integral
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils import _pytree as pytree

from .._modes import check_network
from .._text import did_you_mean
from ..cost import image_size
from .assemble import Assembly
from .budget import Budget
from .calls import Call, Mark, Signature, form
from .conversion import Conversion, Options, Source
from .handlers import REGISTERED
from .maps import conv_axes
from .plan import Plan
from .rewrite import OctavifiedModule
from .sample import Sample
from .shares import Alpha, choosers, wants_any
from .trace import Untraceable


def octavify(
    model: nn.Module,
    alpha: Alpha = 0.25,
    example_inputs: Tensor | tuple[Any, ...] | None = None,
    keep: Iterable[str] = (),
    *,
    calibrate: Iterable[Any] | None = None,
    macs: float | None = None,
    latency: float | None = None,
    agreement: float | None = None,
    distill: int = 0,
    min_size: int = 8,
    stem: bool = False,
    pool_strides: bool = False,
    say: Callable[[str], object] | None = None,
) -> tuple[OctavifiedModule, Plan]:
    """Turn a convolutional network into an octave network with the same weights.

    Args:
        model: any network; it is not changed. Where torch.fx cannot trace it as a whole, the largest modules in it that
            can be traced are converted each by itself, see `Plan.parts`.
        alpha: low-frequency share of the channels, in [0, 1). It is a number; a list with one number for each size of
            the feature maps, the largest first, whose last number also applies to all smaller sizes; a dict from
            patterns of layer names to numbers (``{"layer1.*": 0.5, "*": 0.25}``: the first match counts, layers
            without a match get 0); or ``"auto"``, which chooses from 0 to 0.75 for each layer, so that the network
            meets a budget with the least harm to the sample in ``calibrate``.
        example_inputs: what the network is called with, a tensor or a tuple; images are ``[N, C, H, W]``, series
            ``[N, C, L]``, volumes and videos ``[N, C, T, H, W]``. By default one image of the size in
            ``model.pretrained_cfg``, or of 3x224x224 pixels. Its size decides which maps are small.
        keep: patterns of names of layers that stay as they are; the inside of a container is not traced then.
        calibrate: a few hundred images in batches, with or without labels, prepared as for the network. With them the
            channels that the network can best do without at full resolution become the low ones, and octave layers are
            refitted to the dense ones; each step is kept only if it brings the answers closer to the dense network's
            on images set aside for that. See `Plan.steps`.
        macs, latency, agreement: the budget of ``alpha="auto"``, one of the three, in (0, 1): multiply-accumulates as
            a share of the dense network's; the time of the network that `deploy` makes of it, on this machine for
            these inputs, as a share of the deployed dense network's; or the share of the images set aside that must
            keep the dense network's first class, at as few multiply-accumulates as that takes. The last two try five
            networks each.
        distill: with ``calibrate``, train the octave network for so many epochs on the sample to compute what the dense
            one does, layer by layer; ten take some minutes. It is kept only if it helps, as all steps are.
        min_size: maps with fewer pixels in height or width, or of a series in length, stay dense; an axis of one pixel
            does not count.
        stem: convert the stem, too: the convolutions that read the image, and everything before an early pooling.
        pool_strides: let strides of 2 pool, as in the paper's networks. By default octave convolutions stride, as the
            weights have learned; see `OctConv2d`.
        say: is called with a line of text after each step of the work with a sample, such as ``print``.

    Warns:
        UserWarning: no convolution became octave, and why, although an alpha is above 0.

    Returns:
        The octave network and the `Plan`, which says what became of every layer, and why. The network has the modules
        of a copy of ``model`` under the same names, so its ``state_dict`` has the same keys and shapes. It is a
        ``torch.fx.GraphModule``; ``forward`` is the only one of the model's methods that it has. Its containers are
        called as in ``model``, with octaves. A network that is converted in parts is a copy of ``model`` with all its
        methods. Where everything is dense, as at alpha 0, it computes exactly what ``model`` does. With
        ``calibrate``, channels inside the network are reordered (those of its inputs and outputs are not).

    Raises:
        ValueError: no part of the model can be traced, or it does not accept the inputs, an alpha is outside [0, 1),
            different alphas are wanted for layers whose outputs are added, a pattern matches nothing, or the budget is
            out of reach; the message names the cure.

    Source: section 3 of Chen et al., ICCV 2019, which keeps the stem and the last stage dense.

    Example:
        >>> import torch, torchvision, octaveconv as oc
        >>> model = torchvision.models.resnet18().eval()
        >>> octave, plan = oc.octavify(model, 0.25, torch.zeros(1, 3, 64, 64))
        >>> octave(torch.zeros(1, 3, 64, 64)).shape, octave.state_dict().keys() == model.state_dict().keys()
        (torch.Size([1, 1000]), True)
        >>> print(plan.summary())
        9 of 20 convolutions are octave; MACs 148,557,824 -> 127,815,680 (86.0%); borders: 1 Merge, 1 Split
    """
    options = Options(_keep(keep, min_size), min_size, stem, pool_strides)
    inputs = _inputs(model, example_inputs)
    budget = Budget.of(alpha, calibrate, macs=macs, latency=latency, agreement=agreement)
    sample = None if calibrate is None else Sample.of(calibrate, inputs)
    if not isinstance(distill, Integral) or distill < 0 or (say is not None and not callable(say)):
        raise ValueError(f"distill is a number of epochs, and say takes a line of text: got {distill!r} and {say!r}")
    if distill and sample is None:
        raise ValueError("distill trains on a sample: give calibrate=batches")
    work = sample, say or _nothing, distill
    kept = _kept(model, options.keep)
    try:
        octave, plan = _whole(model, inputs, kept, options, *work, alpha, budget)
    except Untraceable:
        assembly = Assembly(model, inputs, kept, options, *work)
        if not assembly.conversions:
            raise
        octave, plan = assembly.run(alpha, budget)
    if not octave.conversion["octave"] and wants_any(alpha):
        warnings.warn(plan.nothing(), stacklevel=2)
    return octave, plan


def _whole(
    model: nn.Module, inputs: tuple[Any, ...], kept: set[str], options: Options, sample: Sample | None,
    say: Callable[[str], object], epochs: int, alpha: Alpha, budget: Budget | None,
) -> tuple[OctavifiedModule, Plan]:  # fmt: skip
    """The network as one graph.

    Raises:
        Untraceable: torch.fx cannot follow it.
    """
    if any(not isinstance(form(x), Mark) for x in inputs):
        raise Untraceable("", "takes more than tensors and numbers")
    source = Source(model, Call(Signature(model), inputs, {}), kept, options)
    conversion = Conversion(source, sample, say, epochs)
    conversion.measure(required=budget is not None)
    if budget is not None:
        return conversion.within(budget)
    return conversion.run(*choosers([conversion.net], alpha))


def _nothing(text: str) -> None:
    """Say nothing."""


def rebuild(model: nn.Module, conversion: Mapping[str, Any]) -> OctavifiedModule:
    """Octavify a network of one image input as a plan's ``conversion`` says; load the weights afterwards.

    Raises:
        ValueError: the conversion is damaged or belongs to another network, or layers have to be registered first.
    """
    try:
        wanted = conversion.get("registered", ())
        missing = {type(part).__name__ for part in model.modules() if type(part) not in REGISTERED} & {*wanted}
        if missing:
            raise ValueError(f"register its layers first, with octaveconv.register_layer: {', '.join(sorted(missing))}")
        image = torch.zeros(1, *conversion["input_size"])
        rest = {key: conversion[key] for key in ("keep", "min_size", "stem")}
        rest["pool_strides"] = conversion.get("pool_strides", True)  # 0.2.0 and before did
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about a network without octave layers, which it may be
            octave, _ = octavify(model, dict(conversion["alphas"]), image, **rest)
        now, then = octave.conversion["octave"], conversion["octave"]
        if now != then:
            raise ValueError(
                f"{now} layers become octave, but {then} were: octavify it again, use the version of octaveconv that "
                f"wrote them, or register the same layers as then"
            )
        return octave
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"this network cannot be octavified in the way that the file records: {error}") from error


def _inputs(model: nn.Module, given: Tensor | tuple[Any, ...] | None) -> tuple[Any, ...]:
    """The example inputs, on the model's device."""
    check_network(model, "octavify")
    if lazy := [name for name, value in (*model.named_parameters(), *model.named_buffers()) if is_lazy(value)]:
        raise ValueError(
            f"{lazy[0]} has no size yet, as of a lazy layer: call the model once on images like yours first"
        )
    like = next(model.parameters(), torch.empty(0))
    if given is None:
        if (axes := conv_axes(model)) not in (0, 2):
            maps = "[N, C, L]" if axes == 1 else "[N, C, T, H, W]"
            raise ValueError(f"{type(model).__name__} does not convolve images: give example_inputs, a tensor {maps}")
        given = torch.zeros(1, *image_size(model), dtype=like.dtype)
    inputs = given if isinstance(given, tuple) else (given,)
    if any(isinstance(x, Tensor) and not x.numel() for x in inputs):
        raise ValueError(
            f"example_inputs hold no image: {', '.join(str(list(getattr(x, 'shape', ()))) for x in inputs)}"
        )
    moved: tuple[Any, ...] = pytree.tree_map(lambda x: x.to(like.device) if isinstance(x, Tensor) else x, inputs)
    return moved


def _keep(keep: Iterable[str], min_size: int) -> list[str]:
    """The patterns of layers to keep, once they and ``min_size`` are checked."""
    if not isinstance(min_size, Integral) or min_size < 0:
        raise ValueError(f"min_size must be a whole number of pixels from 0 up, got {min_size!r}")
    patterns = [keep] if isinstance(keep, str) else [*keep] if isinstance(keep, Iterable) else [keep]
    for pattern in patterns:
        if not isinstance(pattern, str):
            raise ValueError(f"keep must be patterns of layer names, such as ['layer4.*'], got {keep!r}")
    return patterns


def _kept(model: nn.Module, keep: list[str]) -> set[str]:
    """The names of the modules that the patterns match."""
    names = [name for name, _ in model.named_modules() if name]
    kept = set()
    for pattern in keep:
        found = {name for name in names if fnmatchcase(name, pattern)}
        if not found:
            raise ValueError(f"keep pattern {pattern!r} matches no layer{did_you_mean(pattern, names)}")
        kept |= found
    return kept
