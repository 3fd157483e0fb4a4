"""Foreign parameter names: which of our parameters an array belongs to, and which block of it.

A keymap turns an array's name into a `Target`. The original code stores each path of an octave convolution, and each
frequency of a norm, as a separate array; `to_state_dict` joins them into our one weight.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..nn import OctBatchNorm2d, OctConv2d
from ..octave import ChannelSplit
from ..spec import Paths


class Target(NamedTuple):
    """A parameter of ours and a block of it: a path (``hh`` ... ``ll``), a part (``h``, ``l``), or all (``""``)."""

    key: str
    block: str = ""


KeyMap = Callable[[str], "Target | None"]

_LEAVES = {
    "gamma": "weight",
    "beta": "bias",
    "weight": "weight",
    "bias": "bias",
    "moving_mean": "running_mean",
    "moving_var": "running_var",
    "running_mean": "running_mean",
    "running_var": "running_var",
}
_LEAF = "(" + "|".join(_LEAVES) + ")"


_PART = "(h2h|h2l|l2h|l2l|h|l)"


def mxnet_symbol_resnetv2(name: str) -> Target | None:
    """Arrays of the original ablation networks (Symbol API) to `OctResNetV2`.

    Example:
        >>> mxnet_symbol_resnetv2("arg:L2_B01_conv2_conv-h2l_weight")
        Target(key='layer1.0.conv2.conv.weight', block='hl')
    """
    return _mxnet_symbol(name, lambda stage, block: block - 1)


def mxnet_symbol_densenet(name: str) -> Target | None:
    """Arrays of the original DenseNet (Symbol API) to `OctDenseNet`, whose later stages begin with the transition.

    Example:
        >>> mxnet_symbol_densenet("arg:L3_Trans_conv_bn-l_beta")
        Target(key='layer2.0.conv.bn.bias', block='l')
        >>> mxnet_symbol_densenet("arg:L3_B01_conv1_bn-h_beta")
        Target(key='layer2.1.conv1.bn.bias', block='h')
    """
    name = re.sub(r"_Trans_conv_", "_B00_conv_", name)
    return _mxnet_symbol(name, lambda stage, block: block - 1 if stage == 2 else block)


def _mxnet_symbol(name: str, index: Callable[[int, int], int]) -> Target | None:
    name = re.sub(r"^(arg|aux):", "", name)
    for theirs, ours in {"conv1_conv": "conv1", "conv1_bn": "bn1", "tail_bn": "norm", "classifier": "fc"}.items():
        if match := re.fullmatch(rf"{theirs}_{_LEAF}", name):
            return Target(f"{ours}.{_LEAVES[match[1]]}")
    match = re.fullmatch(rf"L(\d)_B(\d+)_(conv\d?_bn|conv\d?_conv|se_fc\d)(?:-{_PART})?_{_LEAF}", name)
    if match is None:
        return None
    stage, block, unit, part, leaf = match.groups()
    unit = unit.replace("conv4", "downsample").replace("_", ".")
    key = f"layer{int(stage) - 1}.{index(int(stage), int(block))}.{unit}.{_LEAVES[leaf]}"
    return Target(key, (part or "").replace("2", ""))


def mxnet_gluon_resnetv1(name: str) -> Target | None:
    """Arrays of the original ``resnet*_v1b`` and ``resnext*_v1b`` (Gluon API) to `OctResNet`.

    Example:
        >>> mxnet_gluon_resnetv1("L1_B0.bn4.bn_l.gamma")
        Target(key='layer1.0.downsample.1.weight', block='l')
    """
    return _mxnet_gluon(name, {"conv1.0": "conv1", "conv1.1": "bn1"}, lambda stage, block: f"layer{stage}.{block}")


def mxnet_gluon_resnetv1_deep(name: str) -> Target | None:
    """Arrays of the original ``resnet152_v1e`` and ``resnet152_v1f`` (Gluon API) to `OctResNet` with a deep stem.

    Example:
        >>> mxnet_gluon_resnetv1_deep("conv2.bn4.gamma").key, mxnet_gluon_resnetv1_deep("conv1.7.gamma").key
        ('maxpool.downsample.1.weight', 'bn1.weight')
    """
    plain = {f"conv1.{i}": f"conv1.{i}" for i in (0, 1, 3, 4, 6)} | {"conv1.7": "bn1"}
    plain |= {f"conv2.{unit}": f"maxpool.{_SHORTCUT.get(unit, unit)}" for unit in _UNITS}
    return _mxnet_gluon(name, plain, lambda stage, block: f"layer{stage}.{block}")


def mxnet_gluon_mobilenet(name: str) -> Target | None:
    """Arrays of the original MobileNets (Gluon API) to `OctMobileNetV1` and `OctMobileNetV2`.

    Example:
        >>> mxnet_gluon_mobilenet("L1_B1.conv2.conv_h2l.weight")
        Target(key='layer0.0.conv2.weight', block='hl')
    """
    plain = {"conv1.0": "conv1", "conv1.1": "bn1", "tail.0": "conv_head", "tail.1": "norm"}
    return _mxnet_gluon(name, plain, lambda stage, block: f"layer{stage - 1}.{block if stage > 1 else block - 1}")


_UNITS = [f"{kind}{i}" for kind in ("conv", "bn") for i in (1, 2, 3, 4)]
_SHORTCUT = {"conv4": "downsample.0", "bn4": "downsample.1"}


def _mxnet_gluon(name: str, plain: dict[str, str], block_name: Callable[[int, int], str]) -> Target | None:
    module, _, leaf = name.rpartition(".")
    if leaf not in _LEAVES:
        return None
    plain = plain | {"classifer": "fc"}  # misspelt in the files
    if module in plain:
        return Target(f"{plain[module]}.{_LEAVES[leaf]}")
    match = re.fullmatch(
        rf"L(\d)_B(\d+)\.(?:(conv\d|bn\da?)\.(?:conv|bn)_{_PART}|se_block\.(conv1|conv2_[hl]))", module
    )
    if match is None:
        return None
    stage, block, unit, part, gate = match.groups()
    if gate:
        unit, part = ("se.fc1", "") if gate == "conv1" else ("se.fc2", gate[-1])
    return Target(
        f"{block_name(int(stage), int(block))}.{_SHORTCUT.get(unit, unit)}.{_LEAVES[leaf]}", part.replace("2", "")
    )


def fold_fixed_norms(arrays: Mapping[str, Tensor], eps: float = 1e-5) -> dict[str, Tensor]:
    """Remove the affine parameters of the norms on raw inputs, ``bn1a`` and ``bn4a`` of the original Gluon code.

    The original ignores their gamma; it adds their beta, which starts at 0 and is never trained. Ours have neither: a
    beta other than 0 is folded into the running mean, so that the network computes the same.
    """
    folded = dict(arrays)
    for name in arrays:
        match = re.fullmatch(r"(.*\.bn[14]a\.bn_[hl])\.(gamma|beta)", name)
        if match and match[2] == "gamma":
            del folded[name]
        elif match:
            deviation = (arrays[f"{match[1]}.running_var"] + eps).sqrt()
            folded[f"{match[1]}.running_mean"] = arrays[f"{match[1]}.running_mean"] - folded.pop(name) * deviation
    return folded


def d_li14(name: str) -> Target | None:
    """Parameters of d-li14's octconv.pytorch (Oct-ResNet-50, -101 and -152, alpha 0.5) to `OctResNet`.

    Example:
        >>> d_li14("layer1.0.conv2.conv.conv_h2l.weight")
        Target(key='layer1.0.conv2.weight', block='hl')
    """
    match = re.fullmatch(rf"(layer\d\.\d+)\.(conv(\d)|downsample\.0)\.(?:conv\.conv|bn)_{_PART}\.(\w+)", name)
    if match is None:
        return Target(name) if re.match(r"(conv1|bn1|fc)\.", name) else None
    block, unit, number, part, leaf = match.groups()
    if part in ("h", "l"):
        unit = f"bn{number}" if number else "downsample.1"
    return Target(f"{block}.{unit}.{leaf}", part.replace("2", ""))


def is_foreign(names: Iterable[str]) -> bool:
    """Whether these are the original's or d-li14's names, and not ours or a dense network's."""
    return any(name.startswith(("arg:", "aux:", "classifer.")) or ".conv_h2h." in name for name in names)


