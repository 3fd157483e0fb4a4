"""Octave convolution a second time, written independently: matrices, einsum and unfold, no code of the package.

The dense weight is spelled out as one [out, in, kh, kw] array without groups; rows and columns are sorted into
frequencies by counting; pooling and upsampling are matrices applied to each axis.
"""

import math

import torch
import torch.nn.functional as F


def octconv(high, low, weight, bias, *, stride, dilation, groups, alpha_in, alpha_out, cut_in, cut_out):
    """float64 tensors or None in, two of them out."""
    out_chs, in_chs = weight.shape[0], weight.shape[1] * groups
    full = torch.zeros(out_chs, in_chs, *weight.shape[2:], dtype=torch.float64)
    for o in range(out_chs):
        first = o // (out_chs // groups) * weight.shape[1]
        for j in range(weight.shape[1]):
            full[o, first + j] = weight[o, j]
    rows = frequencies(out_chs, alpha_out, cut_out)
    columns = frequencies(in_chs, alpha_in, cut_in)

    strided_high, strided_low = apply_pool(high, stride), apply_pool(low, stride)
    high_size = size_of(strided_high) if high is not None else [(2 // s) * n for s, n in zip(stride, size_of(low))]
    to_high, to_low = [], []
    for source, target, x in (
        ("high", "high", strided_high),
        ("high", "low", apply_pool(strided_high, (2, 2))),
        ("low", "high", low),
        ("low", "low", strided_low),
    ):
        if x is None or not rows[target]:
            continue
        y = convolve(x, full[rows[target]][:, columns[source]], dilation)
        if (source, target) == ("low", "high"):
            for axis, (s, n) in enumerate(zip(stride, high_size)):
                y = along(y, upsampling(y.shape[2 + axis], n) if s == 1 else torch.eye(n, dtype=torch.float64), axis)
        (to_high if target == "high" else to_low).append(y)
    results = []
    for terms, target in ((to_high, "high"), (to_low, "low")):
        total = sum(terms) if terms else None
        if total is not None and bias is not None:
            total = total + bias[rows[target]].view(1, -1, 1, 1)
        results.append(total)
    return results


def frequencies(channels, alpha, cut):
    """Indices of the high and of the low channels in dense order."""
    low_per_group = math.trunc(alpha * channels) // cut
    per_group = channels // cut
    low = [c for c in range(channels) if c % per_group >= per_group - low_per_group]
    return {"high": [c for c in range(channels) if c not in low], "low": low}


def size_of(x):
    return list(x.shape[2:])


def pooling(n):
    matrix = torch.zeros(math.ceil(n / 2), n, dtype=torch.float64)
    for i in range(n):
        matrix[i // 2, i] = 1
    return matrix / matrix.sum(1, keepdim=True)


def upsampling(n, size):
    matrix = torch.zeros(size, n, dtype=torch.float64)
    for i in range(size):
        matrix[i, i // 2] = 1
    return matrix


def along(x, matrix, axis):
    return torch.einsum("ij,ncjw->nciw" if axis == 0 else "ij,nchj->nchi", matrix, x)


def apply_pool(x, factor):
    if x is None:
        return None
    for axis, f in enumerate(factor):
        if f == 2:
            x = along(x, pooling(x.shape[2 + axis]), axis)
    return x


def convolve(x, weight, dilation):
    """Size-keeping cross-correlation."""
    kernel = weight.shape[2:]
    padding = [d * (k - 1) // 2 for d, k in zip(dilation, kernel)]
    windows = F.unfold(x, kernel, dilation, padding).unflatten(1, (weight.shape[1], -1))  # [N, in, kh * kw, pixels]
    return torch.einsum("oik,nikp->nop", weight.flatten(2), windows).unflatten(2, x.shape[2:])
