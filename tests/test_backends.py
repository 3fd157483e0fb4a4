"""Every backend against the reference, in values and every gradient; how one is chosen."""

import io
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch
from helpers import assert_close, outputs_and_gradients, random_octave

import octaveconv as oc
from octaveconv import backends
from octaveconv.octave import ChannelSplit
from octaveconv.spec import conv_spec

EVERYWHERE = [backend.name for backend in backends.BACKENDS.values() if backend.automatic]
FAST = [name for name in EVERYWHERE if name != "reference"]
CASES = {
    "first": dict(alpha_in=0, alpha_out=0.25),
    "inner": dict(alpha_in=0.25, alpha_out=0.5),
    "last": dict(alpha_in=0.5, alpha_out=0),
    "plain": dict(alpha_in=0, alpha_out=0),
    "all low": dict(alpha_in=1, alpha_out=1),
    "stride": dict(alpha_in=0.25, alpha_out=0.5, stride=2),
    "last stride": dict(alpha_in=0.25, alpha_out=0, stride=2),
    "stride on one axis": dict(alpha_in=0.25, alpha_out=0.5, stride=(1, 2)),
    "pointwise": dict(alpha_in=0.25, alpha_out=0.5, kernel_size=1, padding=0),
    "dilated": dict(alpha_in=0.25, alpha_out=0.5, dilation=2, padding=2),
    "grouped": dict(alpha_in=0.25, alpha_out=0.5, groups=2),
    "grouped stride": dict(alpha_in=0.25, alpha_out=0.5, groups=2, stride=2),
    "depthwise": dict(alpha_in=0.25, alpha_out=0.25, groups=16),
    "cut": dict(alpha_in=0.25, alpha_out=0.5, cut_in=2, cut_out=4),
    "concatenated": dict(alpha_in=ChannelSplit(3, 1).then(ChannelSplit(9, 3, 3)), alpha_out=ChannelSplit(8, 8, 4)),
    "reflected": dict(alpha_in=0.25, alpha_out=0.5, padding_mode="reflect"),
    "1d": dict(layer=oc.OctConv1d, alpha_in=0.25, alpha_out=0.5),
    "1d stride": dict(layer=oc.OctConv1d, alpha_in=0.25, alpha_out=0.5, stride=2),
    "3d": dict(layer=oc.OctConv3d, alpha_in=0.25, alpha_out=0.5),
    "3d stride": dict(layer=oc.OctConv3d, alpha_in=0.25, alpha_out=0.5, stride=2),
    "3d stride on time": dict(layer=oc.OctConv3d, alpha_in=0.25, alpha_out=0.5, stride=(2, 1, 1)),
    "3d half the time": dict(layer=oc.OctConv3d, alpha_in=0.25, alpha_out=0.5, factor=2),
    "3d grouped": dict(layer=oc.OctConv3d, alpha_in=0.25, alpha_out=0.5, groups=2),
    "3d reflected": dict(layer=oc.OctConv3d, alpha_in=0.25, alpha_out=0.5, padding_mode="reflect"),
    "up": dict(layer=oc.OctConvTranspose2d, alpha_in=0.25, alpha_out=0.5, kernel_size=4, stride=2),
    "up first": dict(layer=oc.OctConvTranspose2d, alpha_in=0, alpha_out=0.5, stride=2, output_padding=1),
    "up last": dict(layer=oc.OctConvTranspose2d, alpha_in=0.25, alpha_out=0, stride=2),
    "up all low": dict(layer=oc.OctConvTranspose2d, alpha_in=1, alpha_out=1, stride=2),
    "up from low": dict(layer=oc.OctConvTranspose2d, alpha_in=1, alpha_out=0.5, stride=2),
    "up on one axis": dict(layer=oc.OctConvTranspose2d, alpha_in=0.25, alpha_out=0.5, stride=(1, 2)),
    "up grouped": dict(layer=oc.OctConvTranspose2d, alpha_in=0.25, alpha_out=0.5, stride=2, groups=2),
    "up depthwise": dict(layer=oc.OctConvTranspose2d, alpha_in=0.25, alpha_out=0.25, stride=2, groups=16),
    "up cut": dict(layer=oc.OctConvTranspose2d, alpha_in=0.25, alpha_out=0.5, stride=2, cut_in=2, cut_out=4),
    "transposed": dict(layer=oc.OctConvTranspose2d, alpha_in=0.25, alpha_out=0.5),
}
MEMORY_FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}  # by the dimensions of a map


