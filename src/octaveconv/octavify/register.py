"""Layers of one's own: `register_layer` tells octavify about them, and `try_out` checks what it is told."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any, TypeVar, overload

import torch
from torch import Tensor, fx, nn

from .._modes import eval_mode
from ..octave import ChannelSplit, Octave
from .handlers import REGISTERED
from .maps import axes_of, low_size, shape_of, size_of
from .operations import same
from .roles import Handler, Role, Step

_Kind = TypeVar("_Kind", bound=type[nn.Module])
_Made = TypeVar("_Made", bound=Callable[..., nn.Module])


@overload
def register_layer(kind: _Kind) -> _Kind: ...
@overload
def register_layer(kind: type[nn.Module], handler: _Made, *, mixes_channels: bool) -> _Made: ...
@overload
def register_layer(kind: type[nn.Module], *, mixes_channels: bool) -> Callable[[_Made], _Made]: ...
def register_layer(kind: Any, handler: Any = None, *, mixes_channels: bool | None = None) -> Any:
    """Tell `octavify` how a layer of your own works on octaves; otherwise it converts what it finds inside the layer.

    It has two forms, and both work as decorators:

    - ``register_layer(Kind)``, for a layer that treats each number alone, as an activation does. It is called on the
      high part and on the low part. It may have parameters, but none that belong to one channel.
    - ``register_layer(Kind, handler, mixes_channels=...)``, for any other layer. ``handler(layer, inputs, outputs)``
      gets the layer and two `ChannelSplit`, which say how its input's and its output's channels are split. It returns
      a module that takes and returns an `Octave`, and whose state dict has the same keys and shapes; octavify gives
      it the layer's parameters and buffers.

    Args:
        kind: the type of the layer. A subclass has to be registered for itself. Registering a type again replaces its
            handler, and a type that octavify knows can be registered, too.
        handler: makes the octave layer; it must not change the layer, and may be called several times.
        mixes_channels: False if each output channel depends on its own input channel alone, as in a norm or a
            per-channel scale: then both splits are the same, and neither part is absent. True if it depends on
            others, as in a convolution: then either side may be without low channels, a part that is ``None``, but
            not both. If the layer has an integer ``groups``, each group has high and low channels.

    Returns:
        What it decorates: ``kind`` in the first form, ``handler`` in the second.

    Raises:
        TypeError: ``kind`` is not a type of layers, or it is not said whether a handler's layer mixes channels.

    What the handler returns is checked when `octavify` runs it; the errors name the layer. The channels beside a layer
    with a handler keep their order when ``calibrate`` reorders others. A network that is rebuilt from its file needs
    the same registrations.

    Source: the registration of module handlers in torchao, on octaves.

    Example:
        >>> import torch, octaveconv as oc
        >>> class Scale(torch.nn.Module):
        ...     def __init__(self, channels):
        ...         super().__init__()
        ...         self.gamma = torch.nn.Parameter(torch.rand(channels))
        ...     def forward(self, x):
        ...         return x * self.gamma[:, None, None]
        >>> class OctScale(Scale):
        ...     def __init__(self, layer, split):
        ...         super().__init__(len(layer.gamma))
        ...         self.split = split
        ...     def forward(self, x):
        ...         high, low = self.split.split(self.gamma)
        ...         return oc.Octave(x.high * high[:, None, None], x.low * low[:, None, None])
        >>> @oc.register_layer(Scale, mixes_channels=False)
        ... def oct_scale(layer, inputs, outputs):
        ...     return OctScale(layer, inputs)
        >>> stem, conv, last = (torch.nn.Conv2d(c, 8, 3, padding=1) for c in (3, 8, 8))
        >>> model = torch.nn.Sequential(stem, conv, Scale(8), last)
        >>> octave, plan = oc.octavify(model, 0.5, torch.zeros(1, 3, 16, 16))
        >>> [(layer.kind, layer.alpha_out) for layer in plan.layers]
        [('Conv2d', 0.0), ('Conv2d', 0.5), ('Scale', 0.5), ('Conv2d', 0.0)]
    """
    if not isinstance(kind, type) or not issubclass(kind, nn.Module):
        raise TypeError(f"register_layer takes a type of layers, a subclass of nn.Module, got {kind!r}")
    if kind is nn.Module:
        raise TypeError("register_layer takes the type of your layer, got nn.Module, the base of all layers")
    if mixes_channels not in (None, True, False):
        raise TypeError(f"mixes_channels must be True or False, got {mixes_channels!r}")
    if handler is None and mixes_channels is None:
        REGISTERED[kind] = Handler(_elementwise, elementwise=True, channels_last=True, registered=True)
        return kind
    if mixes_channels is None:
        raise TypeError(
            f"say whether {kind.__name__} mixes channels: mixes_channels=False if each output channel depends on its "
            f"own input channel alone, True otherwise"
        )

    def register(handler: _Made) -> _Made:
        if not callable(handler):
            raise TypeError(f"the handler of {kind.__name__} must be a function of 3 arguments, got {handler!r}")
        REGISTERED[kind] = Handler(_mixing if mixes_channels else _separate, handler, registered=True)
        return handler

    return register if handler is None else register(handler)


def _elementwise(node: fx.Node, layer: Any) -> Step | None:
    """The step of a layer that is registered without a handler."""
    step = same(node, layer)
    if step is None:
        return None
    _, *shape = shape_of(step.inputs[0]) or (1,)
    if not _is_elementwise(layer, _like(layer, torch.linspace(-3, 2, prod(shape)).view(1, *shape))):
        raise ValueError(
            f"{node.target} ({type(layer).__name__}) is registered without a handler, but it does not treat each "
            f"number alone: some come out differently without their neighbors. Register it with a handler"
        )
    return step


def _is_elementwise(layer: nn.Module, x: Tensor) -> bool:
    """Whether the first and the last numbers along each dimension come out the same without the others."""
    with eval_mode(layer), torch.no_grad():
        try:
            y = layer(x)
            places = [(dim, i) for dim in range(1, x.dim()) for i in (0, x.shape[dim] - 1)]
            pairs = [(y.narrow(dim, i, 1), layer(x.narrow(dim, i, 1))) for dim, i in places]
        except Exception:  # its parameters do not fit fewer channels, for instance
            return False
    return y.shape == x.shape and all(
        some.shape == alone.shape and torch.allclose(some, alone, 1e-3, 1e-5, equal_nan=True) for some, alone in pairs
    )


def _separate(node: fx.Node, layer: Any) -> Step | None:
    """The step of a layer whose output channels each depend on their own input channel."""
    step = same(node, layer)
    if step is None or not _makes_maps(node):
        return None
    read, made = (shape_of(value) or () for value in (step.inputs[0], node))
    if read[1] != made[1]:
        raise ValueError(
            f"{node.target} ({type(layer).__name__}) turns {read[1]} channels into {made[1]}, so it mixes them: "
            f"register it with mixes_channels=True"
        )
    return step


def _mixing(node: fx.Node, layer: Any) -> Step | None:
    """The step of a layer like a convolution."""
    step = same(node, layer)
    return Step(Role.CONV, step.inputs) if step is not None and _makes_maps(node) else None


def _makes_maps(node: fx.Node) -> bool:
    """Whether a node takes and returns feature maps."""
    return all(len(shape_of(value) or ()) == axes_of(node) + 2 for value in (node, node.args[0]))


def try_out(
    node: fx.Node, layer: nn.Module, handler: Handler, inputs: ChannelSplit, outputs: ChannelSplit
) -> tuple[nn.Module, int]:
    """The octave layer that a registered handler makes, and its multiply-accumulates for one image.

    Raises:
        TypeError, ValueError: it is not what `register_layer` asks for.
    """
    from torch.utils.flop_counter import FlopCounterMode

    assert handler.make is not None
    who = f"the handler registered for {type(layer).__name__}, called for {node.target},"
    try:
        made = handler.make(layer, inputs, outputs)
    except Exception as error:  # its code may raise anything
        raise ValueError(f"{who} fails with {type(error).__name__}: {error}") from error
    if not isinstance(made, nn.Module):
        raise TypeError(f"{who} returned {type(made).__name__}, expected an nn.Module that takes and returns an Octave")
    _take_state(made, layer, who)
    x = Octave(*(_like(layer, torch.zeros(shape)) if shape else None for shape in _shapes(node.args[0], inputs)))
    with eval_mode(made), torch.no_grad(), FlopCounterMode(display=False) as counter:
        try:
            y = made(x)
        except Exception as error:  # its code may raise anything
            given = [None if part is None else list(part.shape) for part in x]
            raise ValueError(
                f"{who} returned {type(made).__name__}, which fails on Octave({given}): {error}"
            ) from error
    if not isinstance(y, Octave):
        raise TypeError(f"{who} returned {type(made).__name__}, which returns a {type(y).__name__}, expected an Octave")
    expected = _shapes(node, outputs)
    found = tuple(None if part is None else tuple(part.shape) for part in y)
    if found != expected:
        raise ValueError(
            f"{who} returned {type(made).__name__}, which returns an Octave of {found}, expected {expected}: its "
            f"channels must match the split `outputs` that the handler is given"
        )
    return made, counter.get_total_flops() // 2  # it counts a MAC as two operations


def _shapes(node: Any, split: ChannelSplit) -> tuple[tuple[int, ...] | None, tuple[int, ...] | None]:
    """The shapes of an octave's parts in place of a node's value, for one image."""
    size = size_of(node)
    high, low = (1, split.high, *size), (1, split.low, *low_size(size))
    return high if split.high else None, low if split.low else None


def _take_state(made: nn.Module, layer: nn.Module, who: str) -> None:
    """Give the octave layer the very parameters and buffers of the dense one."""
    trained = [(parameter, parameter.requires_grad) for parameter in layer.parameters()]
    try:
        made.load_state_dict(layer.state_dict(keep_vars=True), assign=True)
    except RuntimeError as error:
        reason = "; ".join(line.strip() for line in str(error).splitlines()[1:])
        raise ValueError(
            f"{who} returned {type(made).__name__}, whose state dict is not the layer's: {reason} Give its parameters "
            f"and buffers the same names and shapes"
        ) from error
    for parameter, flag in trained:
        parameter.requires_grad_(flag)  # loading sets that of the new layer


def _like(layer: nn.Module, x: Tensor) -> Tensor:
    """In the layer's precision and on its device."""
    like = next((tensor for tensor in (*layer.parameters(), *layer.buffers()) if tensor.is_floating_point()), x)
    return x.to(like)
