"""The native engine as a module: programs for the shapes that come in, and the call."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._compile import _disable_dynamo
from torch.utils import _pytree as pytree

from ..._atomic import replacing
from ..._text import one_line
from ...about import About
from ...errors import BackendUnavailable, UsageError
from ..cache import Table
from ..capture import Captured, Captures
from ..eagerly import in_pytorch
from ..ir import Lowered
from ..report import Report
from ..stretches import Eager
from .file import Saved, SavedForms, dumps, loads
from .form import Form, Native, layers
from .library import DTYPES, default_target, load, table_of
from .outside import check_dtypes, check_images, in_memory
from .program import Program
from .sharing import THREADS, Lock, Programs, Recent, measuring, new_scratch
from .tune import kept, restored

SHAPES = 256  # whose form is remembered: those used last
FORMS = 8  # each with weights of its own; most networks have one for a single image and one for several
PASS = 8  # images that run together, at most
_Chunk = tuple[int, int, int, Program]


@_disable_dynamo
def _apart(network: NativeNetwork, x: Tensor) -> Any:
    return network(x)


class NativeNetwork(nn.Module):
    """A network that the native engine runs.

    It is a snapshot of the model: later changes of the model's weights do not reach it. Several threads may call it at
    once; a process that is forked from this one may, too.

    Args:
        model: in evaluation mode.
        example: an input ``[N, C, H, W]``, for which the network is tuned; other batch and image sizes work too. A size
            that no capture covers yet is captured when it comes, or runs in eager PyTorch if that fails.
        target: the instruction set, one of `library.TARGETS`; by default the best one that PyTorch may use as well.
        tune: tune each new size when it comes, too.

    Attributes:
        about: what is known of the model: its name, preprocessing and classes.
        pretrained_cfg, num_classes: the same as timm's networks have them.
        threads: how many threads a call uses. If it is None, ``torch.get_num_threads()``, which calls at the same time
            share: each takes those that are free, but at least one.

    Raises:
        BackendUnavailable: there is no compiler, the model is not float32 or bfloat16 on the CPU, torch.export cannot
            capture it, or it has an operation that the engine does not know.
    """

    engine = "native"
    reason = ""
    threads: int | None = None
    _warned = False

    def __init__(self, model: nn.Module, example: Tensor, target: str | None = None, tune: bool = False) -> None:
        super().__init__()
        parameter = next(model.parameters(), example)
        if parameter.device.type != "cpu" or parameter.dtype not in DTYPES:
            raise BackendUnavailable(
                f"the native engine runs float32 and bfloat16 on the CPU, not {parameter.dtype} on {parameter.device}"
            )
        if parameter.dtype != torch.float32:
            check_dtypes(model, example, parameter.dtype)
        self._start(Captures(model), parameter.dtype, load(target or default_target(), parameter.dtype))
        self._tunes_all = tune
        self._new_shape(example.shape)
        self.tune(example)

    def _start(self, captures: Captures | SavedForms, dtype: torch.dtype, library: Any) -> None:
        self._captures, self.dtype, self.library = captures, dtype, library
        self.about = captures.about if isinstance(captures, SavedForms) else About.of(captures.model)
        self.num_classes = self.about.pretrained_cfg.get("num_classes")
        self.pretrained_cfg = self.about.overlay(None)  # so that timm and `evaluate` prepare images for it
        self._forms = Recent(FORMS)
        self._lock = Lock()
        self._shapes = Recent(SHAPES)
        self._programs = Programs()
        self._tunes_all = False
        self._tuning = Table(table_of(self.library))

    @classmethod
    def _of(cls, captures: Captures | SavedForms, dtype: torch.dtype, library: Any) -> NativeNetwork:
        network = cls.__new__(cls)
        nn.Module.__init__(network)
        network._start(captures, dtype, library)
        return network

    @classmethod
    def from_bytes(cls, data: bytes | memoryview, name: str = "the pickled network") -> NativeNetwork:
        """The network in the bytes of a file, whose ``name`` is for messages; raises what `load_deployed` raises."""
        forms, dtype = loads(data, name)
        return cls._of(forms, dtype, load(default_target(), dtype))

    @classmethod
    def _of_model(cls, model: nn.Module, dtype: torch.dtype) -> NativeNetwork:
        return cls._of(Captures(model), dtype, load(default_target(), dtype))

    def to_bytes(self) -> bytes:
        """What `save` writes."""
        return dumps(self._lowered(), self.dtype, replace(self.about, model_args={}))

    @property
    def report(self) -> Report:
        """The parts of the network, those that the engine runs and those that PyTorch runs between them."""
        with self._lock:
            forms = self._forms.values()
        captured: Any = next(iter(self._captures))
        report: Report = (forms[0] if forms else self._form(captured)).report
        return report

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the deployed network as one file, which `octaveconv.load_deployed` reads.

        It holds the layers and their weights for the sizes of images that this network covers now: those of the example
        and of all calls so far, and usually most others. It appears complete or not at all.

        Raises:
            UsageError: a file cannot hold the network, because PyTorch runs a part of it, an output is in a container
                that is not Python's own, or a size follows from the input's in a way that the file has no words for.
            OSError: the file cannot be written.
        """
        data = self.to_bytes()
        with replacing(Path(path)) as file:
            file.write(data)

    def __deepcopy__(self, memo: dict[int, Any]) -> NativeNetwork:
        """A network that shares nothing which changes: it packs its weights itself, at its first call."""
        twin = self._of(self._captures, self.dtype, self.library)
        twin.training, twin.threads, twin._tunes_all = self.training, self.threads, self._tunes_all
        return twin

    def __reduce__(self) -> Any:
        try:
            return NativeNetwork.from_bytes, (self.to_bytes(),)
        except UsageError:  # a network that a file cannot hold is pickled as the model, and captured again
            assert not isinstance(self._captures, SavedForms)
            return NativeNetwork._of_model, (self._captures.model, self.dtype)

    def _lowered(self) -> list[tuple[Captured | Saved, Lowered]]:
        """Every form of the network, with its layers."""
        found = []
        for captured in self._captures:
            try:
                with self._lock:
                    form = self._forms.get(captured)
                found.append((captured, layers(captured, form.parts if form else None)))
            except BackendUnavailable:
                continue  # a size that was refused when it came
        return found

    def forward(self, x: Tensor) -> Any:
        """The model's output for images ``[N, C, H, W]`` on the CPU, in the model's dtype."""
        if torch.compiler.is_dynamo_compiling():  # what is around it: Dynamo cannot look into the library
            return _apart(self, x)
        shape = self._checked(x)
        if shape is None:
            return self._eagerly(x)
        limit = torch.get_num_threads()
        threads = THREADS.take(self.threads or limit, 2**30 if self.threads else limit)
        try:
            return self._run(x.detach(), shape, threads)
        finally:
            THREADS.give_back(threads)

    def _run(self, x: Tensor, shape: _Shape, threads: int) -> Any:
        values = {shape.form.input: x}
        for (stretch, numbers, together), dead in zip(shape.parts, shape.form.dead):
            inputs = [values[node] for node in stretch.inputs]
            if isinstance(stretch, Native):
                made = [torch.empty(size, dtype=self.dtype, device="cpu") for size in numbers]
                inputs = [in_memory(each, self.dtype) for each in inputs]
                self._run_native(stretch, inputs, made, self._chunks(stretch, shape, together), threads)
                made = stretch.corrected(made, inputs, shape.symbols)
            else:
                with in_pytorch():
                    made = stretch(inputs, numbers)
            values |= zip(stretch.outputs, made)
            for node in dead:
                del values[node]
        return shape.form.answer(values, shape.symbols, self.dtype)

    def _run_native(
        self, native: Native, inputs: list[Tensor], outputs: list[Tensor], chunks: Iterable[_Chunk], threads: int
    ) -> None:
        for start, end, images, program in chunks:
            frame = self._programs.take(program)
            frame.choose(threads)
            given, made = ([tensor[start:end] for tensor in tensors] for tensors in (inputs, outputs))
            frame.run(native.outside(given, made, images), (end - start) // images, threads)
            self._programs.give_back(frame)

    def tune(self, x: Tensor) -> None:
        """Measure how threads share the layers best for images like these, unless that is known from before.

        It takes seconds. What was found is kept in ``OCTAVECONV_CACHE`` (``~/.cache/octaveconv``) by CPU, network,
        shape and number of threads.

        Args:
            x: images of the size and number that will come.
        """
        shape = self._checked(x)
        if shape is not None:
            for stretch, _, together in shape.parts:
                if isinstance(stretch, Native):
                    for *_, program in self._chunks(stretch, shape, together):
                        self._tune(stretch, program, shape)

    def _checked(self, x: Tensor) -> _Shape | None:
        check_images(x, self.dtype)
        return self._shape(x.shape)

    def _shape(self, size: torch.Size) -> _Shape | None:
        """What is known of a shape, or None if the engine cannot run it."""
        with self._lock:
            shape: _Shape | str | None = self._shapes.get(size)
        if shape is None:
            try:
                shape = self._new_shape(size)
            except BackendUnavailable as error:
                shape = str(error)
            with self._lock:
                shape = self._shapes.put(size, shape)
        return shape if isinstance(shape, _Shape) else None

    def _form(self, captured: Captured | Saved) -> Form:
        """The form for a capture. One that is evicted takes the shapes and programs that need it along."""
        with self._lock:
            form: Form | None = self._forms.get(captured)
        if form is None:
            with torch.device("cpu"), in_pytorch():
                made = Form(captured, self.library, self.dtype)
            with self._lock:
                form = self._forms.put(captured, made)
                forms = self._forms.values()
                self._shapes.keep(lambda shape: not isinstance(shape, _Shape) or shape.form in forms)
            constants = [native.constants for each in forms for native in each.natives]
            self._programs.keep(lambda program: any(program.constants is each for each in constants))
        return form

    def _new_shape(self, size: torch.Size) -> _Shape:
        captured, symbols = self._captures.of(size)
        form = self._form(captured)
        shape = _Shape(form, symbols, size, [])
        for stretch in form.stretches:
            together = self._together(stretch, shape) if isinstance(stretch, Native) else 0
            shape.parts.append(_Part(stretch, stretch.numbers(symbols), together))
        return shape

    def _together(self, native: Native, shape: _Shape) -> int:
        """How many images run together: fewer where the maps of all would be too large."""
        together = min(shape.size[0], PASS)
        while True:
            try:
                self._chunks(native, shape, together)
                return together
            except BackendUnavailable:
                if together <= 1:
                    raise
                together //= 2

    def _chunks(self, native: Native, shape: _Shape, together: int) -> list[_Chunk]:
        """The images from ... to ..., of which so many run together, and the program for these."""
        count = shape.size[0]
        whole = count // together * together if together else 0
        cuts = [(0, whole, together), (whole, count, count - whole)]
        return [
            (start, end, images, self._program(native, shape, images)) for start, end, images in cuts if start < end
        ]

    def _program(self, native: Native, shape: _Shape, images: int) -> Program:
        def make() -> Program:
            program = Program(native.constants, shape.symbols, images)
            program.remember(restored(self._tuning.get(self._key(native, program, shape)), program.work))
            if self._tunes_all:
                self._tune(native, program, shape)
            return program

        return self._programs.get((native, shape.size[1:], images), make)

    def _tune(self, native: Native, program: Program, shape: _Shape) -> None:
        threads = self.threads or torch.get_num_threads()
        with measuring:
            if threads not in program.tuned:
                program.tune(threads, new_scratch(program.scratch))
                key, found = self._key(native, program, shape), kept({threads: program.choices[threads]})
                self._tuning.put(key, self._tuning.get(key) | found)

    def _key(self, native: Native, program: Program, shape: _Shape) -> str:
        sizes = "x".join(map(str, (program.images, *shape.size[1:])))
        return f"{native.digest} {sizes}"

    def _eagerly(self, x: Tensor) -> Any:
        """Run the model as it is, in float32."""
        with self._lock:
            reason = self._shapes.get(x.shape)
        if isinstance(self._captures, SavedForms):
            raise ValueError(f"this deployed network cannot take {list(x.shape)}: {reason}")
        try:
            with torch.inference_mode(False), in_pytorch():
                outputs = self._captures.model(x.detach().float())
        except Exception as error:
            raise ValueError(f"this deployed network cannot take {list(x.shape)}: {one_line(error)}") from error
        if not self._warned:
            self._warned = True
            warnings.warn(
                f"the native engine cannot run {list(x.shape)}, which therefore runs in eager PyTorch, as may other "
                f"shapes: {reason}",
                RuntimeWarning,
                stacklevel=4,
            )
        return pytree.tree_map_only(Tensor, lambda y: y.to(self.dtype) if y.is_floating_point() else y, outputs)


class _Part(NamedTuple):
    """What a stretch needs for a shape of the input.

    Attributes:
        stretch: itself.
        numbers: what its method ``numbers`` returns.
        together: how many images the engine runs together.
    """

    stretch: Native | Eager
    numbers: list[Any]
    together: int


class _Shape(NamedTuple):
    """A shape of the input: the form that covers it, its symbols' values, and what each stretch needs for it."""

    form: Form
    symbols: dict[Any, int]
    size: torch.Size
    parts: list[_Part]