def layer_of(case, dtype=torch.float32, device="cpu"):
    arguments = dict(layer=oc.OctConv2d, in_channels=16, out_channels=16, kernel_size=3, padding=1) | CASES[case]
    return arguments.pop("layer")(**arguments).to(device, dtype)


def input_of(layer, size, **options):
    """An octave for the layer, of two axes more or less as ``size`` says."""
    size = {1: size[:1], 2: size, 3: (3, *size)}[layer.axes]
    return random_octave(16, layer.alpha_in, size, factor=layer.spec.factor, **options)


def check_against_reference(layer, x, backend):
    expected = outputs_and_gradients(layer, x, "reference")
    for name, actual in outputs_and_gradients(layer, x, backend).items():
        assert_close(actual, expected[name], name)


@pytest.mark.parametrize("size", [(9, 7), (1, 1), (8, 12)])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("backend", FAST)
def test_against_reference(backend, case, size):
    if "reflected" in case and min(size) < 4:
        size = (4, 4)  # reflection needs a low map larger than the padding
    layer = layer_of(case)
    check_against_reference(layer, input_of(layer, size, requires_grad=True), backend)


@pytest.mark.parametrize("case", [case for case in CASES if "1d" not in case])
@pytest.mark.parametrize("backend", FAST)
def test_channels_last(backend, case):
    layer = layer_of(case)
    memory_format = MEMORY_FORMATS[layer.weight.dim()]
    layer = layer.to(memory_format=memory_format)
    x = input_of(layer, (9, 7))
    x = oc.octave_map(lambda part: part.contiguous(memory_format=memory_format).requires_grad_(), x)
    check_against_reference(layer, x, backend)
    if isinstance(layer, oc.OctConv2d) and "grouped" not in case:  # there, channels of both parts are interleaved
        y = layer(x)
        assert all(part.is_contiguous(memory_format=torch.channels_last) for part in y if part is not None)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("backend", FAST)
def test_noncontiguous(backend, case):
    layer = layer_of(case)
    every_second = (..., *[slice(None, None, 2)] * min(layer.axes, 2))
    x = oc.octave_map(lambda part: part[every_second].detach().requires_grad_(), input_of(layer, (18, 14)))
    check_against_reference(layer, x, backend)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("backend", FAST)
def test_autocast_keeps_the_dtype_of_a_dense_layer(backend, case, dtype):
    layer = layer_of(case)
    x = input_of(layer, (8, 8))
    expected = layer(x)
    with torch.autocast("cpu", dtype), oc.backend(backend):
        y = layer(x)
    for actual, exact in zip(y, expected):
        assert actual is None or actual.dtype == dtype
        assert_close(actual, exact)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("case", ["inner", "1d", "3d", "up"])
@pytest.mark.parametrize("backend", EVERYWHERE)
def test_dtypes(backend, case, dtype):
    layer = layer_of(case).to(dtype)
    x = input_of(layer, (9, 7), dtype=dtype)
    with oc.backend(backend):
        y = layer(x)
    exact = layer.double()(oc.octave_map(torch.Tensor.double, x))
    for actual, expected in zip(y, exact):
        assert_close(actual, expected)


@pytest.mark.parametrize(
    "case", ["stride", *(pytest.param(each, marks=pytest.mark.slow) for each in ("3d stride", "inner", "1d", "up"))]
)
@pytest.mark.parametrize("backend", FAST)
def test_compile(backend, case):
    """No graph break, equal values; eager graph execution, since code generation is Inductor's own business."""
    layer = layer_of(case)
    x = input_of(layer, (9, 7))
    with oc.backend(backend):
        expected, y = layer(x), torch.compile(layer, fullgraph=True, backend="aot_eager")(x)
    assert_close(y.high, expected.high)
    assert_close(y.low, expected.low)


def test_a_compiled_layer_follows_the_backend():
    """Traced outside and inside of the context, with the graph of the backend that is asked for at the time."""
    layer, convolutions = layer_of("inner"), []

    def count(graph, inputs):
        convolutions.append(sum("conv2d" in str(node.target) for node in graph.graph.nodes))
        return graph

    compiled = torch.compile(layer, fullgraph=True, backend=count)
    x = input_of(layer, (9, 7))
    expected = layer(x)

    def check():
        y = compiled(x)
        assert_close(y.high, expected.high)
        assert_close(y.low, expected.low)

    check()
    with oc.backend("reference"):
        check()
        in_other_thread(check)
    check()
    assert convolutions == [3, 4]  # the second call of each is not compiled again


