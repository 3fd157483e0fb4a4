"""The one place that makes a network by its name, with the weights of a file: every verb's MODEL and checkpoint."""

from __future__ import annotations

import os
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
    name: str, alpha: float | None = None, checkpoint: str | os.PathLike[str] | None = None,
    num_classes: int | None = None, pretrained: bool | None = None, *,
    model_args: Mapping[str, Any] | None = None, new_head: bool = False,
) -> Any:  # fmt: skip
    """Create a network of timm's registry, ours included; rebuild an octavified one from its file.

    Args:
        name: its name.
        alpha: low-frequency share of the channels; by default the checkpoint's, if it records one, or the network's.
        checkpoint: a file of weights of any kind.
        num_classes: of the classifier; by default as many as the weights have.
        pretrained: fetch the published weights; by default if the name is that of a published checkpoint
            (``oct_..._a250``) and no file is given.
        model_args: other arguments of ``timm.create_model``.
        new_head: where the checkpoint has another number of classes, start the classifier from random weights.

    Returns:
        The network, in training mode, on the CPU.

    Raises:
        UsageError: there is no such network, or it does not take these arguments.
        ValueError, OSError: the weights cannot be read or fetched, or do not fit.

    Example:
        >>> import octaveconv.models
        >>> octaveconv.models.create("oct_resnet18", alpha=0.25, num_classes=10).fc.out_features
        10
    """
    check_name(name)
    file = None if checkpoint is None else weights.read(Path(checkpoint))
    if file is not None:
        alpha = file.alpha if alpha is None else alpha
        num_classes = file.num_classes if num_classes is None else num_classes
    given = {key: value for key, value in (("alpha", alpha), ("num_classes", num_classes)) if value is not None}
    given = {**(model_args or {}), **given}
    _check_arguments(name, given)
    if pretrained is None:
        pretrained = file is None and published(name) is not None
    model = timm.create_model(name, pretrained, **given)
    if file is None:
        return model
    if file.conversion is not None:
        model = rebuild(model, file.conversion)
    if new_head and file.num_classes not in (None, model.num_classes):
        _load_but_head(model, file, name, given)
    else:
        model.load_state_dict(file.state_dict(model))
    return model


def check_name(name: str) -> None:
    """Raise UsageError unless timm knows the network, naming the nearest one that it knows."""
    known = names("*")
    if name.partition(".")[0] not in known:
        raise UsageError(f"there is no network {name!r}{did_you_mean(name, known) or ': octaveconv models lists them'}")


def names(glob: str) -> list[str]:
    """The networks of timm's registry whose names match."""
    return timm.list_models(glob)  # type: ignore[no-any-return]


def _check_arguments(name: str, given: dict[str, Any]) -> None:
    """Raise UsageError unless the network takes these arguments; building it on ``meta`` costs little."""
    if "alpha" in given and not name.startswith("oct_"):
        raise UsageError(
            f"{name} is a dense network and takes no alpha: name an octave network (octaveconv models lists them), or "
            f"make one of it (octaveconv octavify {name})"
        )
    try:
        with torch.device("meta"):
            timm.create_model(name, **given)
    except TypeError as error:
        raise UsageError(f"{name} does not take these arguments: {error}") from error
    except ValueError as error:
        raise UsageError(str(error)) from error


def _load_but_head(model: nn.Module, file: weights.Weights, name: str, given: dict[str, Any]) -> None:
    """Load a file's weights, all but those of its classifier."""
    with torch.device("meta"):
        theirs = timm.create_model(name, **{**given, "num_classes": file.num_classes})
    head = f"{model.pretrained_cfg['classifier']}."  # type: ignore[index]
    state = {key: tensor for key, tensor in file.state_dict(theirs).items() if not key.startswith(head)}
    missing, unexpected = model.load_state_dict(state, strict=False)
    wrong = [*unexpected, *(key for key in missing if not key.startswith(head))]
    if wrong:
        raise ValueError(f"{file.file} does not fit {name}: {', '.join(wrong[:4])}")
    if processes.rank() == 0:
        print(
            f"{file.file} has {file.num_classes} classes, the data {model.num_classes}: the classifier starts from "
            f"random weights"
        )
