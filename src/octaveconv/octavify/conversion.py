"""The conversion of one graph: of a network that torch.fx can trace, or of a part of one."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.modules.conv import _ConvNd

from .._modes import copied, eval_mode
from .allocate import allocate, least_share
from .budget import Budget, searched
from .budget import latency as measured_latency
from .calls import Call, Recording, alike
from .channels_last import mark_channels_last
from .hierarchy import nest
from .idioms import rewrite_idioms
from .keywords import read_keywords
from .layers import pool_strides
from .maps import add_shapes, drop_expansions, is_map, shape_of
from .padding import absorb
from .permute import permute
from .plan import LayerPlan, Plan
from .repair import RepairStep, repair
from .rewrite import OctavifiedGraph, Rewriter
from .roles import Role
from .saliency import Saliency, saliencies
from .sample import Sample
from .spaces import Net
from .splits import Splits
from .steps import steps_of
from .trace import Untraceable, Way, trace

OTHERWISE = "does what its values or their types decide, or keeps something of a call"  # than its graph
_CONVS = (F.conv1d, F.conv2d, F.conv3d, F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)


class Options(NamedTuple):
    """What the caller of octavify wants of the graph."""

    keep: list[str]
    min_size: int
    stem: bool
    pool_strides: bool = False


class Traced(NamedTuple):
    """A copy of a network, traced; notes about it; and the modules in it that cannot be traced, with the reasons."""

    net: Net
    notes: list[str]
    left: dict[str, str]


@dataclass
class Source:
    """The network that the caller gave, or a part of one, and how to read it.

    Attributes:
        model: it stays as it is.
        call: its arguments.
        kept: names of the modules that stay dense.
        options: the caller's.
        lengths: of what its modules return, by their names, see `Recording`; by default it is run to find out.
        lenient: leave modules that cannot be traced as they are.
        others: the arguments of further calls, for a part that is called several times.
        images: in the example; by default as many as the first map has.
        name: of a part, in the network.
        memo: what a copy shares with the model, as of `copy.deepcopy`.
    """

    model: nn.Module
    call: Call
    kept: Collection[str]
    options: Options
    lengths: Mapping[str, int] | None = None
    lenient: bool = False
    others: list[tuple[Any, ...]] = field(default_factory=list)
    images: int = 0
    name: str = ""
    memo: dict[int, Any] = field(default_factory=dict)

    @property
    def prefix(self) -> str:
        """What comes before the names of its modules in the network."""
        return f"{self.name}." if self.name else ""

    def traced(self) -> Traced:
        """A copy of it, traced.

        Raises:
            Untraceable: torch.fx cannot follow it.
        """
        model = copied(self.model, dict(self.memo))
        recording = Recording(model, self.call.args) if self.lengths is None else None
        found = recording.lengths if recording else self.lengths or {}
        lengths = {model.get_submodule(name): length for name, length in found.items()}
        graph, notes, left = trace(model, Way(self.kept, lengths, self.call, self.lenient, own=bool(self.name)))
        kept = {*self.kept, *left}
        read_keywords(graph)
        rewrite_idioms(graph, model, kept)
        absorb(graph, model, kept)
        if self.options.pool_strides:
            pool_strides(model)
        try:
            output = add_shapes(model, graph, self.call.values)
        except Exception as error:  # the model itself runs: its code asks for types, which torch.fx answers wrongly
            reason = f"does what the types of its values decide ({str(error).partition(chr(10))[0]})"
            raise Untraceable(f"{type(model).__name__} cannot be traced: it {reason}", reason) from error
        if recording and not alike(output, recording.output):
            raise Untraceable(f"{type(model).__name__} cannot be traced: it {OTHERWISE}", OTHERWISE)
        drop_expansions(graph)
        mark_channels_last(graph, model)
        net = Net(
            graph, model, steps_of(graph, model, set(kept)), self.options.stem, self.options.min_size, self.prefix
        )
        return Traced(net, notes, left)


class Conversion:
    """A conversion, which a budget may take several tries of.

    Args:
        source: the given network.
        sample: images, if there are any.
        say: is told what is done.
        epochs: of distillation.
        traced: the source, traced.
    """

    def __init__(
        self, source: Source, sample: Sample | None, say: Callable[[str], object], epochs: int,
        traced: Traced | None = None,
    ) -> None:  # fmt: skip
        self.source, self.sample, self.say, self.epochs = source, sample, say, epochs
        self.net, self.notes, _ = traced or source.traced()
        self.saliencies: dict[fx.Node, Saliency] = {}
        self._seconds = 0.0  # that measuring took

    def measure(self, required: bool) -> None:
        """Find out from the sample what low channels cost."""
        if self.sample is None:
            return
        begin = time.perf_counter()
        try:
            with eval_mode(self.net.model):  # in training mode, reading a weight with spectral norm changes it
                self.saliencies = saliencies(self.net, self.sample.fit)
        except (ValueError, RuntimeError, NotImplementedError) as error:  # whatever has no derivative
            reason = f"no gradients could be taken ({str(error).partition(chr(10))[0]})"
            if required:
                raise ValueError(f"a budget cannot be spent by what it costs: {reason}") from error
            self.notes.append(f"{reason}: channels keep their order")
        self._seconds = time.perf_counter() - begin
        self.say(f"what low channels cost: {self._seconds:.0f} s")

    def within(self, budget: Budget) -> tuple[OctavifiedGraph, Plan]:
        """The network that keeps within a budget."""
        if budget.kind == "macs":
            return self.run(allocate(self.net, self.saliencies, budget.value))
        least = least_share(self.net, self.saliencies)
        if budget.kind == "agreement":
            return searched(lambda macs: self._agreeing(macs, budget.value), least, budget)
        macs = searched(lambda macs: self._timed(macs, budget.value), least, budget)
        octave, plan = self.run(allocate(self.net, self.saliencies, macs))
        measured = measured_latency(octave, self.source.model, tuple(self.source.call.args))
        plan.notes.append(
            f"deployed, it takes {measured:.1%} of the dense network's time; asked for {budget.value:.1%}"
        )
        return octave, plan

    def _agreeing(self, macs: float, wanted: float) -> tuple[float, bool, tuple[OctavifiedGraph, Plan]]:
        again = self._again()
        octave, plan = again.run(allocate(again.net, again.saliencies, macs))
        found = next((step.agreement for step in plan.steps if step.kept), 1.0)
        self.say(f"{macs:.1%} of the multiply-adds: agreement {found:.1%}")
        return found, found >= wanted, (octave, plan)

    def _timed(self, macs: float, wanted: float) -> tuple[float, bool, float]:
        again = self._again()
        octave = again.rewritten(allocate(again.net, again.saliencies, macs))
        found = measured_latency(octave, self.source.model, tuple(self.source.call.args))
        self.say(f"{macs:.1%} of the multiply-adds: {found:.1%} of the latency")
        return found, found <= wanted, macs

    def _again(self) -> Conversion:
        """The same conversion of another copy of the network, with what is known of it."""
        again = Conversion(self.source, self.sample, self.say, self.epochs)
        nodes = {node.name: node for node in again.net.graph.nodes}
        again.saliencies = {nodes[node.name]: saliency for node, saliency in self.saliencies.items()}
        again._seconds = self._seconds
        return again

    def rewritten(self, alphas: Callable[[fx.Node], float]) -> OctavifiedGraph:
        """Make the octave network, with the dense weights."""
        net, self.splits = self.net, Splits(self.net, alphas)
        self._given = copy.deepcopy(dict(net.model.state_dict())) if self.sample else {}
        orders = {space: saliency.order for space, saliency in self.saliencies.items()}
        permute(net, {s: order for s, order in orders.items() if s in self.splits.spaces and net.blocks(s)})
        macs = self._macs()
        self.layers = [
            _layer(node, self.splits, self.saliencies, macs[node]) for node in net.steps if _is_listed(node, net)
        ]
        self._dense = copied(net.model) if self.sample else net.model
        self.rewriter = Rewriter(self.splits)
        octave, names = self.rewriter.run(), {name for name, _ in self.source.model.named_modules()}
        for name, module in octave.named_modules():
            if name not in names:  # a border
                module.training = self.source.model.training
        return octave

    def _macs(self) -> dict[fx.Node, tuple[int, int]]:
        """Multiply-accumulates of each node for one image, as given and in the octave network."""
        net, first = self.net, self.source.call.values
        images = self.source.images or _images(net)
        found = dict.fromkeys(net.steps, (0, 0))
        for values in (*self.source.others, first):  # the last one leaves its shapes
            if self.source.others:
                add_shapes(net.model, net.graph, values)
                mark_channels_last(net.graph, net.model)
                net.forget_macs()
            for node, (before, after) in found.items():
                found[node] = before + int(node.meta.get("macs") or 0), after + self.splits.macs(node)
        return {node: (before // images, after // images) for node, (before, after) in found.items()}

    def run(self, alphas: Callable[[fx.Node], float]) -> tuple[OctavifiedGraph, Plan]:
        """Make the octave network, with a sample as close to the dense one as can be, and its plan."""
        registered = registered_in(self.net)
        octave = self.rewritten(alphas)
        octave.conversion = self._record(registered)
        steps = self.mend(octave)
        nest(octave)
        return octave, Plan(self.layers, self.rewriter.borders, octave.conversion, self.notes, steps)

    def _record(self, registered: list[str]) -> dict[str, Any]:
        """What `rebuild` needs."""
        return record_of(self.alphas, self.source.call.args, self.source.options, self.layers, registered)

    @property
    def alphas(self) -> dict[str, float]:
        """The alpha wanted for each convolution."""
        net = self.net
        return {net.name(n): self.splits.alphas.get(net.spaces.of(n), 0.0) for n in net.nodes(Role.CONV)}

    def mend(self, octave: OctavifiedGraph) -> list[RepairStep]:
        """With a sample, bring the octave network's answers closer to the dense one's."""
        if not self.sample or not self.splits.spaces:
            return []
        values, seconds = self.rewriter.values, self._seconds
        return repair(self.net, self._dense, octave, values, self._given, self.sample, self.say, seconds, self.epochs)


def record_of(
    alphas: dict[str, float], inputs: Sequence[Any], options: Options, layers: list[LayerPlan], registered: list[str]
) -> dict[str, Any]:
    """What `rebuild` needs."""
    record = {
        "alphas": alphas,
        "input_size": next((list(x.shape[1:]) for x in inputs if isinstance(x, Tensor)), []),
        **options._asdict(),
        "octave": sum(layer.octave for layer in layers),
    }
    return record | ({"registered": registered} if registered else {})


def registered_in(net: Net) -> list[str]:
    """The types of layers in the network that were registered."""
    nodes = [node for node, step in net.steps.items() if step.handler is not None and step.handler.registered]
    return sorted({type(net.module(node)).__name__ for node in nodes})


def _is_listed(node: fx.Node, net: Net) -> bool:
    handler = net.steps[node].handler
    has_state = node.op == "call_module" and any(True for _ in net.module(node).parameters())
    return has_state or bool(node.meta.get("macs")) or (handler is not None and handler.registered)


def _layer(node: fx.Node, splits: Splits, saliencies: Mapping[fx.Node, Saliency], macs: tuple[int, int]) -> LayerPlan:
    """What becomes of a layer; the net still has the given one."""
    net, step = splits.net, splits.net.steps[node]
    is_module = node.op == "call_module"
    kind = type(net.module(node)).__name__ if is_module else "function"
    name = net.name(node) if is_module else f"{net.prefix}{node.name}"
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
    return LayerPlan(name, kind, alpha_in, alpha_out, why, *macs, cost, convolves)


def _is_conv(node: fx.Node, net: Net) -> bool:
    """Whether a node calls a convolution, a layer or a function."""
    return node.target in _CONVS if node.op != "call_module" else isinstance(net.module(node), _ConvNd)


def _images(net: Net) -> int:
    """Images in the example inputs."""
    shapes = (shape_of(node) for node in net.graph.nodes if is_map(node))
    return next((shape[0] for shape in shapes if shape), 1)
