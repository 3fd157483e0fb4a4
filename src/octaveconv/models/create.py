"""The one place that makes a network by its name, with the weights of a file: every verb's MODEL and checkpoint."""

from __future__ import annotations

import inspect
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


def create(
    name: str,
    alpha: float | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    num_classes: int | None = None,
    pretrained: bool | None = None,
    *,
    model_args: Mapping[str, Any] | None = None,
    new_head: bool = False,
) -> Any:
    """Create a network of timm's registry, ours included; rebuild an octavified one from its file.

    Args:
        name: its name.
        alpha: low-frequency share of the channels; by default the checkpoint's, if it records one, or the network's.
        checkpoint: a file of weights of any kind.
        num_classes: number of classes; by default that of the weights.
        pretrained: load the published weights; by default if the name is that of a published checkpoint
            (``oct_..._a250``) and no file is given.
        model_args: other arguments of ``timm.create_model``.
        new_head: if the checkpoint has another number of classes, start the classifier from random weights.

    Returns:
        The network, in training mode, on the CPU.

    Raises:
        UsageError: there is no such network, or it does not take these arguments.
        ValueError, OSError: the weights cannot be read or downloaded, or do not fit.

    Example:
        >>> import octaveconv.models
        >>> octaveconv.models.create("oct_resnet18", alpha=0.25, num_classes=10).fc.out_features
        10
    """
    check_name(name)
    if pretrained and checkpoint is not None:
        raise UsageError("pretrained and a checkpoint are two sources of weights: give one")
    file = None if checkpoint is None else weights.read(Path(checkpoint))
    if file is not None:
        _check_file(file, alpha, num_classes, new_head)
        alpha = file.alpha if alpha is None else alpha
        num_classes = file.num_classes if num_classes is None else num_classes
    given = _given(name, alpha, num_classes, model_args)
    _check_arguments(name, given)
    if pretrained is None:
        pretrained = file is None and published(name) is not None
    try:
        model = timm.create_model(name, pretrained, **given)
    except RuntimeError as error:
        if "No pretrained weights" not in str(error):
            raise
        raise UsageError(f"{name} has no published weights: omit pretrained, or give a file of weights") from error
    if file is not None:
        try:
            model = model if file.conversion is None else rebuild(model, file.conversion)
            _load(model, file, name, given)
        except ValueError as error:
            if file.model is None or family_of(file.model) == family_of(name):
                raise
            raise ValueError(
                f"{file.file} has the weights of {file.model}, not of {name}: create {file.model}, or use another file"
            ) from error
    return model


def check(
    name: str,
    alpha: float | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    num_classes: int | None = None,
    model_args: Mapping[str, Any] | None = None,
) -> None:
    """Raise what `create` would, as far as that is known at once: without weights, and without images.

    Raises:
        UsageError: there is no such network, or it does not take these arguments.
        OSError: there is no such file.
    """
    check_name(name)
    if checkpoint is not None:
        weights.check_file(Path(checkpoint))
    _check_arguments(name, _given(name, alpha, num_classes, model_args))


def check_name(name: str) -> None:
    """Raise UsageError unless timm knows the network; the message names the nearest one that it knows."""
    if not isinstance(name, str):
        raise UsageError(f"a network is given by its name in timm, got {name!r}")
    if Path(name).is_file():
        raise UsageError(f"{name} is a file: the name of the network comes first, as in oct_resnet50 {name}")
    known = names("*")
    if name.partition(".")[0] not in known:
        raise UsageError(f"there is no network {name!r}{did_you_mean(name, known) or ': octaveconv models lists them'}")


def family_of(name: str) -> str:
    """The network that takes every alpha; a published name stands for it at one alpha."""
    record = published(name)
    return record.network if record else name.partition(".")[0]


def names(glob: str) -> list[str]:
    """The networks of timm's registry whose names match."""
    return timm.list_models(glob)  # type: ignore[no-any-return]


def _check_file(file: weights.Weights, alpha: float | None, num_classes: int | None, new_head: bool) -> None:
    """Raise UsageError if what was asked for contradicts what the file says."""
    if file.conversion is not None and alpha is not None:
        raise UsageError(f"{file.file} says how its network was octavified: omit alpha, got {alpha}")
    if not new_head and num_classes is not None and file.num_classes not in (None, num_classes):
        raise UsageError(
            f"{file.file} has {file.num_classes} classes, but num_classes is {num_classes}: omit it, or fine-tune with "
            f"a new classifier (octaveconv train)"
        )


def _given(
    name: str, alpha: float | None, num_classes: int | None, model_args: Mapping[str, Any] | None
) -> dict[str, Any]:
    """All arguments of a network; UsageError if one is given twice, or changes what is made."""
    given = {key: value for key, value in (("alpha", alpha), ("num_classes", num_classes)) if value is not None}
    for key, value in (model_args or {}).items():
        if key in _NOT_OF_A_NETWORK:
            raise UsageError(f"model_args of {name} cannot have {key!r}: {_NOT_OF_A_NETWORK[key]}")
        if given.setdefault(key, value) != value:
            raise UsageError(f"{key} is {given[key]!r}, but model_args have {key} {value!r}: omit it there")
    return given


def _check_arguments(name: str, given: Mapping[str, Any]) -> None:
    """Raise UsageError unless the network takes these arguments; building it on ``meta`` costs little."""
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
            made = timm.create_model(name, **given)
        empty = next((key for key, parameter in made.named_parameters() if not parameter.numel()), None)
        if empty is not None:
            raise ValueError(f"{empty} would have no numbers with {_shown(given)}")
    except Exception as error:  # constructors raise nearly anything when an argument does not fit
        raise UsageError(_complaint(name, given, error)) from error


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


def _load(model: nn.Module, file: weights.Weights, name: str, given: Mapping[str, Any]) -> None:
    """Load a file's weights, without those of a classifier that has another number of classes."""
    rebuilt = file.conversion is not None
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
