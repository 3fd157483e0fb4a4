"""Whether a network treats a single image as it treats several, so that one capture is right for both.

torch.export takes the number of images to be two or more: it says nothing of a network that asks whether it is one.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from .._modes import copied

SEVERAL = 5  # images: more than there are axes, one of which a number may be


class _Calls(TorchDispatchMode):
    """Notes which operations run, and on what.

    Args:
        model: its tensors go by their names, the others by the order in which they are made.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        known = [*model.named_parameters(), *model.named_buffers()]
        self.names: dict[int, str] = {id(each): name for name, each in known}
        self.kept: list[Any] = []  # as an object's id is another's when it is gone
        self.noted: list[list[Any]] = []

    def note(self, what: Any, arguments: Any) -> None:
        leaves, form = pytree.tree_flatten(arguments)
        self.noted.append([what, str(form), *(self.name(x) if isinstance(x, Tensor) else x for x in leaves)])

    def name(self, x: Tensor) -> str:
        self.kept.append(x)
        return self.names.setdefault(id(x), f"the tensor {len(self.names)}")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.note(func, (args, kwargs or {}))
        made = func(*args, **(kwargs or {}))
        self.note("makes", made)
        return made


def treats_one_image_alike(model: nn.Module, example: Tensor) -> bool:
    """Whether the model runs the same operations on one image as on several: if not, each needs a capture.

    Args:
        model: in evaluation mode.
        example: one image.
    """
    noted, model = [], copied(model)  # which a call may change
    for images in (example, example.expand(SEVERAL, *example.shape[1:]).contiguous()):
        with torch.no_grad(), torch.random.fork_rng([]), _Calls(model) as calls:
            try:
                outputs = model(images)
            except Exception:  # whatever it is that the network's own code raises for so many images
                return False
        calls.note("returns", outputs)
        noted.append(calls.noted)
    one, several = noted
    return len(one) == len(several) and all(
        len(call) == len(other) and all(map(_agree, call, other)) for call, other in zip(one, several)
    )


def _agree(one: Any, several: Any) -> bool:
    """Whether an argument for one image is that for `SEVERAL`; a batch size is so many times as large then."""
    is_count = type(one) is int and type(several) is int
    return bool(type(one) is type(several) and (one == several or (is_count and one * SEVERAL == several)))
