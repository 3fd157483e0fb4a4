"""The one place that makes a network by its name, with the weights of a file: every verb's MODEL and checkpoint."""

from __future__ import annotations

import inspect
import os
import re
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

from .. import processes
from .._text import did_you_mean
from ..errors import UsageError
from ..octavify.octavify import rebuild
from ..weights import files as weights
from ._published import published


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
    file = None if checkpoint is None else weights.read(Path(checkpoint))
    if file is not None:
        _check_file(file, alpha, num_classes, new_head)
        alpha = file.alpha if alpha is None else alpha
        num_classes = file.num_classes if num_classes is None else num_classes
    given = {key: value for key, value in (("alpha", alpha), ("num_classes", num_classes)) if value is not None}
    given = {**(model_args or {}), **given}
    _check_arguments(name, given)
    if pretrained is None:
        pretrained = file is None and published(name) is not None
    model = timm.create_model(name, pretrained, **given)
    if file is not None:
        if file.conversion is not None:
            model = rebuild(model, file.conversion)
        _load(model, file, name, given)
    return model


def check_name(name: str) -> None:
    """Raise UsageError unless timm knows the network; the message names the nearest one that it knows."""
    known = names("*")
    if name.partition(".")[0] not in known:
        raise UsageError(f"there is no network {name!r}{did_you_mean(name, known) or ': octaveconv models lists them'}")


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
        with torch.device("meta"):
            timm.create_model(name, **given)
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
        return f"{name}: {error}"
    shown = ", ".join(f"{key}={value!r}" for key, value in given.items() if key != "pretrained_cfg_overlay")
    return f"{name} cannot be built with {shown} ({type(error).__name__}: {error})"


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
        if processes.rank() == 0:
            print(
                f"{file.file} has {file.num_classes} classes, the network {model.num_classes}: its classifier starts "
                f"from random weights"
            )
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        found = textwrap.shorten(str(error).partition(":")[2], 300)
        raise ValueError(f"{file.file} does not fit {name}: {found}") from error
