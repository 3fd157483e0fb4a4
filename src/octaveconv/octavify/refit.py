"""Fit octave convolutions, in the network's order, to what the dense ones compute.

A layer that reads blurred maps, and maps that are a little wrong already, can make up for some of it with other
weights: those of a ridge regression towards the dense layer's output, which keeps near the dense weights. Where the
layer ends a residual block, the target is the block's sum, so that what went wrong on the other branch is mended, too.
"""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from math import prod
from types import NoneType
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn

from .._modes import eval_mode
from ..nn.computed import computes_weight
from ..nn.conv import OctConvNd
from ..nn.norm import OctBatchNormNd, at_least_single
from ..octave import Octave, as_octave, octave_map
from ..resolution import pool
from ..spec import Paths
from .layers import FITTED
from .maps import is_map
from .operations import channels_second
from .regression import Pixels, Sums, collect, ridge_fit
from .rewrite import OctavifiedGraph, Parts
from .sample import Batch, cloned, images_in, pieces
from .spaces import Net

_PIXELS = 30_000  # of a layer's output, at most
_FEWEST = 8_000
_MOST = 2_500  # inputs of one output, to solve for; the time grows with their cube, the memory with their square
_SUMS = (operator.add, operator.iadd, torch.add, "add", "add_")
_KEEPS = (nn.Identity, nn.Dropout, nn.Dropout2d)  # in evaluation mode
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


class Target(NamedTuple):
    """What a convolution is fitted to.

    Attributes:
        node: the node of the dense graph whose value it is: the convolution's own, or the sum at a block's end.
        norm: the batch normalization between them, or behind the convolution, if there is one.
        other: the other operand of the sum.
    """

    node: fx.Node
    norm: fx.Node | None = None
    other: fx.Node | None = None


