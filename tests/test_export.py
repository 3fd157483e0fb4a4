"""Exported files: they output what the network does, at every batch size, or they do not appear."""

import importlib
import json
import subprocess
import sys

import onnx
import pytest
import torch
from networks import ALPHAS, every_block, few_layers, image, settle, shallow
from torch import nn

import octaveconv as oc
from octaveconv import cli
from octaveconv.errors import MissingExtra, UsageError
from octaveconv.export import FORMATS, export, load
from octaveconv.verbs import export as verb

creating = importlib.import_module("octaveconv.models.create")
exporting = importlib.import_module("octaveconv.export")  # the module; oc.export is the function
ODD = (33, 57)


def block():
    """A small octave network with two upsamplings."""
    return nn.Sequential(
        oc.OctConv2d(3, 8, 3, padding=1, alpha_out=0.5),
        oc.OctBatchNorm2d(8, alpha=0.5),
        oc.OctConv2d(8, 8, 3, padding=1, alpha_in=0.5, alpha_out=0.25),
        oc.OctMap(nn.ReLU()),
        oc.Merge(),
    ).eval()


def exported(model, tmp_path, format, size=ODD):
    """Export, load, and compare at other batch sizes than `export` itself does."""
    path = tmp_path / f"model{FORMATS[format]}"
    differences = export(model, image(1, 3, *size), path, format=format)
    assert set(differences) == {1, 3}
    assert max(differences.values()) < 2e-5
    run = load(path, format=format)
    for batch in (2, 5):
        x = image(batch, 3, *size)
        with torch.no_grad():
            expected = model(x)
        assert (run(x) - expected).abs().max() <= 2e-5 * expected.abs().max()
    return path


@pytest.mark.slow
def test_a_block_with_a_stride_and_groups(tmp_path):
    """For OpenVINO, of which ONNX is the first step."""
    _, _, _, _, first, strided, *_ = every_block()
    exported(settle(nn.Sequential(nn.Conv2d(3, 16, 1), first, strided, oc.Merge())), tmp_path, "openvino", (17, 12))


@pytest.mark.slow
def test_every_block(tmp_path):
    exported(settle(every_block()), tmp_path, "openvino", (57, 33))
    assert sorted(file.name for file in tmp_path.iterdir()) == ["model.bin", "model.xml"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "format"),
    [
        ("oct_resnext50_32x4d", "onnx"),
        ("oct_mobilenetv2_100", "onnx"),
        ("oct_densenet121", "onnx"),
        ("oct_resnet18", "openvino"),
        ("oct_seresnetv2_50", "openvino"),
    ],
)
def test_families(name, format, tmp_path):
    exported(shallow(name, ALPHAS[name][0], tiny=True).eval(), tmp_path, format, ODD if format == "onnx" else ODD[::-1])


def test_a_file_for_our_own_engine(tmp_path, quickly):
    path = exported(block(), tmp_path, "octave")
    assert oc.load_deployed(path)(image(2, 3, 12, 9)).shape == (2, 8, 12, 9)
    with pytest.raises(RuntimeError, match=r"PyTorch runs a part: aten\.softmax\.int in module 1"):
        export(nn.Sequential(block(), nn.Softmax(1)), image(1, 3, 8, 8), tmp_path / "softmax.octave")


SIGNALS = """
import signal, subprocess, sys
from pathlib import Path
from octaveconv.export import load
signal.signal(signal.SIGCHLD, lambda *_: print("signal"))
first, second = (load(Path(sys.argv[1]), format="openvino") for _ in range(2))
del first
del second
subprocess.run(["true"])
"""


@pytest.mark.slow
def test_signals_can_be_handled_after_two_openvino_networks(tmp_path):
    export(nn.Conv2d(3, 4, 1).eval(), image(1, 3, 8, 8), tmp_path / "m.xml", format="openvino")
    done = subprocess.run([sys.executable, "-c", SIGNALS, tmp_path / "m.xml"], capture_output=True, text=True)
    assert (done.returncode, done.stdout[:7]) == (0, "signal\n"), done.stderr


