"""Deploy: the inference form of a network, norms folded and layers fused, run by the fastest engine that can."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from .._modes import eval_mode
from ..errors import BackendUnavailable, UsageError

__all__ = ["deploy"]


def deploy(model: nn.Module, example_input: Tensor, engine: str | None = None) -> nn.Module:
    """Make the inference form of a network: the same answers, sooner.

    On the CPU that is the native engine, C++ that is compiled on first use, with folded norms, packed weights and
    fused layers. On an NVIDIA GPU it is the CUDA engine: the folded network, each layer by cuDNN, our Triton kernel or
    Inductor, whichever was measured to be fastest, as one CUDA graph. Where neither can run (another device, no
    compiler, an operation it does not know) it is PyTorch's Inductor on the folded network. The result's ``engine``
    says which one was chosen, and ``reason`` why not the one for the device.

    Args:
        model: any network of images, octave or dense. It is left as it is, and what is deployed is a picture of it:
            later changes of its weights do not reach the deployed one.
        example_input: ``[N, C, H, W]``, of the model's dtype and device; other batch and image sizes may come later.
            The native engine runs float32 and bfloat16.
        engine: ``"native"``, ``"cuda"`` or ``"inductor"`` to have that one or an error.

    Returns:
        A module that takes what the model takes and returns what it returns in evaluation mode, without gradients. The
        number of threads is ``torch.get_num_threads()`` at each call; the first call of a size takes longer, as memory
        is laid out and layers are tuned for it (on a GPU for each batch size, too).

    Raises:
        BackendUnavailable: the engine asked for cannot run; the message says why.
        UsageError: there is no such engine, or the example is not of images.

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
        "native": _native, "cuda": _cuda, "inductor": _inductor,
    }  # fmt: skip
    if engine is not None and engine not in engines:
        raise UsageError(f"there is no engine {engine!r}: use {', '.join(engines)}")
    if example_input.dim() != 4:
        raise UsageError(
            f"deploy takes images [N, C, H, W], got an example of shape {list(example_input.shape)}: run a network of "
            f"series or volumes as it is, or through torch.compile"
        )
    with eval_mode(model):
        if engine is not None:
            return engines[engine](model, example_input)
        first = "cuda" if next(model.parameters(), example_input).is_cuda else "native"
        try:
            return engines[first](model, example_input)
        except BackendUnavailable as error:
            deployed = _inductor(model, example_input)
            deployed.reason = f"not the {first} engine: {error}"  # type: ignore[assignment]
            return deployed


def _native(model: nn.Module, example_input: Tensor) -> nn.Module:
    from .native.engine import NativeNetwork

    return NativeNetwork(model, example_input)


def _cuda(model: nn.Module, example_input: Tensor) -> nn.Module:
    from .cuda.engine import CudaNetwork

    return CudaNetwork(model, example_input)


def _inductor(model: nn.Module, example_input: Tensor) -> nn.Module:
    from .fallback import fallback

    return fallback(model, example_input)