def keymap_for(names: Iterable[str], model: nn.Module) -> KeyMap | None:
    """The keymap from these names to ``model``, one of our networks; None if they are not foreign."""
    names = list(names)
    if not is_foreign(names):
        return None
    if any(".bn_h." in name for name in names) and "fc.weight" in names:
        return d_li14
    return getattr(model, "mxnet_names", lambda name: None)


def alpha_of(arrays: Mapping[str, Tensor]) -> float:
    """The alpha of foreign arrays: the low share of the widest norm that has both parts."""
    parts: dict[str, dict[str, int]] = {}
    for name, array in arrays.items():
        if match := re.fullmatch(r"(.+)(?:\.bn_|_bn-)([hl])[._](?:gamma|weight)", name):
            parts.setdefault(match[1], {})[match[2]] = len(array)
    both = [sizes for sizes in parts.values() if len(sizes) == 2]
    widest = max(both, key=lambda sizes: sum(sizes.values()), default={"l": 0, "h": 1})
    return widest["l"] / sum(widest.values())


def check_leftovers(who: object, unused: list[str], missing: list[str]) -> None:
    """Raise ValueError if arrays are left over or parameters are not filled; the message names them."""
    if unused or missing:
        raise ValueError(
            f"{who}: {len(unused)} arrays left over{_some(unused)}, {len(missing)} not filled{_some(missing)}"
        )


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:4])
    return f" ({shown}{', ...' if len(names) > 4 else ''})" if names else ""


