"""A network by its name, with the weights of a file: what the command line's ``--model`` and ``--checkpoint`` mean."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import timm
import torch

from . import models
from ._text import did_you_mean
from .convert import weights
from .errors import UsageError


def create(
    name: str, alpha: float | None = None, checkpoint: Path | None = None, num_classes: int | None = None,
    pretrained: bool | None = None,
) -> Any:  # fmt: skip
    """Create a network of timm's registry, ours included.

    Args:
        name: its name.
        alpha: low-frequency share of the channels; by default the checkpoint's, where it tells, or the network's own.
        checkpoint: a file of weights of any kind.
        num_classes: of the classifier; by default as many as the weights have.
        pretrained: fetch the published weights; by default if the name is that of a published checkpoint
            (``oct_..._a250``) and no other is given.

    Raises:
        UsageError: there is no such network, or not at this alpha.
        ValueError, OSError: the weights cannot be read or fetched, or do not fit.
    """
    known = names("*")
    if name.partition(".")[0] not in known:
        raise UsageError(f"there is no network {name!r}{did_you_mean(name, known) or ': octaveconv models lists them'}")
    file = None if checkpoint is None else weights.read(checkpoint)
    if file is not None:
        alpha = file.alpha if alpha is None else alpha
        num_classes = file.num_classes if num_classes is None else num_classes
    if alpha is not None and not name.startswith("oct_"):
        raise UsageError(f"{name} has no alpha: leave --alpha away, or name an octave network (octaveconv models)")
    if pretrained is None:
        pretrained = file is None and models.published(name) is not None
    given = {key: value for key, value in (("alpha", alpha), ("num_classes", num_classes)) if value is not None}
    try:
        with torch.device("meta"):
            timm.create_model(name, **given)
    except ValueError as error:
        raise UsageError(str(error)) from error
    model = timm.create_model(name, pretrained, **given)
    if file is not None:
        model = file.octavified(model)
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
