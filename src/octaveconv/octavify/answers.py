"""What a network answers: numbers, or chances of classes, as logits or after a softmax or a sigmoid."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from ..nn.norm import at_least_single

Reading = Callable[[Tensor], Tensor]
_ENOUGH = 64  # numbers in [0, 1], to believe that a sigmoid made them
_LEAST = 1e-9  # chance


def numbers(outputs: Any) -> list[Tensor]:
    """The numbers that a network returns, each tensor in at least single precision."""
    leaves = pytree.tree_leaves(outputs)
    return [at_least_single(leaf) for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_floating_point()]


def reading(found: Sequence[Tensor]) -> Reading | None:
    """How answers become logarithms of chances, ``[N, questions, choices]``; None if they are other numbers.

    Scores of classes are one tensor ``[N, classes]``: chances that add up to 1 are one question, other numbers in
    [0, 1] a question of yes or no for each class, and all others logits.
    """
    if len(found) != 1 or found[0].dim() != 2 or found[0].shape[1] < 2:
        return None
    y = found[0].detach()
    if y.numel() and y.min() >= 0 and y.max() <= 1:
        if ((y.sum(1) - 1).abs() < 1e-4).all():
            return _of_chances
        if y.numel() >= _ENOUGH:
            return _of_yes_or_no
    return _of_logits


def _of_logits(y: Tensor) -> Tensor:
    return y.log_softmax(1)[:, None]


def _of_chances(y: Tensor) -> Tensor:
    return y.clamp(min=_LEAST).log()[:, None]


def _of_yes_or_no(y: Tensor) -> Tensor:
    return torch.stack([y, 1 - y], 2).clamp(min=_LEAST).log()


def divergence(ours: Tensor, theirs: Tensor) -> Tensor:
    """The Kullback-Leibler divergence of chances, summed over images, in nats; of logarithms that `reading` gave."""
    terms = theirs.exp() * (theirs - ours)
    return torch.where(theirs.isinf(), 0.0, terms).sum()  # a class without a chance
