"""The network that a recipe asks for, with the weights that it starts from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

from . import processes
from .checkpoint import check_name
from .convert import weights
from .errors import UsageError
from .models import published
from .nn import OctBatchNorm2d
from .recipe import Recipe

_NORMS = (nn.BatchNorm2d, nn.SyncBatchNorm, OctBatchNorm2d)


def network(recipe: Recipe, num_classes: int | None) -> Any:
    """Build the network: from random weights, from those published under its name, or from a file.

    Args:
        recipe: see `Recipe`.
        num_classes: of the data; a head of other classes starts anew.

    Raises:
        UsageError: there is no such network, or it does not take these arguments.
        ValueError, OSError: the weights cannot be read, or do not fit.
    """
    if not num_classes:
        raise UsageError("how many classes? The data do not say: give --num-classes")
    check_name(recipe.model)
    torch.manual_seed(recipe.seed)
    file = weights.read(Path(recipe.checkpoint)) if recipe.checkpoint else None
    alpha = recipe.alpha if recipe.alpha is not None or file is None else file.alpha
    arguments = dict(recipe.model_args, drop_rate=recipe.dropout) | ({} if alpha is None else {"alpha": alpha})
    overlay = dict(input_size=(3, recipe.size, recipe.size), crop_pct=recipe.crop_pct)
    try:
        model = timm.create_model(
            recipe.model, pretrained=file is None and published(recipe.model) is not None, num_classes=num_classes,
            pretrained_cfg_overlay=overlay, **arguments,
        )  # fmt: skip
    except TypeError as error:
        raise UsageError(f"{recipe.model} does not take the model-args {recipe.model_args}: {error}") from error
    if file is not None:
        model = file.octavified(model)
        _load(model, file, recipe.model, arguments)
    if recipe.grad_checkpointing:
        if file is not None and file.recipe is not None:
            raise UsageError("an octavified network has no gradient checkpointing: leave grad-checkpointing away")
        model.set_grad_checkpointing()
    if recipe.sync_bn and processes.world_size() > 1:
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    if recipe.freeze_bn:
        for norm in norms(model):
            norm.requires_grad_(False)
    return model


def metadata_of(model: nn.Module, name: str) -> dict[str, str]:
    """What a file of this network's weights is to say of it: its name in timm, its alpha, how it was octavified."""
    alpha, recipe = getattr(model, "alpha", None), getattr(model, "recipe", None)
    marks = {"alpha": alpha if alpha is None else str(alpha), "octavify": recipe and json.dumps(recipe)}
    return {"model": name, **{key: mark for key, mark in marks.items() if mark}}


def norms(model: nn.Module) -> list[nn.Module]:
    """Its batch normalisations."""
    return [module for module in model.modules() if isinstance(module, _NORMS)]


def _load(model: Any, file: weights.Weights, name: str, arguments: dict[str, Any]) -> None:
    """Load a file's weights; its head too, if that has the same classes."""
    if file.num_classes in (None, model.num_classes):
        model.load_state_dict(file.state_dict(model))
        return
    with torch.device("meta"):
        theirs = timm.create_model(name, num_classes=file.num_classes, **arguments)
    head = f"{model.pretrained_cfg['classifier']}."
    state = {key: tensor for key, tensor in file.state_dict(theirs).items() if not key.startswith(head)}
    missing, unexpected = model.load_state_dict(state, strict=False)
    wrong = [*unexpected, *(key for key in missing if not key.startswith(head))]
    if wrong:
        raise ValueError(f"{file.file} does not fit {name}: {', '.join(wrong[:4])}")
    if processes.rank() == 0:
        print(f"{file.file} has {file.num_classes} classes, the data {model.num_classes}: the head starts anew")
