"""The one place that makes a network by its name, with the weights of a file: every verb's MODEL and checkpoint."""

from __future__ import annotations

import inspect
import json
import os
import re
import textwrap
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

from .. import processes
from .._text import did_you_mean, say
from ..errors import UsageError
from ..octavify.octavify import rebuild
from ..weights import files as weights
from ._published import published

_NOT_OF_A_NETWORK = {  # arguments of timm.create_model, and why they are not for here
    "features_only": "it leaves out the classifier; timm.create_model makes such networks",
    "out_indices": "it is for networks without a classifier; timm.create_model makes them",
    "pretrained": "name a file of weights as the checkpoint",
    "checkpoint_path": "name the file as the checkpoint",
}
_NOT_RECORDED = ("alpha", "num_classes", "drop_rate", "pretrained_cfg_overlay")
_FILES = {".safetensors", ".pth", ".pt", ".ckpt", ".bin", ".params", ".tar", ".octave"}  # endings
Checkpoint = str | os.PathLike[str] | weights.Weights | None


def create(
    name: str,
    alpha: float | None = None,
    checkpoint: Checkpoint = None,
    num_classes: int | None = None,
    pretrained: bool | None = None,
    *,
    model_args: Mapping[str, Any] | None = None,
    new_head: bool = False,
) -> Any:
    """Create a network of timm's registry, ours included; rebuild an octavified one from its file.

    Args:
        name: its name; or a run folder, or a file of weights that records its network, in place of a name and a
            checkpoint.
        alpha: low-frequency share of the channels; by default the checkpoint's, if it records one, or the network's.
        checkpoint: a file of weights of any kind, a run folder, or what `octaveconv.weights.read` returned.
        num_classes: number of classes; by default that of the weights.
        pretrained: load the published weights; by default if the name is that of a published checkpoint
            (``oct_..._a250``) and no file is given.
        model_args: other arguments of ``timm.create_model``, over those that the checkpoint records.
        new_head: if the checkpoint has another number of classes, start the classifier from random weights.

    Returns:
        The network, in training mode, on the CPU. Its ``pretrained_cfg`` has the preprocessing and the classes that the
        checkpoint records, and its ``model_args`` the arguments that it was made with.

    Raises:
        UsageError: there is no such network, or it does not take these arguments.
        ValueError, OSError: the weights cannot be read or downloaded, or do not fit.

    Example:
        >>> import octaveconv.models
        >>> octaveconv.models.create("oct_resnet18", alpha=0.25, num_classes=10).fc.out_features
        10
    """
    name, file = source(name, checkpoint)
    if file is not None:
        if pretrained:
            raise UsageError("pretrained and a checkpoint are two sources of weights: give one")
        _check_file(file, alpha, num_classes, new_head)
    if pretrained is None:
        pretrained = file is None and published(name) is not None
    try:
        given = _given(name, alpha, num_classes, model_args, file)
        _check_memory(file, _check_arguments(name, given))
        model = _made(name, pretrained, given)
        if file is not None:
            model = model if file.about.octavify is None else rebuild(model, file.about.octavify)
            load_weights(model, file, name, given)
    except ValueError as error:
        if told := _mismatch(name, model_args, file, error):
            raise ValueError(told) from error
        raise
    return model


def check(
    name: str,
    alpha: float | None = None,
    checkpoint: Checkpoint = None,
    num_classes: int | None = None,
    model_args: Mapping[str, Any] | None = None,
) -> Any:
    """Raise what `create` would, as far as that is known without loading weights into a network, and without images.

    Returns:
        The network on ``meta``, dense if it is to be octavified.

    Raises:
        UsageError: there is no such network, or it does not take these arguments.
        ValueError, OSError: there is no such file, or it cannot be read.
    """
    name, file = source(name, checkpoint)
    try:
        given = _given(name, alpha, num_classes, model_args, file)
        return _check_arguments(name, given)
    except ValueError as error:
        if told := _mismatch(name, model_args, file, error):
            raise ValueError(told) from error
        raise


def source(name: str, checkpoint: Checkpoint = None) -> tuple[str, weights.Weights | None]:
    """The name of the network that is meant, and the weights that it gets, read from their file.

    Raises:
        UsageError: timm does not know the network, or the file does not say which it is.
        ValueError, OSError: the file cannot be read.
    """
    for given in (name, checkpoint):
        if isinstance(given, (str, os.PathLike)) and Path(given).suffix == ".octave" and Path(given).is_file():
            raise UsageError(
                f"{given} is a deployed network, for octaveconv eval and predict and for load_deployed: give the "
                f"weights that it was made from"
            )
    if checkpoint is None and isinstance(name, (str, os.PathLike)) and _is_place(name):
        file = weights.read(Path(name))
        if file.about.model is None:
            raise UsageError(f"{file.file} does not say which network it belongs to: name that, with it as checkpoint")
        check_name(file.about.model)
        return file.about.model, file
    check_name(name)
    if checkpoint is None or isinstance(checkpoint, weights.Weights):
        return name, checkpoint
    return name, weights.read(Path(checkpoint))


