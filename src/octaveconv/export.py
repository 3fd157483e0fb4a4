"""Export: write a network as a file for another runtime, and compare the two before the file appears."""

from __future__ import annotations

import functools
import os
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import Dim

from ._atomic import flush, link, sync
from ._modes import check_call, check_network, copied, eval_mode
from ._text import did_you_mean
from .deploy import deploy, load_deployed
from .deploy.capture import exported, only_input
from .deploy.fold import folded
from .errors import UsageError, require

# The formats, and the endings of their files.
FORMATS = {"onnx": ".onnx", "openvino": ".xml", "pt2": ".pt2", "aoti": ".pt2", "octave": ".octave"}
TOLERANCE = 1e-4  # of the output's standard deviation; another order of summing changes about 1e-6 of it, but
ROUNDINGS = 4  # a very deep network may amplify that: this many times its own distance from float64 is allowed
BATCH_SIZES = (1, 3)  # compared after writing
RUNTIMES = {"onnx": ("onnxruntime",), "openvino": ("openvino",)} | dict.fromkeys(("pt2", "aoti", "octave"), ("torch",))
PRECISIONS = {format: ("fp32", "bf16") if format == "openvino" else ("fp32",) for format in FORMATS}  # of the runtimes
_WRITERS = dict.fromkeys(("onnx", "openvino"), ("onnx", "onnxscript"))

Run = Callable[[Tensor], Tensor]
Loader = Callable[[Path, int | None], Run]


def export(
    model: nn.Module,
    example_inputs: Tensor | tuple[Tensor],
    path: str | os.PathLike[str],
    *,
    format: str | None = None,
) -> dict[int, float]:
    """Write ``model`` for inference in another runtime: for images of the example's size, in batches of any size.

    Norms are folded into convolutions and constants are computed. The file is written beside ``path``, read back by its
    runtime and compared with ``model`` on random images. Only then does it appear at ``path``.

    Args:
        model: any module that maps one float32 tensor to one, on the CPU. It is exported in evaluation mode and not
            changed.
        example_inputs: images ``[N, C, H, W]``, or a tuple of this one tensor; the values do not matter.
        path: the file to write. OpenVINO's weights go to a second one beside it, which ends in ``.bin``.
        format: ``"onnx"``; ``"openvino"`` (its IR, in float32); ``"pt2"``, an archive of ``torch.export.save``;
            ``"aoti"``, a package of ``torch._inductor.aoti_compile_and_package``, compiled for this machine; or
            ``"octave"``, a file for `load_deployed`, for other sizes of images, too. By default the ending of ``path``
            decides: ``.onnx``, ``.xml``, ``.pt2`` or ``.octave``.

    Returns:
        For each batch size that was compared, the largest difference over the output's standard deviation.

    Raises:
        UsageError: there is no such format, ``path`` does not have the ending of its files, or the example is not one
            tensor that the model takes.
        MissingExtra: a package that the format needs is not installed.
        ValueError: the example or the model is not in float32 on the CPU.
        RuntimeError: the format cannot express the model, or the runtime's output differs by more than `TOLERANCE`
            (for a network so deep that its own rounding exceeds that, by more than `ROUNDINGS` times the rounding).

    Example:
        >>> import tempfile, octaveconv as oc
        >>> model = nn.Sequential(oc.OctConv2d(3, 8, 3, padding=1, alpha_out=0.5), oc.Merge())
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     differences = oc.export(model, torch.randn(1, 3, 9, 9), f"{folder}/model.pt2")
        ...     load(f"{folder}/model.pt2")(torch.randn(5, 3, 9, 9)).shape
        torch.Size([5, 8, 9, 9])
    """
    path = Path(path)
    format = check(format, path)
    example = _example(model, example_inputs)
    path.parent.mkdir(parents=True, exist_ok=True)
    with eval_mode(model), tempfile.TemporaryDirectory(prefix=".octaveconv-", dir=path.parent) as folder:
        part = Path(folder) / path.name
        try:
            with torch.no_grad(), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the exporters' own deprecations
                if format == "octave":
                    _write_octave(model, example, part)
                else:
                    _write(format, folded(exported(model, example, (0,), "reference")), example, part)
        except Exception as error:
            raise RuntimeError(f"{format} cannot express this network: {_reason(error)}") from error
        differences = _compare(model, load(part, format=format), example, format)
        _put_in_place(part, path)
    return differences