@pytest.mark.slow
def test_aoti(tmp_path):
    """A layer, for its compiler takes seconds for each."""
    layer = oc.OctConv2d(3, 4, 1, alpha_out=0.5)
    exported(nn.Sequential(layer, oc.Merge()).eval(), tmp_path, "aoti", (17, 12))


@pytest.mark.parametrize("alpha", [0, 1])
def test_the_ends_of_alpha(alpha, tmp_path):
    exported(few_layers(alpha).eval(), tmp_path, "pt2", (40, 40))


def test_a_pt2_file_holds_operations_that_other_runtimes_know(tmp_path):
    """ExecuTorch refuses others than the core ones; Core ML crops no upsampling that has both a size and a factor."""
    graph = torch.export.load(exported(block(), tmp_path, "pt2", (9, 7))).graph
    operations = {node.target for node in graph.nodes if node.op == "call_function"}
    assert torch.ops.aten.upsample_nearest2d.vec in operations
    for operation in operations:
        composite = torch._C._dispatch_has_kernel_for_dispatch_key(operation.name(), "CompositeImplicitAutograd")
        assert torch.Tag.core in operation.tags or composite, operation


@pytest.mark.parametrize(("size", "slices"), [pytest.param((16, 12), 0, marks=pytest.mark.slow), ((9, 7), 2)])
def test_onnx_upsamples_by_resize(size, slices, tmp_path):
    graph = onnx.load(exported(block(), tmp_path, "onnx", size)).graph
    kinds = [node.op_type for node in graph.node]
    assert kinds.count("Resize") == 2
    assert kinds.count("Slice") == 2 * slices
    assert not {"Expand", "Tile", "BatchNormalization", "Gather"} & set(kinds)
    for node in graph.node:
        attributes = {item.name: onnx.helper.get_attribute_value(item) for item in node.attribute}
        if node.op_type == "Resize":
            modes = [attributes[key] for key in ("mode", "coordinate_transformation_mode", "nearest_mode")]
            assert modes == [b"nearest", b"asymmetric", b"floor"]
    assert [entry.dim_param for entry in graph.input[0].type.tensor_type.shape.dim][1:] == ["", "", ""]
    assert graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"


def test_the_network_is_taken_in_evaluation_mode_and_not_changed(tmp_path):
    model = block().train()
    state = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    path = tmp_path / "new" / "model.pt2"
    export(model, image(4, 3, 8, 8), path, format="pt2")
    assert all(module.training for module in model.modules())
    assert all(torch.equal(tensor, state[key]) for key, tensor in model.state_dict().items())
    x = image(2, 3, 8, 8)
    answer = load(path, format="pt2")(x)
    assert not answer.requires_grad
    assert torch.allclose(answer, model.eval()(x), atol=1e-5)


@pytest.mark.parametrize(
    ("format", "file", "message"),
    [
        ("onx", "m.onnx", "there is no export format 'onx': did you mean onnx?"),
        ("tflite9000", "m", "choose one of onnx, openvino, pt2, aoti"),
        ("onnx", "m.pt2", "must end in .onnx"),
        ("openvino", "m.onnx", "must end in .xml"),
        ("aoti", "m.so", "must end in .pt2"),
        (None, "m.so", "the ending of .*m.so names no export format: use .onnx, .xml, .pt2"),
    ],
)
def test_wrong_use(format, file, message, tmp_path):
    with pytest.raises(UsageError, match=message):
        export(block(), image(1, 3, 8, 8), tmp_path / file, format=format)
    assert not list(tmp_path.iterdir())


def test_the_ending_decides_the_format(tmp_path):
    assert oc.export is export
    export(block(), (image(1, 3, 8, 8),), str(tmp_path / "m.pt2"))
    assert load(str(tmp_path / "m.pt2"))(image(2, 3, 8, 8)).shape == (2, 8, 8, 8)
    for name, format in (("m.onnx", "onnx"), ("m.xml", "openvino"), ("m.pt2", "pt2")):
        assert exporting.check(None, tmp_path / name) == format
    with pytest.raises(UsageError, match=r"names no export format: use .onnx, .xml, .pt2"):
        load(tmp_path / "m.so")


