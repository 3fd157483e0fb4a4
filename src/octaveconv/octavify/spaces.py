"""Which values of a traced network share their channels, and which of them cannot be octaves."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass
from functools import cached_property
from math import prod

from torch import fx, nn

from ..cost import path_macs
from ..nn.computed import computes_weight
from ..octave import ChannelSplit
from ..resolution import Sizes
from .maps import axes_of, conv_axes, halved_size, is_map, low_size, scale_of, shape_of, size_of
from .operations import pieces_of
from .register import try_out
from .roles import Handler, Role, Step


class _Classes:
    """Nodes in classes that are joined two by two."""

    def __init__(self) -> None:
        self._parents: dict[fx.Node, fx.Node] = {}

    def of(self, node: fx.Node) -> fx.Node:
        """The node that stands for its class."""
        while (parent := self._parents.get(node, node)) is not node:
            node = parent
        return node

    def join(self, one: fx.Node, other: fx.Node) -> None:
        self._parents[self.of(other)] = self.of(one)


@dataclass
class Net:
    """A traced network: a graph with shapes, each node's step, and the classes that its values fall into.

    Values of one *space* have the same channels in the same order: they are added, multiplied, or computed from each
    other channel by channel. Values of one *run*, a part of a space, are computed from each other without a sum in
    between; either all of them are octaves or none is. A border can be placed between runs.
    """

    graph: fx.Graph
    model: nn.Module
    steps: dict[fx.Node, Step]
    stem: bool
    min_size: int
    prefix: str = ""  # of a part of a larger network, its name and a dot

    def __post_init__(self) -> None:
        self.spaces, self.runs = _Classes(), _Classes()
        for node, step in self.steps.items():
            self._relate(node, step)
        self.cats: dict[fx.Node, list[list[fx.Node]]] = defaultdict(list)  # of a space, the parts it is made of
        self._collect_parts()
        self.cuts: dict[fx.Node, set[int]] = defaultdict(set)  # of a space, the groups of its grouped convolutions
        for value, groups in self._grouped():
            self.cuts[self.spaces.of(value)].add(groups)
        self.norm_groups: dict[fx.Node, set[int]] = defaultdict(set)  # of a space, those of its group norms
        for node in self.nodes(Role.SAME):
            is_known = node.op == "call_module" and not self.handler(node).registered
            groups = getattr(self.module(node), "num_groups", 1) if is_known else 1
            if 1 < groups < self.channels(node):
                self.norm_groups[self.spaces.of(node)].add(groups)
        self._macs: dict[tuple[fx.Node, ChannelSplit, ChannelSplit], int] = {}  # of octave layers
        self.pinned = self._pinned()
        self.fixed = self._fixed()

    def module(self, node: fx.Node) -> nn.Module:
        """The module that a node calls."""
        return self.model.get_submodule(str(node.target))

    def name(self, node: fx.Node) -> str:
        """The name of the module that a node calls, in the whole network."""
        return f"{self.prefix}{node.target}"

    def handler(self, node: fx.Node) -> Handler:
        """What handles the operation of a node that has a role."""
        handler = self.steps[node].handler
        assert handler is not None
        return handler

    def octave_layer(self, node: fx.Node, inputs: ChannelSplit, outputs: ChannelSplit) -> nn.Module:
        """The octave layer that replaces the one a node calls; the net keeps the given one."""
        handler, layer = self.handler(node), self.module(node)
        if handler.registered:
            return try_out(node, layer, handler, inputs, outputs)[0]
        assert handler.make is not None
        return handler.make(layer, inputs, outputs)

    def macs(self, node: fx.Node, inputs: ChannelSplit, outputs: ChannelSplit) -> int:
        """Multiply-accumulates of that octave layer for one image."""
        key = node, inputs, outputs
        if key not in self._macs:
            self._macs[key] = self._count_macs(*key)
        return self._macs[key]

    def forget_macs(self) -> None:
        """The shapes have changed."""
        self._macs.clear()

    def _count_macs(self, node: fx.Node, inputs: ChannelSplit, outputs: ChannelSplit) -> int:
        handler, layer, size = self.handler(node), self.module(node), size_of(node)
        if handler.spec is not None:
            paths = path_macs(handler.spec(layer, inputs, outputs), size_of(self.steps[node].inputs[0]), size)
            return sum(paths.values())
        if handler.make is not None:
            return try_out(node, layer, handler, inputs, outputs)[1]
        numbers = outputs.high * prod(size) + outputs.low * prod(low_size(size))
        return int(node.meta["macs"]) * numbers // prod(shape_of(node) or ())

    def channels(self, node: fx.Node) -> int:
        """Channels of a node's value."""
        shape = shape_of(node)
        assert shape is not None
        without_batch = len(shape) == axes_of(node) + 1  # a gate that is a parameter
        return shape[0 if without_batch else 1]

    def groups(self, node: fx.Node) -> int:
        """Groups of the convolution that a node calls; each has high and low channels of its own."""
        groups = getattr(self.module(node), "groups", 1)
        return groups if isinstance(groups, int) else 1

    def strides(self, node: fx.Node) -> bool:
        """Whether the convolution that a node calls has a stride of 2 at which the paper's would pool."""
        handler = self.handler(node)
        if handler.spec is None:  # it is registered
            return any(made < read for made, read in zip(size_of(node), size_of(self.steps[node].inputs[0])))
        inputs, outputs = (ChannelSplit(self.channels(x), 0) for x in (self.steps[node].inputs[0], node))
        spec = handler.spec(self.module(node), inputs, outputs)
        pools = max(spec.stride) == 2 and all(r == 1 for r, s in zip(spec.reach, spec.stride) if s > 1)
        return not spec.transposed and (pools or spec.same)

    def blocks(self, space: fx.Node) -> tuple[int, bool] | None:
        """How many blocks a space's channels form, inside which they may be reordered, and whether the blocks may be.

        None if all must keep their order, and for a concatenation, whose order follows from its parts.
        """
        sizes = self.cuts.get(space, set()) | self.norm_groups.get(space, set())
        if space in self.fixed or self.cats.get(space) or len(sizes) > 1:
            return None
        return max(sizes, default=1), not self.cuts.get(space)

    @cached_property
    def run_spaces(self) -> dict[fx.Node, fx.Node]:
        """The space of each run of maps."""
        return {self.runs.of(node): self.spaces.of(node) for node in self.steps if is_map(node)}

    @cached_property
    def flow(self) -> list[tuple[Step, fx.Node, list[fx.Node], bool]]:
        """What can write or read octaves: a node's step, its run, the runs that it reads, whether it strides."""
        roles = Role.CONV, Role.MEAN, Role.CAT, Role.PIECE, Role.JOIN
        return [
            (
                self.steps[node],
                self.runs.of(node),
                [self.runs.of(x) for x in self.steps[node].inputs if is_map(x)],
                self.steps[node].role is Role.CONV and self.strides(node),
            )
            for node in self.nodes(*roles)
        ]

    def nodes(self, *roles: Role) -> list[fx.Node]:
        """The nodes that have one of these roles, in order."""
        return [node for node, step in self.steps.items() if step.role in roles]

    def _relate(self, node: fx.Node, step: Step) -> None:
        if step.role in (Role.SAME, Role.JOIN, Role.MEAN):
            for x in step.inputs:
                self.spaces.join(x, node)
        for piece, *others in pieces_of(node) if step.role is Role.PIECES else ():
            for other in others:
                self.spaces.join(piece, other)
                self.runs.join(piece, other)
        maps = [x for x in step.inputs if is_map(x)]
        if step.role in (Role.SAME, Role.JOIN) and len(maps) == 1 and is_map(node):
            self.runs.join(maps[0], node)

    def _grouped(self) -> list[tuple[fx.Node, int]]:
        """What grouped convolutions read and write, and their groups."""
        convs = [(node, self.groups(node)) for node in self.nodes(Role.CONV)]
        return [(x, count) for node, count in convs if count > 1 for x in (node, *self.steps[node].inputs)]

    def _collect_parts(self) -> None:
        """Find what is concatenated and what is split into pieces; undo a split that does not agree with the rest."""
        for node in self.nodes(Role.CAT):
            parts = list(self.steps[node].inputs)
            self._agree(self.spaces.of(node), parts)
            self.cats[self.spaces.of(node)].append(parts)
        grouped = {self.spaces.of(x) for x, _ in self._grouped()}
        for node in self.nodes(Role.PIECES):
            whole, pieces = self.spaces.of(self.steps[node].inputs[0]), pieces_of(node)
            parts = [piece for piece, *_ in pieces]
            if whole not in grouped and self._agree(whole, parts):
                self.cats[whole].append(parts)
            else:
                undone = Step(Role.OTHER, refusal="its channels are split into other pieces elsewhere")
                self.steps.update(dict.fromkeys((node, *(x for piece in pieces for x in piece)), undone))

    def _agree(self, whole: fx.Node, parts: list[fx.Node]) -> bool:
        """Join parts of a space with the parts that it already has, if they agree."""
        for others in self.cats[whole]:
            if list(map(self.channels, others)) != list(map(self.channels, parts)):
                return False
            for one, other in zip(map(self.spaces.of, others), map(self.spaces.of, parts)):
                if one is not other and (one is whole or other is whole or self.cats.get(one) or self.cats.get(other)):
                    return False
                self.spaces.join(one, other)
        return True

    def _pinned(self) -> dict[fx.Node, str]:
        """The runs that stay dense, and why."""
        pinned: dict[fx.Node, str] = {}
        stem = set() if self.stem else _stem(self)
        for node, step in self.steps.items():
            if not is_map(node):
                reason = _what_instead_of_a_map(node)
            elif step.role is Role.OTHER or step.refusal:
                reason = step.refusal or "the network's input"
            elif node in stem:
                reason = "stem, octave only with stem=True"
            elif min((size for size in halved_size(node) if size > 1), default=1) < self.min_size:  # 1: a series
                reason = f"{_times(halved_size(node))} map, smaller than min_size={self.min_size}"
            else:
                continue
            pinned.setdefault(self.runs.of(node), reason)
        return pinned

    def _fixed(self) -> set[fx.Node]:
        """The spaces whose channels must keep their order, because something reads or writes them in an unknown way."""
        fixed = set()
        reads = Counter(node.target for node in self.steps if node.op == "get_attr")
        saved = self.model.state_dict().keys()
        for node, step in self.steps.items():
            scale = scale_of(node)
            is_gate = (
                scale is not None
                and reads[scale.target] == 1
                and scale.target in saved
                and len(node.users) == 1
                and all(self.steps[user].role is Role.JOIN or scale_of(user) for user in node.users)
            )  # it is reordered, too
            has_own_order = step.handler is not None and step.handler.registered and step.handler.make is not None
            has_own_order |= node.op == "call_module" and computes_weight(self.module(node))
            if (step.role is Role.OTHER and not is_gate) or has_own_order:
                fixed |= {self.spaces.of(value) for value in (node, *node.all_input_nodes)}
        for space in fixed.copy():
            self._fix_parts(space, fixed)
        for space, cats in self.cats.items():
            parts = [list(map(self.spaces.of, cat)) for cat in cats]
            if any(other != parts[0] for other in parts) or space in self.cuts or space in self.norm_groups:
                fixed.add(space)
                self._fix_parts(space, fixed)
        return fixed

    def _fix_parts(self, space: fx.Node, fixed: set[fx.Node]) -> None:
        for cat in self.cats.get(space, []):
            for part in map(self.spaces.of, cat):
                if part not in fixed:
                    fixed.add(part)
                    self._fix_parts(part, fixed)