def load(
    path: str | os.PathLike[str], *, format: str | None = None, threads: int | None = None, precision: str = "fp32"
) -> Run:
    """Read an exported file with its runtime, on the CPU.

    Args:
        path: a file that `export` wrote.
        format: its format; by default its ending decides, as in `export`.
        threads: threads of OpenVINO or ONNX Runtime, by default their choice; the other formats compute with
            PyTorch's threads (``torch.set_num_threads``).
        precision: in which OpenVINO computes, ``"fp32"`` or ``"bf16"``; the others compute in that of the file.

    Returns:
        A function from images ``[N, C, H, W]`` to the output.

    Raises:
        UsageError: there is no such format, or it does not have this precision.
        MissingExtra: the runtime is not installed.
        OSError, RuntimeError: the file cannot be read.

    Example:
        >>> run = load("model.onnx", threads=2)  # doctest: +SKIP
    """
    path = Path(path)
    format = check(format, path, writing=False)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    if precision not in PRECISIONS[format]:
        raise UsageError(f"{format} does not compute in {precision}: use {' or '.join(PRECISIONS[format])}")
    openvino: Loader = functools.partial(_load_openvino, precision=precision)
    loaders: dict[str, Loader] = {
        "onnx": _load_onnx, "openvino": openvino, "pt2": _load_pt2, "aoti": _load_aoti, "octave": _load_octave,
    }  # fmt: skip
    try:
        return loaders[format](path, threads)
    except Exception as error:  # each runtime raises its own kinds
        raise RuntimeError(f"{path} cannot be read as {format}: {_reason(error)}") from error


def check(format: str | None, path: Path, writing: bool = True) -> str:
    """The format of a file to write or to read, by default that of its ending; raises as `export` and `load` do."""
    if format is None:
        format = next((name for name, ending in FORMATS.items() if ending == path.suffix), None)
        if format is None:
            raise UsageError(f"the ending of {path} names no export format: use {', '.join(_endings())}")
    if format not in FORMATS:
        hint = did_you_mean(format, FORMATS) or f": choose one of {', '.join(FORMATS)}"
        raise UsageError(f"there is no export format {format!r}{hint}")
    if writing and path.suffix != FORMATS[format]:
        raise UsageError(f"{path} must end in {FORMATS[format]}, as files of the format {format} do")
    for package in (*RUNTIMES[format], *(_WRITERS.get(format, ()) if writing else ())):
        require(package, "export")
    return format


def _endings() -> list[str]:
    return list(dict.fromkeys(FORMATS.values()))


def _example(model: nn.Module, inputs: Tensor | tuple[Tensor]) -> Tensor:
    """The one tensor that the model takes, checked."""
    check_network(model, "export")
    example = only_input(inputs)
    devices = sorted({str(tensor.device) for tensor in (example, *model.parameters(), *model.buffers())})
    if devices != ["cpu"] or example.dtype != torch.float32:
        raise ValueError(
            f"export takes a model and an example in float32 on the CPU, got an example of {example.dtype} and tensors "
            f"on {', '.join(devices)}: use .float().cpu()"
        )
    check_call(model, example)
    return example


def _compare(model: nn.Module, run: Run, example: Tensor, format: str) -> dict[int, float]:
    generator = torch.Generator().manual_seed(0)
    differences = {}
    for batch in BATCH_SIZES:
        x = torch.randn(batch, *example.shape[1:], generator=generator)
        with torch.no_grad():
            expected, actual = model(x), run(x)
            if actual.shape != expected.shape:
                raise RuntimeError(f"{format} outputs {list(actual.shape)} instead of {list(expected.shape)}")
            difference = _difference(actual, expected)
            if not difference <= TOLERANCE:  # or not a number
                exact = copied(model).double()(x.double())
                limit = max(TOLERANCE, ROUNDINGS * _difference(expected, exact))
                if not difference <= limit:
                    raise RuntimeError(
                        f"the output of {format} differs by {difference:.1e} of its standard deviation at batch "
                        f"{batch}, and at most {limit:.0e} is allowed: nothing was written"
                    )
        differences[batch] = difference
    return differences


def _difference(actual: Tensor, expected: Tensor) -> float:
    """The largest difference over the standard deviation; over the largest value, if all values are alike."""
    scale = expected.std(correction=0) or expected.abs().max() or 1
    return float((actual - expected).abs().max() / scale)


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def _put_in_place(part: Path, path: Path) -> None:
    """Replace ``path`` with the checked file. If there are two, remove the old network before its weights change."""
    weights = part.with_suffix(".bin")
    if weights.exists():
        path.unlink(missing_ok=True)
    for source in filter(Path.exists, (weights, part)):
        with source.open("rb+") as file:
            flush(file)
        link(source, path.with_suffix(source.suffix))
    sync(path.parent)


