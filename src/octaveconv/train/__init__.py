"""Training: the recipe, the loop, and the folder of a run.

Example:
    >>> from octaveconv.train import Recipe
    >>> recipe = Recipe(model="oct_resnetv2_26", alpha=0.25, data="imagenet", epochs=90)

    ``train(Training(recipe, "cuda"), RunFolder.new(Path("runs"), "first"))`` then trains the network.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .recipe import Recipe, read_yaml

if TYPE_CHECKING:
    from .folder import RunFolder
    from .loop import Training, train

__all__ = ["Recipe", "RunFolder", "Training", "read_yaml", "train"]

_LAZY = {"RunFolder": "folder", "Training": "loop", "train": "loop"}  # timm takes seconds; --help needs only Recipe


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_LAZY[name]}", __name__), name)
