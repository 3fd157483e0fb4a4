"""How each runtime gets a network: it returns a call that does all the work and returns the logits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .._modes import DTYPES, LAYOUTS, copied, threads
from ..errors import require
from .cases import BenchSettings

LAID_OUT = ("eager", "compiled")  # the others choose the memory layout themselves


@dataclass(frozen=True)
class Task:
    """One network on one batch, for one runtime: ``model`` and ``x`` are float32 on the CPU and are not changed."""

    model: nn.Module
    x: Tensor
    layout: str | None
    settings: BenchSettings
    folder: Path  # for this network and runtime: exported files stay here for the next batch size
    dense: bool = False


@dataclass(frozen=True)
class Prepared:
    """What is timed, and the engine that runs a deployed network."""

    call: Callable[[], Tensor]
    engine: str | None = None


class CannotRun(RuntimeError):
    """A runtime cannot do what was asked for; the message says why."""


def layouts(runtime: str, device: str = "cpu") -> list[str | None]:
    """The memory layouts in which ``runtime`` is tried; None where it chooses the layout itself.

    On a GPU compiling takes long, so it is tried in channels_last only, the layout that tensor cores read.
    """
    if runtime not in LAID_OUT:
        return [None]
    return ["channels_last"] if device == "cuda" and runtime == "compiled" else list(LAYOUTS)


def is_seen(runtime: str, settings: BenchSettings) -> bool:
    """Whether PyTorch's allocator sees the memory of a call. That of a CUDA graph was allocated at its recording."""
    if settings.device == "cuda":
        return runtime == "eager" or settings.mode == "train"
    return runtime in LAID_OUT


def prepare(runtime: str, task: Task) -> Prepared:
    """Give ``task`` to ``runtime``.

    Raises:
        Exception: whatever the runtime raises if it cannot run the network; `octaveconv.errors.MissingExtra` if it is
            not installed, `CannotRun` if it does not support this dtype or device.

    Example:
        >>> settings = BenchSettings("oct_resnet18")
        >>> task = Task(nn.Conv2d(3, 8, 1), torch.randn(1, 3, 4, 4), "channels_last", settings, Path())
        >>> prepare("eager", task).call().shape
        torch.Size([1, 8, 4, 4])
    """
    makers = {
        "eager": _eager,
        "compiled": _compiled,
        "deployed": _deployed,
        "openvino": _openvino,
        "onnxruntime": _onnxruntime,
    }
    return makers[runtime](task)


@contextmanager
def conditions(settings: BenchSettings) -> Iterator[None]:
    """Inside, PyTorch computes with the given threads, in exact float32, and can keep all compiled networks.

    ``torch.compile`` keeps the networks of one class in one cache and, beyond a few of them, silently runs eagerly.
    """
    import torch._dynamo.config as dynamo

    try:
        with (
            threads(settings.threads),
            torch.backends.cudnn.flags(enabled=True, benchmark=True, allow_tf32=False),
            dynamo.patch(recompile_limit=1000, accumulated_recompile_limit=1000),  # type: ignore[attr-defined]
        ):
            yield
    finally:
        torch.compiler.reset()


class TrainingStep:
    """Forward, loss, backward and SGD on one batch; lower precision through autocast. Returns the logits.

    The learning rate is tiny: hundreds of steps on one batch must not shrink the gradients to denormal numbers, which
    slow some processors down many times.
    """

    def __init__(self, task: Task, compiled: bool):
        device, dtype = task.settings.device, DTYPES[task.settings.dtype]
        model, self.x = _laid_out(task, torch.float32)
        model.train()
        self.labels = torch.arange(len(self.x), device=device)
        self.optimizer = torch.optim.SGD(model.parameters(), lr=1e-7, momentum=0.9)
        self.forward = torch.compile(model, dynamic=False) if compiled else model
        self.autocast = torch.autocast(device, dtype, enabled=dtype != torch.float32)

    def __call__(self) -> Tensor:
        with self.autocast:
            logits = self.forward(self.x)
            loss = F.cross_entropy(logits, self.labels % logits.shape[1])
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()  # last, so that the gradients count as memory of this step
        return logits.detach()  # type: ignore[no-any-return]


def _eager(task: Task) -> Prepared:
    if task.settings.mode == "train":
        return Prepared(TrainingStep(task, compiled=False))
    return Prepared(_inference(*_laid_out(task)))


def _compiled(task: Task) -> Prepared:
    if task.settings.mode == "train":
        return Prepared(TrainingStep(task, compiled=True))
    model, x = _laid_out(task)
    options: dict[str, Any] = {"freezing": True}  # folds the norms and packs the weights
    if task.settings.device == "cuda":
        options |= {"triton.cudagraphs": True, "max_autotune": task.dense}  # the rival at its best, which takes minutes
    return Prepared(_inference(torch.compile(model, dynamic=False, options=options), x))


def _deployed(task: Task) -> Prepared:
    from ..deploy import deploy

    model, x = _laid_out(task)
    deployed = deploy(model, x)
    forms = getattr(deployed, "forms", {})  # the CUDA engine's, once it has run
    engine = ": ".join(filter(None, (str(deployed.engine), ", ".join(f"{n} {name}" for name, n in forms.items()))))
    return Prepared(_inference(deployed, x), engine)


def _openvino(task: Task) -> Prepared:
    return _exported(task, "openvino", "model.xml")


def _onnxruntime(task: Task) -> Prepared:
    return _exported(task, "onnx", "model.onnx")


def _exported(task: Task, form: str, file: str) -> Prepared:
    from ..export import PRECISIONS, export, load

    if task.settings.device != "cpu" or task.settings.dtype not in PRECISIONS[form]:
        raise CannotRun(f"it is measured on the CPU in {' and '.join(PRECISIONS[form])} only")

    if not (task.folder / file).exists():  # it may be there from another batch size
        export(task.model, task.x, task.folder / file, format=form)
    fixed = _of_fixed_size(task.folder / file, task.x)
    run = load(fixed, format=form, threads=task.settings.threads, precision=task.settings.dtype)
    return Prepared(lambda: run(task.x))


def _of_fixed_size(file: Path, x: Tensor) -> Path:
    """The exported network for batches of this size only, which both runtimes run up to 8 % faster."""
    fixed = file.with_stem(f"batch{len(x)}")
    if file.suffix == ".onnx":
        onnx = require("onnx", "export")
        network = onnx.load(file)
        network.graph.input[0].type.tensor_type.shape.dim[0].dim_value = len(x)
        onnx.save(network, fixed)
    else:
        from ..export import openvino_core

        openvino = require("openvino", "export")
        network = openvino_core().read_model(file)
        network.reshape(list(x.shape))
        openvino.save_model(network, fixed, compress_to_fp16=False)
    return fixed


def _laid_out(task: Task, dtype: torch.dtype | None = None) -> tuple[nn.Module, Tensor]:
    """Copies of the network and the batch on the device, in the dtype and the memory layout."""
    where: dict[str, Any] = dict(
        device=task.settings.device,
        dtype=dtype or DTYPES[task.settings.dtype],
        memory_format=LAYOUTS[task.layout or "contiguous"],
    )
    return copied(task.model).to(**where), task.x.to(**where)


def _inference(model: Callable[[Tensor], Tensor], x: Tensor) -> Callable[[], Tensor]:
    def call() -> Tensor:
        with torch.inference_mode():
            return model(x)

    return call
