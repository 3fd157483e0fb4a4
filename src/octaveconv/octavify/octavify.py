"""octavify: any convolutional network becomes an octave network, and keeps its weights."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from numbers import Integral, Real
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.modules.conv import _ConvNd

from .._modes import check_network
from .._text import counted, did_you_mean
from ..cost import image_size
from .allocate import LEVELS, allocate
from .calibrate import batches_of, high_shares, layer_errors, orders, reestimate_norms
from .channels_last import mark_channels_last
from .handlers import REGISTERED
from .maps import conv_axes, halved_size, is_map, shape_of
from .permute import permute
from .plan import LayerPlan, Plan
from .rewrite import OctavifiedModule, Rewriter
from .roles import Role
from .spaces import Net
from .splits import Splits
from .steps import steps_of
from .trace import add_shapes, drop_expansions, list_lengths, trace

_CONVS = (F.conv1d, F.conv2d, F.conv3d, F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)
Alpha = float | Sequence[float] | Mapping[str, float] | str


def octavify(
    model: nn.Module,
    alpha: Alpha = 0.25,
    example_inputs: Tensor | tuple[Any, ...] | None = None,
    keep: Iterable[str] = (),
    *,
    calibrate: Iterable[Any] | None = None,
    macs: float | None = None,
    min_size: int = 8,
    stem: bool = False,
) -> tuple[OctavifiedModule, Plan]:
    """Turn a convolutional network into an octave network with the same weights.

    Args:
        model: any network that torch.fx can trace; it is not changed.
        alpha: low-frequency share of the channels, in [0, 1). It is a number; a list with one number for each size of
            the feature maps, the largest first, whose last number also applies to all smaller sizes; a dict from
            patterns of layer names to numbers (``{"layer1.*": 0.5, "*": 0.25}``: the first match counts, layers
            without a match get 0); or ``"auto"``, which chooses from 0 to 0.75 for each layer, so that the network
            meets ``macs`` with the least harm to the sample in ``calibrate``.
        example_inputs: what the network is called with, a tensor or a tuple; images are ``[N, C, H, W]``, series
            ``[N, C, L]``, volumes and videos ``[N, C, T, H, W]``. By default one image of the size in
            ``model.pretrained_cfg``, or of 3x224x224 pixels. Its size decides which maps are small.
        keep: patterns of names of layers that stay as they are; the inside of a container is not traced then.
        calibrate: a few hundred images in batches, with or without labels, prepared as for the network. With them the
            smoothest channels become the low ones, the norms' statistics are re-estimated, and the error of each layer
            is measured.
        macs: for ``alpha="auto"``, multiply-accumulates as a share of the dense network's, in (0, 1).
        min_size: maps with fewer pixels in height or width, or of a series in length, stay dense.
        stem: convert the stem, too: the convolutions that read the image, and everything before an early pooling.

    Warns:
        UserWarning: no convolution became octave, and why, although an alpha is above 0.

    Returns:
        The octave network and the `Plan`, which says what became of every layer, and why. The network has the modules
        of a copy of ``model`` under the same names, so its ``state_dict`` has the same keys and shapes. It is a
        ``torch.fx.GraphModule``; ``forward`` is the only one of the model's methods that it has. Where everything is
        dense, as at alpha 0, it computes exactly what ``model`` does. With ``calibrate``, channels inside the network
        are reordered (those of its inputs and outputs are not).

    Raises:
        ValueError: the model cannot be traced or does not accept the inputs, an alpha is outside [0, 1), different
            alphas are wanted for layers whose outputs are added, a pattern matches nothing, or ``macs`` is out of
            reach; the message names the cure.

    Source: section 3 of Chen et al., ICCV 2019, which keeps the stem and the last stage dense.

    Example:
        >>> import torch, torchvision, octaveconv as oc
        >>> model = torchvision.models.resnet18().eval()
        >>> octave, plan = oc.octavify(model, 0.25, torch.zeros(1, 3, 64, 64))
        >>> octave(torch.zeros(1, 3, 64, 64)).shape, octave.state_dict().keys() == model.state_dict().keys()
        (torch.Size([1, 1000]), True)
        >>> print(plan.summary())
        9 of 20 convolutions are octave; MACs 148,557,824 -> 128,552,960 (86.5%); borders: 1 Merge, 1 Split
    """
    keep = _keep(keep, min_size)
    inputs = _inputs(model, example_inputs)
    net, notes = _prepare(copy.deepcopy(model), inputs, keep, min_size, stem)
    batches = [] if calibrate is None else batches_of(calibrate, inputs)
    splits = _splits(net, alpha, macs, batches)
    errors = layer_errors(splits, batches)
    layers = [_layer(node, splits, errors.get(node)) for node in net.steps if _is_listed(node, net)]
    registered = _registered(net)
    rewriter = Rewriter(splits)
    octave = rewriter.run()
    if batches and splits.spaces:
        reestimate_norms(octave, batches)
    octave.conversion = {
        "alphas": {str(n.target): splits.alphas.get(net.spaces.of(n), 0.0) for n in net.nodes(Role.CONV)},
        "input_size": next((list(x.shape[1:]) for x in inputs if isinstance(x, Tensor)), []),
        "keep": keep,
        "min_size": min_size,
        "stem": stem,
        "octave": sum(layer.octave for layer in layers),
    }
    if registered:
        octave.conversion["registered"] = registered
    plan = Plan(layers, rewriter.borders, octave.conversion, notes)
    if not octave.conversion["octave"] and _wants(alpha):
        warnings.warn(plan.nothing(), stacklevel=2)
    return octave, plan


def _keep(keep: Iterable[str], min_size: int) -> list[str]:
    """The patterns of layers to keep, once they and ``min_size`` are checked."""
    if not isinstance(min_size, Integral) or min_size < 0:
        raise ValueError(f"min_size must be a whole number of pixels from 0 up, got {min_size!r}")
    patterns = [keep] if isinstance(keep, str) else [*keep] if isinstance(keep, Iterable) else [keep]
    for pattern in patterns:
        if not isinstance(pattern, str):
            raise ValueError(f"keep must be patterns of layer names, such as ['layer4.*'], got {keep!r}")
    return patterns


def _wants(alpha: Alpha) -> bool:
    """Whether any layer is to become octave."""
    alphas = alpha.values() if isinstance(alpha, Mapping) else alpha if isinstance(alpha, (list, tuple)) else (alpha,)
    return any(alphas)


def _registered(net: Net) -> list[str]:
    """The types of layers in the network that were registered."""
    nodes = [node for node, step in net.steps.items() if step.handler is not None and step.handler.registered]
    return sorted({type(net.module(node)).__name__ for node in nodes})


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
    return tuple(x.to(like.device) if isinstance(x, Tensor) else x for x in inputs)


def _prepare(
    model: nn.Module, inputs: tuple[Any, ...], keep: Sequence[str], min_size: int, stem: bool
) -> tuple[Net, list[str]]:
    """Trace a model and find out what its nodes do."""
    names = [name for name, _ in model.named_modules() if name]
    kept = set()
    for pattern in keep:
        found = {name for name in names if fnmatchcase(name, pattern)}
        if not found:
            raise ValueError(f"keep pattern {pattern!r} matches no layer{did_you_mean(pattern, names)}")
        kept |= found
    graph, notes = trace(model, kept, list_lengths(model, inputs), len(inputs))
    add_shapes(model, graph, inputs)
    drop_expansions(graph)
    mark_channels_last(graph, model)
    return Net(graph, model, steps_of(graph, model, kept), stem, min_size), notes


def _splits(net: Net, alpha: Alpha, macs: float | None, batches: Sequence[Any]) -> Splits:
    """How channels are to be split; if there is a sample, they are first put in order."""
    auto = alpha == "auto"
    if auto and (macs is None or not batches):
        raise ValueError('alpha="auto" needs a sample and a budget: give calibrate=batches and macs=0.7, for instance')
    if macs is not None and not (auto and 0 < macs < 1):
        raise ValueError(
            f'macs is the budget of alpha="auto", above 0 and below 1, got macs={macs} and alpha={alpha!r}'
        )
    splits = Splits(net, (lambda node: LEVELS[-1]) if auto else _chooser(net, alpha))
    if batches and splits.spaces:
        found = orders(net, high_shares(net, batches))
        permute(net, {space: order for space, order in found.items() if space in splits.spaces})
    return Splits(net, allocate(net, batches, macs)) if auto and macs is not None else splits


def _chooser(net: Net, alpha: Alpha) -> Callable[[fx.Node], float]:
    """The alpha that the caller wants for a convolution's output."""
    if isinstance(alpha, Mapping):
        return _by_name(net, dict(zip(alpha, _checked(*alpha.values()))))
    if isinstance(alpha, (list, tuple)):
        return _by_size(net, _checked(*alpha))
    if not isinstance(alpha, (int, float, Real)):
        raise ValueError(f"alpha must be a number, a list, a dict or 'auto', got {alpha!r}")
    (share,) = _checked(alpha)
    return lambda node: share


