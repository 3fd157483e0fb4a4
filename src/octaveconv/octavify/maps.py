"""Which values of a traced network are feature maps, of how many axes and pixels, and which layers convolve them."""

from __future__ import annotations

import operator
from collections import Counter
from math import prod
from typing import Any

import torch
from torch import Tensor, fx, nn

from .._modes import eval_mode, restored
from ..resolution import FACTORS, Sizes, pooled_size
from .sample import cloned

CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)  # over one, two and three axes
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def shape_of(value: Any) -> Sizes | None:
    """The shape of a node's value, if that is a tensor."""
    return value.meta.get("shape") if isinstance(value, fx.Node) else None


def axes_of(node: fx.Node) -> int:
    """How many axes the feature maps of the node's network have."""
    return int(node.meta["axes"])


def is_channels_last(node: fx.Node) -> bool:
    """Whether its value has the channels in the last dimension; the shape noted has them in the second even so."""
    return bool(node.meta.get("channels_last", False))


def is_map(node: fx.Node) -> bool:
    """Whether its value is feature maps of more than one pixel."""
    shape = shape_of(node)
    return shape is not None and len(shape) == axes_of(node) + 2 and prod(shape[2:]) > 1


def size_of(node: fx.Node) -> Sizes:
    """Pixels on each axis of its value, which is feature maps."""
    shape = shape_of(node)
    assert shape is not None
    return shape[2:]


def halved_size(node: fx.Node) -> Sizes:
    """The same, only for the axes on which a low map is smaller."""
    return tuple(pixels for pixels, factor in zip(size_of(node), FACTORS[axes_of(node)]) if factor > 1)


def low_size(size: Sizes) -> Sizes:
    """Pixels of the low maps beside high ones of this ``size``."""
    return pooled_size(size, FACTORS[len(size)])


def scale_of(node: fx.Node) -> fx.Node | None:
    """The parameter that it is or reshapes: one number for each channel, in a shape that broadcasts over maps."""
    if node.op == "get_attr":
        return node
    x = node.args[0] if node.args else None
    if node.op != "call_method" or node.target not in ("reshape", "view") or not isinstance(x, fx.Node):
        return None
    is_vector = x.op == "get_attr" and len(shape_of(x) or ()) == 1 and len(x.users) == 1
    return x if is_vector and max(shape_of(node) or ()) == (shape_of(x) or ())[0] else None


def conv_axes(module: nn.Module) -> int:
    """How many axes its first convolution has; 0 without a convolution."""
    kinds = [*enumerate(CONVS, 1), *enumerate(_TRANSPOSED, 1)]
    return next((axes for part in module.modules() for axes, kind in kinds if isinstance(part, kind)), 0)


def map_axes(graph: fx.Graph, model: nn.Module) -> int:
    """How many axes feature maps have: as many as the convolutions that do most of the arithmetic.

    Convolutions over other axes compute gates from channels, as in ECA, or mix tokens.
    """
    macs = Counter[int]()
    for node in graph.nodes:
        if node.op == "call_module" and (axes := conv_axes(model.get_submodule(str(node.target)))):
            macs[axes] += node.meta["macs"]
    return max(macs, key=macs.__getitem__, default=2)


class _Shapes(fx.Interpreter):
    """Notes for each node the shape of its value and the multiply-accumulates of computing it."""

    def run_node(self, n: fx.Node) -> Any:
        before = self.counter.get_total_flops()
        result = super().run_node(n)
        n.meta["shape"] = tuple(result.shape) if isinstance(result, Tensor) else None
        n.meta["count"] = len(result) if isinstance(result, (list, tuple)) else None
        n.meta["macs"] = (self.counter.get_total_flops() - before) // 2  # it counts a MAC as two operations
        return result

    def run(self, *args: Any, **kwargs: Any) -> Any:
        from torch.utils.flop_counter import FlopCounterMode

        with FlopCounterMode(display=False) as self.counter:
            return super().run(*args, **kwargs)


def drop_expansions(graph: fx.Graph) -> None:
    """Let a product with a gate that was expanded to the map's size read the gate itself, which means the same."""
    for node in list(graph.nodes):
        if node.target in ("expand_as", "expand") and node.op == "call_method":
            gate, shape = node.args[0], node.meta["shape"]
            small = gate.meta["shape"] or ()
            pixel = (1,) * axes_of(node)
            if len(small) == len(shape) == len(pixel) + 2 and small[:2] == shape[:2] and small[2:] == pixel:
                products = [user for user in node.users if user.target in (operator.mul, torch.mul, "mul")]
                for user in products:
                    if any(x is not node and x.meta["shape"] == shape for x in user.all_input_nodes):
                        user.replace_input_with(node, gate)
            if not node.users:
                graph.erase_node(node)


def add_shapes(model: nn.Module, graph: fx.Graph, inputs: tuple[Any, ...]) -> Any:
    """Run the graph once, in evaluation mode, noting ``shape``, ``macs`` and ``axes`` in the ``meta`` of each node.

    Returns:
        What it returns, with random numbers of seed 0.
    """
    module = fx.GraphModule(model, graph)
    with eval_mode(module), restored(module), torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(0)
        output = _Shapes(module, graph=graph).run(*cloned(inputs))
    axes = map_axes(graph, model)
    for node in graph.nodes:
        node.meta["axes"] = axes
    return output
