"""What a network keeps on itself as it runs, besides weights and buffers: a feature map, a grid, a number of calls.

A capture is of one call: what that keeps must neither reach the model nor decide what the next call computes.
"""

from __future__ import annotations

from collections import deque
from typing import Any

import torch
from torch import Tensor, nn

from .._modes import copied


def sharing_weights(model: nn.Module) -> nn.Module:
    """A copy of the model, with the same weights and buffers: what is set on the copy is not set on the model."""
    return copied(model, {id(each): each for each in (*model.parameters(), *model.buffers())})


def change_of_itself(model: nn.Module, used: nn.Module, example: Tensor) -> str | None:
    """The name of what differs from call to call, as a number of calls does, and a size that is noted does not.

    Args:
        model: in evaluation mode.
        used: a copy of it that has run once, on ``example``.
    """
    if _plain(model) == _plain(used):
        return None
    again = copied(model)
    states = []
    for _ in range(2):
        with torch.no_grad(), torch.random.fork_rng([]):
            again(example)
        states.append(_plain(again))
    first, second = states
    return next((name for name in second if first.get(name) != second[name]), None)


def _plain(model: nn.Module) -> dict[str, Any]:
    """The numbers, texts and lengths of containers among the attributes of the model's modules, by name."""
    return {
        f"{name}.{key}".strip("."): len(value) if isinstance(value, list | dict | set | tuple | deque) else value
        for name, module in model.named_modules()
        for key, value in vars(module).items()
        if isinstance(value, bool | int | float | str | list | dict | set | tuple | deque)
    }
