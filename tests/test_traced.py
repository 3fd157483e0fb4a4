"""torch.jit.trace and what is built on it: the older ONNX exporter, OpenVINO's convert_model, pnnx."""

import io
import warnings

import pytest
import torch
from networks import settle, shallow
from torch import nn

import octaveconv as oc

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
SIZES = ((16, 24), (17, 13), (40, 9))  # traced at the first


def layers(dimensions, **arguments):
    conv = (oc.OctConv1d, oc.OctConv2d, oc.OctConv3d)[dimensions - 1]
    return nn.Sequential(
        conv(3, 8, 3, padding=1, alpha_out=0.5),
        conv(8, 8, 3, padding=1, alpha_in=0.5, alpha_out=0.25, **arguments),
        oc.OctMap(nn.ReLU()),
        conv(8, 8, 3, 2, 1, alpha_in=0.25, alpha_out=0.25),
        oc.Merge(),
    ).eval()


def strided():
    """Layers that stride by 2 without pooling."""
    both = dict(alpha_in=0.5, alpha_out=0.5, pool_strides=False)
    return nn.Sequential(
        oc.OctConv2d(3, 8, 3, 2, 1, alpha_out=0.5, pool_strides=False), oc.OctConv2d(8, 8, 3, 2, "same", **both),
        oc.OctConv2d(8, 8, 5, 2, "same", groups=8, **both), oc.Merge(),
    ).eval()  # fmt: skip


def images(size, dimensions=2, batch=1):
    size = size[:1] if dimensions == 1 else (5, *size) if dimensions == 3 else size
    return torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(0))


def traced(model, x):
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # it is deprecated
        return torch.jit.trace(model, x)


MODELS = {
    "series": (lambda: layers(1), 1),
    "images": (lambda: layers(2), 2),
    "groups": (lambda: layers(2, groups=2), 2),
    "videos": (lambda: layers(3), 3),
    "strides": (strided, 2),
    "alpha 1": (lambda: nn.Sequential(oc.OctConv2d(3, 8, 1, alpha_out=1.0), oc.Merge(), nn.MaxPool2d(2)), 2),
    "network": (lambda: settle(shallow("oct_resnet18", 0.25, tiny=True)).eval(), 2),
}


@pytest.mark.parametrize("kind", MODELS)
def test_a_trace_holds_for_other_sizes(kind):
    make, dimensions = MODELS[kind]
    model = make()
    recorded = traced(model, images(SIZES[0], dimensions))
    for size in SIZES:
        x = images(size, dimensions, batch=2)
        with torch.no_grad():
            assert torch.equal(recorded(x), model(x))


def test_a_trace_cuts_channels_by_slices():
    """pnnx takes ``narrow`` for a layer that ncnn has; the file it writes then does not load."""
    model = nn.Sequential(nn.Conv2d(3, 8, 1), oc.Split(8, 0.5), oc.Merge())
    kinds = {node.kind() for node in traced(model, images(SIZES[0])).inlined_graph.nodes()}
    assert "aten::narrow" not in kinds


def onnx_run(model, x, opset):
    """The legacy exporter's file, in ONNX Runtime."""
    onnxruntime = pytest.importorskip("onnxruntime")
    file = io.BytesIO()
    axes = {"x": {axis: f"size{axis}" for axis in range(x.dim()) if axis != 1}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is deprecated
        torch.onnx.export(
            model, (x,), file, dynamo=False, opset_version=opset, input_names=["x"], dynamic_axes=axes, verbose=False
        )
    session = onnxruntime.InferenceSession(file.getvalue(), providers=["CPUExecutionProvider"])
    return lambda x: torch.from_numpy(session.run(None, {"x": x.numpy()})[0])


@pytest.mark.parametrize(
    "kind", ["images", "groups", "videos", "strides", pytest.param("network", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("opset", [11, 17])
def test_the_older_onnx_exporter(kind, opset):
    make, dimensions = MODELS[kind]
    model = make()
    run = onnx_run(model, images(SIZES[0], dimensions), opset)
    for size in SIZES:
        x = images(size, dimensions, batch=2)
        with torch.no_grad():
            expected = model(x)
        assert (run(x) - expected).abs().max() <= 2e-6 * expected.abs().max()


@pytest.mark.parametrize("pixels", [4189, 4191, 16_385])
def test_pixels_stay_in_place_in_large_odd_maps(pixels):
    """A ratio of sizes, in float32, would take another pixel."""
    model = nn.Sequential(oc.OctConv1d(3, 4, 1, alpha_out=0.5), oc.Merge()).eval()
    x = images((pixels,), 1)
    with torch.no_grad():
        expected = model(x)
    assert torch.equal(traced(model, images(SIZES[0], 1))(x), expected)
    assert torch.equal(expected[:, 2:, ::2], model[0](x).low)
    run = onnx_run(model, images(SIZES[0], 1), 13)
    assert (run(x) - expected).abs().max() <= 1e-6


@pytest.mark.slow
def test_openvino_converts_the_module():
    openvino = pytest.importorskip("openvino")
    model = layers(2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        graph = openvino.convert_model(model, example_input=images(SIZES[0]))
    network = openvino.compile_model(graph, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    for size in SIZES:
        x = images(size, batch=2)
        with torch.no_grad():
            expected = model(x)
        assert (torch.from_numpy(network(x.numpy())[0]) - expected).abs().max() <= 2e-6 * expected.abs().max()


def test_script_is_refused_in_one_line():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is deprecated
        for model in (layers(2), shallow("oct_resnet18", 0.25, tiny=True)):
            with pytest.raises(
                RuntimeError, match=r"^torch\.jit\.script cannot compile Oct\w+, .*: use torch\.jit\.trace"
            ):
                torch.jit.script(model)
