"""The reference against an independent definition in float64, and its gradients."""

import pytest
import torch
from helpers import assert_close, random_octave
from hypothesis import assume, event, given, settings
from hypothesis import strategies as st
from oracle import definition

import octaveconv as oc

BACKENDS = ["reference", "merged"]
FACTORS = {1: [(2,)], 2: [(2, 2), (2, 2), (1, 2)], 3: [(1, 2, 2), (2, 2, 2)]}  # by the number of axes


@st.composite
def problems(draw, axes, transposed, strides=False):
    """Any octave convolution that is allowed, with an input for it; with ``strides`` one whose paths stride."""
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

    def per_axis(*choices):
        return draw(st.tuples(*[st.sampled_from(choices)] * axes))

    kernel, stride, dilation = per_axis(1, 3) if axes == 3 else per_axis(1, 3, 5), per_axis(1, 2), per_axis(1, 2)
    if transposed:  # an even kernel, too, can make the map larger by its stride
        kernel = [k + (s == 2 and draw(st.booleans())) for k, s in zip(kernel, stride)]
    spans = [d * (k - 1) for k, d in zip(kernel, dilation)]
    conv = dict(
        stride=stride,
        padding=[span // 2 for span in spans],
        dilation=dilation,
        groups=groups,
        alpha_in=alphas[0],
        alpha_out=alphas[1],
        cut_in=cuts[0],
        cut_out=cuts[1],
        factor=draw(st.sampled_from(FACTORS[axes])),
    )
    if transposed:
        room = [s - 1 - span % 2 for s, span in zip(stride, spans)]
        conv["output_padding"] = [draw(st.integers(0, pixels)) for pixels in room]
    if strides:
        conv["stride"], kernel, conv["padding"] = per_axis(1, 2, 3, 4), per_axis(*range(1, 6)), []
        for k, d, s, f in zip(kernel, dilation, conv["stride"], conv["factor"]):
            pads = [p for p in range(5) if f == 1 or 0 <= d * (k - 1) + 1 - p <= 2 * s]
            assume(pads)
            pad = draw(st.sampled_from(pads))
            conv["padding"].append((before := draw(st.integers(0, pad)), pad - before))
    return dict(
        transposed=transposed,
        widths=widths,
        lows=lows,
        kernel=kernel,
        size=draw(st.tuples(*[st.integers(1, 5 if axes == 3 else 9)] * axes)),
        bias=draw(st.booleans()),
        seed=draw(st.integers(0, 99)),
        conv=conv,
    )


def tensors(problem):
    generator = torch.Generator().manual_seed(problem["seed"])

    def random(*shape):
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    (in_chs, out_chs), low = problem["widths"], problem["lows"][0]
    rows, columns = (in_chs, out_chs) if problem["transposed"] else (out_chs, in_chs)
    weight = random(rows, columns // problem["conv"]["groups"], *problem["kernel"])
    size = problem["size"]
    high_map = random(2, in_chs - low, *size) if low < in_chs else None
    low_map = random(2, low, *(-(-n // o) for n, o in zip(size, problem["conv"]["factor"]))) if low else None
    return high_map, low_map, weight, random(out_chs) if problem["bias"] else None


@pytest.mark.parametrize("axes", [1, 2, 3])
@pytest.mark.parametrize("transposed", [False, True], ids=["plain", "transposed"])
@settings(max_examples=75)
@given(data=st.data())
def test_against_definition(transposed, axes, data):
    problem = data.draw(problems(axes, transposed))
    high, low, weight, bias = tensors(problem)
    conv = problem["conv"]
    event(f"stride {conv['stride']}")
    define = definition.octconv_transpose if transposed else definition.octconv
    expected = define(high, low, weight, bias, **conv)
    check(problem, expected, high, low, weight, bias)


def check(problem, expected, high, low, weight, bias):
    conv, transposed = problem["conv"], problem["transposed"]
    for backend in BACKENDS:
        with oc.backend(backend):
            actual = oc.functional.octconv(oc.Octave(high, low), weight, bias, transposed=transposed, **conv)
        assert_close(actual.high, expected[0], f"{backend}: high")
        assert_close(actual.low, expected[1], f"{backend}: low")


@pytest.mark.parametrize("axes", [1, 2, 3])
@settings(max_examples=60)
@given(data=st.data())
def test_paths_that_stride_against_definition(axes, data):
    problem = data.draw(problems(axes, False, strides=True))
    conv, kernel = problem["conv"], problem["kernel"]
    reaches = [d * (k - 1) + 1 - sum(p) for d, k, p in zip(conv["dilation"], kernel, conv["padding"])]
    axes_of = [*zip(conv["stride"], reaches, conv["factor"])]
    pools = not any(s > 2 or (r != 1 and (s, f) != (1, 1)) for s, r, f in axes_of)
    assume(not pools or max(conv["stride"]) > 1)
    problem["size"] = [max(n, r) for n, r in zip(problem["size"], reaches)]
    high, low, weight, bias = tensors(problem)
    expected = definition.octconv_at_stride(high, low, weight, bias, **conv)
    conv["pool_strides"] = not pools and data.draw(st.booleans())
    check(problem, expected, high, low, weight, bias)


@pytest.mark.parametrize(("groups", "alphas"), [(1, (0.25, 0.75)), (2, (0.5, 0.25)), (8, (0.5, 0.5))])
def test_the_transposed_is_the_adjoint_if_a_low_pixel_counts_for_the_four_it_stands_for(groups, alphas):
    arguments = dict(padding=1, groups=groups, dtype=torch.float64, bias=False)
    forward = oc.OctConv2d(8, 8, 3, alpha_in=alphas[0], alpha_out=alphas[1], **arguments)
    back = oc.OctConvTranspose2d(8, 8, 3, alpha_in=alphas[1], alpha_out=alphas[0], **arguments)
    back.load_state_dict(dict(forward.state_dict()))

    def product(a, b):
        return (a.high * b.high).sum() + 4 * (a.low * b.low).sum()

    x, y = (random_octave(8, alpha, (6, 4), dtype=torch.float64) for alpha in alphas)
    assert_close(product(forward(x), y), product(x, back(y)))


def gradcheck(backend, x, weight, bias, **conv):
    tensors = [tensor.requires_grad_() for tensor in (weight, bias, *x) if tensor is not None]

    def call(weight, bias, *present):
        given = iter(present)
        octave = oc.Octave(*(None if part is None else next(given) for part in x))
        with oc.backend(backend):
            y = oc.functional.octconv(octave, weight, bias, **conv)
        return tuple(part for part in y if part is not None)

    assert torch.autograd.gradcheck(call, tensors)


def random(*shape):
    return torch.randn(*shape, dtype=torch.float64)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("stride", [1, 2, pytest.param((2, 1), marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("groups", "alpha_in", "alpha_out"),
    [(g, *alphas) for g in (1, 2) for alphas in ((0.5, 0.5), (0, 0.5), (0.5, 0), (1, 1))]
    + [(4, alpha, alpha) for alpha in (0, 0.5, 1)],  # depthwise
)
def test_gradcheck(backend, stride, groups, alpha_in, alpha_out):
    x = random_octave(4, alpha_in, (3, 4), batch=1, dtype=torch.float64)
    conv = dict(stride=stride, padding=1, groups=groups, alpha_in=alpha_in, alpha_out=alpha_out)
    gradcheck(backend, x, random(4, 4 // groups, 3, 3), random(4), **conv)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(
    ("size", "conv"),
    [((5,), {}), ((2, 3, 2), {}), ((3, 2), dict(transposed=True)), ((3, 2), dict(transposed=True, groups=2))],
    ids=["1d", "3d", "transposed", "transposed grouped"],
)
@pytest.mark.parametrize("alphas", [(0.5, 0.5), (0, 0.5), (0.5, 0)])
def test_gradcheck_of_the_family(backend, stride, size, conv, alphas):
    x = random_octave(2 * conv.get("groups", 1), alphas[0], size, batch=1, dtype=torch.float64)
    channels = sum(0 if part is None else part.shape[1] for part in x)
    weight = random(channels, 2, *[3] * len(size))
    gradcheck(
        backend, x, weight, random(channels), stride=stride, padding=1, alpha_in=alphas[0], alpha_out=alphas[1], **conv
    )
