"""Octave convolution a second time, written independently: matrices and einsum, no code of the package.

The dense weight is spelled out as one [out, in, *kernel] array without groups; rows and columns are sorted into
frequencies by counting; pooling and upsampling are matrices applied to each axis; a convolution is a sum over the
positions of its kernel.
"""

import itertools
import math

import torch

F64 = torch.float64


def octconv(
    high, low, weight, bias, *, stride, padding, dilation, groups, alpha_in, alpha_out, cut_in, cut_out, factor
):
    """float64 tensors or None in, two of them out."""
    full = without_groups(weight, groups)
    rows = frequencies(full.shape[0], alpha_out, cut_out)
    columns = frequencies(full.shape[1], alpha_in, cut_in)
    strided_high, strided_low = apply_pool(high, stride), apply_pool(low, stride)
    size = size_of(high) if high is not None else [o * n for o, n in zip(factor, size_of(low))]
    high_size = [math.ceil(n / s) for n, s in zip(size, stride)]
    low_to_high = apply_pool(low, [2 if (o, s) == (1, 2) else 1 for o, s in zip(factor, stride)])
    to_high, to_low = [], []
    for source, target, x in (
        ("high", "high", strided_high),
        ("high", "low", apply_pool(strided_high, factor)),
        ("low", "high", low_to_high),
        ("low", "low", strided_low),
    ):
        if x is None or not rows[target]:
            continue
        y = convolve(x, full[rows[target]][:, columns[source]], padding, dilation)
        if (source, target) == ("low", "high"):
            y = apply_upsampling(y, [2 if (o, s) == (2, 1) else 1 for o, s in zip(factor, stride)], high_size)
        (to_high if target == "high" else to_low).append(y)
    return total(to_high, bias, rows["high"]), total(to_low, bias, rows["low"])


def octconv_transpose(
    high, low, weight, bias, *,
    stride, padding, output_padding, dilation, groups, alpha_in, alpha_out, cut_in, cut_out, factor,
):  # fmt: skip
    """The weight is [in, out / groups, *kernel]."""
    full = without_groups(weight, groups, transposed=True)
    rows = frequencies(full.shape[0], alpha_out, cut_out)
    columns = frequencies(full.shape[1], alpha_in, cut_in)
    size = size_of(high) if high is not None else [o * n for o, n in zip(factor, size_of(low))]
    high_size = [
        (n - 1) * s - 2 * p + d * (k - 1) + extra + 1
        for n, s, p, d, k, extra in zip(size, stride, padding, dilation, full.shape[2:], output_padding)
    ]
    low_size = [math.ceil(n / o) for n, o in zip(high_size, factor)]
    to_high, to_low = [], []
    for source, target, x, part in paths(high, low, full, rows, columns, factor):
        y = spread(x, part, stride, padding, dilation, high_size if source == target == "high" else low_size)
        if (source, target) == ("low", "high"):
            y = apply_upsampling(y, factor, high_size)
        (to_high if target == "high" else to_low).append(y)
    return total(to_high, bias, rows["high"]), total(to_low, bias, rows["low"])


