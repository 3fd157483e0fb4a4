"""Which values of a traced network are feature maps, of how many axes, and which layers convolve them."""

from __future__ import annotations

from collections import Counter
from math import prod
from typing import Any

from torch import fx, nn

from ..resolution import OCTAVE, Sizes, pooled_size

CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)  # of one, two and three axes
ANY_CONV = (*CONVS, nn.ConvTranspose2d)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
INSTANCE_NORMS = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)


def shape_of(value: Any) -> Sizes | None:
    """The shape of a node's value, if that is a tensor."""
    return value.meta.get("shape") if isinstance(value, fx.Node) else None


def axes_of(node: fx.Node) -> int:
    """How many axes the feature maps of the node's network have."""
    return int(node.meta["axes"])


def is_map(node: fx.Node) -> bool:
    """Whether its value is feature maps of more than one pixel."""
    shape = shape_of(node)
    return shape is not None and len(shape) == axes_of(node) + 2 and prod(shape[2:]) > 1


def size_of(node: fx.Node) -> Sizes:
    """Pixels on each axis of its value, feature maps."""
    shape = shape_of(node)
    assert shape is not None
    return shape[2:]


def halved_size(node: fx.Node) -> Sizes:
    """The same of those axes on which a low map is smaller."""
    return tuple(pixels for pixels, factor in zip(size_of(node), OCTAVE[axes_of(node)]) if factor > 1)


def low_size(size: Sizes) -> Sizes:
    """Pixels of the low maps beside high ones of this ``size``."""
    return pooled_size(size, OCTAVE[len(size)])


def is_plain_conv(module: nn.Module) -> bool:
    """Whether it is PyTorch's convolution, a subclass that only builds it otherwise, or one of standardised weights."""
    if is_standardized(module):
        return True
    kind = next((kind for kind in CONVS if isinstance(module, kind)), None)
    return (
        kind is not None and type(module).forward is kind.forward
        and type(module)._conv_forward is kind._conv_forward  # type: ignore[attr-defined]
        and module._parameters.keys() == {"weight", "bias"}  # else it is parametrized
    )  # fmt: skip


def is_standardized(module: nn.Module) -> bool:
    """Whether it is timm's convolution by standardised weights, with the same padding on both sides."""
    is_timms = type(module).__name__ in ("StdConv2d", "StdConv2dSame", "ScaledStdConv2d", "ScaledStdConv2dSame")
    return is_timms and isinstance(module, nn.Conv2d) and not getattr(module, "same_pad", False)


def is_group_norm(module: nn.Module) -> bool:
    """PyTorch's group normalisation, or timm's, some of which have an activation behind it."""
    return type(module) is nn.GroupNorm or (
        isinstance(module, nn.GroupNorm)
        and type(module).__name__ in ("GroupNorm", "GroupNorm1", "GroupNormAct", "GroupNorm1Act")
    )


def conv_axes(module: nn.Module) -> int:
    """How many axes its first convolution goes over; 0 if it has none."""
    parts = module.modules()
    return next((axes for part in parts for axes, kind in enumerate(CONVS, 1) if isinstance(part, kind)), 0)


def map_axes(graph: fx.Graph, model: nn.Module) -> int:
    """How many axes feature maps have: those that most of the convolutions' arithmetic goes over.

    Convolutions of other axes make gates of channels, as in ECA, or mix tokens.
    """
    macs = Counter[int]()
    for node in graph.nodes:
        if node.op == "call_module" and (axes := conv_axes(model.get_submodule(str(node.target)))):
            macs[axes] += node.meta["macs"]
    return max(macs, key=macs.__getitem__, default=2)
