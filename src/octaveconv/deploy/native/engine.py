"""The native engine as a module: programs for the shapes that come in, and the call."""

from __future__ import annotations

import os
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ..._atomic import replacing
from ...errors import BackendUnavailable
from ..capture import Captured, Captures
from ..ir import Lowered, number
from ..lower import lower
from . import records
from .file import Saved, SavedForms, dumps, loads
from .library import DTYPES, default_target, load
from .pack import Format, pack
from .program import Program

PROGRAMS = 16  # kept in memory: those used last
PASS = 8  # images that run together, at most


class NativeNetwork(nn.Module):
    """A network that the native engine runs.

    It is a snapshot of the model: later changes of the model's weights do not reach it.

    Args:
        model: in evaluation mode.
        example: an input ``[N, C, H, W]``; other batch and image sizes work too. A size that no capture covers yet is
            captured when it comes.
        target: the instruction set, one of `library.TARGETS`; by default the best one that PyTorch may use as well.

    Raises:
        BackendUnavailable: there is no compiler, the model is not float32 or bfloat16 on the CPU, torch.export cannot
            capture it, or it has an operation that the engine does not know.
    """

    engine = "native"
    reason = ""

    def __init__(self, model: nn.Module, example: Tensor, target: str | None = None) -> None:
        super().__init__()
        parameter = next(model.parameters(), example)
        if parameter.device.type != "cpu" or parameter.dtype not in DTYPES:
            raise BackendUnavailable(
                f"the native engine runs float32 and bfloat16 on the CPU, not {parameter.dtype} on {parameter.device}"
            )
        self._start(parameter.dtype, load(target or default_target(), parameter.dtype))
        self._captures: Captures | SavedForms = Captures(model)
        self._form(example.shape)

    def _start(self, dtype: torch.dtype, library: Any) -> None:
        self.dtype, self.library = dtype, library
        self._forms: dict[Captured | Saved, _Form] = {}
        self._by_shape: dict[torch.Size, tuple[_Form, dict[Any, int]]] = {}

    @classmethod
    def _of(cls, captures: Captures | SavedForms, dtype: torch.dtype, library: Any) -> NativeNetwork:
        network = cls.__new__(cls)
        nn.Module.__init__(network)
        network._start(dtype, library)
        network._captures = captures
        return network

    @classmethod
    def from_bytes(cls, data: bytes | memoryview, name: str = "the pickled network") -> NativeNetwork:
        """The network in the bytes of a file, whose ``name`` is for messages; raises what `load_deployed` raises."""
        forms, dtype = loads(data, name)
        return cls._of(forms, dtype, load(default_target(), dtype))

    def to_bytes(self) -> bytes:
        """What `save` writes."""
        return dumps(self._lowered(), self.dtype)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the deployed network as one file, which `octaveconv.load_deployed` reads.

        It holds the layers and their weights for the sizes of images that this network covers now: those of the example
        and of all calls so far, and usually most others. It appears complete or not at all.

        Raises:
            UsageError: a file cannot hold the network, because an output is in a container that is not Python's own, or
                a size follows from the input's in a way that the file has no words for.
            OSError: the file cannot be written.
        """
        data = self.to_bytes()
        with replacing(Path(path)) as file:
            file.write(data)

    def __deepcopy__(self, memo: dict[int, Any]) -> NativeNetwork:
        """A network that shares nothing which changes: it packs its weights itself, at its first call."""
        twin = self._of(self._captures, self.dtype, self.library)
        twin.training = self.training
        return twin

    def __reduce__(self) -> Any:
        return NativeNetwork.from_bytes, (self.to_bytes(),)

    def _lowered(self) -> list[tuple[Captured | Saved, Lowered]]:
        """Every form of the network, with its layers."""
        found = []
        for captured in self._captures:
            try:
                form = self._forms.get(captured)
                found.append((captured, form.network if form else _layers(captured)))
            except BackendUnavailable:
                continue  # a size that was refused when it came
        return found

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


def _layers(captured: Captured | Saved) -> Lowered:
    return captured.network if isinstance(captured, Saved) else lower(captured)


class _Form:
    """The network for a range of sizes: layers, constants, and a program for each size that came."""

    def __init__(self, captured: Captured | Saved, library: Any, dtype: torch.dtype) -> None:
        self.captured, self.library, self.dtype = captured, library, dtype
        self.network = _layers(captured)
        form = Format(library.lanes(), library.panel_vectors(), dtype)
        self.packed = {id(layer): pack(layer, form) for layer in self.network.layers if layer.sum is not None}
        self.programs: OrderedDict[Any, Program] = OrderedDict()

    def __call__(self, x: Tensor, sizes: dict[Any, int], together: int, threads: int) -> Any:
        """Run all images, ``together`` at a time."""
        x = x.detach()
        outputs = [
            torch.empty([number(size, sizes) for size in shape], dtype=self.dtype) for shape in self.network.shapes
        ]
        whole = len(x) // together * together if together else 0
        for start, end, images in ((0, whole, together), (whole, len(x), len(x) - whole)):
            if start < end:
                outside = self.outside(x[start:end], [output[start:end] for output in outputs], images)
                self.program(sizes, x.shape, images, threads).run(outside, (end - start) // images)
        return pytree.tree_unflatten(outputs, self.captured.out_spec)

    def outside(self, x: Tensor, outputs: list[Tensor], images: int) -> Any:
        """Where the input and the parts of the outputs are in memory."""
        ends = [(x.data_ptr(), x.stride())]
        for output, refs in zip(outputs, self.network.outputs):
            strides = (*output.stride(), 0, 0)[:4]
            first = 0
            for ref in refs:
                ends.append((output.data_ptr() + output.itemsize * first * strides[1], strides))
                first += ref.channels
        return np.array([(data, strides, images * strides[0]) for data, strides in ends], records.OUTSIDE)

    def program(self, sizes: dict[Any, int], shape: torch.Size, images: int, threads: int) -> Program:
        """The program for images of this shape, ``images`` at a time."""
        key = (shape[1:], images, threads)
        if key not in self.programs:
            self.programs[key] = Program(self.network, self.packed, sizes, images, threads, self.library, self.dtype)
            if len(self.programs) > PROGRAMS:
                self.programs.popitem(last=False)
        self.programs.move_to_end(key)
        return self.programs[key]