def check_name(name: str) -> None:
    """Raise UsageError unless timm knows the network; the message names the nearest one that it knows.

    Raises:
        FileNotFoundError: it looks like a file.
    """
    if not isinstance(name, str):
        raise UsageError(f"a network is given by its name in timm, got {name!r}")
    if _is_place(name):
        raise UsageError(f"{name} is a file or folder, and a checkpoint is given as well: give one of them")
    if not _is_known(name):
        if os.sep in name or Path(name).suffix in _FILES:
            raise FileNotFoundError(f"there is no file or folder {name}, and no network of that name")
        known = names("*")
        raise UsageError(f"there is no network {name!r}{did_you_mean(name, known) or ': octaveconv models lists them'}")


def _is_known(name: str | os.PathLike[str]) -> bool:
    return str(name).partition(".")[0] in names("*")


def _is_place(name: str | os.PathLike[str]) -> bool:
    """Whether a file is there, or a folder that has not by chance the name of a network."""
    return Path(name).is_file() or (Path(name).is_dir() and not _is_known(name))


def family_of(name: str) -> str:
    """The network that takes every alpha; a published name stands for it at one alpha."""
    record = published(name)
    return record.network if record else name.partition(".")[0]


def names(glob: str) -> list[str]:
    """The networks of timm's registry whose names match."""
    return timm.list_models(glob)  # type: ignore[no-any-return]


def _check_file(file: weights.Weights, alpha: float | None, num_classes: int | None, new_head: bool) -> None:
    """Raise UsageError if what was asked for contradicts what the file says."""
    if file.about.octavify is not None and alpha is not None:
        raise UsageError(f"{file.file} says how its network was octavified: omit alpha, got {alpha}")
    if not new_head and num_classes is not None and file.num_classes not in (None, num_classes):
        raise UsageError(
            f"{file.file} has {file.num_classes} classes, but num_classes is {num_classes}: omit it, or fine-tune with "
            f"a new classifier (octaveconv train)"
        )


def _given(
    name: str,
    alpha: float | None,
    num_classes: int | None,
    model_args: Mapping[str, Any] | None,
    file: weights.Weights | None,
) -> dict[str, Any]:
    """All arguments of a network, over those that the file records; UsageError if one is given twice, or cannot be."""
    asked = dict(model_args or {})
    recorded: dict[str, Any] = {}
    if file is not None:
        alpha = file.alpha if alpha is None and "alpha" not in asked else alpha
        num_classes = file.num_classes if num_classes is None and "num_classes" not in asked else num_classes
        recorded = file.about.model_args if _is_own(name, file) else {}
        overlay = file.about.overlay(num_classes) | asked.pop("pretrained_cfg_overlay", {})
        recorded = recorded | ({"pretrained_cfg_overlay": overlay} if overlay else {})
    given = {key: value for key, value in (("alpha", alpha), ("num_classes", num_classes)) if value is not None}
    for key, value in (recorded | asked).items():
        if key in _NOT_OF_A_NETWORK:
            raise UsageError(f"model_args of {name} cannot have {key!r}: {_NOT_OF_A_NETWORK[key]}")
        if given.setdefault(key, value) != value:
            raise UsageError(f"{key} is {given[key]!r}, but model_args have {key} {value!r}: omit it there")
    return given


def _is_own(name: str, file: weights.Weights) -> bool:
    """Whether a file's weights are this network's, or may be."""
    return file.about.model is None or family_of(file.about.model) == family_of(name)


def _mismatch(name: str, model_args: Mapping[str, Any] | None, file: weights.Weights | None, error: ValueError) -> str:
    """What to say instead when a file does not fit because it is another network's; nothing if it is this one's."""
    if file is None or file.about.model is None:
        return ""
    theirs, recorded = file.about.model, file.about.model_args
    if not _is_own(name, file):
        return f"{file.file} has the weights of {theirs}, not of {name}: create {theirs}, or use another file"
    asked = json.loads(json.dumps(model_args or {}, default=str))  # as plain as what is recorded
    others = {key: value for key, value in asked.items() if recorded.get(key, value) != value}
    if not others or isinstance(error, UsageError):
        return ""
    own = {key: recorded[key] for key in others}
    return f"{file.file} has the weights of {theirs} with {_shown(own)}, not with {_shown(others)}: omit model_args"


