# mypy: ignore-errors
# (this is Triton's language, which mypy cannot check)
"""The kernels of batch normalization with residual and ReLU in Triton: one launch has both frequencies.

A map is channels_last (LAST), and then one image of all its pixels; or contiguous, image after image. A tile is
``BLOCK_P`` pixels of an image by ``BLOCK_C`` channels. First come the programs of the high part, then those of the low.
A sum over pixels is computed in ``count`` shares, each by one program, which are added afterwards: without atomics, the
same input always gives the same sums. ``[C]`` arrays have the high channels first.
"""

import triton
import triton.language as tl


@triton.jit
def _tile(number, pixels, channels, channel, LAST: tl.constexpr, BLOCK_P: tl.constexpr):
    """Where a tile's elements stand in a map, [BLOCK_P, BLOCK_C], and which of them exist."""
    tiles = tl.cdiv(pixels, BLOCK_P)
    image = (number // tiles).to(tl.int64)
    pixel = (number % tiles) * BLOCK_P + tl.arange(0, BLOCK_P)[:, None].to(tl.int64)
    mask = (pixel < pixels) & (channel < channels)
    place = pixel * channels + channel if LAST else (image * channels + channel) * pixels + pixel
    return place, mask


@triton.jit
def _columns(number, channels, BLOCK_C: tl.constexpr):
    """A program's place among the pixels, and its channels [1, BLOCK_C]. Neighbours read the same pixels."""
    columns = tl.cdiv(channels, BLOCK_C)
    return number // columns, number % columns * BLOCK_C + tl.arange(0, BLOCK_C)[None, :]


@triton.jit
def _moments(
    number, image, shares, count, all_channels, first, images, pixels, channels,
    LAST: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """The number of pixels in a share, their mean, and the sum of squared distances from it, with Welford's rule."""
    share, channel = _columns(number, channels, BLOCK_C)
    seen = tl.zeros([BLOCK_P, BLOCK_C], tl.float32)
    mean = tl.zeros([BLOCK_P, BLOCK_C], tl.float32)
    squares = tl.zeros([BLOCK_P, BLOCK_C], tl.float32)
    for tile in range(share, images * tl.cdiv(pixels, BLOCK_P), count):
        place, mask = _tile(tile, pixels, channels, channel, LAST, BLOCK_P)
        value = tl.load(image + place, mask=mask, other=0.0).to(tl.float32)
        delta = tl.where(mask, value - mean, 0.0)
        seen += mask.to(tl.float32)
        mean += delta / tl.maximum(seen, 1.0)
        squares += delta * (value - mean)
    total = tl.sum(seen, 0)[None, :]
    common = tl.sum(seen * mean, 0)[None, :] / tl.maximum(total, 1.0)
    distance = mean - common
    squares = tl.sum(squares + seen * distance * distance, 0)[None, :]
    out, wanted = shares + share * all_channels + first + channel, channel < channels
    tl.store(out, total, mask=wanted)
    tl.store(out + count * all_channels, common, mask=wanted)
    tl.store(out + 2 * count * all_channels, squares, mask=wanted)


@triton.jit
def moments(
    high, low, shares, count, images, high_pixels, low_pixels, high_channels, low_channels,
    LAST: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """The moments of each of ``count`` shares of the pixels, into ``shares`` [3, count, C]."""
    number, channels = tl.program_id(0), high_channels + low_channels
    high_programs = count * tl.cdiv(high_channels, BLOCK_C)
    if number < high_programs:
        if high is not None:
            _moments(
                number, high, shares, count, channels, 0, images, high_pixels, high_channels, LAST, BLOCK_P, BLOCK_C
            )
    else:
        if low is not None:
            _moments(
                number - high_programs, low, shares, count, channels, high_channels, images, low_pixels, low_channels,
                LAST, BLOCK_P, BLOCK_C,
            )  # fmt: skip


@triton.jit
def statistics(shares, out, eps, count, channels, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr):
    """From the moments of all shares, into ``out`` [3, C]: mean, unbiased variance, 1 / sqrt(biased variance + eps)."""
    channel = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)[None, :]
    wanted = channel < channels
    seen = tl.zeros([BLOCK_P, BLOCK_C], tl.float32)
    total = tl.zeros([BLOCK_P, BLOCK_C], tl.float32)
    squares = tl.zeros([BLOCK_P, BLOCK_C], tl.float32)
    for start in range(0, count, BLOCK_P):
        share = start + tl.arange(0, BLOCK_P)[:, None]
        place, mask = shares + share * channels + channel, (share < count) & wanted
        some = tl.load(place, mask=mask, other=0.0)
        seen += some
        total += some * tl.load(place + count * channels, mask=mask, other=0.0)
    pixels = tl.maximum(tl.sum(seen, 0)[None, :], 1.0)
    mean = tl.sum(total, 0)[None, :] / pixels
    for start in range(0, count, BLOCK_P):
        share = start + tl.arange(0, BLOCK_P)[:, None]
        place, mask = shares + share * channels + channel, (share < count) & wanted
        distance = tl.load(place + count * channels, mask=mask, other=0.0) - mean
        some = tl.load(place, mask=mask, other=0.0)
        squares += tl.load(place + 2 * count * channels, mask=mask, other=0.0) + some * distance * distance
    squares = tl.sum(squares, 0)[None, :]
    tl.store(out + channel, mean, mask=wanted)
    tl.store(out + channels + channel, squares / tl.maximum(pixels - 1.0, 1.0), mask=wanted)
    tl.store(out + 2 * channels + channel, 1.0 / tl.sqrt(squares / pixels + eps), mask=wanted)


@triton.jit
def _load_norm(weight, bias, statistics, all_channels, channel, wanted):
    """Mean, 1 / standard deviation, weight and bias of some channels [1, BLOCK_C], in float32."""
    mean = tl.load(statistics + channel, mask=wanted, other=0.0)
    scale = tl.load(statistics + 2 * all_channels + channel, mask=wanted, other=0.0)
    weight = tl.load(weight + channel, mask=wanted, other=0.0).to(tl.float32)
    return mean, scale, weight, tl.load(bias + channel, mask=wanted, other=0.0).to(tl.float32)


@triton.jit
def _apply(image, residual, out, place, mask, norm, RELU: tl.constexpr):
    """Normalize, add the residual, apply ReLU, write. Returns what was written, and 0 outside."""
    mean, scale, weight, bias = norm
    value = (tl.load(image + place, mask=mask, other=0.0).to(tl.float32) - mean) * scale * weight + bias
    if residual is not None:
        value += tl.load(residual + place, mask=mask, other=0.0).to(tl.float32)
    if RELU:
        value = tl.where(value < 0, 0.0, value)  # NaN stays
    tl.store(out + place, value, mask=mask)
    return tl.where(mask, value, 0.0)


@triton.jit
def _normalize(
    number, image, residual, out, weight, bias, statistics, all_channels, first, images, pixels, channels,
    RELU: tl.constexpr, LAST: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    tile, channel = _columns(number, channels, BLOCK_C)
    norm = _load_norm(weight, bias, statistics, all_channels, first + channel, channel < channels)
    place, mask = _tile(tile, pixels, channels, channel, LAST, BLOCK_P)
    _apply(image, residual, out, place, mask, norm, RELU)


@triton.jit
def _normalize_and_pool(
    number, image, residual, out, out_pooled, weight, bias, statistics, all_channels, height, width, blocks, channels,
    RELU: tl.constexpr, LAST: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """As `_normalize`, in ``blocks`` of 2x2 pixels, whose means go to ``out_pooled``."""
    tile, channel = _columns(number, channels, BLOCK_C)
    norm = _load_norm(weight, bias, statistics, all_channels, channel, channel < channels)
    half_height, half_width = tl.cdiv(height, 2), tl.cdiv(width, 2)
    block = tile * BLOCK_P + tl.arange(0, BLOCK_P)[:, None]
    y, x = block // half_width % half_height, block % half_width
    n = (block // half_width // half_height).to(tl.int64)
    exists = (block < blocks) & (channel < channels)
    total = tl.zeros([BLOCK_P, BLOCK_C], tl.float32)
    for i in tl.static_range(4):
        row, column = 2 * y + i // 2, 2 * x + i % 2
        if LAST:
            place = ((n * height + row) * width + column) * channels + channel
        else:
            place = ((n * channels + channel) * height + row) * width + column
        total += _apply(image, residual, out, place, exists & (row < height) & (column < width), norm, RELU)
    total /= tl.minimum(height - 2 * y, 2) * tl.minimum(width - 2 * x, 2)
    if LAST:
        place = ((n * half_height + y) * half_width + x) * channels + channel
    else:
        place = ((n * channels + channel) * half_height + y) * half_width + x
    tl.store(out_pooled + place, total, mask=exists)


@triton.jit
def normalize(
    high, low, residual_high, residual_low, out_high, out_low, out_pooled, weight, bias, statistics,
    images, high_pixels, low_pixels, high_channels, low_channels, height, width, blocks,
    RELU: tl.constexpr, LAST: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Normalize with the ``statistics`` [3, C]; ``blocks`` is the number of pixels of ``out_pooled``, in all images."""
    number, channels = tl.program_id(0), high_channels + low_channels
    high_tiles = tl.cdiv(blocks, BLOCK_P // 2) if out_pooled is not None else images * tl.cdiv(high_pixels, BLOCK_P)
    high_programs = high_tiles * tl.cdiv(high_channels, BLOCK_C)
    if number < high_programs:
        if out_pooled is not None:
            _normalize_and_pool(
                number, high, residual_high, out_high, out_pooled, weight, bias, statistics, channels,
                height, width, blocks, high_channels, RELU, LAST, BLOCK_P // 2, BLOCK_C,
            )  # fmt: skip
        elif high is not None:
            _normalize(
                number, high, residual_high, out_high, weight, bias, statistics, channels, 0,
                images, high_pixels, high_channels, RELU, LAST, BLOCK_P, BLOCK_C,
            )  # fmt: skip
    else:
        if low is not None:
            _normalize(
                number - high_programs, low, residual_low, out_low, weight, bias, statistics, channels, high_channels,
                images, low_pixels, low_channels, RELU, LAST, BLOCK_P, BLOCK_C,
            )  # fmt: skip


@triton.jit
def _load_gradient(grad, image, out, place, mask, norm, RELU: tl.constexpr):
    """The gradient before ReLU, and the normalized input. Without ``out``, its sign is computed again."""
    mean, scale, weight, bias = norm
    value = (tl.load(image + place, mask=mask, other=0.0).to(tl.float32) - mean) * scale
    value = tl.where(mask, value, 0.0)
    gradient = tl.load(grad + place, mask=mask, other=0.0).to(tl.float32)
    if RELU:
        result = value * weight + bias
        if out is not None:
            result = tl.load(out + place, mask=mask, other=0.0).to(tl.float32)
        gradient = tl.where(result <= 0, 0.0, gradient)  # NaN lets it pass, as in PyTorch
    return gradient, value


@triton.jit
def _gradient_sums(
    number, grad, image, out, weight, bias, statistics, shares, count, all_channels, first, images, pixels, channels,
    RELU: tl.constexpr, LAST: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    share, channel = _columns(number, channels, BLOCK_C)
    wanted = channel < channels
    norm = _load_norm(weight, bias, statistics, all_channels, first + channel, wanted)
    total = tl.zeros([BLOCK_P, BLOCK_C], tl.float32)
    product = tl.zeros([BLOCK_P, BLOCK_C], tl.float32)
    for tile in range(share, images * tl.cdiv(pixels, BLOCK_P), count):
        place, mask = _tile(tile, pixels, channels, channel, LAST, BLOCK_P)
        gradient, value = _load_gradient(grad, image, out, place, mask, norm, RELU)
        total += gradient
        product += gradient * value
    result = shares + share * all_channels + first + channel
    tl.store(result, tl.sum(total, 0)[None, :], mask=wanted)
    tl.store(result + count * all_channels, tl.sum(product, 0)[None, :], mask=wanted)


@triton.jit
def gradient_sums(
    grad_high, grad_low, high, low, out_high, out_low, weight, bias, statistics, shares, count,
    images, high_pixels, low_pixels, high_channels, low_channels,
    RELU: tl.constexpr, LAST: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """The gradients of bias and weight from each share of the pixels, into ``shares`` [2, count, C]."""
    number, channels = tl.program_id(0), high_channels + low_channels
    high_programs = count * tl.cdiv(high_channels, BLOCK_C)
    if number < high_programs:
        if high is not None:
            _gradient_sums(
                number, grad_high, high, out_high, weight, bias, statistics, shares, count, channels, 0,
                images, high_pixels, high_channels, RELU, LAST, BLOCK_P, BLOCK_C,
            )  # fmt: skip
    else:
        if low is not None:
            _gradient_sums(
                number - high_programs, grad_low, low, out_low, weight, bias, statistics, shares, count, channels,
                high_channels, images, low_pixels, low_channels, RELU, LAST, BLOCK_P, BLOCK_C,
            )  # fmt: skip


@triton.jit
def _gradient(
    number, grad, image, out, to_image, to_residual, weight, bias, statistics, sums, all_channels, first,
    images, pixels, channels, RELU: tl.constexpr, LAST: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    tile, channel = _columns(number, channels, BLOCK_C)
    wanted = channel < channels
    norm = _load_norm(weight, bias, statistics, all_channels, first + channel, wanted)
    place, mask = _tile(tile, pixels, channels, channel, LAST, BLOCK_P)
    gradient, value = _load_gradient(grad, image, out, place, mask, norm, RELU)
    if to_residual is not None:
        tl.store(to_residual + place, gradient, mask=mask)
    count = 1.0 * images * pixels
    mean = tl.load(sums + first + channel, mask=wanted, other=0.0) / count
    slope = tl.load(sums + all_channels + first + channel, mask=wanted, other=0.0) / count
    tl.store(to_image + place, (gradient - mean - value * slope) * (norm[1] * norm[2]), mask=mask)


@triton.jit
def gradient(
    grad_high, grad_low, high, low, out_high, out_low, to_high, to_low, to_residual_high, to_residual_low,
    weight, bias, statistics, sums, images, high_pixels, low_pixels, high_channels, low_channels,
    RELU: tl.constexpr, LAST: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """The gradient of the input, and of the residual where ReLU makes it differ from the output's; ``sums`` [2, C]."""
    number, channels = tl.program_id(0), high_channels + low_channels
    high_programs = images * tl.cdiv(high_pixels, BLOCK_P) * tl.cdiv(high_channels, BLOCK_C)
    if number < high_programs:
        if high is not None:
            _gradient(
                number, grad_high, high, out_high, to_high, to_residual_high, weight, bias, statistics, sums, channels,
                0, images, high_pixels, high_channels, RELU, LAST, BLOCK_P, BLOCK_C,
            )  # fmt: skip
    else:
        if low is not None:
            _gradient(
                number - high_programs, grad_low, low, out_low, to_low, to_residual_low, weight, bias, statistics,
                sums, channels, high_channels, images, low_pixels, low_channels, RELU, LAST, BLOCK_P, BLOCK_C,
            )  # fmt: skip
