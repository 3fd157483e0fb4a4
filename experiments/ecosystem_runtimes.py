"""What ecosystem.py tries with other runtimes and quantisers."""

import io
import subprocess
import tempfile
from pathlib import Path

import torch
from ecosystem_checks import IMAGE, check, correlation, difference, network, octavified

import octaveconv as oc


def onnx_session(model, **arguments):
    """A session of the exported network, as a function, and the file."""
    import onnxruntime

    file = io.BytesIO()
    torch.onnx.export(model, (IMAGE,), file, input_names=["x"], **arguments)
    session = onnxruntime.InferenceSession(file.getvalue(), providers=["CPUExecutionProvider"])
    return lambda x: torch.from_numpy(session.run(None, {"x": x.numpy()})[0]), file.getvalue()


@check("onnxruntime", "torch.onnx.export(dynamo=False), opsets 11 and 17, at another size")
def onnx_legacy():
    model, axes = network(), {"x": {0: "n", 2: "h", 3: "w"}}
    found = [onnx_session(model, dynamo=False, opset_version=opset, dynamic_axes=axes)[0] for opset in (11, 17)]
    x = IMAGE[..., :48, :51]
    return [difference(run(x), model(x)) for run in found][-1]


@check("onnxruntime", "torch.onnx.export(dynamo=True)")
def onnx_dynamo():
    model = network()
    return difference(onnx_session(model, dynamo=True)[0](IMAGE), model(IMAGE))


@check("onnxruntime", "static int8 (QDQ) of the exported network")
def onnx_int8():
    import onnxruntime
    from onnxruntime.quantization import CalibrationDataReader, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Images(CalibrationDataReader):
        def __init__(self):
            self.left = iter([{"x": IMAGE.numpy()}] * 2)

        def get_next(self):
            return next(self.left, None)

    model = network()
    with tempfile.TemporaryDirectory() as folder:
        plain, ready, small = (str(Path(folder) / f"{name}.onnx") for name in ("plain", "ready", "int8"))
        Path(plain).write_bytes(onnx_session(model, dynamo=False, opset_version=17)[1])
        quant_pre_process(plain, ready)
        quantize_static(ready, small, Images())
        session = onnxruntime.InferenceSession(small, providers=["CPUExecutionProvider"])
        found = torch.from_numpy(session.run(None, {"x": IMAGE.numpy()})[0])
    return correlation(found, model(IMAGE))


def pt2e(model):
    """Quantise an exported program, and compare."""
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

    quantizer = x86.X86InductorQuantizer().set_global(x86.get_default_x86_inductor_quantization_config())
    prepared = prepare_pt2e(model, quantizer)
    prepared(IMAGE)
    return correlation(convert_pt2e(prepared)(IMAGE), network()(IMAGE))


@check("torchao", "PT2E static int8 (X86InductorQuantizer) of torch.export's program", expected="fails")
def pt2e_of_export():
    return pt2e(torch.export.export(network(), (IMAGE,)).module())


@check("torchao", "PT2E static int8 (X86InductorQuantizer) of what octaveconv.export wrote as pt2")
def pt2e_of_file():
    with tempfile.TemporaryDirectory() as folder:
        oc.export(network(), IMAGE, f"{folder}/model.pt2")
        return pt2e(torch.export.load(f"{folder}/model.pt2").module())


@check("torchao", "int8 weights of the linear layers (quantize_)")
def torchao():
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    model = network()
    quantize_(model, Int8WeightOnlyConfig())
    return correlation(model(IMAGE), network()(IMAGE))


@check("openvino", "convert_model(module), at another size")
def openvino():
    import openvino

    model = network()
    run = openvino.compile_model(
        openvino.convert_model(model, example_input=torch.zeros(1, 3, 64, 64)),
        "CPU",
        {"INFERENCE_PRECISION_HINT": "f32"},
    )
    return difference(torch.from_numpy(run(IMAGE.numpy())[0]), model(IMAGE))


