"""What each node of a traced network does with the channels of its inputs, and whether two resolutions can do it."""

from __future__ import annotations

import operator
from collections import Counter
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from ..resolution import Sizes
from .layers import spec_of
from .maps import axes_of, is_channels_last, is_map, shape_of
from .operations import (
    ANY_CONV,
    BY_PIXEL,
    CONVS,
    CUTS,
    DROPPED_BY_SAMPLE,
    FROM_CHANNELS_LAST,
    GLOBAL_POOL_LAYERS,
    GLOBAL_POOLS,
    JOIN_METHODS,
    JOINS,
    METHODS_BY_PIXEL,
    POOL_LAYERS,
    POOLS,
    is_by_pixel,
    is_layer_norm_2d,
    is_norm,
    is_plain_conv,
    modes_read,
    permutation_of,
)


class Role(Enum):
    """How a node's channels, dimension 1 of its value, follow from those of its inputs."""

    CONV = auto()  # makes new ones of all those of its group
    LINEAR = auto()  # the same of a vector
    SAME = auto()  # each stays by itself: activation, norm, pooling, resizing, dropout, depthwise convolution
    JOIN = auto()  # sum or product of values with the same channels, or of a value and its gates
    CAT = auto()  # one value's behind the other's
    PIECES = auto()  # cuts one value's channels into a tuple of pieces
    PIECE = auto()  # one of them
    MEAN = auto()  # each by itself, to one pixel
    SHAPE = auto()  # reads the shape only
    OTHER = auto()  # anything: it takes and returns plain tensors


@dataclass(frozen=True)
class Step:
    """A node's role, the nodes whose channels it reads, and why it cannot take an octave, if it cannot."""

    role: Role
    inputs: tuple[fx.Node, ...] = ()
    refusal: str = ""


def steps_of(graph: fx.Graph, model: nn.Module, kept: set[str]) -> dict[fx.Node, Step]:
    """The step of every node of a graph with shapes."""
    calls = Counter(str(node.target) for node in graph.nodes if node.op == "call_module")
    owners = Counter(id(p) for module in model.modules() for p in module.parameters(recurse=False))
    steps = {}
    for node in graph.nodes:
        if node.op == "call_module":
            module = model.get_submodule(str(node.target))
            state = list(module.parameters())
            if state and calls[str(node.target)] > 1:
                steps[node] = Step(Role.OTHER, refusal="called more than once")
            elif any(owners[id(p)] > 1 for p in state):
                steps[node] = Step(Role.OTHER, refusal="shares its weights with another layer")
            else:
                steps[node] = _module_step(node, module, str(node.target) in kept)
        elif node.op in ("call_function", "call_method"):
            steps[node] = _function_step(node)
        else:
            steps[node] = Step(Role.OTHER)
    return steps


def _module_step(node: fx.Node, module: nn.Module, kept: bool) -> Step:
    other = Step(Role.OTHER, refusal="kept" if kept else f"{type(module).__name__} takes plain tensors only")
    if len(node.args) != 1 or node.kwargs or shape_of(node.args[0]) is None or shape_of(node) is None:
        return other
    (x,) = node.args
    assert isinstance(x, fx.Node)
    if _has_hooks(module):
        return Step(Role.OTHER, refusal="has hooks")
    axes = axes_of(node)
    if is_channels_last(x):
        role = Role.CONV if type(module) is nn.Linear else Role.SAME
        return Step(role, (x,), "kept" if kept else "") if is_channels_last(node) else other
    is_transposed = axes == 2 and type(module) is nn.ConvTranspose2d
    if is_transposed or (isinstance(module, CONVS[axes - 1]) and is_plain_conv(module)):
        assert isinstance(module, ANY_CONV)
        refusal = "kept" if kept else _conv_refusal(module)
        is_depthwise = module.groups > 1 and module.groups == module.in_channels == module.out_channels
        return Step(Role.SAME if is_depthwise else Role.CONV, (x,), refusal)
    if type(module) is nn.Linear and len(shape_of(x) or ()) == 2:
        return Step(Role.LINEAR, (x,))
    is_pool = isinstance(module, POOL_LAYERS[axes - 1]) and not getattr(module, "return_indices", False)
    is_single = is_by_pixel(module) or is_pool or isinstance(module, nn.Upsample)
    is_single |= is_layer_norm_2d(module)
    if is_norm(module, axes) or is_single or type(module).__name__ in DROPPED_BY_SAMPLE:
        return Step(Role.SAME, (x,), "kept" if kept else "")
    if isinstance(module, GLOBAL_POOL_LAYERS[axes - 1]) and _to_one_pixel(node, x):
        return Step(Role.MEAN, (x,), "kept" if kept else "")
    if isinstance(module, nn.Flatten) and module.start_dim == 1:
        return _flatten(x)
    return other


