"""What is wrong with a recipe, all of it at once, as far as that is known without listing the images."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from timm.optim import list_optimizers

from .. import processes
from .._text import did_you_mean
from ..data.datasets import is_named, open_dataset
from ..errors import UsageError
from ..models.create import check as check_network
from ..weights import Weights
from .defaults import check_rate
from .recipe import Recipe


def complaints(recipe: Recipe, device: str, start: Weights | None = None) -> list[Exception]:
    """The errors that training would raise, one after the other, before its first step.

    Args:
        recipe: what was asked for.
        device: where to train.
        start: weights in place of the recipe's checkpoint.
    """

    def network() -> None:
        model_args = dict(recipe.model_args, drop_rate=recipe.dropout)
        checkpoint = start or recipe.checkpoint or None
        check_network(recipe.model, recipe.alpha, checkpoint, recipe.num_classes or None, model_args)

    def sync() -> None:
        if recipe.sync_bn and device.startswith("cpu") and processes.world_size() > 1:
            raise UsageError("sync_bn needs GPUs: PyTorch's own norms, as in the stem, synchronize nowhere else")

    checks: list[Callable[[], None]] = [network, lambda: _optimizer(recipe), sync, lambda: _batch(recipe)]
    checks += [lambda: _exists(recipe.data), lambda: _exists(recipe.val_data or recipe.data)]
    found: list[Exception] = []
    for check in checks:
        try:
            check()
        except (ValueError, OSError) as error:
            if str(error) not in map(str, found):
                found.append(error)
    return found


def unit(recipe: Recipe) -> int:
    """What a batch must be a multiple of: it is divided among processes, parts, and pairs to mix."""
    return processes.world_size() * recipe.accumulate * (2 if recipe.mixup or recipe.cutmix else 1)


def _optimizer(recipe: Recipe) -> None:
    known = [*list_optimizers(), *(f"lookahead_{name}" for name in list_optimizers())]
    if recipe.opt.lower() not in known:
        cure = did_you_mean(recipe.opt.lower(), known) or ": sgd, adamw and lamb are some of its"
        raise UsageError(f"timm has no optimizer {recipe.opt!r}{cure}")
    check_rate(recipe)


def _batch(recipe: Recipe) -> None:
    if recipe.batch_size is not None and recipe.batch_size % unit(recipe):
        pairs = " of pairs to mix" if recipe.mixup or recipe.cutmix else ""
        raise UsageError(
            f"batch_size {recipe.batch_size} cannot be divided among {processes.world_size()} processes in "
            f"{recipe.accumulate} parts{pairs}: use a multiple of {unit(recipe)}"
        )


def _exists(source: str) -> None:
    """Raise UsageError if there are no images at a place, without listing those that are there."""
    if not source:
        raise UsageError("there are no images: give data, for instance a folder with train/CLASS/* and val/CLASS/*")
    if not (is_named(source) or Path(source).exists()):
        open_dataset(source)  # raises