def test_the_context_can_be_entered_in_a_compiled_function():
    layer = layer_of("inner")
    x = input_of(layer, (9, 7))

    @torch.compile(backend="eager")
    def function(x):
        with oc.backend("reference"):
            return layer(x)

    assert_close(function(x).low, layer(x).low)
    assert backends.choose(*_call()).name == "merged"


@pytest.mark.parametrize("case", ["inner", "1d", "3d", "up"])
def test_export_saved_and_loaded(case):
    layer = layer_of(case)
    x = input_of(layer, (9, 7))
    buffer = io.BytesIO()
    torch.export.save(torch.export.export(layer, (x,)), buffer)
    buffer.seek(0)
    y = torch.export.load(buffer).module()(x)
    assert isinstance(y, oc.Octave)
    assert_close(y.low, layer(x).low)


@pytest.mark.parametrize("size", [(9, 7), pytest.param((8, 8), marks=pytest.mark.slow)])
def test_onnx_at_odd_and_even_sizes(size, tmp_path):
    import onnxruntime

    net = torch.nn.Sequential(layer_of("first"), layer_of("inner"), oc.OctConv2d(16, 4, 1, alpha_in=0.5), oc.Merge())
    x = torch.randn(1, 16, *size)
    torch.onnx.export(net.eval(), (x,), dynamo=True, verbose=False).save(tmp_path / "net.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "net.onnx")
    (y,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    assert_close(torch.from_numpy(y), net(x).detach())


def test_compile_by_inductor_in_training():
    net = torch.nn.Sequential(layer_of("first"), oc.OctBatchNorm2d(16, alpha=0.25), oc.OctMap(torch.nn.ReLU()))
    x = torch.randn(2, 16, 9, 7)
    compiled = torch.compile(net, fullgraph=True)
    for module in (net, compiled):
        net[1].reset_running_stats()
        net.zero_grad()
        module(x).low.sum().backward()
        results = (net[0].weight.grad.clone(), net[1].running_mean.clone())
        if module is net:
            expected = results
    assert_close(results[0], expected[0], "weight gradient")
    assert_close(results[1], expected[1], "running mean")


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("backend", EVERYWHERE)
def test_on_gpu_against_float64(backend, case, dtype, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    layer = layer_of(case, dtype, "cuda")
    x = input_of(layer, (9, 7), dtype=dtype, device="cuda")
    with oc.backend(backend):
        y = layer(x)
    exact = layer.double()(oc.octave_map(torch.Tensor.double, x))
    for actual, expected in zip(y, exact):
        assert_close(actual, expected)


@pytest.mark.parametrize(
    ("case", "operation", "expected"),
    [("inner", "conv2d", 3), ("stride", "conv2d", 2), ("grouped", "conv2d", 3), ("grouped stride", "conv2d", 2)]
    + [("3d", "conv3d", 3), ("3d stride", "conv3d", 2), ("up", "conv_transpose2d", 3)],
)
def test_merged_needs_three_convolutions_and_at_stride_2_two(case, operation, expected, monkeypatch):
    calls = []
    function = getattr(torch.nn.functional, operation)
    monkeypatch.setattr(torch.nn.functional, operation, lambda *args: calls.append(1) or function(*args))
    layer = layer_of(case)
    layer(input_of(layer, (8, 8)))
    assert len(calls) == expected


def test_an_unknown_backend_lists_the_known():
    with pytest.raises(oc.BackendUnavailable, match="choose one of triton, merged, reference"), oc.backend("fast"):
        pass


def test_the_context_manager_nests_and_restores():
    x, spec = _call()
    with oc.backend("reference"):
        with oc.backend("merged"):
            assert backends.choose(x, spec).name == "merged"
        assert backends.choose(x, spec).name == "reference"
    assert backends.choose(x, spec).name == "merged"


def in_other_thread(function):
    """What a function returns in a new thread."""
    results = []
    thread = threading.Thread(target=lambda: results.append(function()))
    thread.start()
    thread.join()
    return results[0]


def test_every_thread_asks_for_itself():
    """Two threads enter, and leave in the order in which they came."""
    x, spec = _call()
    together, chosen = threading.Barrier(2, timeout=10), {}

    def ask(name, is_first):
        if not is_first:
            together.wait()  # the first has entered
        with oc.backend(name):
            if is_first:
                together.wait()
            together.wait()  # both have entered
            if not is_first:
                together.wait()  # the first has left
            chosen[name] = backends.choose(x, spec).name
        if is_first:
            together.wait()
        chosen[f"after {name}"] = backends.choose(x, spec).name

    threads = [threading.Thread(target=ask, args=args) for args in (("reference", True), ("merged", False))]
    [thread.start() for thread in threads], [thread.join() for thread in threads]
    assert chosen == {
        "reference": "reference",
        "merged": "merged",
        "after reference": "merged",
        "after merged": "merged",
    }
    assert backends.choose(x, spec).name == in_other_thread(lambda: backends.choose(x, spec).name) == "merged"


def test_a_thread_that_is_started_inside_chooses_automatically():
    x, spec = _call()
    with oc.backend("reference"):
        assert in_other_thread(lambda: backends.choose(x, spec).name) == "merged"


def test_of_several_names_the_first_that_can_run(monkeypatch):
    never = backends.Backend("never", backends.BACKENDS["merged"].run, lambda x, spec: "it is only a test")
    monkeypatch.setattr(backends, "BACKENDS", {"never": never, **backends.BACKENDS})
    x, spec = _call()
    with oc.backend("never", "reference", "merged"):
        assert backends.choose(x, spec).name == "reference"
    with pytest.raises(oc.BackendUnavailable, match="choose one of never, triton"), oc.backend("reference", "fast"):
        pass


def test_a_named_backend_that_cannot_run_says_why_and_automatic_choice_falls_back(monkeypatch):
    never = backends.Backend("never", backends.BACKENDS["merged"].run, lambda x, spec: "it is only a test")
    monkeypatch.setattr(backends, "BACKENDS", {"never": never, **backends.BACKENDS})
    x, spec = _call()
    assert backends.choose(x, spec).name == "merged"
    said = backends.reasons(x, spec)
    assert (said["never"], said["merged"], said["reference"]) == ("it is only a test", "can run", "can run")
    with pytest.raises(oc.BackendUnavailable, match="cannot run this call: it is only a test"), oc.backend("never"):
        backends.choose(x, spec)


def test_explain_says_which_backends_can_run_a_layer():
    layer = layer_of("inner")
    said = oc.explain(layer, input_of(layer, (9, 7)))
    assert list(said) == ["triton", "merged", "reference"]
    assert (said["merged"], said["reference"]) == ("can run", "can run")
    assert oc.explain(layer_of("first"), torch.ones(1, 16, 8, 8))["merged"] == "can run"
    with pytest.raises(TypeError, match="explain takes an octave convolution such as OctConv2d, got Conv2d"):
        oc.explain(torch.nn.Conv2d(3, 4, 1), torch.ones(1, 3, 8, 8))
    with pytest.raises(ValueError, match="this layer's input has 12 high and 4 low channels"):
        oc.explain(layer, torch.ones(1, 16, 8, 8))
    with pytest.raises(ValueError, match=r"of torch.float32 and the high part of its input of torch.float64"):
        oc.explain(layer_of("first"), torch.ones(1, 16, 8, 8).double())
    for given in (np.ones((1, 16, 8, 8)), "text", 3):
        with pytest.raises(TypeError, match=f"expected a Tensor or .* got {type(given).__name__}"):
            oc.explain(layer, given)


ASKED_FOR = """
import os, torch
for name in ("reference", "triton,merged", "fast"):
    if not os.fork():  # each imports octaveconv itself
        os.environ["OCTAVECONV_BACKEND"] = name
        import octaveconv as oc
        oc.OctConv2d(4, 4, 1)(torch.ones(1, 4, 2, 2))
        print(name, flush=True)
        os._exit(0)
    os.wait()
"""


def test_the_environment_variable():
    done = subprocess.run([sys.executable, "-c", ASKED_FOR], capture_output=True, text=True)
    assert done.stdout.split() == ["reference", "triton,merged"]
    assert "there is no backend 'fast'" in done.stderr


def _call():
    x = random_octave(16, 0.25, (8, 8))
    return x, conv_spec(2, 16, 16, 3, 1, 1, 1, 1, "zeros", 0.25, 0.25, None, None)
