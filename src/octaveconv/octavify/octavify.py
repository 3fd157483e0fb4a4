"""octavify: any convolutional network becomes an octave network, and keeps its weights."""

from __future__ import annotations

import copy
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from numbers import Integral
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.modules.conv import _ConvNd

from .._modes import check_network, copied
from .._text import did_you_mean
from ..cost import image_size
from .allocate import allocate, least_share
from .budget import Budget, searched
from .budget import latency as measured_latency
from .channels_last import mark_channels_last
from .handlers import REGISTERED
from .hierarchy import nest
from .maps import conv_axes, is_map, shape_of
from .padding import absorb
from .permute import permute
from .plan import LayerPlan, Plan
from .repair import RepairStep, repair
from .rewrite import OctavifiedModule, Rewriter
from .roles import Role
from .saliency import Saliency, saliencies
from .sample import Sample
from .shares import Alpha, chooser, wants_any
from .spaces import Net
from .splits import Splits
from .steps import steps_of
from .trace import add_shapes, drop_expansions, list_lengths, trace

_CONVS = (F.conv1d, F.conv2d, F.conv3d, F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)


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
    say: Callable[[str], object] | None = None,
) -> tuple[OctavifiedModule, Plan]:
    """Turn a convolutional network into an octave network with the same weights.

    Args:
        model: any network that torch.fx can trace; it is not changed.
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
        say: is called with a line of text after each step of the work with a sample, such as ``print``.

    Warns:
        UserWarning: no convolution became octave, and why, although an alpha is above 0.

    Returns:
        The octave network and the `Plan`, which says what became of every layer, and why. The network has the modules
        of a copy of ``model`` under the same names, so its ``state_dict`` has the same keys and shapes. It is a
        ``torch.fx.GraphModule``; ``forward`` is the only one of the model's methods that it has. Its containers are
        called as in ``model``, with octaves. Where everything is dense, as at alpha 0, it computes exactly what
        ``model`` does. With ``calibrate``, channels inside the network are reordered (those of its inputs and outputs
        are not).

    Raises:
        ValueError: the model cannot be traced or does not accept the inputs, an alpha is outside [0, 1), different
            alphas are wanted for layers whose outputs are added, a pattern matches nothing, or the budget is out of
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
    budget = Budget.of(alpha, calibrate, macs=macs, latency=latency, agreement=agreement)
    sample = None if calibrate is None else Sample.of(calibrate, inputs)
    source = _Source(model, inputs, keep, min_size, stem)
    if not isinstance(distill, Integral) or distill < 0 or (say is not None and not callable(say)):
        raise ValueError(f"distill is a number of epochs, and say takes a line of text: got {distill!r} and {say!r}")
    if distill and sample is None:
        raise ValueError("distill trains on a sample: give calibrate=batches")
    conversion = _Conversion(source, sample, say or _nothing, distill)
    conversion.measure(required=budget is not None)
    if budget is not None:
        return conversion.within(budget)
    octave, plan = conversion.run(chooser(conversion.net, alpha))
    if not octave.conversion["octave"] and wants_any(alpha):
        warnings.warn(plan.nothing(), stacklevel=2)
    return octave, plan


class _Source(NamedTuple):
    """The network that the caller gave, and how to read it."""

    model: nn.Module
    inputs: tuple[Any, ...]
    keep: list[str]
    min_size: int
    stem: bool

    def net(self) -> tuple[Net, list[str]]:
        """A copy of it, traced."""
        return _prepare(copied(self.model), self.inputs, self.keep, self.min_size, self.stem)


class _Conversion:
    """A conversion, which a budget may take several tries of.

    Args:
        source: the given network.
        sample: images, if there are any.
        say: is told what is done.
        epochs: of distillation.
    """

    def __init__(self, source: _Source, sample: Sample | None, say: Callable[[str], object], epochs: int) -> None:
        self.source, self.sample, self.say, self.epochs = source, sample, say, epochs
        self.net, self.notes = source.net()
        self.saliencies: dict[fx.Node, Saliency] = {}
        self._seconds = 0.0  # that measuring took

    def measure(self, required: bool) -> None:
        """Find out from the sample what low channels cost."""
        if self.sample is None:
            return
        begin = time.perf_counter()
        try:
            self.saliencies = saliencies(self.net, self.sample.fit)
        except (ValueError, RuntimeError, NotImplementedError) as error:  # whatever has no derivative
            reason = f"no gradients could be taken ({str(error).partition(chr(10))[0]})"
            if required:
                raise ValueError(f"a budget cannot be spent by what it costs: {reason}") from error
            self.notes.append(f"{reason}: channels keep their order")
        self._seconds = time.perf_counter() - begin
        self.say(f"what low channels cost: {self._seconds:.0f} s")

    def within(self, budget: Budget) -> tuple[OctavifiedModule, Plan]:
        """The network that keeps within a budget."""
        if budget.kind == "macs":
            return self.run(allocate(self.net, self.saliencies, budget.value))
        least = least_share(self.net, self.saliencies)
        if budget.kind == "agreement":
            return searched(lambda macs: self._agreeing(macs, budget.value), least, budget)
        macs = searched(lambda macs: self._timed(macs, budget.value), least, budget)
        octave, plan = self.run(allocate(self.net, self.saliencies, macs))
        measured = measured_latency(octave, self.source.model, self.source.inputs)
        plan.notes.append(
            f"deployed, it takes {measured:.1%} of the dense network's time; asked for {budget.value:.1%}"
        )
        return octave, plan

    def _agreeing(self, macs: float, wanted: float) -> tuple[float, bool, tuple[OctavifiedModule, Plan]]:
        again = self._again()
        octave, plan = again.run(allocate(again.net, again.saliencies, macs))
        found = next((step.agreement for step in plan.steps if step.kept), 1.0)
        self.say(f"{macs:.1%} of the multiply-adds: agreement {found:.1%}")
        return found, found >= wanted, (octave, plan)

    def _timed(self, macs: float, wanted: float) -> tuple[float, bool, float]:
        again = self._again()
        octave = again.rewritten(allocate(again.net, again.saliencies, macs))
        found = measured_latency(octave, self.source.model, self.source.inputs)
        self.say(f"{macs:.1%} of the multiply-adds: {found:.1%} of the latency")
        return found, found <= wanted, macs

    def _again(self) -> _Conversion:
        """The same conversion of another copy of the network, with what is known of it."""
        again = _Conversion(self.source, self.sample, self.say, self.epochs)
        nodes = {node.name: node for node in again.net.graph.nodes}
        again.saliencies = {nodes[node.name]: saliency for node, saliency in self.saliencies.items()}
        again._seconds = self._seconds
        return again

    def rewritten(self, alphas: Callable[[fx.Node], float]) -> OctavifiedModule:
        """Make the octave network, with the dense weights."""
        net, self.splits = self.net, Splits(self.net, alphas)
        self._given = copy.deepcopy(dict(net.model.state_dict())) if self.sample else {}
        orders = {space: saliency.order for space, saliency in self.saliencies.items()}
        permute(net, {s: order for s, order in orders.items() if s in self.splits.spaces and net.blocks(s)})
        self.layers = [_layer(node, self.splits, self.saliencies) for node in net.steps if _is_listed(node, net)]
        self._dense = copied(net.model) if self.sample else net.model
        self.rewriter = Rewriter(self.splits)
        octave, names = self.rewriter.run(), {name for name, _ in self.source.model.named_modules()}
        for name, module in octave.named_modules():
            if name not in names:  # a border
                module.training = self.source.model.training
        return octave

    def run(self, alphas: Callable[[fx.Node], float]) -> tuple[OctavifiedModule, Plan]:
        """Make the octave network, with a sample as close to the dense one as can be, and its plan."""
        registered = _registered(self.net)
        octave = self.rewritten(alphas)
        octave.conversion = self._record(registered)
        steps = self._mend(octave)
        nest(octave)
        return octave, Plan(self.layers, self.rewriter.borders, octave.conversion, self.notes, steps)

    def _record(self, registered: list[str]) -> dict[str, Any]:
        """What `rebuild` needs."""
        net, source = self.net, self.source
        record = {
            "alphas": {str(n.target): self.splits.alphas.get(net.spaces.of(n), 0.0) for n in net.nodes(Role.CONV)},
            "input_size": next((list(x.shape[1:]) for x in source.inputs if isinstance(x, Tensor)), []),
            "keep": source.keep,
            "min_size": source.min_size,
            "stem": source.stem,
            "octave": sum(layer.octave for layer in self.layers),
        }
        return record | ({"registered": registered} if registered else {})

    def _mend(self, octave: OctavifiedModule) -> list[RepairStep]:
        """With a sample, bring the octave network's answers closer to the dense one's."""
        if not self.sample or not self.splits.spaces:
            return []
        values, seconds = self.rewriter.values, self._seconds
        return repair(self.net, self._dense, octave, values, self._given, self.sample, self.say, seconds, self.epochs)


def _nothing(text: str) -> None:
    """Say nothing."""


def _keep(keep: Iterable[str], min_size: int) -> list[str]:
    """The patterns of layers to keep, once they and ``min_size`` are checked."""
    if not isinstance(min_size, Integral) or min_size < 0:
        raise ValueError(f"min_size must be a whole number of pixels from 0 up, got {min_size!r}")
    patterns = [keep] if isinstance(keep, str) else [*keep] if isinstance(keep, Iterable) else [keep]
    for pattern in patterns:
        if not isinstance(pattern, str):
            raise ValueError(f"keep must be patterns of layer names, such as ['layer4.*'], got {keep!r}")
    return patterns


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
    absorb(graph, model, kept)
    add_shapes(model, graph, inputs)
    drop_expansions(graph)
    mark_channels_last(graph, model)
    return Net(graph, model, steps_of(graph, model, kept), stem, min_size), notes


def _is_listed(node: fx.Node, net: Net) -> bool:
    handler = net.steps[node].handler
    has_state = node.op == "call_module" and any(True for _ in net.module(node).parameters())
    return has_state or bool(node.meta.get("macs")) or (handler is not None and handler.registered)


def _layer(node: fx.Node, splits: Splits, saliencies: Mapping[fx.Node, Saliency]) -> LayerPlan:
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
    saliency = saliencies.get(net.spaces.of(node)) if step.role is Role.CONV and alpha_out else None
    cost = saliency and saliency.cost(alpha_out)
    return LayerPlan(name, kind, alpha_in, alpha_out, why, before, splits.macs(node) // images, cost, convolves)


def _is_conv(node: fx.Node, net: Net) -> bool:
    """Whether a node calls a convolution, a layer or a function."""
    return node.target in _CONVS if node.op != "call_module" else isinstance(net.module(node), _ConvNd)


def _images(net: Net) -> int:
    """Images in the example inputs."""
    shapes = (shape_of(node) for node in net.graph.nodes if is_map(node))
    return next((shape[0] for shape in shapes if shape), 1)
