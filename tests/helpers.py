"""What several test files share."""

import torch

import octaveconv as oc
from octaveconv.octave import split_channels
from octaveconv.resolution import FACTORS

# rtol and atol relative to the largest expected value: sums of up to some thousand products of order 1.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}


def assert_close(actual, expected, name=""):
    """Equal within the tolerance of the actual's dtype; absent parts must be absent in both."""
    if actual is None or expected is None:
        assert actual is expected, name
        return
    assert actual.shape == expected.shape, name
    limit = TOLERANCE[actual.dtype]
    scale = max(expected.abs().max().item(), 1.0) if expected.numel() else 1.0
    torch.testing.assert_close(
        actual, expected.to(actual.dtype), rtol=limit, atol=limit * scale, msg=lambda text: f"{name}: {text}"
    )


def random_octave(channels, alpha, size, batch=2, dtype=torch.float32, device="cpu", requires_grad=False, factor=None):
    """An octave of random numbers, with maps of as many axes as ``size`` has."""
    split = split_channels(channels, alpha)
    low_size = [-(-n // f) for n, f in zip(size, factor or FACTORS[len(size)])]

    def part(count, size):
        if not count:
            return None
        return torch.randn(batch, count, *size, dtype=dtype, device=device).requires_grad_(requires_grad)

    return oc.Octave(part(split.high, size), part(split.low, low_size))