@pytest.mark.parametrize("inputs", [(), (torch.zeros(1, 3, 8, 8),) * 2, [torch.zeros(1, 3, 8, 8)], (8, 8)])
def test_only_one_input(inputs, tmp_path):
    with pytest.raises(UsageError, match=r"must be one tensor of images \[N, C, H, W\], or a tuple of one, got"):
        export(block(), inputs, tmp_path / "m.pt2")


@pytest.mark.parametrize("function", [oc.deploy, lambda model, x: export(model, x, "never.pt2")])
@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.zeros(1, 2, 8, 8), r"itself fails on inputs \[1, 2, 8, 8\] .* give example_inputs that it accepts$"),
        (torch.zeros(0, 3, 8, 8), "hold no image: give at least one"),
        (torch.zeros(3, 8, 8), r"itself fails on|takes images \[N, C, H, W\]"),
    ],
)
def test_an_example_is_one_that_the_network_takes(function, x, message):
    with pytest.raises(UsageError, match=message):
        function(block(), x)


def test_deploy_names_the_dtype_of_the_network():
    with pytest.raises(UsageError, match=r"give example_inputs that it accepts, of torch\.float32 as its weights are"):
        oc.deploy(block(), torch.zeros(1, 3, 8, 8).double())


def test_only_float32_on_the_cpu(tmp_path):
    for model, x, given in (
        (block(), image(1, 3, 8, 8).half(), r"torch.float16 and tensors on cpu"),
        (block().to("meta"), image(1, 3, 8, 8), r"torch.float32 and tensors on cpu, meta"),
    ):
        message = rf"float32 on the CPU, got an example of {given}: use .float\(\).cpu\(\)"
        with pytest.raises(ValueError, match=message):
            export(model, x, tmp_path / "m.pt2", format="pt2")


@pytest.mark.parametrize(
    ("format", "package"), [("onnx", "onnxscript"), ("onnx", "onnxruntime"), ("openvino", "openvino")]
)
def test_a_missing_package_is_named(format, package, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtra, match=rf"needs {package}.*octaveconv\[export\]"):
        export(block(), image(1, 3, 8, 8), tmp_path / f"m{FORMATS[format]}", format=format)
    assert not list(tmp_path.iterdir())


