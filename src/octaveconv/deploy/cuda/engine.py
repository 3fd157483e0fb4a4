"""The CUDA engine: each step of the network in the form that was fastest, recorded as one CUDA graph for each shape."""

from __future__ import annotations

import os
import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from typing import Any, NoReturn

import torch
import torch._dynamo.config
import torch._inductor.config
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ..._modes import copied
from ...backends import _triton_choice
from ...errors import BackendUnavailable, UsageError
from ...octave import Octave
from ..capture import Captured, Captures, exported
from ..fold import folded
from ..report import Part, Report
from .choices import Choices
from .executor import Executor
from .graphs import Graph
from .steps import Form, Sizes, Step

SHAPES = 8  # whose graphs are kept: those used last
_dynamo: Any = torch._dynamo.config
_inductor: Any = torch._inductor.config
_cudnn: Any = torch.backends.cudnn


def cannot_run(model: nn.Module, example: Tensor) -> str | None:
    """The reason why this engine cannot run a model, or ``None``."""
    tensors = [example, *model.parameters()]
    if len({(tensor.device, tensor.dtype) for tensor in tensors}) > 1:
        return "the CUDA engine takes model and example in one dtype and on one device: bring them together with .to()"
    if example.device.type != "cuda" or torch.version.hip:
        return f"the CUDA engine is for NVIDIA GPUs, and the model is on {example.device}: move it with .to('cuda')"
    if example.dtype not in _triton_choice.DTYPES:
        return f"the CUDA engine computes in float32, float16 and bfloat16, not in {example.dtype}"
    return None


class CudaNetwork(nn.Module):
    """A network that the CUDA engine runs.

    It is a snapshot of the model: later changes of the model's weights do not reach it.

    Args:
        model: in evaluation mode.
        example: an input ``[N, C, H, W]``, for whose shape everything is prepared now. Another shape is prepared when
            it first comes, which takes as long.

    Raises:
        BackendUnavailable: there is no NVIDIA GPU, the dtype is another one, torch.export cannot capture the network,
            or it has an operation that the engine does not know.

    Attributes:
        forms: what runs the shape that was prepared last: how many steps have each form, or ``{"inductor": 1}`` where
            the network compiled as a whole was faster.
    """

    engine = "cuda"
    reason = ""

    def __init__(self, model: nn.Module, example: Tensor) -> None:
        super().__init__()
        if reason := cannot_run(model, example):
            raise BackendUnavailable(reason)
        self.like = torch.empty(0, dtype=example.dtype, device=example.device)
        self.forms: dict[str, int] = {}
        self._captures = Captures(model)
        self._executors: dict[Captured, Executor] = {}
        self._ready: OrderedDict[torch.Size, _Ready] = OrderedDict()
        self._choices = Choices(example.device)
        self._lock = threading.Lock()
        self._memory = torch.cuda.graph_pool_handle() if example.is_cuda else None
        self._done = torch.cuda.Event() if example.is_cuda else None
        with self._turn():
            self._for(example)

    def forward(self, x: Tensor) -> Any:
        """The model's output for images ``[N, C, H, W]`` of its dtype and device, in new memory."""
        if (x.dtype, x.device, x.dim()) != (self.like.dtype, self.like.device, 4):
            raise ValueError(
                f"this deployed network takes images [N, C, H, W] of {self.like.dtype} on {self.like.device}, got "
                f"{x.dtype} {list(x.shape)} on {x.device}"
            )
        with self._turn():
            return self._for(x)(x)

    @property
    def report(self) -> Report:
        """The network, in one part."""
        return Report([Part(self.engine)])

    def save(self, path: str | os.PathLike[str]) -> NoReturn:
        """Refuse: what was recorded for one GPU cannot be taken to a file.

        Raises:
            UsageError: always.
        """
        raise UsageError(
            "only a network of the native engine can be saved: deploy the model on the CPU and save that, or deploy "
            "the model again where it is needed (the forms that were chosen are kept in OCTAVECONV_CACHE)"
        )

    def __reduce__(self) -> NoReturn:
        raise TypeError("a network of the CUDA engine cannot be copied or pickled: deploy the model again instead")

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """One call at a time, on the GPU too: all shapes share memory, and calls may come from several streams."""
        with self._lock, torch.inference_mode(False), torch.no_grad(), torch.cuda.device_of(self.like):
            if self._done is not None:
                self._done.wait()
            yield
            if self._done is not None:
                self._done.record()

    def _for(self, x: Tensor) -> _Ready:
        """What is ready to run a shape."""
        if x.shape not in self._ready:
            self._ready[x.shape] = self._prepare(x)
            if len(self._ready) > SHAPES:
                self._ready.popitem(last=False)
        self._ready.move_to_end(x.shape)
        return self._ready[x.shape]

    def _prepare(self, x: Tensor) -> _Ready:
        captured, sizes = self._captures.of(x.shape)
        if captured not in self._executors:
            self._executors[captured] = Executor(captured)
        x = torch.empty_like(x, memory_format=torch.channels_last).copy_(x)
        with _tuning():
            steps = _Steps(self._choices, self.like)
            makers: dict[str, Callable[[], Callable[[], Any]]] = {
                "steps": lambda: partial(self._executors[captured].run, x, sizes, steps)
            }
            if x.is_cuda:
                makers["inductor"] = lambda: self._compiled(x)
            makers["steps"]()()  # chooses their forms
            name, call = self._choices.fastest(steps.key, makers)
            self.forms = dict(Counter(steps.names)) if name == "steps" else {name: 1}
            return _Ready(x, Graph(call, self._memory).replay if x.is_cuda else call)

    def _compiled(self, x: Tensor) -> Callable[[], Any]:
        """The whole network compiled by Inductor."""
        model = copied(self._captures.model).to(self.like)
        graph = folded(exported(model, x, (), "merged"))
        compiled = torch.compile(graph.to(memory_format=torch.channels_last), dynamic=False)

        def call() -> Any:
            with _inductor.patch(freezing=True):
                return compiled(x)

        return call


