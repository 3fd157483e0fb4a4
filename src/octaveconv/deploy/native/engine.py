"""The native engine as a module: plans for the shapes that come in, and the call."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ...errors import BackendUnavailable
from ..capture import Captured, Captures
from ..ir import number
from ..lower import lower
from . import library as native
from .pack import Format, pack
from .program import Plan

PLANS = 16  # kept in memory, the latest used ones
PASS = 8  # images at most that run together


class NativeNetwork(nn.Module):
    """A network that the native engine runs.

    It is a picture of the model at the time: later changes of the model's weights do not reach it.

    Args:
        model: in evaluation mode.
        example: an input ``[N, C, H, W]``; other batch and image sizes work too. A size that torch.export cannot cover
            with the examples before is captured when it comes.
        target: instruction set, one of `native.TARGETS`; by default the best one that PyTorch may use, too.

    Raises:
        BackendUnavailable: no compiler, neither float32 nor bfloat16 on the CPU, a network that torch.export cannot
            capture, or an operation that the engine does not know.
    """

    engine = "native"
    reason = ""

    def __init__(self, model: nn.Module, example: Tensor, target: str | None = None) -> None:
        super().__init__()
        parameter = next(model.parameters(), example)
        self.dtype = parameter.dtype
        if parameter.device.type != "cpu" or self.dtype not in native.DTYPES:
            raise BackendUnavailable(
                f"the native engine runs float32 and bfloat16 on the CPU, not {self.dtype} on {parameter.device}"
            )
        self.library = native.library(target or native.default_target(), self.dtype)
        self._captures = Captures(model)
        self._forms: dict[Captured, _Form] = {}
        self._by_shape: dict[torch.Size, tuple[_Form, dict[Any, int]]] = {}
        self._form(example.shape)

    def forward(self, x: Tensor) -> Any:
        """The model's output for images ``[N, C, H, W]`` on the CPU, in the model's dtype."""
        if x.device.type != "cpu" or x.dtype != self.dtype or x.dim() != 4:
            raise ValueError(
                f"this deployed network takes {self.dtype} images [N, C, H, W] on the CPU, got {x.dtype} "
                f"{list(x.shape)} on {x.device}"
            )
        if x.shape not in self._by_shape:
            try:
                self._by_shape[x.shape] = self._form(x.shape)
            except BackendUnavailable as error:
                raise ValueError(f"this deployed network cannot take {list(x.shape)}: {error}") from error
        form, sizes = self._by_shape[x.shape]
        return form(x, sizes, min(len(x), PASS), torch.get_num_threads())

    def _form(self, shape: torch.Size) -> tuple[_Form, dict[Any, int]]:
        """A form of the network that covers a shape, and what its symbols stand for then."""
        captured, sizes = self._captures.of(shape)
        if captured not in self._forms:
            self._forms[captured] = _Form(captured, self.library, self.dtype)
        return self._forms[captured], sizes


class _Form:
    """The network for a range of sizes: layers, constants, and a plan for each size that came."""

    def __init__(self, captured: Captured, library: Any, dtype: torch.dtype) -> None:
        self.captured, self.library, self.dtype = captured, library, dtype
        self.network = lower(captured)
        form = Format(library.lanes(), library.panel_vectors(), dtype)
        self.packed = {id(layer): pack(layer, form) for layer in self.network.layers if layer.sum is not None}
        self.plans: OrderedDict[Any, Plan] = OrderedDict()

    def __call__(self, x: Tensor, sizes: dict[Any, int], together: int, threads: int) -> Any:
        """Run all images, as many ``together``."""
        x = x.detach()
        outputs = [
            torch.empty([number(size, sizes) for size in shape], dtype=self.dtype) for shape in self.network.shapes
        ]
        whole = len(x) // together * together if together else 0
        for start, end, images in ((0, whole, together), (whole, len(x), len(x) - whole)):
            if start < end:
                outside = self.outside(x[start:end], [output[start:end] for output in outputs], images)
                self.plan(sizes, x.shape, images, threads).run(outside, (end - start) // images)
        return pytree.tree_unflatten(outputs, self.captured.out_spec)

    def outside(self, x: Tensor, outputs: list[Tensor], images: int) -> Any:
        """Where the input and the parts of the outputs lie."""
        ends = [(x.data_ptr(), x.stride())]
        for output, refs in zip(outputs, self.network.outputs):
            strides = (*output.stride(), 0, 0)[:4]
            first = 0
            for ref in refs:
                ends.append((output.data_ptr() + output.itemsize * first * strides[1], strides))
                first += ref.channels
        return np.array([(data, strides, images * strides[0]) for data, strides in ends], native.OUTSIDE)

    def plan(self, sizes: dict[Any, int], shape: torch.Size, images: int, threads: int) -> Plan:
        """The plan for images of this shape, ``images`` at a time."""
        key = (shape[1:], images, threads)
        if key not in self.plans:
            self.plans[key] = Plan(self.network, self.packed, sizes, images, threads, self.library, self.dtype)
            if len(self.plans) > PLANS:
                self.plans.popitem(last=False)
        self.plans.move_to_end(key)
        return self.plans[key]