def test_loading_a_file_of_another_format(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no file"):
        load(tmp_path / "m.onnx", format="onnx")
    with pytest.raises(UsageError, match="did you mean onnx"):
        load(tmp_path / "m.onnx", format="onxx")
    for format, suffix in FORMATS.items():
        file = tmp_path / f"broken{suffix}"
        file.write_bytes(b"nothing of the kind")
        with pytest.raises(RuntimeError, match=f"cannot be read as {format}"):
            load(file, format=format)


def test_threads_reach_the_runtimes(tmp_path, monkeypatch):
    import onnxruntime
    import openvino

    seen = []
    monkeypatch.setattr(onnxruntime, "InferenceSession", lambda file, options, **_: seen.append(options) or options)
    monkeypatch.setattr(openvino.Core, "compile_model", lambda self, *arguments: seen.append(arguments[-1]))
    (tmp_path / "m").touch()
    load(tmp_path / "m", format="openvino", threads=3)
    assert seen.pop()["INFERENCE_NUM_THREADS"] == 3
    load(tmp_path / "m", format="openvino")
    assert "INFERENCE_NUM_THREADS" not in seen.pop()
    with pytest.raises(RuntimeError):
        load(tmp_path / "m", format="onnx", threads=3)
    assert seen.pop().intra_op_num_threads == 3


def wrong_answer(path, format):
    return lambda x: torch.randn(len(x), 8, *x.shape[2:])


def not_a_number(path, format):
    return lambda x: torch.full((len(x), 8, *x.shape[2:]), float("nan"))


def other_shape(path, format):
    return lambda x: torch.zeros(len(x), 1)


def right_at_batch_1(path, format):
    run = load(path, format=format)
    return lambda x: run(x) if len(x) == 1 else run(x) + 1


def unreadable(path, format):
    raise RuntimeError("cannot be read")


def stopped(path, format):
    raise KeyboardInterrupt


@pytest.mark.parametrize("fault", [wrong_answer, stopped])
def test_a_file_that_fails_the_check_does_not_appear(fault, tmp_path, monkeypatch):
    monkeypatch.setattr(exporting, "load", fault)
    with pytest.raises((RuntimeError, KeyboardInterrupt)):
        export(block(), image(1, 3, 8, 8), tmp_path / "m.pt2", format="pt2")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("fault", [wrong_answer, not_a_number, other_shape, right_at_batch_1, unreadable, stopped])
def test_a_file_that_fails_the_check_leaves_the_one_before(fault, tmp_path, monkeypatch):
    monkeypatch.setattr(exporting, "load", fault)
    (tmp_path / "m.pt2").write_text("the one before")
    with pytest.raises((RuntimeError, KeyboardInterrupt)):
        export(block(), image(1, 3, 8, 8), tmp_path / "m.pt2", format="pt2")
    assert [file.read_text() for file in tmp_path.iterdir()] == ["the one before"]


def test_a_network_that_cannot_be_captured_leaves_no_file(tmp_path):
    class Erratic(nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    with pytest.raises(RuntimeError, match="onnx cannot express this network"):
        export(Erratic(), image(1, 3, 8, 8), tmp_path / "m.onnx", format="onnx")
    assert not list(tmp_path.iterdir())


def test_weights_of_one_export_never_lie_beside_the_network_of_another(tmp_path, monkeypatch):
    path = tmp_path / "m.xml"
    for file in (path, path.with_suffix(".bin")):
        file.write_text("old")
    (tmp_path / "new").mkdir()
    for name in ("m.xml", "m.bin"):
        (tmp_path / "new" / name).write_text("new")

    def link(source, target):
        assert target.suffix == ".bin"
        raise OSError("the disk is full")

    with monkeypatch.context() as broken:
        broken.setattr(exporting, "link", link)
        with pytest.raises(OSError, match="full"):
            exporting._put_in_place(tmp_path / "new" / "m.xml", path)
    assert not path.exists()
    exporting._put_in_place(tmp_path / "new" / "m.xml", path)
    assert path.read_text() == path.with_suffix(".bin").read_text() == "new"


class Rounding(nn.Module):
    """Loses digits, as a very deep network does."""

    def forward(self, x):
        return (x + 3000) - 3000


def test_a_network_that_amplifies_rounding_is_allowed_its_own():
    model, x = Rounding(), image(1, 3, 8, 8)
    assert max(exporting._compare(model, lambda x: model(x) + 2e-4, x, "onnx").values()) > exporting.TOLERANCE
    with pytest.raises(RuntimeError, match=r"of onnx differs by 1.*e-03 of its standard deviation at batch 1"):
        exporting._compare(model, lambda x: model(x) + 1e-3, x, "onnx")
    with pytest.raises(RuntimeError, match="at most 1e-04 is allowed"):
        exporting._compare(nn.Identity(), lambda x: x + 2e-4, x, "onnx")


def run(capsys, *argv):
    try:
        code = cli.main(["export", *argv])
    except SystemExit as stop:
        code = stop.code
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def with_few_layers(name, alpha, *_, **__):
    """In place of the network of this name."""
    model = few_layers(alpha)
    model.alpha, model.num_classes, model.model_args = alpha, 10, {}
    return model


def test_verb(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(creating, "create", with_few_layers)
    file = tmp_path / "m.pt2"
    code, out, _ = run(
        capsys, "oct_resnet18", "--alpha", "0.5", "--format", "pt2", "--out", str(file), "--size", "33", "--runs", "2",
        "--threads", "1", "--json", str(tmp_path / "m.json"),
    )  # fmt: skip
    assert code == 0
    assert "alpha 0.5, weights random, seed 0; batches of any size of images of 33x33 pixels" in out
    figures = json.loads((tmp_path / "m.json").read_text())
    assert figures["seconds"].keys() == figures["macs"].keys() == {"octave", "dense twin"}
    assert figures["s"] == figures["seconds"]["dense twin"]["median"] / figures["seconds"]["octave"]["median"]
    assert figures["t"] == figures["macs"]["dense twin"] / figures["macs"]["octave"]
    assert f"its dense twin; T = {figures['t']:.3f}" in out
    assert figures["difference"]["1"] < 1e-4
    assert figures["runtime"] == {"torch": figures["torch"]}
    assert "2 interleaved runs, each after 12 ms of sleep and 30 ms of untimed calls" in out
    assert (figures["pause_s"], figures["warm_s"]) == (0.012, 0.03)
    assert load(file, format="pt2")(image(4, 3, 33, 33)).shape == (4, 10)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.json", "m.pt2"]


def test_verb_without_timing_and_a_dense_network(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(creating, "create", with_few_layers)
    arguments = ("oct_resnet18", "--alpha", "0", "--format", "pt2", "--out", str(tmp_path / "m.pt2"), "--size", "32")
    code, out, _ = run(capsys, *arguments, "--no-timing")
    assert code == 0
    assert "it outputs what the network does" in out
    assert "Conditions" not in out
    code, out, _ = run(capsys, *arguments, "--runs", "2")
    assert code == 0
    assert "there is no twin to compare it with" in out


def test_a_loss_is_called_a_loss():
    assert "it is slower: it takes 1.250 times as long as" in verb.verdict(dict(format="onnx", s=0.8, t=1.3))
    assert "it is 1.200 times as fast as" in verb.verdict(dict(format="onnx", s=1.2, t=1.3))


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["oct_resnet18", "--format", "onnx"], "required: --out"),
        (["oct_resnet18", "--out", "m.tflite"], "names no export format: use .onnx, .xml, .pt2"),
        (["oct_resnet18", "--format", "onx", "--out", "m.onnx"], "did you mean onnx?"),
        (["oct_resnet18", "--format", "onnx", "--out", "m.pt2"], "must end in .onnx"),
        (["oct_resnet1", "--format", "pt2", "--out", "m.pt2"], "did you mean oct_resnet1"),
        (["oct_resnet18", "--alpha", "2", "--format", "pt2", "--out", "m.pt2"], "must be in [0, 1]"),
        (["oct_resnet18", "--format", "pt2", "--out", "m.pt2", "--runs", "1"], "--runs must be at least 2"),
    ],
)
def test_wrong_use_exits_with_2(capsys, tmp_path, monkeypatch, argv, message):
    monkeypatch.chdir(tmp_path)
    code, out, err = run(capsys, *argv)
    assert (code, out) == (2, "")
    assert message in err
    assert len(err.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_a_failed_check_exits_with_1(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(exporting, "exported", lambda *_: None)  # which takes seconds
    monkeypatch.setattr(exporting, "folded", lambda program: None)
    monkeypatch.setattr(exporting, "_write", lambda format, graph, example, part: part.touch())
    monkeypatch.setattr(exporting, "load", lambda *_, **__: None)
    monkeypatch.setattr(exporting, "_compare", lambda *_: (_ for _ in ()).throw(RuntimeError("it differs")))
    arguments = ("oct_resnet18", "--format", "pt2", "--out", str(tmp_path / "m.pt2"), "--size", "32")
    assert run(capsys, *arguments) == (1, "", "octaveconv: it differs\n")
    assert not list(tmp_path.iterdir())
    code, _, err = run(capsys, *arguments[:-3], "/proc/nowhere/m.pt2")
    assert code == 1
    assert len(err.splitlines()) == 1
