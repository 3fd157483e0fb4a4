"""The Triton backend against the reference: on a GPU natively, elsewhere interpreted, in a process of its own."""

import io
import operator
import sys
from pathlib import Path

import pytest
import torch
from helpers import assert_close, outputs_and_gradients, random_octave
from torch.utils.flop_counter import FlopCounterMode
from triton_parts import (
    DEVICE,
    INTERPRETED,
    LAYOUTS,
    on_cuda,
    on_device,
    on_host,
    passed_interpreted,
    pretend_gpu,
    quick,
    triton,
)

import octaveconv as oc
from octaveconv import backends
from octaveconv.octave import ChannelSplit
from octaveconv.resolution import pool

OTHERS = [str(Path(__file__).with_name(name)) for name in ("test_triton_norm.py", "test_cuda.py")]
pytestmark = pytest.mark.usefixtures("poisoned", "exact_and_untuned")

# in, out, kernel, size and batch leave a rest in every block; the interpreter's are 16 low pixels or 64 pixels, by 16
# output channels, by 16 input channels.
CASES = {
    "3x3": dict(batch=3),
    "a pixel": dict(size=(1, 1), batch=1),
    "a column": dict(size=(11, 1)),
    "pointwise, many channels": dict(channels=(45, 50), kernel=1),
    "taps and many channels": dict(channels=(40, 7), kernel=(3, 1), alphas=(0.5, 0.3), batch=1),
    "even size": dict(size=(8, 12), kernel=(1, 3)),
    "no bias": dict(kernel=1, bias=False),
    "dilated, even kernel": dict(kernel=(2, 4), dilation=(2, 4), batch=1),
    "from high": dict(alphas=(0, 0.5), kernel=(3, 1)),
    "to high": dict(alphas=(0.5, 0), kernel=(1, 3)),
    "from low": dict(alphas=(1, 0.5), kernel=(3, 1)),
    "to low": dict(alphas=(0.5, 1), kernel=(1, 3)),
    "high to low": dict(alphas=(0, 1), kernel=1),
    "low to high": dict(alphas=(1, 0), kernel=1),
    "stride": dict(stride=2, batch=1),
    "stride, even size": dict(stride=2, size=(8, 12), kernel=1),
    "stride down": dict(stride=(2, 1), kernel=(3, 1)),
    "stride across": dict(stride=(1, 2), kernel=(1, 3)),
    "stride from high": dict(stride=2, alphas=(0, 0.5), kernel=1),
    "stride from low": dict(stride=2, alphas=(1, 0.5), kernel=1),
    "stride to high": dict(stride=2, alphas=(0.5, 0), kernel=1),
    "grouped": dict(channels=(6, 12), groups=3, alphas=(0.5, 0.5), kernel=(1, 3), batch=1),
    "grouped, many channels": dict(channels=(15, 57), groups=3, alphas=(0.4, 1 / 19), kernel=1, batch=1),
    "grouped to high": dict(channels=(6, 6), groups=3, alphas=(0.5, 0), kernel=1, batch=1),
    "grouped stride": dict(channels=(6, 12), groups=3, alphas=(0.5, 0.5), kernel=1, stride=2),
    "depthwise": dict(channels=(40, 40), groups=40, alphas=(0.5, 0.5), batch=3),
    "depthwise stride": dict(channels=(5, 5), groups=5, alphas=(0.4, 0.4), stride=(2, 1), dilation=2),
    "depthwise cut": dict(channels=(8, 8), groups=8, alphas=(0.5, 0.5), cut_in=2, cut_out=2, kernel=1),
    "cut": dict(channels=(8, 12), alphas=(0.5, 0.5), cut_in=2, cut_out=3, kernel=1),
    "concatenated": dict(
        channels=(16, 16), alphas=(ChannelSplit(3, 1).then(ChannelSplit(9, 3, 3)), ChannelSplit(8, 8, 4)), kernel=1
    ),
}


QUICK = (  # of each kind one; the others are slow
    "3x3", "taps and many channels", "dilated, even kernel", "from high", "to low", "low to high", "stride across",
    "grouped, many channels", "depthwise stride", "concatenated",
)  # fmt: skip


