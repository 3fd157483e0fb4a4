"""What several test files share."""

import timm
import torch
from torch import nn

import octaveconv as oc
import octaveconv.models  # registers
from octaveconv import cli, quickstart
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


def outputs_and_gradients(layer, x, backend):
    """What a layer gives, and every gradient, by name."""
    leaves = {"weight": layer.weight, "bias": layer.bias, "high": x.high, "low": x.low}
    leaves = {name: leaf for name, leaf in leaves.items() if leaf is not None}
    with oc.backend(backend):
        y = layer(x)
    weights = [
        torch.linspace(-1, 1, part.numel(), device=part.device).view(part.shape) for part in y if part is not None
    ]
    loss = sum((part.to(torch.float64) * w).sum() for part, w in zip((p for p in y if p is not None), weights))
    gradients = torch.autograd.grad(loss, leaves.values())
    return {"out high": y.high, "out low": y.low} | {f"d {n}": g for n, g in zip(leaves, gradients)}


def run(capsys, *argv):
    """Exit code, standard output and standard error of one command line."""
    try:
        code = cli.main(argv)
    except SystemExit as stop:
        code = stop.code
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def shorten_quickstart(patch):
    """Have quickstart take every sixth image and time nothing; ``patch`` is a ``MonkeyPatch``."""
    load_digits, figures = quickstart.load_digits, {"median": 0.002, "lower": 0.001, "upper": 0.004, "runs": 2}

    def some(seed):
        return {part: (images[::6], labels[::6]) for part, (images, labels) in load_digits(seed).items()}

    def latencies(nets, shapes, limit, say):
        batches = [str(shape[0]) for shape in shapes]
        ways = {"deployed": {"engine": "native"}, "eager": {"layout": "channels_last"}}
        return {net: {way: dict.fromkeys(batches, how | figures) for way, how in ways.items()} for net in nets}

    patch.setattr(quickstart, "load_digits", some)
    patch.setattr(quickstart, "latencies", latencies)


class Fixed(nn.Module):
    """Gives the same logits for each image."""

    def __init__(self, *logits):
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(logits, dtype=torch.float32))

    def forward(self, x):
        return self.logits.expand(len(x), -1)


def classifier(classes=3, seed=0):
    """A small octave network whose statistics are not those of initialization, so that it tells images apart."""
    torch.manual_seed(seed)
    net = timm.create_model("oct_resnetv2_26", alpha=0.25, layers=(1, 1, 1, 1), width=8, num_classes=classes)
    net.train()
    with torch.no_grad():
        for _ in range(20):
            net(torch.randn(16, 3, 32, 32))
    return net.eval()


def compiler(path, line):
    """A stand-in for the C++ compiler, which runs a line of shell."""
    path.write_text(f"#!/bin/sh\n{line}\n")
    path.chmod(0o755)
    return str(path)
