"""The inference form in PyTorch alone: the folded graph compiled by Inductor, or run eagerly where that fails."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import Any, NoReturn, cast

import torch
import torch._inductor.config
from torch import Tensor, fx, nn
from torch._inductor.cpp_builder import get_cpp_compiler

from .._text import one_line
from ..errors import BackendUnavailable, UsageError
from .capture import Captured, Captures, only_input
from .eagerly import in_pytorch, is_forked
from .fold import folded
from .report import Part, Report

_inductor = cast(Any, torch._inductor.config)
_OPS = torch.ops.aten
SHAPES = 256  # whose graph is remembered


class Fallback(nn.Module):
    """What `fallback` returns: a network for inference, whatever PyTorch's mode.

    Attributes:
        engine: ``"inductor"``, or ``"eager"`` where the network could not be captured or compiled. In the latter case
            the folded graph runs, and else the network as it is.
        reason: why it could not, or why `deploy` did not take another engine.
    """

    def __init__(self, model: nn.Module, example: Tensor) -> None:
        super().__init__()
        self._start(model, example[:0], "inductor", "", True)
        try:
            self._by_shape[example.shape] = self._folded(example.shape)
        except Exception as error:
            self._start(model, example[:0], "eager", one_line(error), False)
            return
        try:
            if example.device.type == "cpu":
                get_cpp_compiler()  # without one Inductor would fail too, but late
            self(example)
        except Exception as error:
            self.engine, self.reason = "eager", one_line(error)
            self._try(example)

    def _start(self, model: nn.Module, like: Tensor, engine: str, reason: str, folds: bool) -> None:
        self._captures = Captures(model, like, "merged")
        self._graphs: dict[Captured, Any] = {}
        self._by_shape: dict[torch.Size, Any] = {}  # the graph, or the model where it has none
        self.engine, self.reason, self._folds = engine, reason, folds

    def _try(self, example: Tensor) -> None:
        """Do without the graph if it cannot run eagerly."""
        try:
            self(example)
        except Exception as error:
            self._graphs, self._by_shape = {}, {}
            self.reason, self._folds = one_line(error), False

    def forward(self, x: Tensor) -> Any:
        with torch.inference_mode(False), in_pytorch():
            graph = self._by_shape.get(x.shape) or self._graph_for(x.shape)
            if graph is self._captures.model:
                return graph(x)
            x = x.contiguous(memory_format=graph.layout)
            if self.engine == "eager" or is_forked():  # for what is compiled has numbers of threads in it
                return graph(x)
            if x.is_inference():  # which would be compiled once more
                x = x.clone()
            with _inductor.patch(freezing=True):  # weights become constants, packed as the kernels read them
                return graph.compiled(x)

    @property
    def report(self) -> Report:
        """The network, in one part."""
        return Report([Part(self.engine, why=(self.reason,) if self.reason else ())])

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
        """A network with a copy of the model, which captures and compiles it again at its first call."""
        restore, arguments = self.__reduce__()
        twin: Fallback = restore(*arguments)
        twin.training = self.training
        return twin

    def __reduce__(self) -> Any:
        return _restore, (self._captures.model, self._captures.like, self.engine, self.reason, self._folds)

    def _graph_for(self, shape: torch.Size) -> Any:
        """The folded graph for a shape: usually the first, made for every batch and image size; or else the model."""
        found: Any = self._captures.model
        if self._folds:
            with suppress(BackendUnavailable):  # this shape alone runs as the network is
                found = self._folded(shape)
        if len(self._by_shape) >= SHAPES:
            self._by_shape = {}
        self._by_shape[shape] = found
        return found

    def _folded(self, shape: torch.Size) -> Any:
        captured, _ = self._captures.of(shape)
        if captured not in self._graphs:
            self._graphs[captured] = _channels_last(folded(captured))
        return self._graphs[captured]


def _channels_last(graph: fx.GraphModule) -> fx.GraphModule:
    """The graph for images in channels_last, which is faster, unless it counts on the strides of its capture.

    A view may need a copy there.
    """
    nodes = list(graph.graph.nodes)
    for node in nodes:
        if node.target is _OPS.view.default:
            node.target = _OPS.reshape.default
    graph.recompile()
    strided = any(node.target is _OPS.as_strided.default for node in nodes)
    layout = torch.contiguous_format if strided else torch.channels_last
    graph.to(memory_format=layout)
    object.__setattr__(graph, "layout", layout)
    object.__setattr__(graph, "compiled", torch.compile(graph))
    return graph


def _restore(model: nn.Module, like: Tensor, engine: str, reason: str, folds: bool = True) -> Fallback:
    """A `Fallback` that has not captured or compiled anything yet."""
    found = Fallback.__new__(Fallback)
    nn.Module.__init__(found)
    found._start(model, like, engine, reason, folds)
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
