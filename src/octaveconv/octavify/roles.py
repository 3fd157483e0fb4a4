"""What a node of a traced network does with the channels of its inputs, and what octavify does about it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import Enum, auto
from typing import Any

from torch import fx, nn

from ..octave import ChannelSplit
from ..spec import ConvSpec

Make = Callable[[Any, ChannelSplit, ChannelSplit], nn.Module]


class Role(Enum):
    """How a node's channels, dimension 1 of its value, follow from those of its inputs."""

    CONV = auto()  # each from all the channels of its group
    LINEAR = auto()  # the same for a vector
    SAME = auto()  # each from its own: activation, norm, pooling, resizing, dropout, depthwise convolution
    JOIN = auto()  # sum or product of values with the same channels, or of a value and its gates
    CAT = auto()  # the channels of one value after those of another
    PIECES = auto()  # a tuple of the pieces that a value's channels are split into
    PIECE = auto()  # one of these pieces
    MEAN = auto()  # each from its own, reduced to one pixel
    SHAPE = auto()  # reads only the shape
    OTHER = auto()  # anything else: takes and returns plain tensors


def _always(layer: Any) -> bool:
    return True


@dataclass(frozen=True)
class Handler:
    """What octavify does with one kind of operation: a type of layers, a function or a method.

    Attributes:
        step: takes a node that calls the operation, and its layer or None. Returns the node's step, or None if this
            call stays dense.
        make: makes the octave layer that replaces a layer, given how its input's and its output's channels are split.
            Without it the operation is called on each part of the octave.
        spec: of a convolution, what `make` would be asked to do, without making it.
        axes: how many axes its feature maps have; 0 for any number.
        fits: whether it takes a given layer, where the type alone cannot tell.
        elementwise: whether it treats each number alone (or drops whole channels).
        channels_last: whether it also works on maps whose channels are in the last dimension.
        behind: names of children that the layer calls on its result, each of them elementwise.
        registered: whether it comes from `octaveconv.register_layer`.
    """

    step: Callable[[fx.Node, Any], Step | None]
    make: Make | None = None
    spec: Callable[[Any, ChannelSplit, ChannelSplit], ConvSpec] | None = None
    axes: int = 0
    fits: Callable[[Any], bool] = _always
    elementwise: bool = False
    channels_last: bool = False
    behind: tuple[str, ...] = ()
    registered: bool = False

    def on(self, axes: int) -> Handler:
        """The same, for feature maps with ``axes`` axes only."""
        return replace(self, axes=axes)


@dataclass(frozen=True)
class Step:
    """A node's role, the nodes whose channels it reads, and why it cannot take an octave, if it cannot.

    Attributes:
        resizes: whether the output's size comes from the node's arguments, so that the low part needs its own.
        handler: what handles the operation; `steps_of` sets it.
    """

    role: Role
    inputs: tuple[fx.Node, ...] = ()
    refusal: str = ""
    resizes: bool = False
    handler: Handler | None = None