def _has_hooks(module: nn.Module) -> bool:
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return any(getattr(module, name, None) for name in hooks)


def _conv_refusal(conv: Any) -> str:
    if isinstance(conv, nn.ConvTranspose2d):
        return _transposed_refusal(conv)
    if any(stride not in (1, 2) for stride in conv.stride):
        return f"stride {max(conv.stride)}"
    keeping = tuple(d * (k - 1) / 2 for d, k in zip(conv.dilation, conv.kernel_size))
    if (conv.padding != "same" and keeping != conv.padding) or any(p != int(p) for p in keeping):
        return f"padding {conv.padding} with kernel {conv.kernel_size} does not keep the map's size"
    return ""


def _transposed_refusal(conv: nn.ConvTranspose2d) -> str:
    try:
        spec_of(conv, 0.5, 0.5)
    except ValueError:
        return f"padding {conv.padding} with kernel {conv.kernel_size} does not make the map larger by its stride"
    return ""


def _function_step(node: fx.Node) -> Step:
    other = Step(Role.OTHER, refusal=f"{_name(node)} takes plain tensors only")
    x = node.args[0] if node.args else None
    is_method = node.op == "call_method"
    if is_channels_last(node) or any(map(is_channels_last, node.all_input_nodes)):
        comes_back = permutation_of(node) == FROM_CHANNELS_LAST
        return Step(Role.SAME, (x,)) if is_channels_last(node) or comes_back else other  # type: ignore[arg-type]
    reads_shape = node.target is getattr and node.args[1] == "shape"
    if reads_shape or (is_method and node.target == "size"):
        return Step(Role.SHAPE, (x,)) if shape_of(x) else other  # type: ignore[arg-type]
    if node.target in CUTS and pieces_of(node):
        return Step(Role.PIECES, (x,))  # type: ignore[arg-type]
    if node.target is operator.getitem and isinstance(x, fx.Node) and any(node in piece for piece in pieces_of(x)):
        return Step(Role.PIECE, (x.args[0],))  # type: ignore[arg-type]
    if shape_of(node) is None:
        return other
    if node.target in (torch.cat, torch.concat):
        return _cat(node) or other
    if node.target in (JOIN_METHODS if is_method else JOINS):
        return _join(node) or other
    if node.target is F.interpolate and [n for n in node.all_input_nodes if shape_of(n) is not None] == [x]:
        return Step(Role.SAME, (x,))  # type: ignore[arg-type]  # its size may be another value's
    if not isinstance(x, fx.Node) or shape_of(x) is None or node.all_input_nodes != [x, *modes_read(node)]:
        return other
    axes = axes_of(node)
    if node.target in (METHODS_BY_PIXEL if is_method else BY_PIXEL | POOLS[axes - 1]):
        return Step(Role.SAME, (x,))
    if node.target in (*GLOBAL_POOLS[axes - 1], torch.mean, "mean") and _to_one_pixel(node, x):
        return Step(Role.MEAN, (x,))
    if node.target is operator.getitem and _takes_all(node.args[1], shape_of(x) or ()):
        return Step(Role.SAME, (x,))
    if node.target in (torch.flatten, "flatten") and (*node.args[1:], *node.kwargs.values()) in ((1,), (1, -1)):
        return _flatten(x)
    return other


