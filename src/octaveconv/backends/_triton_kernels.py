# mypy: ignore-errors
# (this is Triton's language, which mypy cannot check)
"""The kernels in Triton: one launch computes both outputs of an octave convolution. See ``docs/triton.md``.

Maps are ``[N, C, H, W]`` with any strides; those written are contiguous or channels_last. A tile is ``BLOCK_M`` pixels
by ``BLOCK_N`` channels of one group. Channels are counted within a group, whose high ones come first in the weight.
Whatever can exceed 2**31 is int64.
"""

import triton
import triton.language as tl
from triton import knobs

INTERPRETED = tl.constexpr(knobs.runtime.interpret)


def _configs(*configs):
    """Block sizes and warps to try on a GPU. The interpreter gets small blocks, so that small maps have edges."""
    if INTERPRETED.value:
        configs = [(64, 16, 16, 4) if len(configs[0]) == 4 else (64, 16, 4)]
    names = ("BLOCK_M", "BLOCK_N", "BLOCK_K")
    return [triton.Config(dict(zip(names, sizes)), warps, num_stages=3) for *sizes, warps in configs]


@triton.jit
def _tile(number, channels, groups, BLOCK_N: tl.constexpr):
    """A tile's place among the pixels, its group, and its channels [1, BLOCK_N]. Neighbours read the same pixels."""
    columns = tl.cdiv(channels, BLOCK_N)
    channel = number % columns * BLOCK_N + tl.arange(0, BLOCK_N)[None, :]
    return (number // (columns * groups)).to(tl.int64), (number // columns % groups).to(tl.int64), channel.to(tl.int64)


@triton.jit
def _unravel(pixel, size):
    """Image, row and column of a pixel's number."""
    return pixel // size[1] // size[0], (pixel // size[1] % size[0]).to(tl.int32), (pixel % size[1]).to(tl.int32)


@triton.jit
def _load(image, strides, size, row, column, channel, mask, FY: tl.constexpr, FX: tl.constexpr):
    """Pixels of the map pooled by FY x FX; outside, 0. A window over the edge averages the pixels that exist."""
    total = 0.0
    for i in tl.static_range(FY * FX):
        y, x = row * FY + i // FX, column * FX + i % FX
        inside = (y >= 0) & (y < size[0]) & (x >= 0) & (x < size[1]) & mask
        place = y.to(tl.int64) * strides[2] + x.to(tl.int64) * strides[3] + channel * strides[1]
        value = tl.load(image + place, mask=inside, other=0.0)
        if FY * FX == 1:
            total = value
        else:
            total += value.to(tl.float32)
    if FY * FX > 1:
        count = tl.minimum(size[0] - row * FY, FY) * tl.minimum(size[1] - column * FX, FX)
        total = (total / tl.maximum(count, 1)).to(image.dtype.element_ty)
    return total


@triton.jit
def _convolve(
    total, image, strides, size, pixel, filters, taps, channels, wanted,
    KY: tl.constexpr, KX: tl.constexpr, DY: tl.constexpr, DX: tl.constexpr, FY: tl.constexpr, FX: tl.constexpr,
    PRECISION: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Add one path to the sums [M, N]: over taps and channels, the map pooled by FY x FX times the filters.

    ``image`` points to each pixel's image [M, 1], ``filters`` to each channel's filter [1, N].
    """
    row, column, exists = pixel
    steps = tl.cdiv(channels, BLOCK_K)
    for step in range(KY * KX * steps):  # one loop over taps and channels can be pipelined
        ky, kx = step // steps // KX, step // steps % KX
        channel = (step % steps * BLOCK_K + tl.arange(0, BLOCK_K)).to(tl.int64)
        present = channel < channels
        values = _load(
            image, strides, size, row + ky * DY - (KY - 1) * DY // 2, column + kx * DX - (KX - 1) * DX // 2,
            channel[None, :], exists & present[None, :], FY, FX,
        )  # fmt: skip
        place = channel[:, None] * taps[1] + ky * taps[2] + kx * taps[3]
        weights = tl.load(filters + place, mask=present[:, None] & wanted, other=0.0)
        if INTERPRETED and weights.dtype == tl.bfloat16:  # the interpreter would multiply its bits as integers
            values, weights = values.to(tl.float32), weights.to(tl.float32)
        total = tl.dot(values, weights, total, input_precision=PRECISION)
    return total


@triton.jit
def _store(
    total, bias, residual, out, n, pixel, channel, wanted, channels, size, RELU: tl.constexpr, LAST: tl.constexpr
):  # fmt: skip
    """The epilogue: bias, residual and activation, then one write. Returns what was written, and 0 outside."""
    row, column, exists = pixel
    if LAST:
        place = ((n * size[0] + row) * size[1] + column) * channels + channel
    else:
        place = (n * channels * size[0] + row) * size[1] + column + channel * size[0] * size[1]
    mask = exists & wanted
    if bias is not None:
        total += tl.load(bias, mask=wanted, other=0.0)
    if residual is not None:
        total += tl.load(residual + place, mask=mask, other=0.0)
    if RELU:
        total = tl.where(total < 0, 0.0, total)  # NaN stays
    tl.store(out + place, total, mask=mask)
    return tl.where(mask, total, 0.0)


@triton.jit
def _high_tile(
    number, high, low, weight, bias, residual, out, out_pooled, high_strides, low_strides, taps, size, blocks, groups,
    in_high, in_low, to_high, to_low,
    KY: tl.constexpr, KX: tl.constexpr, DY: tl.constexpr, DX: tl.constexpr, UY: tl.constexpr, UX: tl.constexpr,
    RELU: tl.constexpr, LAST: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """``hh * high + upsample(lh * low)``: pixels are in blocks of UY x UX, each of which is one low pixel."""
    Q: tl.constexpr = UY * UX
    B: tl.constexpr = BLOCK_M // Q
    place, group, channel = _tile(number, to_high, groups, BLOCK_N)
    wanted = channel < to_high
    filters = weight + (group * (to_high + to_low) + channel) * taps[0]
    low_size = (tl.cdiv(size[0], UY), tl.cdiv(size[1], UX))
    block = place * B + tl.arange(0, B)
    n, y, x = _unravel(block[:, None], low_size)
    total = tl.zeros([B, BLOCK_N], tl.float32)
    if low is not None:
        total = _convolve(
            total, low + n * low_strides[0] + group * in_low * low_strides[1], low_strides, low_size,
            (y, x, block[:, None] < blocks), filters + in_high * taps[1], taps, in_low, wanted,
            KY, KX, DY, DX, 1, 1, PRECISION, BLOCK_K,
        )  # fmt: skip
    total = tl.reshape(tl.broadcast_to(total[:, None, :], [B, Q, BLOCK_N]), [BLOCK_M, BLOCK_N])
    pixel = place * BLOCK_M + tl.arange(0, BLOCK_M)[:, None]
    image, row, column = _unravel(pixel // Q, low_size)
    row, column = row * UY + (pixel % Q // UX).to(tl.int32), column * UX + (pixel % UX).to(tl.int32)
    at = (row, column, (pixel // Q < blocks) & (row < size[0]) & (column < size[1]))
    if high is not None:
        total = _convolve(
            total, high + image * high_strides[0] + group * in_high * high_strides[1], high_strides, size, at,
            filters, taps, in_high, wanted, KY, KX, DY, DX, 1, 1, PRECISION, BLOCK_K,
        )  # fmt: skip
    if bias is not None:
        bias += group * (to_high + to_low) + channel
    channel += group * to_high
    total = _store(total, bias, residual, out, image, at, channel, wanted, groups * to_high, size, RELU, LAST)
    if out_pooled is not None:
        total = tl.sum(tl.reshape(total, [B, Q, BLOCK_N]), 1)
        total /= tl.minimum(size[0] - y * UY, UY) * tl.minimum(size[1] - x * UX, UX)
        at = (y, x, block[:, None] < blocks)
        _store(total, None, None, out_pooled, n, at, channel, wanted, groups * to_high, low_size, False, LAST)


@triton.jit
def _low_tile(
    number, high, low, weight, bias, residual, out, high_strides, low_strides, taps, high_size, low_size, size, pixels,
    groups, in_high, in_low, to_high, to_low,
    KY: tl.constexpr, KX: tl.constexpr, DY: tl.constexpr, DX: tl.constexpr,
    FACTOR: tl.constexpr, SY: tl.constexpr, SX: tl.constexpr,
    RELU: tl.constexpr, LAST: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """``hl * pool(high) + ll * pool(low)`` in one sum; ``high`` is pooled by FACTOR, ``low`` by the stride."""
    place, group, channel = _tile(number, to_low, groups, BLOCK_N)
    wanted = channel < to_low
    row_of_weight = group * (to_high + to_low) + to_high + channel
    filters = weight + row_of_weight * taps[0]
    pixel = place * BLOCK_M + tl.arange(0, BLOCK_M)[:, None]
    n, y, x = _unravel(pixel, size)
    at = (y, x, pixel < pixels)
    total = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    if high is not None:
        total = _convolve(
            total, high + n * high_strides[0] + group * in_high * high_strides[1], high_strides, high_size, at,
            filters, taps, in_high, wanted, KY, KX, DY, DX, FACTOR, FACTOR, PRECISION, BLOCK_K,
        )  # fmt: skip
    if low is not None:
        total = _convolve(
            total, low + n * low_strides[0] + group * in_low * low_strides[1], low_strides, low_size, at,
            filters + in_high * taps[1], taps, in_low, wanted, KY, KX, DY, DX, SY, SX, PRECISION, BLOCK_K,
        )  # fmt: skip
    if bias is not None:
        bias += row_of_weight
    channel += group * to_low
    _store(total, bias, residual, out, n, at, channel, wanted, groups * to_low, size, RELU, LAST)


@triton.autotune(
    _configs((64, 32, 32, 4), (64, 64, 64, 4), (128, 64, 32, 8), (128, 64, 64, 8), (128, 128, 32, 8)),
    key=["height", "width", "blocks", "groups", "in_high", "in_low", "to_high", "to_low", "KY", "KX"],
)
@triton.jit
def octave(
    high, low, pooled, weight, bias, residual_high, residual_low, out_high, out_low, out_pooled,
    high_n, high_c, high_y, high_x, low_n, low_c, low_y, low_x, pooled_n, pooled_c, pooled_y, pooled_x,
    weight_o, weight_i, weight_y, weight_x, height, width, blocks, pixels, groups, in_high, in_low, to_high, to_low,
    KY: tl.constexpr, KX: tl.constexpr, DY: tl.constexpr, DX: tl.constexpr, UY: tl.constexpr, UX: tl.constexpr,
    FACTOR: tl.constexpr, RELU: tl.constexpr, LAST: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Octave convolution; ``high`` is pooled by the stride already. First come the tiles of the high output.

    ``pooled`` is what path hl reads: ``high``, pooled here by FACTOR 2, or a map that is pooled already (FACTOR 1).
    The low input is grown by UY x UX, ``2 // stride``; ``blocks`` are its pixels, ``pixels`` those of the low output.
    """
    number = tl.program_id(0)
    high_tiles = tl.cdiv(blocks, BLOCK_M // (UY * UX)) * tl.cdiv(to_high, BLOCK_N) * groups
    size = (height, width)
    low_strides = (low_n, low_c, low_y, low_x)
    taps = (weight_o, weight_i, weight_y, weight_x)
    if number < high_tiles:
        if out_high is not None:
            _high_tile(
                number, high, low, weight, bias, residual_high, out_high, out_pooled, (high_n, high_c, high_y, high_x),
                low_strides, taps, size, blocks, groups, in_high, in_low, to_high, to_low,
                KY, KX, DY, DX, UY, UX, RELU, LAST, PRECISION, BLOCK_M, BLOCK_N, BLOCK_K,
            )  # fmt: skip
    else:
        if out_low is not None:
            half = (tl.cdiv(height, 2), tl.cdiv(width, 2))
            _low_tile(
                number - high_tiles, pooled, low, weight, bias, residual_low, out_low,
                (pooled_n, pooled_c, pooled_y, pooled_x), low_strides, taps,
                size if FACTOR == 2 else half, (tl.cdiv(height, UY), tl.cdiv(width, UX)), half, pixels,
                groups, in_high, in_low, to_high, to_low,
                KY, KX, DY, DX, FACTOR, 2 // UY, 2 // UX, RELU, LAST, PRECISION, BLOCK_M, BLOCK_N, BLOCK_K,
            )  # fmt: skip


@triton.jit
def _depthwise_tile(
    number, image, weight, bias, residual, out, strides, taps, in_size, size, pixels, first, channels,
    KY: tl.constexpr, KX: tl.constexpr, DY: tl.constexpr, DX: tl.constexpr, FY: tl.constexpr, FX: tl.constexpr,
    RELU: tl.constexpr, LAST: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """One filter per channel, on the map pooled by FY x FX; ``first`` is the weight's row of channel 0."""
    place, _, channel = _tile(number, channels, 1, BLOCK_N)
    wanted = channel < channels
    pixel = place * BLOCK_M + tl.arange(0, BLOCK_M)[:, None]
    n, y, x = _unravel(pixel, size)
    exists = pixel < pixels
    filters = weight + (first + channel) * taps[0]
    total = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for tap in range(KY * KX):
        row, column = y + tap // KX * DY - (KY - 1) * DY // 2, x + tap % KX * DX - (KX - 1) * DX // 2
        values = _load(image + n * strides[0], strides, in_size, row, column, channel, exists & wanted, FY, FX)
        weights = tl.load(filters + tap // KX * taps[2] + tap % KX * taps[3], mask=wanted, other=0.0)
        total += values.to(tl.float32) * weights.to(tl.float32)
    if bias is not None:
        bias += first + channel
    _store(total, bias, residual, out, n, (y, x, exists), channel, wanted, channels, size, RELU, LAST)


@triton.autotune(_configs((64, 32, 4), (128, 64, 8), (128, 16, 4)), key=["height", "width", "high_pixels", "KY", "KX"])
@triton.jit
def depthwise(
    high, low, weight, bias, residual_high, residual_low, out_high, out_low,
    high_n, high_c, high_y, high_x, low_n, low_c, low_y, low_x, weight_o, weight_i, weight_y, weight_x,
    height, width, high_pixels, low_pixels, high_channels, low_channels,
    KY: tl.constexpr, KX: tl.constexpr, DY: tl.constexpr, DX: tl.constexpr, SY: tl.constexpr, SX: tl.constexpr,
    RELU: tl.constexpr, LAST: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Depthwise octave convolution, paths hh and ll; ``height`` and ``width`` are those of the high input."""
    number = tl.program_id(0)
    high_tiles = tl.cdiv(high_pixels, BLOCK_M) * tl.cdiv(high_channels, BLOCK_N)
    half = (tl.cdiv(height, 2), tl.cdiv(width, 2))
    taps = (weight_o, weight_i, weight_y, weight_x)
    if number < high_tiles:
        _depthwise_tile(
            number, high, weight, bias, residual_high, out_high, (high_n, high_c, high_y, high_x), taps,
            (height, width), (tl.cdiv(height, SY), tl.cdiv(width, SX)), high_pixels, 0, high_channels,
            KY, KX, DY, DX, SY, SX, RELU, LAST, BLOCK_M, BLOCK_N,
        )  # fmt: skip
    else:
        _depthwise_tile(
            number - high_tiles, low, weight, bias, residual_low, out_low, (low_n, low_c, low_y, low_x), taps,
            half, (tl.cdiv(half[0], SY), tl.cdiv(half[1], SX)), low_pixels, high_channels, low_channels,
            KY, KX, DY, DX, SY, SX, RELU, LAST, BLOCK_M, BLOCK_N,
        )  # fmt: skip
