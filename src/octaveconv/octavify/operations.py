"""The step of each function, method and layer: what a call does with channels, as far as octavify can follow it."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor, fx, nn

from ..resolution import Sizes
from .maps import axes_of, is_channels_last, is_map, shape_of
from .roles import Role, Step

TO_CHANNELS_LAST, FROM_CHANNELS_LAST = (0, 2, 3, 1), (0, 3, 1, 2)  # permutations
CUTS = {torch.chunk, torch.split, "chunk", "split"}  # into pieces, along a dimension


def same(node: fx.Node, layer: Any) -> Step | None:
    """Each channel of the result depends on its own channel of one input."""
    x = node.args[0] if node.args else None
    if shape_of(node) is None or not isinstance(x, fx.Node) or shape_of(x) is None:
        return None
    return Step(Role.SAME, (x,)) if node.all_input_nodes == [x, *modes_read(node)] else None


def resize(node: fx.Node, layer: Any) -> Step | None:
    """Maps to another size, which may be read from another value's shape."""
    x = node.args[0] if node.args else None
    if shape_of(node) is None or [n for n in node.all_input_nodes if shape_of(n) is not None] != [x]:
        return None
    return Step(Role.SAME, (x,), resizes=True)  # type: ignore[arg-type]


def mean(node: fx.Node, layer: Any) -> Step | None:
    """A pooling, or a mean over all axes, that leaves one number for each channel."""
    step = same(node, layer)
    return Step(Role.MEAN, step.inputs) if step and _to_one_pixel(node, step.inputs[0]) else None


def _to_one_pixel(node: fx.Node, x: fx.Node) -> bool:
    shape, result, axes = shape_of(x), shape_of(node), axes_of(node)
    if shape is None or len(shape) != axes + 2 or result not in ((*shape[:2], *[1] * axes), shape[:2]):
        return False
    if node.target not in (torch.mean, "mean"):
        return True
    given = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
    dims = [given] if isinstance(given, int) else given
    return isinstance(dims, (tuple, list)) and sorted(dim % len(shape) for dim in dims) == [*range(2, len(shape))]


def flatten(node: fx.Node, layer: Any) -> Step | None:
    """Single pixels only: that leaves the channels as they are."""
    step = same(node, layer)
    if step is None or (layer is None and (*node.args[1:], *node.kwargs.values()) not in ((1,), (1, -1))):
        return None
    shape = shape_of(step.inputs[0]) or ()
    return step if len(shape) == axes_of(node) + 2 and set(shape[2:]) == {1} else None


def read_shape(node: fx.Node, layer: Any) -> Step | None:
    """``x.shape`` or ``x.size()``."""
    x = node.args[0]
    if node.target is getattr and node.args[1] != "shape":
        return None
    return Step(Role.SHAPE, (x,)) if shape_of(x) else None  # type: ignore[arg-type]


def permute(node: fx.Node, layer: Any) -> Step | None:
    """Moves the channels to the last dimension, or back."""
    x = node.args[0] if node.args else None
    comes_back = isinstance(x, fx.Node) and is_channels_last(x) and permutation_of(node) == FROM_CHANNELS_LAST
    return Step(Role.SAME, (x,)) if is_channels_last(node) or comes_back else None  # type: ignore[arg-type]


def channels_second(node: fx.Node, value: Tensor) -> Tensor:
    """A node's value as if its channels were in the second dimension."""
    return value.permute(FROM_CHANNELS_LAST) if is_channels_last(node) else value


def permutation_of(node: fx.Node) -> tuple[Any, ...]:
    """The order in which a node puts the dimensions of its first argument; empty if that is not what it does."""
    if node.target not in (torch.permute, "permute"):
        return ()
    dims = (*node.args[1:], *node.kwargs.values())
    return tuple(dims[0]) if len(dims) == 1 and isinstance(dims[0], (tuple, list)) else dims


def cut(node: fx.Node, layer: Any) -> Step | None:
    """A map's channels, split into pieces."""
    return Step(Role.PIECES, (node.args[0],)) if pieces_of(node) else None  # type: ignore[arg-type]


