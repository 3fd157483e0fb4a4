"""Batch normalization of both frequencies with residual and ReLU, for training: `octaveconv::batch_norm` in Triton.

``octaveconv::normalize`` computes its output again from what is kept, and ``octaveconv::batch_norm_backward`` computes
its gradient. See ``docs/triton.md``.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.library import triton_op, wrap_triton

from ..octave import Octave
from . import _triton_norm_kernels as kernels
from ._triton_call import layout_of, present

Normalized = tuple[Tensor, Tensor, Tensor, Tensor]
Gradients = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]
SHARES = 512  # programs that share the pixels of a reduction: enough to fill a GPU, few enough to add quickly


class Origin(NamedTuple):
    """Inputs and statistics of a `batch_norm` with ReLU and no residual: enough to compute its output again."""

    high: Tensor | None
    low: Tensor | None
    weight: Tensor
    bias: Tensor
    statistics: Tensor


def batch_norm(
    x: Octave, weight: Tensor, bias: Tensor, eps: float, *, residual: Octave | None = None, relu: bool = False,
    with_pooled: bool = False,
) -> tuple[Octave, Tensor | None, Tensor]:  # fmt: skip
    """Normalize with the statistics of this batch, add the residual, apply ReLU.

    Args:
        x: the maps; at least one of its parts.
        weight, bias: ``[C]``, high channels first.
        eps: is added to the variance.
        residual: is added; its parts have the shapes and the dtype of those of ``x``.
        relu: whether to apply ReLU last.
        with_pooled: whether to write ``pool(y.high)`` too. No gradient flows through it: it is for the next
            convolution, whose gradient flows through ``y``.

    Returns:
        ``y``; ``pool(y.high)`` or ``None``; and, without a gradient, ``[3, C]`` in float32: the mean, the unbiased
        variance, and ``1 / sqrt(v + eps)`` with the biased variance.

    Example:
        >>> import torch, octaveconv as oc
        >>> x = oc.Octave(torch.ones(2, 4, 6, 6, device="meta"), torch.ones(2, 4, 3, 3, device="meta"))  # or "cuda"
        >>> weight, bias = torch.ones(8, device="meta"), torch.zeros(8, device="meta")
        >>> y, _, statistics = batch_norm(x, weight, bias, 1e-5, relu=True)
        >>> y.low.shape, statistics.shape
        (torch.Size([2, 4, 3, 3]), torch.Size([3, 8]))
    """
    high, low, pooled, statistics = operator(
        *x, weight, bias, *(residual or Octave(None, None)), eps, relu, with_pooled
    )  # fmt: skip
    return Octave(present(high), present(low)), present(pooled), statistics


class _Maps:
    """The shapes of an octave as the kernels see it, and tensors in its layout."""

    def __init__(self, high: Tensor | None, low: Tensor | None) -> None:
        parts = [part for part in (high, low) if part is not None]
        self.like, images = parts[0], parts[0].shape[0]
        self.layout = layout_of(high, low)
        self.last = self.layout == torch.channels_last
        self.shapes = [[images, 0, 0, 0] if part is None else list(part.shape) for part in (high, low)]
        self.channels = [shape[1] for shape in self.shapes]
        self.images = 1 if self.last else images
        self.pixels = [(images if self.last else 1) * shape[2] * shape[3] for shape in self.shapes]
        # along the longer side of a block, neighbours are adjacent in memory
        self.block_p, self.block_c = (32, 64) if self.last else (256, 8)

    def dense(self, *parts: Tensor | None) -> list[Tensor | None]:
        """The same maps in the layout that the kernels read."""
        return [None if part is None else part.contiguous(memory_format=self.layout) for part in parts]

    def empty(self, wanted: bool = True) -> list[Tensor]:
        """Uninitialized parts; those that are not wanted have no channels."""
        return [
            torch.empty(
                (images, channels if wanted else 0, *pixels),
                dtype=self.like.dtype, device=self.like.device, memory_format=self.layout,
            )
            for images, channels, *pixels in self.shapes
        ]  # fmt: skip

    def empty_pooled(self, wanted: bool) -> Tensor:
        """An uninitialized ``pool(high)``."""
        images, channels, height, width = self.shapes[0]
        shape = images, channels if wanted else 0, -(-height // 2), -(-width // 2)
        return torch.empty(shape, dtype=self.like.dtype, device=self.like.device, memory_format=self.layout)

    def floats(self, *shape: int) -> Tensor:
        """Uninitialized sums or statistics."""
        return torch.empty(shape, dtype=torch.float32, device=self.like.device)

    def shares(self) -> int:
        """How many shares the pixels are divided into for a sum."""
        return min(SHARES, max(self.tiles()))

    def launch(self, kernel: Any, programs: list[int], *args: Any, **constants: Any) -> None:
        """Launch ``programs`` for each block of channels of the high and of the low part."""
        columns = [-(-channels // self.block_c) for channels in self.channels]
        grid = (sum(count * blocks for count, blocks in zip(programs, columns)),)
        with torch.cuda.device_of(self.like):
            wrap_triton(kernel)[grid](
                *args, **constants, LAST=self.last, BLOCK_P=self.block_p, BLOCK_C=self.block_c
            )  # fmt: skip

    def tiles(self) -> list[int]:
        """One program for each block of pixels."""
        return [self.images * -(-pixels // self.block_p) for pixels in self.pixels]

    def sizes(self) -> tuple[int, ...]:
        """The sizes in the order in which the kernels take them."""
        return self.images, *self.pixels, *self.channels


@triton_op("octaveconv::batch_norm", mutates_args=())
def operator(
    high: Tensor | None, low: Tensor | None, weight: Tensor, bias: Tensor, residual_high: Tensor | None,
    residual_low: Tensor | None, eps: float, relu: bool, with_pooled: bool,
) -> Normalized:  # fmt: skip
    """What `batch_norm` calls. An output that is not wanted has no channels."""
    maps = _Maps(high, low)
    _check(maps, low, weight, bias, residual_high, residual_low)
    x, count, channels = maps.dense(high, low), maps.shares(), sum(maps.channels)
    shares, statistics = maps.floats(3, count, channels), maps.floats(3, channels)
    maps.launch(kernels.moments, [count, count], *x, shares, count, *maps.sizes())
    with torch.cuda.device_of(weight):
        wrap_triton(kernels.statistics)[(-(-channels // 8),)](
            shares, statistics, eps, count, channels, BLOCK_P=128, BLOCK_C=8
        )  # fmt: skip
    out, pooled = maps.empty(), maps.empty_pooled(with_pooled)
    residual = maps.dense(residual_high, residual_low)
    _launch_normalize(maps, x, residual, out, pooled, (weight, bias, statistics), relu)
    return out[0], out[1], pooled, statistics


@triton_op("octaveconv::normalize", mutates_args=())
def normalize(
    high: Tensor | None, low: Tensor | None, weight: Tensor, bias: Tensor, statistics: Tensor
) -> tuple[Tensor, Tensor]:
    """What `batch_norm` with ReLU and without residual returned, from the ``statistics`` that it returned."""
    maps = _Maps(high, low)
    out = maps.empty()
    norm = weight, bias, statistics
    _launch_normalize(maps, maps.dense(high, low), [None, None], out, maps.empty_pooled(False), norm, True)
    return out[0], out[1]


@triton_op("octaveconv::batch_norm_backward", mutates_args=())
def backward_operator(
    grad_high: Tensor, grad_low: Tensor, high: Tensor | None, low: Tensor | None, weight: Tensor, bias: Tensor,
    statistics: Tensor, out_high: Tensor | None, out_low: Tensor | None, relu: bool, with_residual: bool,
) -> Gradients:  # fmt: skip
    """The gradients of both parts, of both parts of the residual, and of bias and weight: ``[2, C]`` in float32."""
    maps = _Maps(high, low)
    arrays = weight, bias, statistics
    read = maps.dense(grad_high, grad_low, high, low, out_high, out_low)
    count = maps.shares()
    shares = maps.floats(2, count, sum(maps.channels))
    maps.launch(kernels.gradient_sums, [count, count], *read, *arrays, shares, count, *maps.sizes(), RELU=relu)
    sums = shares.sum(1)
    to, to_residual = maps.empty(), maps.empty(with_residual)
    written = [*to, *map(present, to_residual)]
    maps.launch(kernels.gradient, maps.tiles(), *read, *written, *arrays, sums, *maps.sizes(), RELU=relu)
    return to[0], to[1], to_residual[0], to_residual[1], sums


def _launch_normalize(
    maps: _Maps, x: list[Tensor | None], residual: list[Tensor | None], out: list[Tensor], pooled: Tensor,
    norm: tuple[Tensor, Tensor, Tensor], relu: bool,
) -> None:  # fmt: skip
    height, width = maps.shapes[0][2:]
    blocks, programs = pooled.numel() // max(pooled.shape[1], 1), maps.tiles()
    if blocks:
        programs[0] = -(-blocks // (maps.block_p // 2))
    written = *out, present(pooled)
    maps.launch(
        kernels.normalize, programs, *x, *residual, *written, *norm, *maps.sizes(), height, width, blocks, RELU=relu
    )


def _check(
    maps: _Maps, low: Tensor | None, weight: Tensor, bias: Tensor, residual_high: Tensor | None,
    residual_low: Tensor | None,
) -> None:  # fmt: skip
    """Refuse what the kernels would misread: they see addresses, not tensors."""
    expected = {
        "the low part": (low, [maps.like.shape[0], *maps.shapes[1][1:]]),
        "the weight": (weight, [sum(maps.channels)]),
        "the bias": (bias, [sum(maps.channels)]),
        "the residual's high part": (residual_high, maps.shapes[0]),
        "the residual's low part": (residual_low, maps.shapes[1]),
    }
    for name, (tensor, shape) in expected.items():
        if tensor is not None and list(tensor.shape) != shape:
            raise ValueError(f"{name} has the shape {list(tensor.shape)}, expected {shape}")
        if tensor is not None and tensor.device != maps.like.device:
            raise ValueError(f"{name} is on {tensor.device}, the input on {maps.like.device}: move it there with .to()")


@operator.register_fake
def _(
    high: Any, low: Any, weight: Tensor, bias: Tensor, residual_high: Any, residual_low: Any, eps: float, relu: bool,
    with_pooled: bool,
) -> Normalized:  # fmt: skip
    maps = _Maps(high, low)
    _check(maps, low, weight, bias, residual_high, residual_low)
    out = maps.empty()
    return out[0], out[1], maps.empty_pooled(with_pooled), maps.floats(3, sum(maps.channels))


@normalize.register_fake
def _(high: Any, low: Any, weight: Tensor, bias: Tensor, statistics: Tensor) -> tuple[Tensor, Tensor]:
    high, low = _Maps(high, low).empty()
    return high, low


@backward_operator.register_fake
def _(
    grad_high: Tensor, grad_low: Tensor, high: Any, low: Any, weight: Tensor, bias: Tensor, statistics: Tensor,
    out_high: Any, out_low: Any, relu: bool, with_residual: bool,
) -> Gradients:  # fmt: skip
    maps = _Maps(high, low)
    to, to_residual = maps.empty(), maps.empty(with_residual)
    return to[0], to[1], to_residual[0], to_residual[1], maps.floats(2, sum(maps.channels))


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Normalized) -> None:
    """Keep what ReLU's mask follows from: the input, or with a residual the output, which the next block keeps too."""
    high, low, weight, bias, residual_high, residual_low, _, relu, _ = inputs
    out_high, out_low, pooled, statistics = output
    ctx.mark_non_differentiable(pooled, statistics)
    ctx.relu = relu
    ctx.has_residual = residual_high is not None or residual_low is not None
    out = (present(out_high), present(out_low)) if relu and ctx.has_residual else (None, None)
    ctx.save_for_backward(high, low, weight, bias, statistics, *out)


def _gradient(ctx: Any, grad_high: Tensor, grad_low: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    high, low, weight, bias, statistics, *out = ctx.saved_tensors
    masked = ctx.relu and ctx.has_residual
    to_high, to_low, *to_residual, sums = backward_operator(
        grad_high, grad_low, high, low, weight, bias, statistics, *out, ctx.relu, masked
    )  # fmt: skip
    parts = to_high, to_low, *(to_residual if masked else (grad_high, grad_low))
    needed = ctx.needs_input_grad
    to_high, to_low, *to_residual = (part if need else None for part, need in zip(parts, (*needed[:2], *needed[4:6])))
    return to_high, to_low, sums[1].to(weight.dtype), sums[0].to(bias.dtype), *to_residual, None, None, None


def _no_gradient(ctx: Any, *_: Any) -> Any:
    raise NotImplementedError(
        'a fused normalization cannot be differentiated twice: compute it inside `with octaveconv.backend("merged")`'
    )


operator.register_autograd(_gradient, setup_context=_keep)
normalize.register_autograd(_no_gradient)
backward_operator.register_autograd(_no_gradient)
