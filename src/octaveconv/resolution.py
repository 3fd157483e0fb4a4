"""The two resolutions of an octave: the factor between them, and pooling and upsampling from one to the other."""

from __future__ import annotations

from collections.abc import Iterable
from numbers import Integral

import torch
import torch.nn.functional as F
from torch import Tensor

Sizes = tuple[int, ...]  # one number for each axis of a map

# By the number of axes, how much smaller the low-frequency map is on each: a video is halved in space, not in time.
FACTORS: dict[int, Sizes] = {1: (2,), 2: (2, 2), 3: (1, 2, 2)}


def whole(name: str, value: int, least: int = 1) -> int:
    """A whole number from ``least`` up; ValueError if ``value`` is something else. ``name`` says what it is."""
    if not isinstance(value, (int, Integral, torch.SymInt)) or value < least:
        raise ValueError(f"{name} must be a whole number from {least} up, got {value!r}")
    return value


def checked_factor(factor: int | Sizes | None, axes: int) -> Sizes:
    """How much smaller the low map is on each of ``axes`` axes: the ``factor`` given, or the default in `FACTORS`.

    Raises:
        ValueError: there are no maps with that many axes, or the factor is not 1 or 2 on each of them.

    Example:
        >>> checked_factor(None, 3), checked_factor(2, 3)
        ((1, 2, 2), (2, 2, 2))
    """
    if axes not in FACTORS:
        raise ValueError(f"maps are [N, C, L], [N, C, H, W] or [N, C, T, H, W], got a tensor of {axes + 2} dimensions")
    if factor is None:
        return FACTORS[axes]
    sizes = tuple(factor) if isinstance(factor, Iterable) else (factor,) * axes
    if not all(isinstance(f, int) for f in sizes) or len(sizes) != axes or set(sizes) not in ({2}, {1, 2}):
        raise ValueError(
            f"factor must be 1 or 2 on each of {axes} axes and not 1 on all of them, got {factor!r}: omit it for "
            f"{FACTORS[axes]}"
        )
    return sizes


def pool(x: Tensor, factor: Sizes | None = None) -> Tensor:
    """Average pooling to ``ceil(size / factor)``; a window over the edge averages the pixels inside the map.

    The default ``factor`` is that of `FACTORS`.
    """
    factor = FACTORS[x.dim() - 2] if factor is None else factor
    if max(factor) == 1:
        return x
    if len(factor) == 3:
        return _pool_volume(x, factor)
    avg_pool = F.avg_pool1d if len(factor) == 1 else F.avg_pool2d
    return avg_pool(x, factor, factor, ceil_mode=True, count_include_pad=False)


def pooled_size(size: Sizes, factor: Sizes) -> Sizes:
    """Pixels on each axis after `pool`: ``ceil(size / factor)``."""
    return tuple((n + f - 1) // f for n, f in zip(size, factor))  # -(-n // f) is wrong in ONNX by the older exporter


def _pool_volume(x: Tensor, factor: Sizes) -> Tensor:
    """``avg_pool3d`` refuses maps smaller than its window, and 16-bit ones on the CPU; so space first, then time."""
    frames = unflattened(pool(x.flatten(1, 2), factor[1:]), 1, x.shape[1:3])  # [N, C, T, H', W']
    columns = pool(frames.flatten(3, 4), (factor[0], 1))  # [N, C, T', H' * W']
    return unflattened(columns, 3, frames.shape[3:])


def unflattened(x: Tensor, dim: int, sizes: Sizes) -> Tensor:
    """``x.unflatten(dim, sizes)``, of which the older ONNX exporter would keep the sizes of the example."""
    return x.reshape(*x.shape[:dim], *sizes, *x.shape[dim + 1 :])


def upsample(x: Tensor, factor: Sizes, size: Sizes) -> Tensor:
    """Nearest-neighbor upsampling, cropped to ``size``: each pixel becomes ``factor`` pixels."""
    if max(factor) == 1:
        return x
    scales = [float(f) for f in factor]
    if traced() or (torch.compiler.is_exporting() and torch.onnx.is_in_onnx_export()):
        # ONNX's Resize takes no scale and size at once; TorchScript keeps sizes that a slice takes, not those in a list
        return crop(F.interpolate(x, scale_factor=scales, mode="nearest"), size)
    # Given both size and scale, the operator crops: one pass, and no guard on odd sizes when exported for all sizes.
    # Given the size alone, it computes a ratio, which float32 rounds to the wrong pixel in odd maps from 4,189 pixels.
    aten = torch.ops.aten
    operator = (aten.upsample_nearest1d, aten.upsample_nearest2d, aten.upsample_nearest3d)[len(factor) - 1]
    up: Tensor = operator(x, list(size), *scales)
    return up


def traced() -> bool:
    """Whether ``torch.jit.trace`` records this call, for itself, for the older ONNX exporter, OpenVINO or pnnx.

    Sizes are tensors then, so that the recorded program takes other sizes as well.
    """
    return bool(torch.jit.is_tracing())  # type: ignore[attr-defined]


def crop(x: Tensor, size: Sizes) -> Tensor:
    """The first ``size`` pixels of each axis."""
    if torch.compiler.is_exporting() and any(isinstance(pixels, torch.SymInt) for pixels in size):
        for axis, pixels in enumerate(size, 2):  # of a view, it would matter to the program whether it is the whole map
            x = torch.ops.aten.slice_copy(x, axis, 0, pixels)
        return x
    return x[(...,) + tuple(slice(pixels) for pixels in size)]