def pieces_of(node: fx.Node) -> list[list[fx.Node]]:
    """The nodes that are each of the pieces that a map's channels are split into; none if a piece is never read."""
    x, count = node.args[0] if node.args else None, node.meta.get("count")
    if node.target not in CUTS or not count or not isinstance(x, fx.Node) or is_channels_last(x) or not is_map(x):
        return []
    dim = node.args[2] if len(node.args) > 2 else node.kwargs.get("dim", 0)
    pieces: list[list[fx.Node]] = [[] for _ in range(count)]
    for user in node.users:
        if user.target is not operator.getitem or not isinstance(user.args[1], int):
            return []
        pieces[user.args[1]].append(user)
    return pieces if count > 1 and dim in (1, -1 - axes_of(node)) and all(pieces) else []


def item(node: fx.Node, layer: Any) -> Step | None:
    """One of the pieces of a map, or an index of a map that takes all of it."""
    x = node.args[0]
    if isinstance(x, fx.Node) and any(node in piece for piece in pieces_of(x)):
        return Step(Role.PIECE, (x.args[0],))  # type: ignore[arg-type]
    step = same(node, layer)
    return step if step and _takes_all(node.args[1], shape_of(x) or ()) else None


def _takes_all(index: Any, shape: Sizes) -> bool:
    """Whether an index takes all channels and, at every size, all pixels: GhostNet drops surplus channels so."""
    parts = index if isinstance(index, tuple) else (index,)
    return len(shape) > 1 and all(
        isinstance(part, slice) and not part.start and part.step in (None, 1)
        and (part.stop is None or (i == 1 and part.stop >= shape[1]))
        for i, part in enumerate(parts)
    )  # fmt: skip


def cat(node: fx.Node, layer: Any) -> Step | None:
    """A concatenation of channels."""
    parts = node.args[0] if node.args else node.kwargs.get("tensors")
    axis = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
    if shape_of(node) is None or not isinstance(parts, (tuple, list)):
        return None
    dims = axes_of(node) + 2
    if axis not in (1, 1 - dims) or any(len(shape_of(part) or ()) != dims for part in parts):
        return None
    return Step(Role.CAT, tuple(parts))


def join(node: fx.Node, layer: Any) -> Step | None:
    """Operands are maps of one shape, numbers, and gates ``[., C or 1, 1, 1]``, ``[C, 1, 1]`` or ``[., 1, H, W]``."""
    result = shape_of(node)
    if result is None or len(node.args) < 2 or any(isinstance(value, fx.Node) for value in node.kwargs.values()):
        return None
    for operand in node.args:
        shape = shape_of(operand)
        if not isinstance(operand, fx.Node) or shape == () or shape == result:
            continue
        if len(result) != axes_of(node) + 2 or shape is None or not _is_gate(shape, result):
            return None
    operands = [n for n in node.args if isinstance(n, fx.Node) and (shape_of(n) == result or _has_channels(n, result))]
    return Step(Role.JOIN, tuple(operands)) if any(shape_of(n) == result for n in operands) else None


def _is_gate(shape: Sizes, result: Sizes) -> bool:
    """Whether a value of this shape acts on each channel of a map with one number, or on all of them with one map."""
    pixels = shape[2 - len(result) :]
    one_map = len(shape) == len(result) and shape[1] == 1 and pixels == result[2:]
    return one_map or (_channels(shape, result) in (1, result[1]) and set(pixels) == {1})


def _has_channels(node: fx.Node, result: Sizes) -> bool:
    return len(result) == axes_of(node) + 2 and _channels(shape_of(node) or (), result) == result[1]


def _channels(shape: Sizes, result: Sizes) -> int:
    """Channels of a map of ``result``'s axes or of its gates, with or without a batch; 0 for anything else."""
    return shape[1 - len(result)] if len(shape) in (len(result) - 1, len(result)) else 0


def modes_read(node: fx.Node) -> list[fx.Node]:
    """The mode, where a function reads it."""
    return [n for n in node.all_input_nodes if n.target in ("training", operator.not_)]


_IN_PLACE = {
    getattr(operator, name) for name in ("iadd", "isub", "imul", "itruediv", "ifloordiv", "ipow", "imod", "imatmul")
}


def is_in_place(node: fx.Node, model: nn.Module) -> bool:
    """Whether a node changes its first input."""
    if node.op == "call_module":
        return bool(getattr(model.get_submodule(str(node.target)), "inplace", False))
    if node.op == "call_method":
        return str(node.target).endswith("_") and not str(node.target).endswith("__")
    name = str(getattr(node.target, "__name__", ""))
    is_named = node.op == "call_function" and name.endswith("_") and not name.endswith("__")
    return node.target in _IN_PLACE or node.kwargs.get("inplace") is True or is_named