def _made(name: str, pretrained: bool, given: Mapping[str, Any]) -> Any:
    """A network of timm's, which keeps the arguments that it was made with."""
    try:
        model = timm.create_model(name, pretrained, **given)
    except RuntimeError as error:
        if "No pretrained weights" not in str(error):
            raise
        raise UsageError(f"{name} has no published weights: omit pretrained, or give a file of weights") from error
    model.model_args = {key: value for key, value in given.items() if key not in _NOT_RECORDED}
    return model


def _check_arguments(name: str, given: Mapping[str, Any]) -> Any:
    """The network on ``meta``, which costs little; UsageError unless it takes these arguments."""
    if "alpha" in given and not name.startswith("oct_"):
        base = name.partition(".")[0]
        octave = f"oct_{base}" if names(f"oct_{base}") else "an octave network (octaveconv models lists them)"
        raise UsageError(
            f"{name} is a dense network and has no alpha: use {octave}, or convert it (octaveconv octavify {name})"
        )
    classes = given.get("num_classes", 0)
    if not isinstance(classes, int) or isinstance(classes, bool) or classes < 0:  # timm takes negative ones for 0
        raise UsageError(f"num_classes must be a whole number from 0 up, got {classes!r}")
    try:
        with torch.device("meta"), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about layers without channels, which are refused below
            made = _made(name, False, given)
        empty = next((key for key, parameter in made.named_parameters() if not parameter.numel()), None)
        if empty is not None:
            raise ValueError(f"{empty} would have no numbers with {_shown(given)}")
        return made
    except Exception as error:  # constructors raise nearly anything when an argument does not fit
        raise UsageError(_complaint(name, given, error)) from error


def _check_memory(file: weights.Weights | None, model: nn.Module) -> None:
    """Raise ValueError if a file makes a network, which is on ``meta``, that has many more numbers than the file."""
    if file is None or not file.about.model_args:
        return
    theirs, ours = (sum(tensor.numel() for tensor in state.values()) for state in (file.tensors, model.state_dict()))
    head = file.num_classes and getattr(model, "num_classes", 0) / file.num_classes  # a new classifier may be larger
    if ours > theirs * max(head or 1, 1):
        raise ValueError(f"{file.file} is not whole: its network has {ours:,} parameters, the file {theirs:,}")


def _complaint(name: str, given: Mapping[str, Any], error: Exception) -> str:
    """What is wrong with a network's arguments."""
    if match := re.search(r"unexpected keyword argument '(\w+)'", str(error)):
        with torch.device("meta"):
            known = [*inspect.signature(type(timm.create_model(name))).parameters]
        cure = did_you_mean(match[1], known) or f": it takes {', '.join(known)}"
        return f"{name} has no argument {match[1]!r}{cure}"
    if isinstance(error, ValueError):  # which says what was given and expected
        return str(error) if str(error).startswith(name) else f"{name}: {error}"
    return f"{name} cannot be built with {_shown(given)} ({type(error).__name__}: {error})"


def _shown(given: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={value!r}" for key, value in given.items() if key != "pretrained_cfg_overlay")


def load_weights(model: nn.Module, file: weights.Weights, name: str, given: Mapping[str, Any]) -> None:
    """Load a file's weights, without those of a classifier that has another number of classes."""
    rebuilt = file.about.octavify is not None
    if file.num_classes in (None, model.num_classes):
        state = file.state_dict(model, rebuilt)
    else:
        with torch.device("meta"):
            theirs = timm.create_model(name, **{**given, "num_classes": file.num_classes})
        names = model.pretrained_cfg["classifier"]  # type: ignore[index]
        heads = tuple(f"{head}." for head in ([names] if isinstance(names, str) else names))
        state = {key: tensor for key, tensor in file.state_dict(theirs, rebuilt).items() if not key.startswith(heads)}
        state |= {key: tensor for key, tensor in model.state_dict().items() if key.startswith(heads)}
        if processes.rank() == 0 and model.num_classes:
            say(
                f"{file.file} has {file.num_classes} classes, the network {model.num_classes}: its classifier starts "
                f"from random weights"
            )
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        found = textwrap.shorten(str(error).partition(":")[2], 300)
        raise ValueError(f"{file.file} does not fit {name}: {found}") from error