def models():
    """One of our networks, and an octavified one."""
    return network("oct_resnet18"), octavified()


def of_file(model):
    """What octaveconv.export writes as pt2, exported again for one size of batch."""
    with tempfile.TemporaryDirectory() as folder:
        oc.export(model, IMAGE, f"{folder}/model.pt2")
        return torch.export.export(torch.export.load(f"{folder}/model.pt2").module(), (IMAGE,))


def run_executorch(program):
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower
    from executorch.runtime import Runtime

    lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()])
    program = Runtime.get().load_program(lowered.to_executorch().buffer)
    return program.load_method("forward").execute([IMAGE])[0]


@check("executorch", "XNNPACK, of torch.export's program", expected="fails")
def executorch():
    model = network("oct_resnet18")
    return difference(run_executorch(torch.export.export(model, (IMAGE,))), model(IMAGE))


@check("executorch", "XNNPACK, of what octaveconv.export wrote as pt2")
def executorch_of_file():
    return [difference(run_executorch(of_file(model)), model(IMAGE)) for model in models()][-1]


@check("litert-torch", "convert, of the module and of what octaveconv.export wrote as pt2")
def litert():
    import litert_torch

    notes = []
    for model in models():
        for module in (model, of_file(model).module()):
            found = torch.as_tensor(litert_torch.convert(module, (IMAGE,))(IMAGE))
            notes.append(difference(found, model(IMAGE)))
    return notes[-1]


def convert_for_core_ml(program, **arguments):
    """Its operations and shapes: only macOS can run it."""
    import coremltools

    converted = coremltools.convert(program, convert_to="mlprogram", skip_model_load=True, **arguments)
    for pooling in converted._mil_program.functions["main"].find_ops(op_type="avg_pool"):
        assert pooling.exclude_padding_from_average.val, "a window over the edge is averaged with zeros"
    return "converts; not run, which needs macOS"


@check("coremltools", "convert, of torch.jit.trace")
def core_ml_of_trace():
    import coremltools

    shape = [coremltools.TensorType(shape=IMAGE.shape)]
    return [convert_for_core_ml(torch.jit.trace(model, IMAGE), inputs=shape) for model in models()][-1]


@check("coremltools", "convert, of torch.export's program", expected="fails")
def core_ml_of_export():
    return convert_for_core_ml(torch.export.export(network("oct_resnet18"), (IMAGE,)).run_decompositions({}))


@check("coremltools", "convert, of what octaveconv.export wrote as pt2")
def core_ml_of_file():
    return [convert_for_core_ml(of_file(model).run_decompositions({})) for model in models()][-1]


@check("ncnn", "pnnx of torch.jit.trace with inputshape and inputshape2, at another odd size", module="pnnx")
def ncnn_of_trace():
    import ncnn
    import pnnx

    notes = []
    with tempfile.TemporaryDirectory() as folder:
        for model in models():
            torch.jit.trace(model, IMAGE[:1]).save(f"{folder}/m.pt")
            program = Path(pnnx.__file__).with_name("pnnx")
            sizes = ("inputshape=[1,3,65,97]", "inputshape2=[1,3,96,64]", "fp16=0")
            subprocess.run([program, "m.pt", *sizes], cwd=folder, check=True, capture_output=True)
            net = ncnn.Net()
            options = net.opt
            options.use_fp16_storage = options.use_fp16_arithmetic = options.use_fp16_packed = False
            assert not net.load_param(f"{folder}/m.ncnn.param"), "a layer that ncnn does not know"
            net.load_model(f"{folder}/m.ncnn.bin")
            run = net.create_extractor()
            x = torch.randn(1, 3, 97, 131)
            run.input("in0", ncnn.Mat(x[0].numpy()).clone())
            notes.append(difference(torch.tensor(run.extract("out0")[1].numpy())[None], model(x)))
    return notes[-1]
