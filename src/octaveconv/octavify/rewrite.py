"""The octave network: the traced graph, with two nodes, one for each resolution, wherever a value is an octave."""

from __future__ import annotations

import copy
import inspect
import json
import operator
from itertools import takewhile
from types import NoneType
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from .._modes import detached
from ..nn import Merge, Split
from ..octave import ChannelSplit, Octave
from ..resolution import Sizes, crop, pool
from .hierarchy import BORDER, join, mark
from .keywords import read_keywords
from .maps import axes_of, is_channels_last, is_map, low_size, shape_of
from .operations import FROM_CHANNELS_LAST, TO_CHANNELS_LAST
from .roles import Role
from .splits import Splits

_STATE = ("_modules", "_parameters", "_buffers", "_non_persistent_buffers_set")
# What timm, torchvision and our verbs ask a network, and how to rebuild it.
_CARRIED = (
    "num_classes", "num_features", "pretrained_cfg", "default_cfg", "out_channels", "conversion", "model_args",
    "_model_args", "_traits",
)  # fmt: skip
_INTERPOLATE = ("size", "scale_factor", "mode", "align_corners", "recompute_scale_factor", "antialias")  # its order


class OctavifiedModule(nn.Module):
    """What `octavify` returns. Its state dict carries ``conversion``, the plan's, where PyTorch records versions."""

    conversion: dict[str, Any]

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if hasattr(destination, "_metadata"):
            destination._metadata[prefix[:-1]]["octavify"] = json.dumps(self.conversion)

    def __reduce__(self) -> Any:
        raise TypeError(
            "an octavified network cannot be pickled whole: save its state_dict(), and load it into a network that "
            "was octavified with the same arguments"
        )


class OctavifiedGraph(OctavifiedModule, fx.GraphModule):
    """The modules of a network that was traced as a whole, under their names, and a graph that calls them."""

    def __init__(self, model: nn.Module, graph: fx.Graph) -> None:
        super().__init__(model, graph, f"Oct{type(model).__name__}")
        for name in _STATE:  # with the modules that are not called, so that no key of the state dict is lost
            vars(self)[name] = vars(model)[name]
        for name in _CARRIED:
            if inspect.getattr_static(model, name, None) is not None:  # not what a ``__getattr__`` of theirs warns of
                setattr(self, name, getattr(model, name))

    def __deepcopy__(self, memo: dict[int, Any]) -> OctavifiedGraph:
        memo.update(detached(self))
        twin = super().__deepcopy__(memo)
        for name in (*_STATE, *_CARRIED):
            if name in vars(self):
                vars(twin)[name] = copy.deepcopy(vars(self)[name], memo)
        return twin  # type: ignore[return-value]


def fit(low: Tensor, high: Tensor) -> Tensor:
    """Crop a pooled low part to the size that belongs to the high one, or extend it with its last row and column."""
    size = low_size_beside(high)
    low = crop(low, size)
    missing = [n for pixels, now in zip(reversed(size), reversed(low.shape)) for n in (0, pixels - now)]
    return F.pad(low, missing, mode="replicate") if any(missing) else low


def join_channels(high: Tensor, low: Tensor, split: tuple[Any, ...]) -> Tensor:
    """One number for each channel of two parts, in dense order: ``[N, C, ...]``."""
    return _from_constant(split).join(high, low, 1)


def split_gates(gates: Tensor, split: tuple[Any, ...], axes: int) -> tuple[Tensor, Tensor]:
    """Gates of the high and of the low channels: ``[..., C, 1, 1]``, with a one for each axis of the maps."""
    return _from_constant(split).split(gates, gates.dim() - 1 - axes)


def _constant(split: ChannelSplit) -> tuple[Any, ...]:
    """A split as nested plain tuples: the code that torch.fx writes cannot name a class inside another."""
    return (*split[:3], tuple(map(_constant, split.pieces)))


def _from_constant(split: tuple[Any, ...]) -> ChannelSplit:
    high, low, cut, pieces = split
    return ChannelSplit(high, low, cut, tuple(map(_from_constant, pieces)))


def low_size_beside(high: Tensor) -> tuple[int, ...]:
    """Pixels of the low part that belongs to a high one."""
    return low_size(high.shape[2:])


def octave_shape(high: Tensor, low: Tensor) -> tuple[int, ...]:
    """The shape of an octave's dense twin."""
    return (high.shape[0], high.shape[1] + low.shape[1], *high.shape[2:])


class Parts(NamedTuple):
    """An octave in the graph: the nodes of its two parts."""

    high: fx.Node
    low: fx.Node


