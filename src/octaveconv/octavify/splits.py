"""Which values of a traced network become octaves, and how their channels are cut."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from functools import reduce

from torch import fx

from ..octave import ChannelSplit
from .maps import is_map, shape_of
from .roles import Role
from .spaces import Net

NO_PARTNER = "not between two octave layers"


class Splits:
    """How the channels of each value are cut at given alphas.

    Args:
        net: the network.
        alpha_of: the alpha wanted for the output of a convolution.

    Raises:
        ValueError: different alphas are wanted for convolutions that share their output's channels.
    """

    def __init__(self, net: Net, alpha_of: Callable[[fx.Node], float]) -> None:
        self.net = net
        self.alphas = self._wanted(alpha_of)
        self.reasons: dict[fx.Node, str] = {}  # of runs
        self._octaves = self._partnered()
        self._of_space: dict[fx.Node, ChannelSplit] = {}
        self._parts: dict[fx.Node, list[ChannelSplit]] = defaultdict(list)
        for node in net.steps:
            space = net.spaces.of(node)
            if self.is_octave(node) and space not in self._of_space:
                self._of_space[space] = self._split(space)

    def is_octave(self, node: fx.Node) -> bool:
        """Whether its value is an octave."""
        return self.net.runs.of(node) in self._octaves and is_map(node)

    def of(self, node: fx.Node) -> ChannelSplit:
        """How its value's channels are split; a plain tensor has no low ones."""
        if self.is_octave(node):
            return self._of_space[self.net.spaces.of(node)]
        return ChannelSplit(self.net.channels(node), 0)

    def parts(self, node: fx.Node) -> list[ChannelSplit]:
        """How the parts are split that its value is a concatenation of, or that it is cut into."""
        return self._parts[self.net.spaces.of(node)]

    def space_split(self, node: fx.Node) -> ChannelSplit:
        """How the octaves are split that share the channels of its value."""
        return self._of_space[self.net.spaces.of(node)]

    def converted(self, node: fx.Node) -> bool:
        """Whether a convolution becomes an octave convolution.

        One that strides stays as it is if its output is dense: it would compute what the low channels tell at half the
        resolution of that.
        """
        reads = self.is_octave(self.net.steps[node].inputs[0]) and not self.net.strides(node)
        return not self.net.steps[node].refusal and (self.is_octave(node) or reads)

    def cuts(self, node: fx.Node) -> tuple[ChannelSplit, ChannelSplit]:
        """How a convolution's inputs and outputs are split."""
        return self.of(self.net.steps[node].inputs[0]), self.of(node)

    def macs(self, node: fx.Node) -> int:
        """Multiply-accumulates of a node's call, for all the images in the example."""
        before = int(node.meta.get("macs") or 0)
        if not before:
            return 0
        step = self.net.steps[node]
        octave = self.converted(node) if step.role is Role.CONV else step.role is Role.SAME and self.is_octave(node)
        if not octave:
            return before
        return (shape_of(node) or (0,))[0] * self.net.macs(node, *self.cuts(node))

    @property
    def spaces(self) -> set[fx.Node]:
        """The spaces that have an octave."""
        return set(self._of_space)

    def why_dense(self, node: fx.Node) -> str:
        """Why its value is a plain tensor."""
        run = self.net.runs.of(node)
        return self.net.pinned.get(run) or self.reasons.get(run, NO_PARTNER)

    def _wanted(self, alpha_of: Callable[[fx.Node], float]) -> dict[fx.Node, float]:
        net, alphas, names = self.net, dict[fx.Node, float](), dict[fx.Node, str]()
        for node in net.nodes(Role.CONV):
            space = net.spaces.of(node)
            if net.runs.of(node) in net.pinned:
                continue
            alpha, name = alpha_of(node), net.name(node)
            if alphas.setdefault(space, alpha) != alpha:
                raise ValueError(
                    f"{names[space]} is to have alpha {alphas[space]:g} and {name} alpha {alpha:g}, but their outputs "
                    f"are added or share channels: give both the same, or keep one of them dense with keep=[{name!r}]"
                )
            names.setdefault(space, name)
        for node in net.nodes(Role.PIECE):
            whole = net.spaces.of(net.steps[node].inputs[0])
            if whole in alphas:
                alphas.setdefault(net.spaces.of(node), alphas[whole])
        return alphas

    def _cut(self, space: fx.Node) -> int:
        """Inside how many groups of channels a space is split; different numbers are refused."""
        return max(self.net.cuts.get(space) or {1})

    def _refusal(self, space: fx.Node) -> str:
        """Why no value of a space can be an octave."""
        net, alpha = self.net, self.alphas.get(space, 0.0)
        if len(net.cuts.get(space, ())) > 1:
            counts = " and ".join(map(str, sorted(net.cuts[space])))
            return f"its channels are shared by convolutions with {counts} groups"
        if net.cats.get(space):
            parts = [list(map(net.spaces.of, cat)) for cat in net.cats[space]]
            if any(other != parts[0] for other in parts) or net.cuts.get(space):
                return "its channels are concatenated or grouped in two different ways"
            return "alpha 0" if space in self.alphas and not alpha else ""
        if not alpha:
            return "alpha 0" if space in self.alphas else NO_PARTNER
        if not self._low(space):
            per_group = net.channels(space) // self._cut(space)
            channels = f"{per_group} channel{'s' * (per_group > 1)}{' per group' * (self._cut(space) > 1)}"
            return f"alpha {alpha:g} of {channels} rounds down to none"
        return ""

    def _low(self, space: fx.Node) -> int:
        """Low channels: rounded down, and equally many in each group."""
        cut = self._cut(space)
        return int(self.alphas.get(space, 0.0) * (self.net.channels(space) // cut)) * cut

    def _partnered(self) -> set[fx.Node]:
        """The runs that are both written and read by something that takes octaves."""
        net = self.net
        found = set()
        for run, space in net.run_spaces.items():
            if run not in net.pinned:
                if reason := self._refusal(space):
                    self.reasons[run] = reason
                else:
                    found.add(run)
        parts = {
            run: {net.runs.of(x) for cat in net.cats[space] for x in cat}
            for run, space in net.run_spaces.items()
            if net.cats.get(space)
        }  # at least one of them must have low channels
        while True:
            made, read = set[fx.Node](), set[fx.Node]()
            for step, run, inputs, strides in net.flow:
                if step.role is Role.CONV and not step.refusal:
                    made.add(run)
                    read.update(inputs if run in found or not strides else ())
                elif step.role is Role.MEAN and not step.refusal:
                    read.update(inputs)
                elif step.role in (Role.CAT, Role.PIECE) or (step.role is Role.JOIN and len(inputs) > 1):
                    if run in found:
                        read.update(inputs)
                    if any(x in found for x in inputs):
                        made.add(run)
            empty = {run for run in found if not any(x in found for x in parts.get(run, (run,)))}
            lost = {run for run in found if run not in made or run not in read} | empty
            if not lost:
                return found
            found -= lost

    def _split(self, space: fx.Node) -> ChannelSplit:
        net = self.net
        if not net.cats.get(space):
            low = self._low(space)
            return ChannelSplit(net.channels(space) - low, low, self._cut(space))
        for nodes in zip(*net.cats[space]):  # the same part in each concatenation or cut
            octave = next(filter(self.is_octave, nodes), None)
            if octave is not None and (part := net.spaces.of(octave)) not in self._of_space:
                self._of_space[part] = self._split(part)
            split = ChannelSplit(net.channels(nodes[0]), 0) if octave is None else self.of(octave)
            self._parts[space].append(split)
        return reduce(ChannelSplit.then, self._parts[space])
