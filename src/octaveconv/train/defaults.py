"""What a recipe leaves open: batch, learning rate and epochs, chosen for the number of training images."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from .._text import shown
from ..errors import UsageError
from ..models import published
from .recipe import OPEN, Recipe

MANY = 100_000  # images from which on the original's epochs are enough
_LARGEST, _SMALLEST = 1024, 8  # batches


def settle(recipe: Recipe, images: int, unit: int = 1) -> tuple[Recipe, str]:
    """A recipe without open fields, and what was chosen, in words.

    - The batch is the power of two next below the square root of the number of images, from 8 to 1024: 16 for 1,000
      images, 128 for CIFAR-10, and for ImageNet 1024, as in the original's recipes.
    - The learning rate is timm's rule: 0.1 for 256 images of a batch, in proportion, which is the original's 0.4 for
      1024. For Adam and its relatives 0.001 for 1024, by the square root.
    - 30 epochs where there are weights to start from; otherwise 120, as in the original, or 60 for fewer than 100,000
      images, of which 5 are a warm-up, but at most a quarter.

    Args:
        recipe: what was asked for; its own values stay.
        images: number of training images.
        unit: the batch is to be a multiple of it.

    Raises:
        UsageError: there is no rule for the learning rate of this optimizer.

    Example:
        >>> settle(Recipe(model="oct_resnet18"), 1000)[1]
        'chosen for 1,000 images: epochs 60, batch_size 16, lr 0.00625, warmup_epochs 5'
    """
    chosen: dict[str, Any] = {name: getattr(recipe, name) for name in OPEN}
    left = [name for name in OPEN if chosen[name] is None]
    if not left:
        return recipe, ""
    if chosen["epochs"] is None:
        starts = bool(recipe.checkpoint) or published(recipe.model) is not None
        chosen["epochs"] = 30 if starts else 120 if images >= MANY else 60
    if chosen["batch_size"] is None:
        fitting = 2 ** (math.isqrt(max(images, 1)).bit_length() - 1)
        fitting = min(max(fitting, _SMALLEST), _LARGEST, max(images, 1))
        chosen["batch_size"] = -(-fitting // unit) * unit
    if chosen["lr"] is None:
        chosen["lr"] = _rate(recipe, recipe.lr_batch_size or chosen["batch_size"])
    if chosen["warmup_epochs"] is None:
        chosen["warmup_epochs"] = min(5, chosen["epochs"] / 4)
    told = ", ".join(f"{name} {chosen[name]:g}" for name in left)
    return replace(recipe, **chosen).checked(), f"chosen for {images:,} images: {told}"


def check_rate(recipe: Recipe) -> None:
    """UsageError unless a recipe gives a learning rate, or there is a rule for that of its optimizer."""
    if recipe.lr is None and not any(word in recipe.opt.lower() for word in ("sgd", "momentum", "ada", "lamb")):
        raise UsageError(f"there is no rule for the learning rate of {shown(recipe.opt)}: give lr")


def _rate(recipe: Recipe, batch: int) -> float:
    check_rate(recipe)
    if "ada" in recipe.opt.lower() or "lamb" in recipe.opt.lower():  # as in timm
        return float(0.001 * math.sqrt(batch / 1024))
    return 0.1 * batch / 256
