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

from ._trace import DROPPED_BY_SAMPLE

Shape = tuple[int, ...]


class Role(Enum):
    """How a node's channels, dimension 1 of its value, follow from those of its inputs."""

    CONV = auto()  # makes new ones of all those of its group
    LINEAR = auto()  # the same of a vector
    SAME = auto()  # each stays by itself: activation, norm, pooling, dropout, depthwise convolution
    JOIN = auto()  # sum or product of values with the same channels, or of a value and its gates
    CAT = auto()  # one value's behind the other's
    MEAN = auto()  # each by itself, to one pixel
    SHAPE = auto()  # reads the shape only
    OTHER = auto()  # anything: it takes and returns plain tensors


@dataclass(frozen=True)
class Step:
    """A node's role, the nodes whose channels it reads, and why it cannot take an octave, if it cannot."""

    role: Role
    inputs: tuple[fx.Node, ...] = ()
    refusal: str = ""


_BY_PIXEL = {
    F.relu, F.relu6, F.leaky_relu, F.elu, F.selu, F.celu, F.gelu, F.silu, F.mish, F.softplus, F.hardswish,
    F.hardsigmoid, F.hardtanh, F.logsigmoid, F.dropout, F.dropout2d, F.alpha_dropout, torch.relu, torch.sigmoid,
    F.sigmoid, torch.tanh, F.tanh, torch.clamp, torch.abs, torch.neg, torch.square, operator.neg,
}  # fmt: skip
_METHODS_BY_PIXEL = {
    "relu", "relu_", "sigmoid", "sigmoid_", "tanh", "tanh_", "clamp", "clamp_", "contiguous", "clone", "detach",
    "abs", "neg", "square", "float", "half", "bfloat16",
}  # fmt: skip
_POOLS = {F.max_pool2d, F.avg_pool2d, torch.max_pool2d, torch.nn.functional.max_pool2d}
_POOL_LAYERS = (nn.MaxPool2d, nn.AvgPool2d)
_JOINS = {
    operator.add, operator.iadd, operator.sub, operator.isub, operator.mul, operator.imul, operator.truediv,
    operator.itruediv, torch.add, torch.sub, torch.mul, torch.div, torch.maximum, torch.minimum,
}  # fmt: skip
_JOIN_METHODS = {"add", "add_", "sub", "sub_", "mul", "mul_", "div", "div_"}
_SINGLE_LAYERS = (nn.Identity, nn.Dropout, nn.Dropout2d, nn.AlphaDropout, nn.FeatureAlphaDropout)
_NOT_BY_PIXEL = (nn.Softmax, nn.Softmax2d, nn.LogSoftmax, nn.Softmin, nn.MultiheadAttention, nn.GLU)
_ACTIVATIONS = ("torch.nn.modules.activation", "timm.layers.activations")


def shape_of(value: Any) -> Shape | None:
    """The shape of a node's value, if that is a tensor."""
    return value.meta.get("shape") if isinstance(value, fx.Node) else None


def is_map(node: fx.Node) -> bool:
    """Whether its value is feature maps of more than one pixel."""
    shape = shape_of(node)
    return shape is not None and len(shape) == 4 and shape[2] * shape[3] > 1


def size_of(node: fx.Node) -> tuple[int, int]:
    """Height and width of its value, feature maps."""
    _, _, height, width = shape_of(node) or ()
    return height, width


def is_norm(module: nn.Module) -> bool:
    """PyTorch's batch normalisation, or timm's, which has an activation behind it."""
    if type(module) is nn.BatchNorm2d:
        return True
    return (
        type(module).__name__ == "BatchNormAct2d" and isinstance(module, nn.BatchNorm2d)
        and is_by_pixel(module.act) and is_by_pixel(module.drop)
    )  # fmt: skip


def is_by_pixel(module: Any) -> bool:
    """Whether it treats each number by itself."""
    if isinstance(module, nn.PReLU):
        return module.num_parameters == 1
    known = isinstance(module, _SINGLE_LAYERS) or type(module).__module__.startswith(_ACTIVATIONS)
    return known and not isinstance(module, _NOT_BY_PIXEL)


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
    if type(module) is nn.Conv2d:
        refusal = "kept" if kept else _conv_refusal(module)
        is_depthwise = module.groups > 1 and module.groups == module.in_channels == module.out_channels
        return Step(Role.SAME if is_depthwise else Role.CONV, (x,), refusal)
    if type(module) is nn.Linear and len(shape_of(x) or ()) == 2:
        return Step(Role.LINEAR, (x,))
    is_pool = isinstance(module, _POOL_LAYERS) and not getattr(module, "return_indices", False)
    if is_norm(module) or is_by_pixel(module) or type(module).__name__ in DROPPED_BY_SAMPLE or is_pool:
        return Step(Role.SAME, (x,), "kept" if kept else "")
    if isinstance(module, (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)) and _to_one_pixel(node, x):
        return Step(Role.MEAN, (x,), "kept" if kept else "")
    if isinstance(module, nn.Flatten) and module.start_dim == 1:
        return _flatten(x)
    return other