def _checked(*alphas: float) -> list[float]:
    """The same alphas as plain numbers, for JSON."""
    for alpha in alphas:
        if not isinstance(alpha, (int, float, Real)) or not 0 <= alpha < 1:
            raise ValueError(f"alpha is the low-frequency share of the channels and must be in [0, 1), got {alpha!r}")
    return [float(alpha) for alpha in alphas]


def _by_name(net: Net, alphas: Mapping[str, float]) -> Callable[[fx.Node], float]:
    """The alpha of the first pattern that matches the convolution's name."""
    names = [str(node.target) for node in net.nodes(Role.CONV)]
    for pattern in alphas:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise ValueError(f"alpha pattern {pattern!r} matches no convolution{did_you_mean(pattern, names)}")
    wanted = {name: next((alphas[p] for p in alphas if fnmatchcase(name, p)), 0.0) for name in names}
    return lambda node: wanted[str(node.target)]


def _by_size(net: Net, alphas: Sequence[float]) -> Callable[[fx.Node], float]:
    """One alpha for each size of the maps that convolutions write and that can be octaves."""
    if not alphas:
        raise ValueError("alpha is an empty list: give one number for each size of the feature maps")

    free = [node for node in net.nodes(Role.CONV) if net.runs.of(node) not in net.pinned]
    sizes = sorted({halved_size(node)[0] for node in free}, reverse=True)
    if len(alphas) > len(sizes):
        raise ValueError(f"alpha has {len(alphas)} numbers, but maps have {counted(len(sizes), 'size')} only: {sizes}")
    by_size = {size: alphas[min(i, len(alphas) - 1)] for i, size in enumerate(sizes)}
    return lambda node: by_size.get(halved_size(node)[0], 0.0)