class _Ready:
    """A shape that is ready to run: ``call`` reads from ``input``."""

    def __init__(self, input: Tensor, call: Callable[[], Any]) -> None:
        self.input, self.call = input, call

    def __call__(self, x: Tensor) -> Any:
        self.input.copy_(x)
        return pytree.tree_map_only(Tensor, torch.clone, self.call())


class _Steps:
    """Chooses the form of each step for one shape: by measurement in the first run, and the same one from then on.

    Attributes:
        names: those of the forms, in the order of the steps.
        key: says what the steps are and what they compute.
    """

    def __init__(self, choices: Choices, like: Tensor) -> None:
        self.choices, self.like = choices, like
        self.names: list[str] = []
        self.key = ""
        self._chosen: dict[Step, Form] = {}

    def __call__(self, step: Step, maps: list[Tensor], sizes: Sizes) -> Form:
        if step in self._chosen:
            return self._chosen[step]
        shapes = [(tuple(x.shape), x.stride(), x.dtype) for x in maps]
        key = f"{step.aten.formula} {step.spec} {shapes} {sizes} {_cudnn.conv.fp32_precision}"
        forms = self._forms(step)
        makers = {name: partial(_call, form, maps, sizes) for name, form in forms.items()}
        name, _ = self.choices.fastest(key, makers)
        self._chosen[step] = forms[name]()
        self.names.append(name)
        self.key += key
        return self._chosen[step]

    def _forms(self, step: Step) -> dict[str, Callable[[], Form]]:
        """The forms to choose from; the first is always correct."""
        forms: dict[str, Callable[[], Form]] = {"aten": cache(lambda: step.aten.placed(self.like))}
        if step.spec and _triton_choice.can_run(Octave(self.like, None), step.spec) is None:
            forms["triton"] = cache(lambda: step.triton.placed(self.like))
        if self.like.is_cuda and step.group.layers[0].window is None:
            forms["aten by inductor"] = cache(partial(_by_inductor, forms["aten"]))
            if "triton" in forms and not step.triton.formula.finishes:  # otherwise it is one kernel already
                forms["triton by inductor"] = cache(partial(_by_inductor, forms["triton"]))
        return forms


def _call(form: Callable[[], Form], maps: list[Tensor], sizes: Sizes) -> Callable[[], list[Tensor]]:
    made = form()
    return lambda: made(maps, sizes)


def _by_inductor(form: Callable[[], Form]) -> Form:
    return form()._replace(function=_compiled(form().function))


@cache
def _compiled(function: Any) -> Any:
    """Compiled again for each formula and shape."""
    return torch.compile(function, dynamic=False, fullgraph=True)


@contextmanager
def _tuning() -> Iterator[None]:
    """Let cuDNN try its algorithms, and each of many steps be compiled although they share their code."""
    before, _cudnn.benchmark = _cudnn.benchmark, True
    try:
        with _dynamo.patch(recompile_limit=1000, accumulated_recompile_limit=1000):
            yield
    finally:
        _cudnn.benchmark = before
