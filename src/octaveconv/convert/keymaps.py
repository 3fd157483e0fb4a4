"""Foreign parameter names: which of our parameters an array belongs to, and which block of it.

A keymap turns an array's name into a `Target`. The original code stores each path of an octave convolution, and each
frequency of a norm, as an array of its own; `to_state_dict` puts them together into our one weight.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..nn import OctBatchNorm2d, OctConv2d
from ..octave import ChannelSplit
from ..spec import Paths


class Target(NamedTuple):
    """Our parameter, and the block of it: a path (``hh`` ... ``ll``), a part (``h``, ``l``), or all of it (``""``)."""

    key: str
    block: str = ""


KeyMap = Callable[[str], "Target | None"]

_LEAVES = {
    "gamma": "weight", "beta": "bias", "weight": "weight", "bias": "bias",
    "moving_mean": "running_mean", "moving_var": "running_var",
    "running_mean": "running_mean", "running_var": "running_var",
}  # fmt: skip
_LEAF = "(" + "|".join(_LEAVES) + ")"


def mxnet_symbol_resnetv2(name: str) -> Target | None:
    """Arrays of the original ablation networks (Symbol API) to `OctResNetV2`.

    Example:
        >>> mxnet_symbol_resnetv2("arg:L2_B01_conv2_conv-h2l_weight")
        Target(key='layer1.0.conv2.conv.weight', block='hl')
    """
    name = re.sub(r"^(arg|aux):", "", name)
    for theirs, ours in {"conv1_conv": "conv1", "conv1_bn": "bn1", "tail_bn": "norm", "classifier": "fc"}.items():
        if match := re.fullmatch(rf"{theirs}_{_LEAF}", name):
            return Target(f"{ours}.{_LEAVES[match[1]]}")
    match = re.fullmatch(rf"L(\d)_B(\d+)_(conv\d_bn|conv\d_conv|se_fc\d)(?:-(h2h|h2l|l2h|l2l|h|l))?_{_LEAF}", name)
    if match is None:
        return None
    stage, block, unit, part, leaf = match.groups()
    unit = unit.replace("conv4", "downsample").replace("_", ".")
    return Target(f"layer{int(stage) - 1}.{int(block) - 1}.{unit}.{_LEAVES[leaf]}", (part or "").replace("2", ""))


def mxnet_gluon_resnetv1(name: str) -> Target | None:
    """Arrays of the original ``resnet*_v1b`` and ``resnext*_v1b`` (Gluon API) to `OctResNet`.

    Example:
        >>> mxnet_gluon_resnetv1("L1_B0.bn4.bn_l.gamma")
        Target(key='layer1.0.downsample.1.weight', block='l')
    """
    for theirs, ours in {r"conv1\.0": "conv1", r"conv1\.1": "bn1", "classifer": "fc"}.items():  # misspelt in the files
        if match := re.fullmatch(rf"{theirs}\.{_LEAF}", name):
            return Target(f"{ours}.{_LEAVES[match[1]]}")
    match = re.fullmatch(rf"L(\d)_B(\d+)\.(conv\d|bn\d)\.(?:conv|bn)_(h2h|h2l|l2h|l2l|h|l)\.{_LEAF}", name)
    if match is None:
        return None
    stage, block, unit, part, leaf = match.groups()
    unit = {"conv4": "downsample.0", "bn4": "downsample.1"}.get(unit, unit)
    return Target(f"layer{stage}.{block}.{unit}.{_LEAVES[leaf]}", part.replace("2", ""))


def to_state_dict(arrays: Mapping[str, Tensor], model: nn.Module, keymap: KeyMap) -> dict[str, Tensor]:
    """Put foreign arrays together into a complete state dict for ``model``.

    Args:
        arrays: tensors by their foreign names.
        model: the network that is to load the result; only its shapes are used, so it may be on ``meta``.
        keymap: one of the functions of this module.

    Returns:
        A state dict for ``model.load_state_dict(..., strict=True)``; counters of training batches are 0.

    Raises:
        ValueError: an array is left over, a parameter stays unfilled, or a block does not have the size it has at the
            model's alpha; the message lists them.
    """
    expected = model.state_dict()
    blocks: dict[str, dict[str, Tensor]] = {}
    unused = []
    for name, array in arrays.items():
        target = keymap(name)
        if target is None or target.key not in expected:
            unused.append(name)
        else:
            blocks.setdefault(target.key, {})[target.block] = array
    state = {key: torch.zeros((), dtype=torch.long) for key in expected if key.endswith("num_batches_tracked")}
    missing = [key for key in expected if key not in blocks and key not in state]
    if unused or missing:
        raise ValueError(f"these weights are not this network's: arrays left over {unused}, not filled {missing}")
    for key, parts in blocks.items():
        module = model.get_submodule(key.rpartition(".")[0])
        state[key] = _assemble(key, parts, module, expected[key].shape)
    return state


def _assemble(key: str, parts: dict[str, Tensor], module: nn.Module, shape: torch.Size) -> Tensor:
    if "" in parts:
        joined = parts[""]
    elif isinstance(module, OctConv2d) and key.endswith("weight"):
        joined = module.spec.join_paths(Paths(*(parts.get(path) for path in Paths._fields)))
        fitting = {path: block for path, block in zip(Paths._fields, module.spec.paths(joined)) if block is not None}
        _check_blocks(key, parts, fitting)
    else:
        split = module.split if isinstance(module, OctBatchNorm2d) else ChannelSplit(0, 0)
        top, bottom = _row(parts, "hh", "lh", "h"), _row(parts, "hl", "ll", "l")
        joined = split.join(top, bottom)
        if isinstance(module, OctBatchNorm2d):
            _check_blocks(key, parts, dict(zip("hl", module.split.split(joined))))
    if [n for n in joined.shape if n != 1] == [n for n in shape if n != 1]:  # a 1x1 convolution is a linear layer
        joined = joined.reshape(shape)
    if joined.shape != shape:
        raise ValueError(f"{key}: expected shape {list(shape)}, the arrays make {list(joined.shape)}")
    return joined


def _row(parts: dict[str, Tensor], from_high: str, from_low: str, part: str) -> Tensor | None:
    """One output's block of a weight (its inputs side by side), or of a vector."""
    row = [parts[name] for name in (from_high, from_low, part) if name in parts]
    return torch.cat(row, 1) if len(row) > 1 else row[0] if row else None


def _check_blocks(key: str, given: dict[str, Tensor], fitting: dict[str, Tensor]) -> None:
    """The dense shape is right at every alpha; the blocks show whether these weights are of this alpha."""
    theirs = {name: list(block.shape) for name, block in given.items()}
    ours = {name: list(block.shape) for name, block in fitting.items() if block.numel()}
    if theirs != ours:
        raise ValueError(f"{key}: the arrays are {theirs}, the model has {ours}: build it at the weights' own alpha")