def _write(format: str, graph: fx.GraphModule, example: Tensor, path: Path) -> None:
    if format == "onnx":
        _write_onnx(graph, example, path)
    elif format == "openvino":
        _write_openvino(graph, example, path)
    else:
        if format == "pt2":  # which ExecuTorch, Core ML and LiteRT read: operations of the core set alone
            _crop_after_upsampling(graph)
        if len(example) == 1:
            example = torch.cat([example, example])  # a batch of 1 would be taken for a fixed size
        program = torch.export.export(graph, (example,), dynamic_shapes=({0: Dim("batch", min=1)},))
        if format == "pt2":
            torch.export.save(program, path)
        else:
            torch._inductor.aoti_compile_and_package(
                program, package_path=str(path), inductor_configs={"freezing": True}
            )


def _write_octave(model: nn.Module, example: Tensor, path: Path) -> None:
    deployed: Any = deploy(model, example, engine="native")
    for batch in BATCH_SIZES:  # so that a network that treats one image otherwise is captured for both
        deployed(example[:1].expand(batch, -1, -1, -1))
    deployed.save(path)


def _write_onnx(graph: fx.GraphModule, example: Tensor, path: Path) -> None:
    _crop_after_upsampling(graph)
    torch.onnx.export(
        graph,
        (torch.cat([example, example]),),
        path,
        input_names=["images"],
        output_names=["logits"],
        dynamo=True,
        dynamic_shapes=({0: Dim("batch", min=1)},),
        external_data=False,
        verbose=False,
    )


def _write_openvino(graph: fx.GraphModule, example: Tensor, path: Path) -> None:
    openvino = require("openvino", "export")
    _write_onnx(graph, example, path.with_suffix(".onnx"))
    network = openvino_core().read_model(path.with_suffix(".onnx"))
    openvino.save_model(network, path, compress_to_fp16=False)


def _crop_after_upsampling(graph: fx.GraphModule) -> None:
    """Split an upsampling to an odd size in two: both ONNX and core ATen take a scale or a size."""
    operations = torch.ops.aten
    for node in graph.graph.find_nodes(op="call_function", target=operations.upsample_nearest2d.default):
        x, size, *scales = node.args
        if None in scales:
            continue
        with graph.graph.inserting_before(node):
            y = graph.graph.call_function(operations.upsample_nearest2d.vec, (x, None, scales))
            for axis, (pixels, scale) in enumerate(zip(size, scales), start=2):
                if pixels % scale:
                    y = graph.graph.call_function(operations.slice.Tensor, (y, axis, 0, pixels))
        node.replace_all_uses_with(y)
        graph.graph.erase_node(node)
    graph.recompile()


def _load_onnx(path: Path, threads: int | None) -> Run:
    onnxruntime = require("onnxruntime", "export")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or 0
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda x: torch.from_numpy(session.run(None, {name: x.numpy()})[0])


@functools.cache
def openvino_core() -> Any:
    """The one core of this process, kept until it ends.

    Each core installs its own stack for signal handlers and, when it is destroyed, restores the one before. If that
    belonged to another core, destroyed earlier, the next signal would kill the process.
    """
    return require("openvino", "export").Core()


def _load_openvino(path: Path, threads: int | None, precision: str) -> Run:
    hint = {"fp32": "f32"}.get(precision, precision)
    settings: dict[str, Any] = {"INFERENCE_PRECISION_HINT": hint, "PERFORMANCE_HINT": "LATENCY"}
    if threads:
        settings["INFERENCE_NUM_THREADS"] = threads
    network = openvino_core().compile_model(str(path), "CPU", settings)
    return lambda x: torch.from_numpy(network(x.numpy())[0])


def _load_pt2(path: Path, threads: int | None) -> Run:
    network = torch.export.load(path).module()

    def run(x: Tensor) -> Tensor:
        with torch.no_grad():
            return network(x)  # type: ignore[no-any-return]

    return run


def _load_octave(path: Path, threads: int | None) -> Run:
    return load_deployed(path)


def _load_aoti(path: Path, threads: int | None) -> Run:
    return torch._inductor.aoti_load_package(str(path))  # type: ignore[no-any-return]
