"""The inference form in PyTorch alone: the folded graph compiled by Inductor, or run eagerly where that fails."""

from __future__ import annotations

import copy
from typing import Any, cast

import torch
import torch._inductor.config
from torch import Tensor, nn

from .._text import one_line
from .capture import only_input
from .fold import Guard, folded

_inductor = cast(Any, torch._inductor.config)


class Fallback(nn.Module):
    """What `fallback` returns: a network for inference, whatever PyTorch's mode.

    Attributes:
        engine: ``"inductor"``, or ``"eager"`` where the network could not be compiled.
        reason: why it could not, or why `deploy` did not take another engine.
    """

    def __init__(self, model: nn.Module, example: Tensor) -> None:
        super().__init__()
        self._model = (copy.deepcopy(model).eval(),)  # in a tuple, so that it is not a child with parameters
        self._graphs: list[tuple[Any, Guard]] = []  # each with a guard that refuses the shapes that it does not cover
        self._by_shape: dict[torch.Size, Any] = {}
        self.engine, self.reason = "inductor", ""
        try:
            self(example)
        except Exception as error:
            if not self._graphs:
                raise
            self.engine, self.reason = "eager", one_line(error)

    def forward(self, x: Tensor) -> Any:
        with torch.inference_mode(False), torch.no_grad():
            x = x.contiguous(memory_format=torch.channels_last)
            graph = self._by_shape.get(x.shape) or self._graph_for(x)
            if self.engine == "eager":
                return graph(x)
            if x.is_inference():  # which would be compiled once more
                x = x.clone()
            with _inductor.patch(freezing=True):  # weights become constants, packed as the kernels read them
                return graph.compiled(x)

    def _graph_for(self, x: Tensor) -> Any:
        """A captured graph that covers the shape of ``x``: usually the first, made for every batch and image size."""
        fitting = (graph for graph, guard in self._graphs if _fits(guard, x))
        graph = next(fitting, None) or self._capture(x)
        self._by_shape[x.shape] = graph
        return graph

    def _capture(self, x: Tensor) -> Any:
        for dynamic in ((0, 2, 3), (0,), ()):
            graph, guard = folded(self._model[0], x, dynamic, "merged")
            if _fits(guard, x):
                break
        graph = graph.to(memory_format=torch.channels_last)
        object.__setattr__(graph, "compiled", torch.compile(graph))
        self._graphs.append((graph, guard))
        return graph


def fallback(model: nn.Module, example_inputs: Tensor | tuple[Tensor]) -> Fallback:
    """The inference form of ``model`` where no other engine can run it: norms folded, compiled by Inductor.

    Args:
        model: any module that takes one tensor; it is not changed, and runs in evaluation mode.
        example_inputs: one tensor ``[N, C, H, W]`` on the model's device, or a tuple of one. Other batch and image
            sizes work too: the first compilation is for this size, and another size may be compiled when it comes
            (tens of seconds).

    Returns:
        A module without gradients that gives the same answer; its ``engine`` and ``reason`` say what runs it.

    Raises:
        UsageError: the example is not one tensor.
        Exception: whatever torch.export raises for a module that it cannot capture.

    Example:
        >>> import torch, octaveconv as oc
        >>> layers = oc.OctConv2d(3, 8, 3, padding=1, alpha_out=0.5), oc.OctBatchNorm2d(8, alpha=0.5), oc.Merge()
        >>> x = torch.randn(1, 3, 9, 9)
        >>> deployed = fallback(nn.Sequential(*layers).eval(), x)
        >>> deployed(x).shape, deployed.engine
        (torch.Size([1, 8, 9, 9]), 'inductor')
    """
    return Fallback(model, only_input(example_inputs))


def _fits(guard: Guard, x: Tensor) -> bool:
    try:
        guard(x)
    except AssertionError:
        return False
    return True