class Rewriter:
    """Writes the graph of an octave network and replaces its modules.

    Attributes:
        borders: for each border placed, what it is and the node whose value it takes.
        values: what stands for each node of the dense graph: a node, or the `Parts` of an octave.
    """

    def __init__(self, splits: Splits) -> None:
        self.splits, self.net = splits, splits.net
        self.graph = fx.Graph()
        read_keywords(self.graph)
        self.borders: list[tuple[str, str]] = []
        self.values: dict[fx.Node, Any] = {}
        self._crossed: dict[tuple[fx.Node, str], Any] = {}

    def run(self) -> OctavifiedGraph:
        """Write everything; the net's model becomes part of the network."""
        for node in self.net.graph.nodes:
            before = next(reversed(self.graph.nodes), None)
            self.values[node] = value = self._write(node)
            made = list(takewhile(lambda new, last=before: new is not last, reversed(self.graph.nodes)))  # type: ignore[misc]
            mark(made, node)
            if isinstance(value, Parts):
                join(*value)
        self.graph.lint()
        return OctavifiedGraph(self.net.model, self.graph)

    def _write(self, node: fx.Node) -> Any:
        step, splits = self.net.steps[node], self.splits
        if step.role is Role.CONV and splits.converted(node):
            return self._conv(node, step.inputs[0])
        x = self.values[step.inputs[0]] if step.inputs else None
        if step.role is Role.PIECES and isinstance(x, Parts):
            return None  # each piece is taken from the octave itself
        if step.role is Role.PIECE and isinstance(x, Parts):
            return self._piece(node, x)
        if splits.is_octave(node):
            if step.role is Role.SAME:
                return self._same(node, step.inputs[0])
            if step.role is Role.JOIN:
                return self._join(node)
            return self._cat(node)
        if step.role is Role.MEAN and isinstance(x, Parts):
            parts = [self._copy(node, {step.inputs[0]: part}) for part in x]
            return self.graph.call_function(join_channels, (*parts, _constant(splits.of(step.inputs[0]))))
        if step.role is Role.SHAPE and isinstance(x, Parts):
            shape = self.graph.call_function(octave_shape, tuple(x))
            axis = (*node.args[1:], *node.kwargs.values()) if node.op == "call_method" else ()
            return self.graph.call_function(operator.getitem, (shape, *axis)) if axis else shape
        return self._copy(node, {})

    def _copy(self, node: fx.Node, parts: dict[fx.Node, fx.Node]) -> fx.Node:
        """The same node, with ``parts`` in place of octaves; others are merged."""
        return self.graph.node_copy(node, lambda x: parts[x] if x in parts else self._dense(x))

    def _conv(self, node: fx.Node, x: fx.Node) -> Any:
        inputs, outputs = self.splits.cuts(node)
        self._replace(node, self.net.octave_layer(node, inputs, outputs))
        value = self.values[x] if inputs.low else self._moved(x, self.values[x], FROM_CHANNELS_LAST)
        result = self._call(node, value, has_low=outputs.low > 0)
        return result if outputs.low else self._moved(node, result, TO_CHANNELS_LAST)

    def _moved(self, node: fx.Node, value: fx.Node, permutation: Sizes) -> fx.Node:
        """A plain value of a node, permuted if its channels are in the last dimension."""
        if not is_channels_last(node):
            return value
        return self.graph.call_function(torch.permute, (value, permutation))

    def _same(self, node: fx.Node, x: fx.Node) -> Parts:
        value, split = self._octave(x), self.splits.of(node)
        handler = self.net.handler(node)
        if handler.make is not None:
            module = self.net.module(node)
            self._replace(node, self.net.octave_layer(node, split, split))
            parts: Parts = self._call(node, value)
            for name in handler.behind:
                if not isinstance(getattr(module, name, None), (nn.Identity, NoneType)):
                    parts = Parts(*(self.graph.call_module(f"{node.target}.{name}", (part,)) for part in parts))
            return parts
        if is_channels_last(node) != is_channels_last(x):
            return value  # type: ignore[no-any-return]  # an octave always has the channels in the second dimension
        if self.net.steps[node].resizes:
            return self._resize(node, x, value)
        high, low = (self._copy(node, {x: part}) for part in value)
        if shape_of(node) != shape_of(x):
            low = self.graph.call_function(fit, (low, high))
        return Parts(high, low)

    def _resize(self, node: fx.Node, x: fx.Node, value: Parts) -> Parts:
        """Both parts, the low one to the size that belongs to the high one."""
        if node.op == "call_module":
            given = vars(self.net.module(node))
        else:
            given = {**dict(zip(_INTERPOLATE, node.args[1:])), **node.kwargs}
        how: dict[str, Any] = {name: given[name] for name in ("mode", "align_corners", "antialias") if name in given}
        high = self._copy(node, {x: value.high})
        size = self.graph.call_function(low_size_beside, (high,))
        return Parts(high, self.graph.call_function(F.interpolate, (value.low, size), how))

    def _join(self, node: fx.Node) -> Parts:
        parts: tuple[dict[fx.Node, Any], dict[fx.Node, Any]] = ({}, {})
        for x in node.all_input_nodes:
            if x not in self.net.steps[node].inputs:  # acts on all channels alike
                dense = self._dense(x)
                pair = Parts(dense, self.graph.call_function(pool, (dense,)) if is_map(x) else dense)
            elif is_map(x):
                pair = self._octave(x)
            else:
                split = _constant(self.splits.of(node))
                pair = self._items(self.graph.call_function(split_gates, (self.values[x], split, axes_of(node))))
            parts[0][x], parts[1][x] = pair
        return Parts(*(self._copy(node, part) for part in parts))

    def _cat(self, node: fx.Node) -> Parts:
        highs, lows = [], []
        for x, split in zip(self.net.steps[node].inputs, self.splits.parts(node)):
            value = self._octave(x) if split.low else self.values[x]
            highs.append(value.high if split.low else value)
            if split.low:
                lows.append(value.low)
        high, low = (self.graph.call_function(node.target, (parts, 1)) for parts in (highs, lows))  # type: ignore[arg-type]
        return Parts(high, low)

    def _piece(self, node: fx.Node, whole: Parts) -> Any:
        """The channels of one piece."""
        parts, index = self.splits.parts(self.net.steps[node].inputs[0]), int(node.args[1])  # type: ignore[arg-type]
        before, split = parts[:index], parts[index]

        def taken(part: fx.Node, first: int, count: int) -> fx.Node:
            return self.graph.call_function(operator.getitem, (part, (slice(None), slice(first, first + count))))

        high = taken(whole.high, sum(one.high for one in before), split.high)
        if not split.low:
            return high
        self.values[node] = Parts(high, taken(whole.low, sum(one.low for one in before), split.low))
        return self.values[node] if self.splits.is_octave(node) else self._cross(node, "merge", Merge(split=split))

    def _call(self, node: fx.Node, value: Any, has_low: bool = True) -> Any:
        if self.net.handler(node).registered and not isinstance(value, Parts):
            value = Octave(value, None)
        result = self.graph.call_module(str(node.target), (_argument(value),))
        return self._items(result) if has_low else self.graph.call_function(operator.getitem, (result, 0))

    def _items(self, pair: fx.Node) -> Parts:
        return Parts(*(self.graph.call_function(operator.getitem, (pair, i)) for i in (0, 1)))

    def _dense(self, node: fx.Node) -> fx.Node:
        value = self.values[node]
        return self._cross(node, "merge", Merge(split=self.splits.of(node))) if isinstance(value, Parts) else value  # type: ignore[no-any-return]

    def _octave(self, node: fx.Node) -> Any:
        value = self.values[node]
        if isinstance(value, Parts):
            return value
        return self._cross(node, "split", Split(self.net.channels(node), self.splits.space_split(node)))

    def _cross(self, node: fx.Node, kind: str, border: nn.Module) -> Any:
        """Place a border behind a node, once."""
        if (node, kind) not in self._crossed:
            name = f"{BORDER}{kind}_{node.name}"
            self.net.model.add_module(name, border)
            self.borders.append((kind, str(node.target if node.op == "call_module" else node.name)))
            value = self.values[node]
            if kind == "split":
                value = self._moved(node, value, FROM_CHANNELS_LAST)
            crossed: Any = self.graph.call_module(name, (_argument(value),))
            if kind == "split":
                self._crossed[node, kind] = parts = self._items(crossed)
                join(*parts)
            else:
                self._crossed[node, kind] = self._moved(node, crossed, TO_CHANNELS_LAST)
        return self._crossed[node, kind]

    def _replace(self, node: fx.Node, module: nn.Module) -> None:
        given = self.net.module(node)
        assert module.state_dict().keys() == given.state_dict().keys(), f"{node.target}: {given}"
        module.train(given.training)
        self.net.model.set_submodule(str(node.target), module)


def _argument(value: Any) -> Any:
    """A value as a module's argument."""
    return Octave._make(value) if isinstance(value, Parts) else value