def to_state_dict(arrays: Mapping[str, Tensor], model: nn.Module, keymap: KeyMap) -> dict[str, Tensor]:
    """Join foreign arrays into a complete state dict for ``model``.

    Args:
        arrays: tensors by their foreign names.
        model: the network that will load the result; only its shapes are used, so it may be on ``meta``.
        keymap: one of the functions of this module.

    Returns:
        A state dict for ``model.load_state_dict(..., strict=True)``; counters of training batches are 0.

    Raises:
        ValueError: an array is left over, a parameter is not filled, or a block has another size than at the model's
            alpha; the message lists them.
    """
    expected = model.state_dict()
    blocks: dict[str, dict[str, Tensor]] = {}
    unused = []
    state = {key: torch.zeros((), dtype=torch.long) for key in expected if key.endswith("num_batches_tracked")}
    for name, array in arrays.items():
        target = keymap(name)
        if target is None or target.key not in expected:
            unused.append(name)
        elif target.key in state:
            state[target.key] = array
        else:
            blocks.setdefault(target.key, {})[target.block] = array
    missing = [key for key in expected if key not in blocks and key not in state]
    check_leftovers("these weights belong to another network", unused, missing)
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
    """The block of one output in a weight (its inputs side by side) or in a vector."""
    row = [parts[name] for name in (from_high, from_low, part) if name in parts]
    return torch.cat(row, 1) if len(row) > 1 else row[0] if row else None


def _check_blocks(key: str, given: dict[str, Tensor], fitting: dict[str, Tensor]) -> None:
    """Check the weights' alpha: the dense shape is right at every alpha, but the blocks' shapes are not."""
    theirs = {name: list(block.shape) for name, block in given.items()}
    ours = {name: list(block.shape) for name, block in fitting.items() if block.numel()}
    if theirs != ours:
        raise ValueError(f"{key}: the arrays have shapes {theirs}, the model {ours}: create it at their own alpha")
