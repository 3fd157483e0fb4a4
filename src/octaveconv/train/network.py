"""The network that a recipe asks for, with the weights that it starts from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.func import functional_call

from .. import processes
from .._modes import eval_mode
from .._text import one_line
from ..errors import UsageError
from ..models.create import create
from ..nn import OctBatchNorm2d
from ..weights import Weights
from .recipe import Recipe

_NORMS = (nn.BatchNorm2d, nn.SyncBatchNorm, OctBatchNorm2d)


def network(
    recipe: Recipe, num_classes: int | None, label_names: Sequence[str] | None = None, start: Weights | None = None
) -> Any:
    """Build the network: from random weights, from those published under its name, or from a file.

    Args:
        recipe: see `Recipe`.
        num_classes: classes of the data; if the weights have another number, the classifier starts from random ones.
        label_names: the names of these classes, if known.
        start: weights in place of the recipe's checkpoint: those of the run itself when it is resumed.

    Raises:
        UsageError: there is no such network, or it does not take these arguments.
        ValueError, OSError: the weights cannot be read, or do not fit.
    """
    if not num_classes:
        raise UsageError(f"{recipe.data} does not say how many classes it has: give num_classes")
    torch.manual_seed(recipe.seed)
    preprocessing = dict(input_size=(3, recipe.size, recipe.size), crop_pct=recipe.crop_pct)
    arguments = dict(recipe.model_args, drop_rate=recipe.dropout, pretrained_cfg_overlay=preprocessing)
    model = create(
        recipe.model, recipe.alpha, start or recipe.checkpoint or None, num_classes, model_args=arguments, new_head=True
    )
    model.pretrained_cfg |= {"num_classes": num_classes, "label_names": label_names and tuple(label_names)}
    _check_classifier(model, recipe)
    if recipe.grad_checkpointing:
        if getattr(model, "conversion", None) is not None:
            raise UsageError("an octavified network has no gradient checkpointing: omit grad_checkpointing")
        model.set_grad_checkpointing()
    if recipe.sync_bn and processes.world_size() > 1:
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    if recipe.freeze_bn:
        for norm in norms(model):
            norm.requires_grad_(False)
    return model


def _check_classifier(model: nn.Module, recipe: Recipe) -> None:
    """Raise UsageError unless the network turns images of the recipe's size into one number per class."""
    images = torch.empty(2, 3, recipe.size, recipe.size, device="meta")
    state = {key: tensor.to("meta") for key, tensor in (*model.named_parameters(), *model.named_buffers())}
    try:
        with eval_mode(model), torch.no_grad():
            shape = tuple(functional_call(model, state, images).shape)
    except Exception as error:  # its code may raise anything
        raise UsageError(
            f"{recipe.model} fails on color images of {recipe.size}x{recipe.size} pixels ({one_line(error)}): change "
            f"size or model_args"
        ) from error
    if shape != (2, model.num_classes):
        raise UsageError(
            f"{recipe.model} turns 2 images into {list(shape)}, a classifier outputs [2, {model.num_classes}]: change "
            f"model_args"
        )


def norms(model: nn.Module) -> list[nn.Module]:
    """All batch normalizations of a network."""
    return [module for module in model.modules() if isinstance(module, _NORMS)]
