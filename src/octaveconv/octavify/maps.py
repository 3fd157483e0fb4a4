"""Which values of a traced network are feature maps, of how many axes, and which layers convolve them."""

from __future__ import annotations

from collections import Counter
from math import prod
from typing import Any

from torch import fx, nn

from ..resolution import FACTORS, Sizes, pooled_size

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
