"""The reference against an independent definition in float64, and its gradients."""

import pytest
import torch
from helpers import assert_close
from hypothesis import event, given
from hypothesis import strategies as st
from oracle import definition

import octaveconv as oc

BACKENDS = ["reference", "merged"]


@st.composite
def problems(draw):
    """Any octave convolution that is allowed, with an input for it."""
    groups = draw(st.sampled_from([1, 1, 2, 3]))
    cuts = [groups] * 2 if groups > 1 else [draw(st.sampled_from([1, 2])), draw(st.sampled_from([1, 2]))]
    widths = [cut * draw(st.integers(1, 4)) for cut in cuts]
    depthwise = groups > 1 and widths == [groups, groups]
    if depthwise:
        cuts = [1, 1]
    lows = [cut * draw(st.integers(0, width // cut)) for cut, width in zip(cuts, widths)]
    if depthwise:
        lows[1] = lows[0]
    # above the exact share, so that truncation finds this many low channels whatever the rounding
    alphas = [min((low + 0.5) / width, 1.0) for low, width in zip(lows, widths)]
    kernel = draw(st.tuples(st.sampled_from([1, 3, 5]), st.sampled_from([1, 3])))
    dilation = draw(st.tuples(st.integers(1, 2), st.integers(1, 2)))
    return dict(
        widths=widths,
        lows=lows,
        kernel=kernel,
        size=draw(st.tuples(st.integers(1, 9), st.integers(1, 9))),
        bias=draw(st.booleans()),
        seed=draw(st.integers(0, 99)),
        conv=dict(
            stride=draw(st.tuples(st.integers(1, 2), st.integers(1, 2))),
            dilation=dilation,
            groups=groups,
            alpha_in=alphas[0],
            alpha_out=alphas[1],
            cut_in=cuts[0],
            cut_out=cuts[1],
        ),
    )


def tensors(problem):
    generator = torch.Generator().manual_seed(problem["seed"])

    def random(*shape):
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    (in_chs, out_chs), low = problem["widths"], problem["lows"][0]
    weight = random(out_chs, in_chs // problem["conv"]["groups"], *problem["kernel"])
    size = problem["size"]
    high_map = random(2, in_chs - low, *size) if low < in_chs else None
    low_map = random(2, low, *(-(-n // 2) for n in size)) if low else None
    return high_map, low_map, weight, random(out_chs) if problem["bias"] else None


@pytest.mark.parametrize("backend", BACKENDS)
@given(problem=problems())
def test_against_definition(backend, problem):
    high, low, weight, bias = tensors(problem)
    conv = problem["conv"]
    event(f"stride {conv['stride']}")
    padding = tuple(d * (k - 1) // 2 for d, k in zip(conv["dilation"], problem["kernel"]))
    with oc.backend(backend):
        actual = oc.functional.octconv(oc.Octave(high, low), weight, bias, padding=padding, **conv)
    expected = definition.octconv(high, low, weight, bias, **conv)
    assert_close(actual.high, expected[0], "high")
    assert_close(actual.low, expected[1], "low")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("stride", [1, 2, (2, 1)])
@pytest.mark.parametrize(
    ("groups", "alpha_in", "alpha_out"),
    [(g, *alphas) for g in (1, 2) for alphas in ((0.5, 0.5), (0, 0.5), (0.5, 0), (1, 1))]
    + [(4, alpha, alpha) for alpha in (0, 0.5, 1)],  # depthwise
)
def test_gradcheck(backend, stride, groups, alpha_in, alpha_out):
    channels = 4
    low = int(alpha_in * channels)
    parts = [
        torch.randn(1, channels - low, 5, 4, dtype=torch.float64, requires_grad=True) if low < channels else None,
        torch.randn(1, low, 3, 2, dtype=torch.float64, requires_grad=True) if low else None,
    ]
    weight = torch.randn(channels, channels // groups, 3, 3, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(channels, dtype=torch.float64, requires_grad=True)

    def call(weight, bias, *present):
        given = iter(present)
        x = oc.Octave(*(None if part is None else next(given) for part in parts))
        with oc.backend(backend):
            y = oc.functional.octconv(x, weight, bias, stride, 1, groups=groups, alpha_in=alpha_in, alpha_out=alpha_out)
        return tuple(part for part in y if part is not None)

    assert torch.autograd.gradcheck(call, (weight, bias, *(part for part in parts if part is not None)))