def _name(node: fx.Node) -> str:
    return str(node.target) if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))


def _flatten(x: fx.Node) -> Step:
    """Of single pixels only: then it leaves the channels as they are."""
    shape = shape_of(x) or ()
    if len(shape) == axes_of(x) + 2 and set(shape[2:]) == {1}:
        return Step(Role.SAME, (x,))
    return Step(Role.OTHER, refusal="flatten takes plain tensors only")


def _takes_all(index: Any, shape: Sizes) -> bool:
    """Whether an index is of all channels and, at every size, all pixels, as where GhostNet drops surplus channels."""
    parts = index if isinstance(index, tuple) else (index,)
    return len(shape) > 1 and all(
        isinstance(part, slice) and not part.start and part.step in (None, 1)
        and (part.stop is None or (i == 1 and part.stop >= shape[1]))
        for i, part in enumerate(parts)
    )  # fmt: skip


def _to_one_pixel(node: fx.Node, x: fx.Node) -> bool:
    """Whether a pooling, or a mean over all axes, leaves one number for each channel."""
    shape, result, axes = shape_of(x), shape_of(node), axes_of(node)
    if shape is None or len(shape) != axes + 2 or result not in ((*shape[:2], *[1] * axes), shape[:2]):
        return False
    if node.target not in (torch.mean, "mean"):
        return True
    given = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
    dims = [given] if isinstance(given, int) else given
    return isinstance(dims, (tuple, list)) and sorted(dim % len(shape) for dim in dims) == [*range(2, len(shape))]


def _cat(node: fx.Node) -> Step | None:
    parts = node.args[0] if node.args else node.kwargs.get("tensors")
    axis = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
    if not isinstance(parts, (tuple, list)) or not all(isinstance(part, fx.Node) for part in parts):
        return None
    dims = axes_of(node) + 2
    if axis not in (1, 1 - dims) or any(len(shape_of(part) or ()) != dims for part in parts):
        return None
    return Step(Role.CAT, tuple(parts))


def pieces_of(node: fx.Node) -> list[list[fx.Node]]:
    """The nodes that are each of the pieces that a map's channels are cut into; none if one of them is not read."""
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


def _join(node: fx.Node) -> Step | None:
    """Operands are maps of one shape, numbers, and gates ``[., C or 1, 1, 1]``, ``[C, 1, 1]`` or ``[., 1, H, W]``."""
    if len(node.args) < 2 or any(isinstance(value, fx.Node) for value in node.kwargs.values()):
        return None
    result = shape_of(node) or ()
    for operand in node.args:
        shape = shape_of(operand)
        if not isinstance(operand, fx.Node) or shape == () or shape == result:
            continue
        if len(result) != axes_of(node) + 2 or shape is None or not _is_gate(shape, result):
            return None
    operands = [n for n in node.args if isinstance(n, fx.Node) and (shape_of(n) == result or _has_channels(n, result))]
    return Step(Role.JOIN, tuple(operands)) if any(shape_of(n) == result for n in operands) else None  # type: ignore[arg-type]


def _is_gate(shape: Sizes, result: Sizes) -> bool:
    """Whether a value of this shape acts on each channel of a map by one number, or on all of them by one map."""
    pixels = shape[2 - len(result) :]
    one_map = len(shape) == len(result) and shape[1] == 1 and pixels == result[2:]
    return one_map or (_channels(shape, result) in (1, result[1]) and set(pixels) == {1})


def _has_channels(node: fx.Node, result: Sizes) -> bool:
    return len(result) == axes_of(node) + 2 and _channels(shape_of(node) or (), result) == result[1]


def _channels(shape: Sizes, result: Sizes) -> int:
    """Channels of a map of ``result``'s axes or of its gates, with or without a batch; 0 of anything else."""
    return shape[1 - len(result)] if len(shape) in (len(result) - 1, len(result)) else 0