def _what_instead_of_a_map(node: fx.Node) -> str:
    shape = shape_of(node)
    if shape is None:
        return "not a tensor"
    if len(shape) == axes_of(node) + 2:
        return f"{_times(shape[2:]) if len(shape) > 3 else '1-pixel'} map, as in an SE gate"
    return "vector" if len(shape) == 2 else f"{len(shape)}-d tensor, not a feature map"


def _times(size: Sizes) -> str:
    return "x".join(map(str, size))


def _stem(net: Net) -> set[fx.Node]:
    """The convolutions that read the image, and everything before a pooling to a quarter of its size or more."""
    image = next((halved_size(node)[0] for node in net.steps if is_map(node)), 0)
    stem: set[fx.Node] = set()
    for node, step in net.steps.items():
        inputs = [x for x in node.all_input_nodes if is_map(x)]
        if not is_map(node) or not inputs:
            continue
        if 4 * halved_size(node)[0] < image:
            break
        is_behind = any(_has_conv(net, x) for x in _ancestors(node) - {node})
        if step.role is Role.CONV and not is_behind:
            stem.add(node)
        is_smaller = halved_size(node)[0] < halved_size(inputs[0])[0]
        if step.role is Role.SAME and is_smaller and is_behind and not _has_conv(net, node):
            return stem | _ancestors(node)
    return stem


def _has_conv(net: Net, node: fx.Node) -> bool:
    step = net.steps[node]
    is_registered = step.role is Role.CONV and net.handler(node).registered
    return is_registered or (node.op == "call_module" and conv_axes(net.module(node)) > 0)


def _ancestors(node: fx.Node) -> set[fx.Node]:
    found, waiting = {node}, [node]
    while waiting:
        for x in waiting.pop().all_input_nodes:
            if x not in found:
                found.add(x)
                waiting.append(x)
    return found