def octconv_at_stride(
    high, low, weight, bias, *, stride, padding, dilation, groups, alpha_in, alpha_out, cut_in, cut_out, factor
):
    """Each path strides by itself; ``padding`` has pixels before and after each axis."""
    full = without_groups(weight, groups)
    rows = frequencies(full.shape[0], alpha_out, cut_out)
    columns = frequencies(full.shape[1], alpha_in, cut_in)
    size = size_of(high) if high is not None else [o * n for o, n in zip(factor, size_of(low))]
    reaches = [d * (k - 1) + 1 - sum(sides) for d, k, sides in zip(dilation, full.shape[2:], padding)]
    high_size = [math.floor((n - r) / s) + 1 for n, r, s in zip(size, reaches, stride)]
    low_size = [math.ceil(n / o) for n, o in zip(high_size, factor)]
    before = [first for first, _ in padding]
    to_high, to_low = [], []
    for source, target, x, part in paths(high, low, full, rows, columns, factor):
        if source == target == "high":
            to_high.append(stride_over(x, part, stride, before, dilation, high_size))
            continue
        for axis, (o, r) in enumerate(zip(factor, reaches)):
            if o == 2 and r > 1:  # the low map goes on a little at its end
                last = x.narrow(2 + axis, x.shape[2 + axis] - 1, 1)
                x = torch.cat([x] + [last] * (r // 2), 2 + axis)
        y = stride_over(x, part, stride, before, dilation, low_size)
        if target == "high":
            to_high.append(apply_upsampling(y, factor, high_size))
        else:
            to_low.append(y)
    return total(to_high, bias, rows["high"]), total(to_low, bias, rows["low"])


def paths(high, low, full, rows, columns, factor):
    """Where each path that there is comes from and goes to, its input, pooled for the low output, and its weight."""
    for source, target, x in (
        ("high", "high", high),
        ("high", "low", apply_pool(high, factor)),
        ("low", "high", low),
        ("low", "low", low),
    ):
        if x is not None and rows[target]:
            yield source, target, x, full[rows[target]][:, columns[source]]


def without_groups(weight, groups, transposed=False):
    """[out, in, *kernel], zero where input and output are in different groups."""
    first, second = weight.shape[0], weight.shape[1] * groups
    full = torch.zeros(first, second, *weight.shape[2:], dtype=F64)
    for i in range(first):
        start = i // (first // groups) * weight.shape[1]
        for j in range(weight.shape[1]):
            full[i, start + j] = weight[i, j]
    return full.transpose(0, 1) if transposed else full


def total(terms, bias, channels):
    if not terms:
        return None
    y = sum(terms)
    return y if bias is None else y + bias[channels].view(1, -1, *[1] * (y.dim() - 2))


def frequencies(channels, alpha, cut):
    """Indices of the high and of the low channels in dense order."""
    low_per_group = math.trunc(alpha * channels) // cut
    per_group = channels // cut
    low = [c for c in range(channels) if c % per_group >= per_group - low_per_group]
    return {"high": [c for c in range(channels) if c not in low], "low": low}


def size_of(x):
    return list(x.shape[2:])


def pooling(n):
    matrix = torch.zeros(math.ceil(n / 2), n, dtype=F64)
    for i in range(n):
        matrix[i // 2, i] = 1
    return matrix / matrix.sum(1, keepdim=True)


def upsampling(n, size):
    matrix = torch.zeros(size, n, dtype=F64)
    for i in range(size):
        matrix[i, i // 2] = 1
    return matrix


def along(x, matrix, axis):
    return torch.einsum("ij,...j->...i", matrix, x.movedim(2 + axis, -1)).movedim(-1, 2 + axis)


def apply_pool(x, factor):
    if x is None:
        return None
    for axis, f in enumerate(factor):
        if f == 2:
            x = along(x, pooling(x.shape[2 + axis]), axis)
    return x


def apply_upsampling(x, factor, size):
    for axis, (f, n) in enumerate(zip(factor, size)):
        if f == 2:
            x = along(x, upsampling(x.shape[2 + axis], n), axis)
    return x


def positions(kernel):
    return itertools.product(*map(range, kernel))


def convolve(x, weight, padding, dilation):
    """Size-keeping cross-correlation: the sum of shifted copies of a map in a frame of zeros."""
    size = size_of(x)
    frame = torch.zeros(*x.shape[:2], *(n + 2 * p for n, p in zip(size, padding)), dtype=F64)
    frame[(..., *(slice(p, p + n) for n, p in zip(size, padding)))] = x
    y = torch.zeros(len(x), len(weight), *size, dtype=F64)
    for at in positions(weight.shape[2:]):
        window = tuple(slice(d * i, d * i + n) for d, i, n in zip(dilation, at, size))
        y += torch.einsum("oi,ni...->no...", weight[(..., *at)], frame[(..., *window)])
    return y


def stride_over(x, weight, stride, before, dilation, size):
    """The first ``size`` pixels of a strided cross-correlation of a map in a frame of zeros, wide enough."""
    kernel = weight.shape[2:]
    axes = zip(size_of(x), before, stride, size, dilation, kernel)
    frame = torch.zeros(*x.shape[:2], *(n + p + s * m + d * k for n, p, s, m, d, k in axes), dtype=F64)
    frame[(..., *(slice(p, p + n) for n, p in zip(size_of(x), before)))] = x
    y = torch.zeros(len(x), len(weight), *size, dtype=F64)
    for at in positions(kernel):
        there = tuple(slice(d * i, d * i + s * n, s) for d, i, s, n in zip(dilation, at, stride, size))
        y += torch.einsum("oi,ni...->no...", weight[(..., *at)], frame[(..., *there)])
    return y


def spread(x, weight, stride, padding, dilation, size):
    """Transposed convolution: each pixel adds its kernel to a large canvas, out of which ``size`` pixels are taken."""
    canvas = [s * n + d * k + m for s, n, d, k, m in zip(stride, size_of(x), dilation, weight.shape[2:], size)]
    y = torch.zeros(len(x), len(weight), *canvas, dtype=F64)
    for at in positions(weight.shape[2:]):
        there = tuple(slice(d * i, d * i + s * n, s) for d, i, s, n in zip(dilation, at, stride, size_of(x)))
        y[(..., *there)] += torch.einsum("oi,ni...->no...", weight[(..., *at)], x)
    return y[(..., *(slice(p, p + n) for p, n in zip(padding, size)))]