def _is_listed(node: fx.Node, net: Net) -> bool:
    handler = net.steps[node].handler
    has_state = node.op == "call_module" and any(True for _ in net.module(node).parameters())
    return has_state or bool(node.meta.get("macs")) or (handler is not None and handler.registered)


def _layer(node: fx.Node, splits: Splits, error: float | None) -> LayerPlan:
    """What becomes of a layer; the net still has the given one."""
    net, step = splits.net, splits.net.steps[node]
    is_module = node.op == "call_module"
    name, kind = (str(node.target), type(net.module(node)).__name__) if is_module else (node.name, "function")
    images = _images(net)
    before = node.meta["macs"] // images
    alpha_in = alpha_out = 0.0
    why = step.refusal
    if step.role in (Role.CONV, Role.SAME):
        alpha_out = splits.of(node).alpha
        if step.role is Role.SAME or splits.converted(node):
            alpha_in = splits.of(step.inputs[0]).alpha
        why = step.refusal or ("" if alpha_out else splits.why_dense(node))
        if alpha_out and not alpha_in:
            why = f"input dense: {splits.why_dense(step.inputs[0])}"
        elif alpha_in and not alpha_out:
            why = f"output dense: {why}"
    convolves = _is_conv(node, net) or (step.role is Role.CONV and bool(alpha_in or alpha_out))
    return LayerPlan(name, kind, alpha_in, alpha_out, why, before, splits.macs(node) // images, error, convolves)


def _is_conv(node: fx.Node, net: Net) -> bool:
    """Whether a node calls a convolution, a layer or a function."""
    return node.target in _CONVS if node.op != "call_module" else isinstance(net.module(node), _ConvNd)


def _images(net: Net) -> int:
    """Images in the example inputs."""
    shapes = (shape_of(node) for node in net.graph.nodes if is_map(node))
    return next((shape[0] for shape in shapes if shape), 1)
