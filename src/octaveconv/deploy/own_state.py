"""What a network keeps on itself as it runs, besides weights and buffers: a feature map, a grid, a number of calls.

A capture is of one call: what that keeps must neither reach the model nor decide what the next call computes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from .._modes import copied


def sharing_weights(model: nn.Module) -> nn.Module:
    """A copy of the model, with the same weights and buffers: what is set on the copy is not set on the model."""
    return copied(model, {id(each): each for each in (*model.parameters(), *model.buffers())})


def changes_itself(model: nn.Module, example: Tensor) -> bool:
    """Whether a second call with the same input, and the same random numbers, gives another answer.

    It does where the network counts its calls or remembers what came before, wherever it keeps that.
    """
    twin, answers = copied(model), []
    for _ in range(2):
        with torch.no_grad(), torch.random.fork_rng([]):
            torch.manual_seed(0)
            answers.append(pytree.tree_flatten(twin(example.clone())))
    (first, form), (second, other) = answers
    return form != other or not all(map(_alike, first, second))


def _alike(one: Any, other: Any) -> bool:
    if not isinstance(one, Tensor) or not isinstance(other, Tensor):
        return type(one) is type(other) and bool(one == other)
    same_kind = one.shape == other.shape and one.dtype == other.dtype
    return same_kind and torch.allclose(one, other, rtol=1e-3, atol=1e-6, equal_nan=True)