def problem(
    channels=(5, 7),
    kernel=3,
    alphas=(0.4, 0.5),
    size=(9, 7),
    batch=2,
    stride=1,
    dilation=1,
    dtype=torch.float32,
    device=DEVICE,
    **more,
):
    """A layer and an input for it."""
    layer = oc.OctConv2d(
        *channels,
        kernel,
        stride,
        "same" if stride == 1 else keeping(kernel, dilation),
        dilation,
        alpha_in=alphas[0],
        alpha_out=alphas[1],
        device=device,
        dtype=dtype,
        **more,
    )
    inputs = layer.spec.inputs
    shapes = (inputs.high, *size), (inputs.low, *(-(-n // 2) for n in size))
    parts = (torch.randn(batch, *shape, device=device, dtype=dtype) if shape[0] else None for shape in shapes)
    return layer, oc.octave_map(torch.Tensor.requires_grad_, oc.Octave(*parts))


def keeping(kernel, dilation):
    """The padding that keeps a map's size."""
    pairs = ((value, value) if isinstance(value, int) else value for value in (kernel, dilation))
    return tuple(d * (k - 1) // 2 for k, d in zip(*pairs))


def check(layer, x):
    """Values and every gradient are the reference's, in float64 of the same numbers; return them."""
    actual = outputs_and_gradients(layer, x, "triton")
    exact = oc.octave_map(lambda part: part.detach().double().requires_grad_(), x)
    expected = outputs_and_gradients(layer.double(), exact, "reference")
    for name, value in expected.items():
        assert_close(actual[name], value, name)
    return actual


@pytest.mark.skipif(INTERPRETED, reason="this is the process that it starts")
def test_interpreted():
    """The tests below, and those of the norm and the engine, on the CPU, in one process: another takes seconds."""
    assert passed_interpreted(__file__, "not slow", *OTHERS) > 90


@pytest.mark.slow
@pytest.mark.skipif(INTERPRETED, reason="this is the process that it starts")
def test_interpreted_slowly():
    assert passed_interpreted(__file__, "slow", *OTHERS) > len(CASES) - len(QUICK)


@on_device
@pytest.mark.parametrize("case", quick(CASES, QUICK))
def test_against_reference(case):
    check(*problem(**CASES[case]))


@on_device
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("case", ["even size", "depthwise cut"])
def test_dtypes(case, dtype):
    check(*problem(**CASES[case] | dict(dtype=dtype, batch=1)))


@on_device
@pytest.mark.parametrize(("part", "more"), [("low", dict()), ("high", dict(groups=2, stride=2))])
def test_half_is_averaged_in_float32(part, more):
    """In float16, 2048 + 1 is 2048."""
    layer, _ = problem(channels=(2, 2), alphas=(0.5, 0.5), kernel=1, bias=False, dtype=torch.float16, **more)
    torch.nn.init.ones_(layer.weight)
    high = torch.tensor([[[[2048.0, 1.0], [1.0, 0.0]]]], dtype=torch.float16, device=DEVICE)
    with oc.backend("triton"), torch.no_grad():
        y = layer(oc.Octave(high, high.new_zeros(1, 1, 1, 1)))
    assert getattr(y, part).item() == 512.5


@on_device
@pytest.mark.parametrize("layout", quick(LAYOUTS, ["channels_last", "strided"]))
@pytest.mark.parametrize("case", quick(["stride across", "even size", "depthwise stride"], ["stride across"]))
def test_layouts(case, layout):
    layer, x = problem(**CASES[case])
    x = oc.octave_map(lambda part: LAYOUTS[layout](part.detach()).requires_grad_(), x)
    layer.weight.data = LAYOUTS[layout](layer.weight.data)
    found = check(layer, x)
    for part in (found["out high"], found["out low"]):
        assert part.is_contiguous(memory_format=torch.channels_last) == (layout == "channels_last")


@pytest.mark.parametrize("last", ["", "high", "low", "weight"])
@pytest.mark.parametrize("channels", [(5, 7), (1, 7)])  # one channel is in both layouts
def test_the_output_is_channels_last_if_an_input_or_the_weight_is(channels, last):
    layer, x = problem(channels, alphas=(1 if last == "low" else 0, 0.5), device="meta")
    if last == "weight":
        layer.to(memory_format=torch.channels_last)
    elif last:
        x = oc.octave_map(LAYOUTS["channels_last"], x)
    with oc.backend("triton"):
        y = layer(x)
    found = {part.is_contiguous(memory_format=torch.channels_last) for part in y}
    assert found == {bool(last) and channels[0] > 1}


@on_device
@pytest.mark.parametrize(
    ("case", "options", "layout"),
    [
        ("even size", "relu residual pooled with_pooled", "channels_last"),
        ("from high", "pooled with_pooled", "strided"),
        ("to low", "relu residual", "strided"),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in [
                ("even size", "relu residual", "channels_last"),
                ("even size", "pooled with_pooled", "strided"),
                ("even size", "relu residual pooled with_pooled", "strided"),
                ("from high", "relu residual pooled with_pooled", "channels_last"),
                ("to low", "relu residual pooled with_pooled", "channels_last"),
            ]
        ),
    ],
)
def test_fused(case, options, layout):
    check_fused(*problem(**CASES[case]), options, layout)


@on_device
@pytest.mark.parametrize("case", ["stride across", "grouped stride", "depthwise cut"])
def test_fused_elsewhere(case):
    check_fused(*problem(**CASES[case]), "relu residual", "channels_last")


def check_fused(layer, x, options, layout):
    with oc.backend("reference"), torch.no_grad():
        expected = layer(x)
    residual = oc.octave_map(torch.randn_like, expected)
    arguments = {name: name in options for name in ("relu", "with_pooled")}
    arguments["pooled"] = pool(x.high) if "pooled" in options.split() else None
    arguments["residual"] = residual if "residual" in options else None
    if "residual" in options:
        expected = expected + residual
    if "relu" in options:
        expected = oc.octave_map(torch.relu, expected)
    x = oc.octave_map(LAYOUTS[layout], x)
    with torch.no_grad():
        y, y_pooled = triton().fused(x, layer.weight, layer.bias, layer.spec, **arguments)
    assert_close(y.high, expected.high, "high")
    assert_close(y.low, expected.low, "low")
    wanted = "with_pooled" in options and expected.high is not None
    assert_close(y_pooled, pool(expected.high) if wanted else None, "pooled")


@on_device
def test_relu_keeps_nan():
    layer, x = problem(kernel=1)
    x = oc.octave_map(lambda part: torch.full_like(part, torch.nan), x)
    y, _ = triton().fused(x, layer.weight.detach(), None, layer.spec, relu=True)
    assert y.high.isnan().all()
    assert y.low.isnan().all()


@on_device
def test_nothing_but_the_input_and_the_weight_is_kept_for_the_gradient():
    layer, x = problem(**CASES["grouped stride"])
    kept = []
    with oc.backend("triton"), torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        layer(x)
    assert {t.data_ptr() for t in kept} == {t.data_ptr() for t in (*x, layer.weight)}


@on_device
def test_only_gradients_that_are_needed_are_computed(monkeypatch):
    masks = []
    original = torch.ops.aten.convolution_backward

    def recorded(*args):
        masks.append(args[-1])
        return original(*args)

    monkeypatch.setattr(torch.ops.aten, "convolution_backward", recorded)
    layer, x = problem(kernel=1)
    layer.weight.requires_grad_(False)
    with oc.backend("triton"):
        y = layer(oc.Octave(x.high, x.low.detach()))
    (y.high.sum() + y.low.sum()).backward()
    assert masks == [[True, False, False], [True, False, False], [False, False, False], [False, False, False]]


@on_device
def test_gradient_of_the_gradient():
    layer, x = problem(**CASES["stride down"])
    found = []
    for backend in ("triton", "reference"):
        with oc.backend(backend):
            y = layer(x)
        first = torch.autograd.grad(y.high.square().sum() + y.low.square().sum(), x, create_graph=True)
        found.append(torch.autograd.grad(sum(part.square().sum() for part in first), [*x, layer.weight]))
    for actual, expected in zip(*found):
        assert_close(actual, expected)


@on_device
@pytest.mark.parametrize("axis", range(4))
@pytest.mark.parametrize("case", [dict(channels=(6, 4)), dict(channels=(6, 6), groups=6)])
def test_addresses_pass_2_to_the_31(case, axis, tmp_path):
    """Two steps along one axis of the input are 2**31 elements, in a file of which nothing else exists on disk."""
    layer, x = problem(**case, kernel=1, alphas=(0.5, 0.5), size=(3, 3), batch=3, dtype=torch.float16)
    if DEVICE == "cuda":
        pytest.skip("the file is not on the GPU")
    far = torch.from_file(str(tmp_path / "far"), True, 2**31 + 128, dtype=torch.float16)
    strides = list(x.high.stride())
    strides[axis] = 2**30
    moved = far.as_strided(x.high.shape, strides).copy_(x.high.detach())
    with oc.backend("triton"), torch.no_grad():
        actual, expected = layer(oc.Octave(moved, x.low)), layer(x)
    assert torch.equal(actual.high, expected.high)
    assert torch.equal(actual.low, expected.low)


@on_device
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast_keeps_the_dtype_of_a_dense_layer(dtype):
    layer, x = problem(kernel=1)
    with torch.autocast(DEVICE, dtype), oc.backend("triton"):
        y = layer(x)
    expected = layer(x)
    for part, exact in zip(y, expected):
        assert part.dtype == dtype
        assert_close(part, exact)
    (y.high.float().sum() + y.low.float().sum()).backward()
    assert layer.weight.grad.dtype == torch.float32


@on_device
@pytest.mark.parametrize(
    "case",
    quick(["stride from high", "grouped stride", "depthwise cut", "low to high"], ["depthwise cut", "low to high"]),
)
def test_opcheck(case):
    layer, x = problem(**CASES[case])
    spec = layer.spec
    weight = layer.weight.detach().requires_grad_()
    conv = weight, None, spec.outputs.high, spec.stride, spec.dilation, spec.groups
    checks = ["test_schema", "test_autograd_registration", "test_faketensor"]
    if not INTERPRETED:  # it compiles
        checks.append("test_aot_dispatch_dynamic")
    torch.library.opcheck(triton().operator, (*x, *conv, *[None] * 3, False, False, *[None] * 5), test_utils=checks)


@on_device
def test_export_saved_and_loaded():
    layer, x = problem(**CASES["even size"])
    sizes = {0: torch.export.Dim.DYNAMIC, 2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC}
    buffer = io.BytesIO()
    with oc.backend("triton"):
        program = torch.export.export(layer, (x,), dynamic_shapes=(oc.Octave(sizes, sizes),))
        torch.export.save(program, buffer)
        _, other = problem(**CASES["even size"] | dict(size=(5, 6), batch=3))
        expected = layer(other)
    buffer.seek(0)
    y = torch.export.load(buffer).module()(other)
    assert torch.equal(y.high, expected.high)
    assert torch.equal(y.low, expected.low)


@on_device
def test_an_empty_batch():
    layer, x = problem(**CASES["even size"])
    with oc.backend("triton"):
        y = layer(oc.octave_map(lambda part: part[:0], x))
    assert (y.high.shape, y.low.shape) == ((0, 4, 8, 12), (0, 3, 4, 6))


@on_device
def test_errors():
    layer, x = problem(kernel=1)
    fused, call = triton().fused, (layer.weight, layer.bias, layer.spec)
    with pytest.raises(ValueError, match=r"the low part is torch.float16 on .*, the input torch.float32 .*autocast"):
        fused(oc.Octave(x.high, x.low.half()), *call)
    with pytest.raises(ValueError, match=r"the low part has the shape \[2, 2, 9, 7\], expected \[2, 2, 5, 4\]"):
        fused(oc.Octave(x.high, x.high[:, :2]), *call)
    with pytest.raises(ValueError, match=r"the residual's high part has the shape \[2, 3, 9, 7\], expected"):
        fused(x, *call, residual=x)
    with pytest.raises(ValueError, match=r"the weight has the shape \[7, 5, 1, 1\], expected \[7, 3, 1, 1\]"):
        fused(oc.Octave(x.high, None), *call)
    with pytest.raises(NotImplementedError, match="train with octconv"):
        fused(x, *call, relu=True)
    layer, x = problem(**CASES["stride"])
    with pytest.raises(ValueError, match="pooled maps need stride 1"), torch.no_grad():
        fused(x, layer.weight, layer.bias, layer.spec, with_pooled=True)


@pytest.mark.gpu
@pytest.mark.parametrize("configuration", range(5))
@pytest.mark.parametrize("case", ["3x3", "pointwise, many channels", "depthwise"])
def test_every_configuration(case, configuration):
    check(*problem(**CASES[case]))


@pytest.mark.gpu
@pytest.mark.parametrize("case", ["3x3", "depthwise"])
def test_tuned_and_compiled_by_inductor(case, monkeypatch):
    """As users run it: in the configuration that is the fastest, and by Inductor, values and gradients."""
    layer, x = problem(**CASES[case])
    expected = outputs_and_gradients(layer, x, "reference")
    compiled = torch.compile(layer, fullgraph=True)
    compiled.weight, compiled.bias = layer.weight, layer.bias
    for name, actual in outputs_and_gradients(compiled, x, "triton").items():
        assert_close(actual, expected[name], name)


@pytest.mark.parametrize("case", CASES)
def test_flops_are_those_of_the_merged_backend(case):
    layer, x = problem(**CASES[case], device="meta")
    counts = []
    for backend in ("triton", "merged"):
        with oc.backend(backend), FlopCounterMode(display=False) as counter:
            layer(x)
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] > 0


def test_cost_counts_the_operator():
    layers = oc.OctConv2d(3, 8, 3, padding=1, alpha_out=0.5), oc.OctConv2d(8, 8, 3, 2, 1, alpha_in=0.5, alpha_out=0.5)
    with oc.backend("triton"):
        report = oc.cost(torch.nn.Sequential(*layers), input_size=(3, 9, 11))
    assert report.macs == report.counted_macs > 0


@on_host
@pytest.mark.parametrize("case", ["3x3", "depthwise"])
def test_compiled_it_is_one_launch(case):
    """No graph break, forward and backward can be traced, and the kernel is known to write its outputs alone."""
    from torch._dynamo.backends.common import aot_autograd
    from triton_resources import h100

    graphs = []

    def stop(graph, inputs):
        graphs.append(graph)
        raise NotImplementedError("nothing to run this on")

    layer, x = problem(**CASES[case], device="meta")
    compiled = torch.compile(layer, fullgraph=True, dynamic=False, backend=aot_autograd(fw_compiler=stop))
    with pytest.raises(Exception, match="nothing to run this on"), oc.backend("triton"), h100():
        compiled(x)
    calls = [node for node in graphs[0].graph.nodes if node.op == "call_function"]
    (launch,) = (node for node in calls if isinstance(node.target, torch._ops.HigherOrderOperator))
    assert launch.kwargs["tensors_to_clone"] == ["out_high", "out_low"]
    rest = {str(node.target) for node in calls if node is not launch and node.target is not operator.getitem}
    assert rest <= {"aten.empty.memory_format", "aten.clone.default"}


@on_host
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("name", ["3x3, 128 to 128", "depthwise 3x3, 128"])
def test_compiles_for_an_h100(name, dtype):
    """Every configuration of the dense kernel in bfloat16, the first of the others; see triton_resources.py."""
    import triton_resources

    (launch,) = triton_resources.launches(*triton_resources.example(name, dtype))
    dense = name.startswith("3x3")
    for config in launch[0].configs if dense and dtype == torch.bfloat16 else launch[0].configs[:1]:
        binary = triton_resources.compile_for_h100(launch, config)
        assert triton_resources.usage(binary)["reg"] > 0
        assert binary.metadata.shared <= 227 * 1024, config
        assert ("wgmma" in binary.asm["ptx"]) == (dense and dtype == torch.bfloat16)  # tensor cores; here without TF32
        assert ("cp.async" in binary.asm["ptx"]) == dense  # loads run ahead of the arithmetic


REFUSED = {
    "needs an NVIDIA GPU, and the input is on cpu: .* TRITON_INTERPRET=1": dict(),
    "not with padding_mode='reflect'": dict(padding_mode="reflect"),
    "without a high or a low part it is a plain convolution": dict(alphas=(0, 0)),
    "without a high or a low part it is a plain .*": dict(alphas=(1, 1)),
    "not in torch.float64": dict(dtype=torch.float64),
    "each of its groups must have": dict(channels=(4, 4), groups=2, alphas=(ChannelSplit(2, 2), ChannelSplit(2, 2))),
}


@on_host
@pytest.mark.parametrize("reason", REFUSED)
def test_a_call_that_it_cannot_run_is_refused_with_a_reason(reason):
    layer, x = problem(**REFUSED[reason], device="cpu")
    with pytest.raises(oc.BackendUnavailable, match=reason), oc.backend("triton"):
        layer(x)


@on_host
@pytest.mark.parametrize(
    "layer",
    [
        oc.OctConv1d(4, 4, 1, alpha_in=0.5, alpha_out=0.5),
        oc.OctConv3d(4, 4, 1, alpha_in=0.5, alpha_out=0.5),
        oc.OctConv2d(4, 4, 1, alpha_in=0.5, alpha_out=0.5, factor=(1, 2)),
        oc.OctConvTranspose2d(4, 4, 2, 2, alpha_in=0.5, alpha_out=0.5),
    ],
    ids=["1d", "3d", "half the width", "transposed"],
)
def test_other_maps_and_transposed_convolutions_are_refused(layer):
    x = random_octave(4, 0.5, (4, 4, 4)[: layer.axes], factor=layer.spec.factor, device="meta")
    with pytest.raises(oc.BackendUnavailable, match="half their height and width, and has no"), oc.backend("triton"):
        layer.to("meta")(x)


@on_host
def test_it_takes_new_gpus_alone_and_only_if_asked_for(monkeypatch):
    pretend_gpu(monkeypatch, 8)
    x, spec = on_cuda()
    assert backends.choose(x, spec).name == "merged"
    with oc.backend("triton", "merged"):
        assert backends.choose(x, spec).name == "triton"
        assert backends.choose(oc.octave_map(lambda part: torch.empty(part.shape), x), spec).name == "merged"
        pretend_gpu(monkeypatch, 7)
        assert backends.choose(x, spec).name == "merged"
    assert "compute capability 8.0 or more, and cuda:0 has 7.x" in backends.reasons(x, spec)["triton"]


@on_host
def test_a_counter_made_before_the_operator_misses_nothing(monkeypatch):
    """It copies the formulas when it is made, and the operator's comes with the first call."""
    pretend_gpu(monkeypatch, 9)
    triton()
    x, spec = on_cuda()
    with oc.backend("triton", "merged"):
        with FlopCounterMode(display=False):
            assert backends.choose(x, spec).name == "triton"
            monkeypatch.delitem(sys.modules, "octaveconv.backends.triton")
            assert backends.choose(x, spec).name == "merged"
            assert "import octaveconv.backends.triton first" in backends.reasons(x, spec)["triton"]
        assert backends.choose(x, spec).name == "triton"


@pytest.mark.skipif(not INTERPRETED, reason="needs the interpreter")
def test_the_interpreter_runs_if_asked_for_and_not_compiled(monkeypatch):
    x, spec = on_cuda()
    assert backends.choose(x, spec).name == "merged"
    assert backends.reasons(x, spec)["triton"] == "can run"
    monkeypatch.setattr(torch.compiler, "is_dynamo_compiling", lambda: True)
    assert "start Python without TRITON_INTERPRET" in backends.reasons(x, spec)["triton"]


@on_host
def test_without_triton(monkeypatch):
    monkeypatch.setattr(backends._triton_choice, "_INSTALLED", False)
    assert backends.reasons(*on_cuda())["triton"] == "Triton is not installed: pip install triton"