def _has_hooks(module: nn.Module) -> bool:
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return any(getattr(module, name, None) for name in hooks)


def _conv_refusal(conv: nn.Conv2d) -> str:
    if any(stride not in (1, 2) for stride in conv.stride):
        return f"stride {max(conv.stride)}"
    keeping = tuple(d * (k - 1) / 2 for d, k in zip(conv.dilation, conv.kernel_size))
    if (conv.padding != "same" and keeping != conv.padding) or any(p != int(p) for p in keeping):
        return f"padding {conv.padding} with kernel {conv.kernel_size} does not keep the map's size"
    return ""


def _function_step(node: fx.Node) -> Step:
    other = Step(Role.OTHER, refusal=f"{_name(node)} takes plain tensors only")
    x = node.args[0] if node.args else None
    is_method = node.op == "call_method"
    reads_shape = node.target is getattr and node.args[1] == "shape"
    if reads_shape or (is_method and node.target == "size"):
        return Step(Role.SHAPE, (x,)) if shape_of(x) else other  # type: ignore[arg-type]
    if shape_of(node) is None:
        return other
    if node.target in (torch.cat, torch.concat):
        return _cat(node) or other
    if node.target in (_JOIN_METHODS if is_method else _JOINS):
        return _join(node) or other
    if not isinstance(x, fx.Node) or shape_of(x) is None or node.all_input_nodes != [x, *_flags(node)]:
        return other
    if node.target in (_METHODS_BY_PIXEL if is_method else _BY_PIXEL | _POOLS):
        return Step(Role.SAME, (x,))
    if node.target in (F.adaptive_avg_pool2d, F.adaptive_max_pool2d, torch.mean, "mean") and _to_one_pixel(node, x):
        return Step(Role.MEAN, (x,))
    if node.target in (torch.flatten, "flatten") and (*node.args[1:], *node.kwargs.values()) in ((1,), (1, -1)):
        return _flatten(x)
    return other


def _flags(node: fx.Node) -> list[fx.Node]:
    """The mode, where a function reads it."""
    return [n for n in node.all_input_nodes if n.target in ("training", operator.not_)]


def _name(node: fx.Node) -> str:
    return str(node.target) if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))


def _flatten(x: fx.Node) -> Step:
    """Of single pixels only: then it leaves the channels as they are."""
    shape = shape_of(x) or ()
    if len(shape) == 4 and shape[2:] == (1, 1):
        return Step(Role.SAME, (x,))
    return Step(Role.OTHER, refusal="flatten takes plain tensors only")


def _to_one_pixel(node: fx.Node, x: fx.Node) -> bool:
    """Whether a pooling, or a mean over both axes, leaves one number for each channel."""
    shape, result = shape_of(x), shape_of(node)
    if shape is None or len(shape) != 4 or result not in ((*shape[:2], 1, 1), shape[:2]):
        return False
    if node.target not in (torch.mean, "mean"):
        return True
    axes = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
    return isinstance(axes, (tuple, list)) and sorted(axis % 4 for axis in axes) == [2, 3]


def _cat(node: fx.Node) -> Step | None:
    parts = node.args[0] if node.args else node.kwargs.get("tensors")
    axis = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
    if not isinstance(parts, (tuple, list)) or not all(isinstance(part, fx.Node) for part in parts):
        return None
    shapes = [shape_of(part) for part in parts]
    if axis not in (1, -3) or any(shape is None or len(shape) != 4 for shape in shapes):
        return None
    return Step(Role.CAT, tuple(parts))


def _join(node: fx.Node) -> Step | None:
    """Operands are maps of one shape, gates ``[., C or 1, 1, 1]`` or ``[C, 1, 1]``, and numbers."""
    if len(node.args) < 2 or any(isinstance(value, fx.Node) for value in node.kwargs.values()):
        return None
    result = shape_of(node) or ()
    for operand in node.args:
        shape = shape_of(operand)
        if not isinstance(operand, fx.Node) or shape == () or shape == result:
            continue
        if len(result) != 4 or shape is None or not is_gate(shape, result[1]):
            return None
    operands = [n for n in node.args if isinstance(n, fx.Node) and (shape_of(n) == result or _has_channels(n, result))]
    return Step(Role.JOIN, tuple(operands)) if any(shape_of(n) == result for n in operands) else None  # type: ignore[arg-type]


def is_gate(shape: Shape, channels: int) -> bool:
    """Whether a value of this shape acts on each channel of a map by one number."""
    return len(shape) in (3, 4) and shape[-2:] == (1, 1) and shape[-3] in (1, channels)


def _has_channels(node: fx.Node, result: Shape) -> bool:
    shape = shape_of(node) or ()
    return len(result) == 4 and len(shape) in (3, 4) and shape[-3] == result[1]
