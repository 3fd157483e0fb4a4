"""The inference form in PyTorch alone: the folded graph compiled by Inductor, or run eagerly where that fails."""

from __future__ import annotations

import os
from typing import Any, NoReturn, cast

import torch
import torch._inductor.config
from torch import Tensor, nn

from .._text import one_line
from ..errors import BackendUnavailable, UsageError
from .capture import Captured, Captures, only_input
from .fold import folded

_inductor = cast(Any, torch._inductor.config)


class Fallback(nn.Module):
    """What `fallback` returns: a network for inference, whatever PyTorch's mode.

    Attributes:
        engine: ``"inductor"``, or ``"eager"`` where the network could not be captured or compiled.
        reason: why it could not, or why `deploy` did not take another engine.
    """

    def __init__(self, model: nn.Module, example: Tensor) -> None:
        super().__init__()
        self._captures = Captures(model, example[:0], "merged")
        self._graphs: dict[Captured, Any] = {}
        self._by_shape: dict[torch.Size, Any] = {}
        self.engine, self.reason = "inductor", ""
        try:
            self(example)
        except Exception as error:
            self.engine, self.reason = "eager", one_line(error)

    def forward(self, x: Tensor) -> Any:
        with torch.inference_mode(False), torch.no_grad():
            if self.engine == "eager" and not self._graphs:
                return self._captures.model(x)
            x = x.contiguous(memory_format=torch.channels_last)
            graph = self._by_shape.get(x.shape) or self._graph_for(x)
            if self.engine == "eager" or graph is self._captures.model:
                return graph(x)
            if x.is_inference():  # which would be compiled once more
                x = x.clone()
            with _inductor.patch(freezing=True):  # weights become constants, packed as the kernels read them
                return graph.compiled(x)

    def save(self, path: str | os.PathLike[str]) -> NoReturn:
        """Refuse: what Inductor compiles cannot be taken to a file.

        Raises:
            UsageError: always.
        """
        raise UsageError(
            f"only a network of the native engine can be saved, and this one runs with {self.engine}"
            f"{self.reason and f' ({self.reason})'}: write it with octaveconv.export, as .pt2 or .onnx"
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> Fallback:
        """A network with a copy of the model, which compiles it again at its first call."""
        twin: Fallback = _restore(self._captures.model, self._captures.like, self.engine, self.reason)
        twin.training = self.training
        return twin

    def __reduce__(self) -> Any:
        return _restore, (self._captures.model, self._captures.like, self.engine, self.reason)

    def _graph_for(self, x: Tensor) -> Any:
        """A folded graph that covers the shape of ``x``: usually the first, made for every batch and image size."""
        try:
            captured, _ = self._captures.of(x.shape)
        except BackendUnavailable:
            if not self._graphs:
                raise
            return self._captures.model  # this shape alone runs as the network is
        if captured not in self._graphs:
            graph = folded(captured).to(memory_format=torch.channels_last)
            object.__setattr__(graph, "compiled", torch.compile(graph))
            self._graphs[captured] = graph
        self._by_shape[x.shape] = self._graphs[captured]
        return self._graphs[captured]


def _restore(model: nn.Module, like: Tensor, engine: str, reason: str) -> Fallback:
    """A `Fallback` that has not compiled anything yet."""
    found = Fallback.__new__(Fallback)
    nn.Module.__init__(found)
    found._captures, found._graphs, found._by_shape = Captures(model, like, "merged"), {}, {}
    found.engine, found.reason = engine, reason
    return found


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
    Example:
        >>> import torch, octaveconv as oc
        >>> layers = oc.OctConv2d(3, 8, 3, padding=1, alpha_out=0.5), oc.OctBatchNorm2d(8, alpha=0.5), oc.Merge()
        >>> x = torch.randn(1, 3, 9, 9)
        >>> deployed = fallback(nn.Sequential(*layers).eval(), x)
        >>> deployed(x).shape, deployed.engine
        (torch.Size([1, 8, 9, 9]), 'inductor')
    """
    return Fallback(model, only_input(example_inputs))
