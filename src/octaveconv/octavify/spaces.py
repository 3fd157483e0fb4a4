"""Which values of a traced network share their channels, and which of them cannot be octaves."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import Any

from torch import fx, nn

from .maps import axes_of, conv_axes, halved_size, is_map, scale_of, shape_of
from .roles import Role, Step, pieces_of


class _Classes:
    """Nodes in classes that are put together, two by two."""

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

    Values of one *space* have the same channels in the same order: they are added, multiplied, or follow from each
    other channel by channel. Values of one *run*, a part of a space, follow from each other without a sum in between;
    they are octaves all or none. Between runs a border can be placed.
    """

    graph: fx.Graph
    model: nn.Module
    steps: dict[fx.Node, Step]
    stem: bool
    min_size: int

    def __post_init__(self) -> None:
        self.spaces, self.runs = _Classes(), _Classes()
        for node, step in self.steps.items():
            self._relate(node, step)
        self.cats: dict[fx.Node, list[list[fx.Node]]] = defaultdict(list)  # of a space, the parts of what it is made of
        self._collect_parts()
        self.cuts: dict[fx.Node, set[int]] = defaultdict(set)  # of a space, the groups of its grouped convolutions
        for value, groups in self._grouped():
            self.cuts[self.spaces.of(value)].add(groups)
        self.norm_groups: dict[fx.Node, set[int]] = defaultdict(set)  # of a space, those of its group normalisations
        for node in self.nodes(Role.SAME):
            groups = getattr(self.module(node), "num_groups", 1) if node.op == "call_module" else 1
            if 1 < groups < self.channels(node):
                self.norm_groups[self.spaces.of(node)].add(groups)
        self.pinned = self._pinned()
        self.fixed = self._fixed()

    def module(self, node: fx.Node) -> nn.Module:
        """The module that a node calls."""
        return self.model.get_submodule(str(node.target))

    def channels(self, node: fx.Node) -> int:
        """Channels of a node's value."""
        shape = shape_of(node)
        assert shape is not None
        without_batch = len(shape) == axes_of(node) + 1  # a gate that is a parameter
        return shape[0 if without_batch else 1]

    def groups(self, node: fx.Node) -> int:
        """Groups of the convolution that a node calls; each has its own high and low channels."""
        return int(getattr(self.module(node), "groups", 1))

    def strided(self, node: fx.Node) -> bool:
        """Whether the convolution that a node calls makes maps smaller."""
        conv: Any = self.module(node)
        return not getattr(conv, "transposed", False) and any(stride > 1 for stride in getattr(conv, "stride", ()))

    def blocks(self, space: fx.Node) -> tuple[int, bool] | None:
        """Blocks of a space's channels, inside which they may change places, and whether the blocks may, too.

        None if all must stay where they are, and of a concatenation, whose order follows from its parts'.
        """
        sizes = self.cuts.get(space, set()) | self.norm_groups.get(space, set())
        if space in self.fixed or self.cats.get(space) or len(sizes) > 1:
            return None
        return max(sizes, default=1), not self.cuts.get(space)

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
        """What grouped convolutions read and make, and their groups."""
        convs = [(node, self.groups(node)) for node in self.nodes(Role.CONV)]
        return [(x, count) for node, count in convs if count > 1 for x in (node, *self.steps[node].inputs)]

    def _collect_parts(self) -> None:
        """Find what is concatenated and what is cut into pieces; a cut that does not agree with the rest is undone."""
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
                undone = Step(Role.OTHER, refusal="channels are cut into other pieces elsewhere")
                self.steps.update(dict.fromkeys((node, *(x for piece in pieces for x in piece)), undone))

    def _agree(self, whole: fx.Node, parts: list[fx.Node]) -> bool:
        """Give parts of a space the spaces of those that it has already, if that can be done."""
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
                reason = "it is no feature map"
            elif step.role is Role.OTHER or step.refusal:
                reason = step.refusal or "it is the network's input"
            elif node in stem:
                reason = "the stem stays dense"
            elif min(halved_size(node)) < self.min_size:
                size = "x".join(map(str, halved_size(node)))
                reason = f"its map of {size} is below {self.min_size} pixels"
            else:
                continue
            pinned.setdefault(self.runs.of(node), reason)
        return pinned

    def _fixed(self) -> set[fx.Node]:
        """The spaces whose channels must keep their order, because something unknown reads or writes them."""
        fixed = set()
        reads = Counter(node.target for node in self.steps if node.op == "get_attr")
        for node, step in self.steps.items():
            scale = scale_of(node)
            is_gate = (
                scale is not None
                and reads[scale.target] == 1
                and all(self.steps[user].role is Role.JOIN or scale_of(user) for user in node.users)
            )  # it is reordered, too
            if step.role is Role.OTHER and not is_gate:
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


def _stem(net: Net) -> set[fx.Node]:
    """The convolutions that read the image, and all that comes before a pooling to a quarter of its size or more."""
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
    return node.op == "call_module" and conv_axes(net.module(node)) > 0


def _ancestors(node: fx.Node) -> set[fx.Node]:
    found, waiting = {node}, [node]
    while waiting:
        for x in waiting.pop().all_input_nodes:
            if x not in found:
                found.add(x)
                waiting.append(x)
    return found
