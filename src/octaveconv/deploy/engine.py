"""The native engine as a module: plans for the shapes that come in, and the call."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ..errors import BackendUnavailable
from . import native
from .capture import capture
from .lower import lower
from .memory import number
from .pack import pack
from .plan import Plan

PLANS = 16  # kept in memory, the latest used ones
PASS = 8  # images at most that run together


class NativeNetwork(nn.Module):
    """A network that the native engine runs.

    It is a picture of the model at the time: later changes of the model's weights do not reach it.

    Args:
        model: in evaluation mode.
        example: an input ``[N, C, H, W]``; other batch and image sizes work too where torch.export can follow them.
        target: instruction set, one of `native.TARGETS`.

    Raises:
        BackendUnavailable: no compiler, no float32 on the CPU, a network that torch.export cannot capture, or an
            operation that the engine does not know.
    """

    engine = "native"
    reason = ""

    def __init__(self, model: nn.Module, example: Tensor, target: str = "native") -> None:
        super().__init__()
        parameter = next(model.parameters(), example)
        if parameter.device.type != "cpu" or parameter.dtype != torch.float32:
            raise BackendUnavailable(
                f"the native engine runs float32 on the CPU, not {parameter.dtype} on {parameter.device}"
            )
        self.library = native.library(target)
        try:
            self.captured = capture(model, example)
        except Exception as error:  # torch.export raises many kinds
            raise BackendUnavailable(f"torch.export cannot capture the network: {error}") from error
        self.network = lower(self.captured)
        lanes = self.library.lanes()
        self.packed = {id(layer): pack(layer, lanes) for layer in self.network.layers if layer.sum is not None}
        self.plans: OrderedDict[Any, Plan] = OrderedDict()

    def forward(self, x: Tensor) -> Any:
        """The model's output for float32 images ``[N, C, H, W]`` on the CPU."""
        sizes = self.check(x)
        outputs = [torch.empty([number(size, sizes) for size in shape]) for shape in self.network.shapes]
        self.run(x, outputs, min(len(x), PASS), torch.get_num_threads())
        return pytree.tree_unflatten(outputs, self.captured.out_spec)

    def check(self, x: Tensor) -> dict[Any, int]:
        """The sizes that the symbols stand for; ValueError if ``x`` is nothing that can be run."""
        if x.device.type != "cpu" or x.dtype != torch.float32:
            raise ValueError(f"this deployed network takes float32 tensors on the CPU, got {x.dtype} on {x.device}")
        sizes = self.captured.sizes(x.shape)
        if sizes is None:
            expected = list(self.captured.input.meta["val"].shape)
            raise ValueError(f"this deployed network takes {expected}, got {list(x.shape)}: deploy it for that shape")
        return sizes

    def run(self, x: Tensor, outputs: list[Tensor], together: int, threads: int) -> None:
        """Run all images, as many ``together``."""
        x = x.detach()
        whole = len(x) // together * together
        for start, end, images in ((0, whole, together), (whole, len(x), len(x) - whole)):
            if start < end:
                outside = self.outside(x[start:end], [output[start:end] for output in outputs], images)
                self.plan(x.shape, images, threads).run(outside, (end - start) // images)

    def outside(self, x: Tensor, outputs: list[Tensor], images: int) -> Any:
        """Where the input and the parts of the outputs lie."""
        ends = [(x.data_ptr(), x.stride())]
        for output, refs in zip(outputs, self.network.outputs):
            strides = (*output.stride(), 0, 0)[:4]
            first = 0
            for ref in refs:
                ends.append((output.data_ptr() + 4 * first * strides[1], strides))
                first += ref.channels
        return np.array([(data, strides, images * strides[0]) for data, strides in ends], native.OUTSIDE)

    def plan(self, shape: torch.Size, images: int, threads: int) -> Plan:
        """The plan for images of this shape, ``images`` at a time."""
        key = (shape[1:], images, threads)
        if key not in self.plans:
            sizes = self.captured.sizes(shape)
            assert sizes is not None
            self.plans[key] = Plan(self.network, self.packed, sizes, images, threads, self.library)
            if len(self.plans) > PLANS:
                self.plans.popitem(last=False)
        self.plans.move_to_end(key)
        return self.plans[key]
