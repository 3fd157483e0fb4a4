"""Deploy: the inference form of a network, norms folded and layers fused, run by the fastest engine that can."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from torch import Tensor, nn

from .._modes import check_call, check_network, eval_mode
from ..errors import BackendUnavailable, UsageError
from ..octavify.budget import set_clock
from .capture import only_input
from .latency import latency_share

__all__ = ["deploy", "load_deployed"]
set_clock(latency_share)


def deploy(
    model: nn.Module, example_inputs: Tensor | tuple[Tensor], engine: str | None = None, tune: bool = False
) -> nn.Module:
    """Make the inference form of a network: the same answers, faster.

    On the CPU that is the native engine: C++, compiled on first use where no wheel brings it, with folded norms, packed
    weights and fused layers. On an NVIDIA GPU it is the CUDA engine: the folded network as one CUDA graph, each layer
    run by cuDNN, our Triton kernel or Inductor, whichever was measured to be fastest. Where the engine for the device
    cannot run (no compiler, or operations that it does not know), it is PyTorch's Inductor on the folded network, and
    without a compiler for that the folded network, run eagerly. The result's ``engine`` says which one was chosen, and
    ``reason`` why the one for the device was not. PyTorch also runs single operations that the native engine does not
    know, where these leave it most of the work: the result's ``report`` says what runs where.

    Args:
        model: any network of images, octave or dense. It is not changed, and the deployed network is a snapshot of it:
            later changes of its weights do not reach the deployed one.
        example_inputs: one tensor ``[N, C, H, W]`` of the model's dtype and device, or a tuple of one; other batch and
            image sizes may come later. The native engine runs float32 and bfloat16.
        engine: ``"native"``, ``"cuda"`` or ``"inductor"`` to get that engine or an error.
        tune: measure at each new size, too, how the native engine runs it fastest. It is measured for the example's
            shape in any case (seconds, kept on disk), and for others by ``deployed.tune(x)``; without it rules choose.

    Returns:
        A module that takes what the model takes and returns what it returns in evaluation mode, without gradients. Its
        ``save(path)`` writes the native engine's network for `load_deployed`; it can be pickled and deep-copied. The
        number of threads is ``torch.get_num_threads()`` at each call, shared by calls at the same time. The first call
        with a new size takes a little longer (on a GPU much longer, and for each batch size too).

    Raises:
        BackendUnavailable: the engine asked for cannot run; the message says why.
        UsageError: there is no such engine, or the example is not one tensor of images that the model takes.

    Example:
        >>> import timm, torch, octaveconv as oc
        >>> import octaveconv.models
        >>> model = timm.create_model("oct_resnet18", alpha=0.5, layers=(1, 1, 1, 1)).eval()
        >>> deployed = oc.deploy(model, torch.randn(1, 3, 64, 64))
        >>> x = torch.randn(2, 3, 96, 96)
        >>> torch.allclose(deployed(x), model(x), atol=1e-4)
        True
    """
    engines: dict[str, Callable[[nn.Module, Tensor], nn.Module]] = {
        "native": partial(_native, tune=tune),
        "cuda": _cuda,
        "inductor": _inductor,
    }
    if engine is not None and engine not in engines:
        raise UsageError(f"there is no engine {engine!r}: use {', '.join(engines)}")
    check_network(model, "deploy")
    example = only_input(example_inputs)
    if example.dim() != 4:
        raise UsageError(
            f"deploy takes images [N, C, H, W], got an example of shape {list(example.shape)}: run a network of "
            f"series or volumes as it is, or with torch.compile"
        )
    check_call(model, example)
    with eval_mode(model):
        if engine is not None:
            return engines[engine](model, example)
        first = "cuda" if next(model.parameters(), example).is_cuda else "native"
        try:
            return engines[first](model, example)
        except BackendUnavailable as error:
            deployed = _inductor(model, example)
            deployed.reason = f"not the {first} engine: {error}"  # type: ignore[assignment]
            return deployed


def load_deployed(path: str | os.PathLike[str]) -> nn.Module:
    """Read a network that ``save(path)`` of a deployed one has written, for the native engine.

    Nothing is captured, and nothing in the file is executed: it holds weights and a description of layers, all of which
    is checked. The file works on any CPU, and with later versions of this package and of PyTorch.

    Args:
        path: the file.

    Returns:
        What `deploy` returned, for the sizes of images that it had met or that follow from them. For any other size a
        call raises ValueError, which says what the file covers.

    Raises:
        ValueError: it is not such a file, it is damaged, or a newer version has written it.
        BackendUnavailable: there is no C++ compiler for the engine, and no wheel has brought it.
        OSError: there is no such file.

    Example:
        >>> import tempfile, torch, octaveconv as oc
        >>> model = nn.Sequential(oc.OctConv2d(3, 8, 3, padding=1, alpha_out=0.5), oc.Merge()).eval()
        >>> deployed = oc.deploy(model, torch.randn(1, 3, 16, 16), engine="native")
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     deployed.save(f"{folder}/net.octave")
        ...     loaded = oc.load_deployed(f"{folder}/net.octave")
        >>> x = torch.randn(2, 3, 21, 30)
        >>> torch.equal(loaded(x), deployed(x))
        True
    """
    from .native.engine import NativeNetwork

    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"there is no file {path}")
    if not path.is_file():
        raise ValueError(f"{path} is not a file")
    return NativeNetwork.from_bytes(np.fromfile(path, np.uint8).data, str(path))


def _native(model: nn.Module, example: Tensor, tune: bool) -> nn.Module:
    from .native.engine import NativeNetwork

    return NativeNetwork(model, example, tune=tune)


def _cuda(model: nn.Module, example: Tensor) -> nn.Module:
    from .cuda.engine import CudaNetwork

    return CudaNetwork(model, example)


def _inductor(model: nn.Module, example: Tensor) -> nn.Module:
    from .fallback import fallback

    return fallback(model, example)