def refit(
    net: Net, dense: nn.Module, octave: OctavifiedGraph, values: Mapping[fx.Node, Any], batches: Sequence[Batch]
) -> None:
    """Change the weights of ``octave``, and what its norms subtract, so that its layers follow the dense ones.

    Args:
        net: the traced network, whose modules are the octave ones by now.
        dense: the modules of the dense network, with their channels in the same order.
        octave: the octave network.
        values: for each node of the net's graph, the node or the `Parts` of the octave network's.
        batches: the sample.
    """
    if len(batches) == 1:
        batches = [*pieces(batches[0], (images_in(batches[0]) + 1) // 2)]
    calls = {str(node.target): node for node in octave.graph.nodes if node.op == "call_module"}
    wanted_of = targets(net, dense, values)
    held = [node for target in wanted_of.values() if target.other for node in nodes_of(values[target.other])]
    twin = fx.GraphModule(dense, net.graph)
    theirs = _Stream(twin, batches, [target.node for target in wanted_of.values()])
    ours = _Stream(octave, batches, held)
    pixels = Pixels(sum(map(images_in, batches)), torch.Generator().manual_seed(0))
    with eval_mode(octave), eval_mode(twin), torch.no_grad():
        for node, target in wanted_of.items():
            call, layer = calls[str(node.target)], octave.get_submodule(str(node.target))
            norm = None if target.norm is None else octave.get_submodule(str(target.norm.target))
            ours.run_before(call)
            theirs.run_before(target.node.next)
            fit = _Fit(layer, norm)
            for batch, (own, kept, given) in enumerate(zip(ours.values, ours.kept, theirs.kept)):
                x = as_octave(fx.node.map_arg(call.args[0], own.__getitem__))
                wanted = fit.parts(channels_second(target.node, given[target.node]))
                if target.other is not None:
                    wanted = fit.before_norm(wanted, _value(fit, target.other, values, kept))
                fit.add(x, wanted, pixels, batch % 2)
            fit.solve()
            theirs.let_go(target.node)
            ours.let_go(*(() if target.other is None else nodes_of(values[target.other])))


def targets(net: Net, dense: nn.Module, values: Mapping[fx.Node, Any]) -> dict[fx.Node, Target]:
    """What each octave convolution is fitted to, in the network's order; the arguments are those of `refit`."""
    place = {node: i for i, node in enumerate(net.graph.nodes)}
    return {node: _target(net, dense, node, values, place) for node in net.steps if _is_fitted(net, node)}


def _is_fitted(net: Net, node: fx.Node) -> bool:
    if node.op != "call_module" or net.steps[node].handler is None:
        return False
    layer = net.module(node)
    return net.handler(node).make in FITTED and isinstance(layer, OctConvNd) and not computes_weight(layer)


def _target(
    net: Net, dense: nn.Module, conv: fx.Node, values: Mapping[fx.Node, Any], place: Mapping[fx.Node, int]
) -> Target:
    """Follow what comes behind a convolution, as long as it is linear. ``place`` is that of each node in the graph."""
    node, norm = conv, None
    while len(node.users) == 1 and not net.steps[user := next(iter(node.users))].refusal:
        if user.op == "call_module":
            layer = dense.get_submodule(str(user.target))
            if isinstance(layer, _NORMS) and norm is None and layer.running_mean is not None:
                norm = user
                if any(not isinstance(getattr(layer, name, None), (*_KEEPS, NoneType)) for name in ("drop", "act")):
                    break
            elif not isinstance(layer, _KEEPS) and type(layer).__name__ not in ("DropPath", "StochasticDepth"):
                break
            node = user
            continue
        others = [x for x in user.all_input_nodes if x is not node]
        if user.target in _SUMS and not user.kwargs and len(user.args) == 2 and len(others) == 1:
            (other,) = others
            same = is_map(other) and user.meta["shape"] == other.meta["shape"]
            split, sum_split = isinstance(values[other], Parts), isinstance(values[user], Parts)
            fits = isinstance(values[conv], Parts) is sum_split and (sum_split or not split)
            if same and fits and place[other] < place[conv]:
                return Target(user, norm, other)
        break
    return Target(conv, norm)


def nodes_of(value: Any) -> list[fx.Node]:
    """The nodes of a value of the octave network: one, or those of its two parts."""
    return [*value] if isinstance(value, Parts) else [value]


def _value(fit: _Fit, node: fx.Node, values: Mapping[fx.Node, Any], own: Mapping[fx.Node, Any]) -> Octave:
    """A value of the octave network, in two parts if the layer's output is."""
    found = [own[part] for part in nodes_of(values[node])]
    return Octave(*found) if len(found) == 2 else fit.parts(channels_second(node, found[0]))


class _Stream:
    """A network that runs step by step on all batches at once, keeping only what is still needed.

    Attributes:
        values: for each batch the nodes' values.
        kept: the same of nodes that are held, as they were at first, until `let_go`.
    """

    def __init__(self, module: fx.GraphModule, batches: Sequence[Batch], held: Iterable[fx.Node]) -> None:
        self._runs = [fx.Interpreter(module) for _ in batches]
        self.values: list[dict[fx.Node, Any]] = [{} for _ in batches]
        for run, env, batch in zip(self._runs, self.values, batches):
            run.env, run.args_iter = env, iter(cloned(batch))
        self._left = {node: len(node.users) + 1 for node in module.graph.nodes}
        self._held = Counter(held)
        self.kept: list[dict[fx.Node, Any]] = [{} for _ in batches]
        self._nodes, self._done = list(module.graph.nodes), 0
        self._place = {node: i for i, node in enumerate(self._nodes)}

    def run_before(self, stop: fx.Node) -> None:
        """Run all nodes before ``stop`` that have not run."""
        while self._done < self._place[stop]:
            node = self._nodes[self._done]
            for run, env in zip(self._runs, self.values):
                env[node] = run.run_node(node)
            if node in self._held:
                for kept, env in zip(self.kept, self.values):
                    kept[node] = env[node].clone()  # which an operation in place may change
            self._done += 1
            self.release(node, *node.all_input_nodes)

    def let_go(self, *nodes: fx.Node) -> None:
        """Forget what is kept of nodes, once this is called as often as they were held."""
        _count_down(nodes, self._held, self.kept)

    def release(self, *nodes: fx.Node) -> None:
        """Forget nodes that nobody else needs."""
        _count_down(nodes, self._left, self.values)


def _count_down(nodes: Iterable[fx.Node], left: dict[fx.Node, int], stores: Sequence[dict[fx.Node, Any]]) -> None:
    """Count one use of each node, and remove it from the stores at its last."""
    for node in nodes:
        left[node] -= 1
        if not left[node]:
            for store in stores:
                del store[node]


class _Fit:
    """The fit of one layer."""

    def __init__(self, layer: Any, norm: Any) -> None:
        self.layer, self.norm, self.spec = layer, norm, layer.spec
        self.sums = {name: (Sums(), Sums()) for name in Octave._fields}
        taps, columns = prod(self.spec.kernel_size), sum(self.spec.inputs[:2])
        self.inputs = taps if self.spec.depthwise else taps * columns // self.spec.groups  # of one output
        self.left: dict[str, list[Tensor]] = {name: [] for name in Octave._fields}  # mean errors, of too large a layer

    def parts(self, y: Tensor) -> Octave:
        """A dense output as the layer would give it."""
        high, low = self.spec.outputs.split(at_least_single(y), 1)
        return Octave(high if high.shape[1] else None, pool(low, self.spec.factor) if low.shape[1] else None)

    def before_norm(self, total: Octave, other: Octave) -> Octave:
        """What the layer has to give for its norm's output and ``other`` to add up to ``total``."""
        left = octave_map(lambda both, one: both - at_least_single(one), total, other)
        if self.norm is None:
            return left
        scale, shift = _affine(self.norm)
        columns = (-1, *[1] * len(self.spec.kernel_size))
        affine = zip(self.spec.outputs.split(scale), self.spec.outputs.split(shift))
        parts = [
            None if part is None else (part - b.view(columns)) / a.view(columns) for part, (a, b) in zip(left, affine)
        ]
        return Octave(*parts)

    def add(self, x: Octave, wanted: Octave, pixels: Pixels, fold: int) -> None:
        """Note what the layer gets, and what it is to give."""
        if self.inputs > _MOST:
            for name, y, made in zip(Octave._fields, wanted, self.layer(x)):
                if y is not None:
                    self.left[name].append((y - made).transpose(0, 1).flatten(1).mean(1))
            return
        x = octave_map(at_least_single, x)
        for name, y in zip(Octave._fields, wanted):
            if y is None:
                continue
            some = pixels.of(tuple(y.shape[2:]), min(_PIXELS, max(_FEWEST, 6 * self.inputs))).to(y.device)
            collect(self.sums[name][fold], self.spec, x, y, name == "low", some)

    def solve(self) -> None:
        """Give the layer its new weights, or only take its mean error away."""
        if self.inputs > _MOST:
            means = [torch.stack(means).mean(0) if means else None for means in self.left.values()]
            self._shift(self.spec.outputs.join(*means), add=True)
            return
        weight = self.layer.weight.detach()
        kernel = weight if weight.dim() > 2 else weight[..., None, None]
        old = self.spec.paths(kernel)
        centered = self.layer.bias is not None or self.norm is not None
        high, high_offset = self._part("high", old.hh, old.lh, centered)
        low, low_offset = self._part("low", old.hl, old.ll, centered)
        found = self.spec.join_paths(Paths(hh=high[0], hl=low[0], lh=high[1], ll=low[1]))
        if not found.isfinite().all():
            return
        self.layer.weight.copy_(found.view_as(weight))
        if centered:
            self._shift(self.spec.outputs.join(high_offset, low_offset))

    def _shift(self, offset: Tensor, add: bool = False) -> None:
        """Set what is added to the outputs: in the bias, or in what the next norm subtracts."""
        if self.layer.bias is not None:
            self.layer.bias.copy_(self.layer.bias + offset if add else offset)
        elif self.norm is not None:
            self.norm.running_mean.sub_(offset.to(self.norm.running_mean.dtype))

    def _part(
        self, name: str, from_high: Tensor | None, from_low: Tensor | None, centered: bool
    ) -> tuple[list[Tensor | None], Tensor | None]:
        """The blocks of one part's weights, and its offset."""
        blocks = [from_high, from_low]
        present = [block for block in blocks if block is not None]
        if not self.sums[name][0].count:
            return blocks, None
        groups = len(present[0]) if self.spec.depthwise else self.spec.groups
        start = torch.cat([block.unflatten(0, (groups, -1)).flatten(2).mT for block in present], 1)
        weights, offset = ridge_fit(self.sums[name], start.double(), centered)
        columns = iter(weights.split([block[0].numel() for block in present], 1))
        found = [None if block is None else next(columns).mT.reshape(block.shape).to(block) for block in blocks]
        return found, offset.flatten()


def _affine(norm: OctBatchNormNd) -> tuple[Tensor, Tensor]:
    """A norm in evaluation mode, as a product and a sum."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = (norm.running_var + norm.eps).rsqrt() * (1.0 if norm.weight is None else norm.weight)
    scale = torch.where(scale.abs() < 1e-6, torch.inf, scale)  # such a channel adds nothing, whatever it is
    return scale, (0.0 if norm.bias is None else norm.bias) - torch.where(scale.isinf(), 0.0, norm.running_mean * scale)
