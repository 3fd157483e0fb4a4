"""What ecosystem.py tries: one function for each thing, which returns a note, or raises if it does not work."""

import io
import tempfile
from pathlib import Path

import timm
import torch
from torch import nn

import octaveconv as oc
import octaveconv.models
from octaveconv.weights import read

CHECKS = []
IMAGE = torch.randn(2, 3, 65, 97, generator=torch.Generator().manual_seed(0))
SMALL = dict(layers=(1, 1, 1, 1), width=16, num_classes=10)


def check(package, tried, expected="works", module=None):
    """Register a function that tries something and returns a note; if it raises, the tool does not work."""

    def add(function):
        CHECKS.append((package, module or package.replace("-", "_"), tried, expected, function))
        return function

    return add


def network(name="oct_resnet50", alpha=0.25, **arguments):
    torch.manual_seed(0)
    return timm.create_model(name, alpha=alpha, **(SMALL | arguments)).eval()


def octavified():
    torch.manual_seed(0)
    return oc.octavify(timm.create_model("resnet18", num_classes=10).eval(), 0.25, torch.zeros(1, 3, 64, 64))[0]


def difference(found, expected):
    """The largest difference over the largest value; raises if it is more than rounding."""
    ratio = float((found - expected).abs().max() / expected.abs().max())
    if not ratio < 1e-4:
        raise AssertionError(f"the output differs by {ratio:.1e}")
    return f"largest difference {ratio:.0e}"


def share(counted, model):
    """Counted multiply-adds over ours, and over the dense network's."""
    report = oc.cost(model, input_size=tuple(IMAGE.shape[1:]))
    text = f"counts {counted / report.macs:.3f} of the multiply-adds"
    if not 0.95 < counted / report.macs < 1.1:
        raise AssertionError(f"{text}, {counted / report.dense.macs:.3f} of the dense network's")
    return text


@check("torch", "FlopCounterMode counts an octave network")
def flop_counter():
    from torch.utils.flop_counter import FlopCounterMode

    model = network()
    with FlopCounterMode(display=False) as counter:
        model(IMAGE[:1])
    return share(counter.get_total_flops() / 2, model)


@check("torch", "torch.jit.trace, at another odd size")
def traced():
    model = network()
    run = torch.jit.trace(model, torch.zeros(1, 3, 64, 64))
    return difference(run(IMAGE), model(IMAGE))


@check("torch", "torch.jit.script", expected="refused")
def scripted():
    torch.jit.script(network())


@check("torch", "torch.export with Dim.DYNAMIC for height and width")
def exported():
    model, dynamic = network(), torch.export.Dim.DYNAMIC
    program = torch.export.export(model, (IMAGE,), dynamic_shapes=({2: dynamic, 3: dynamic},))
    return difference(program.module()(IMAGE[..., :48, :64]), model(IMAGE[..., :48, :64]))


@check("torch", "torch.export with a named Dim", expected="fails")
def exported_by_name():
    named = {2: torch.export.Dim("h", min=32, max=512)}
    torch.export.export(network(), (IMAGE,), dynamic_shapes=(named,))


@check("torch", "torch.save of a whole octavified network", expected="refused")
def saved_whole():
    torch.save(octavified(), io.BytesIO())


@check("fvcore", "FlopCountAnalysis")
def fvcore():
    from fvcore.nn import FlopCountAnalysis

    model = network()
    return share(FlopCountAnalysis(model, IMAGE[:1]).unsupported_ops_warnings(False).total(), model)


@check("thop", "profile", expected="fails")
def thop():
    import thop

    return share(thop.profile(network(), (IMAGE[:1],), verbose=False)[0], network())


@check("ptflops", "get_model_complexity_info", expected="fails")
def ptflops():
    from ptflops import get_model_complexity_info

    size = tuple(IMAGE.shape[1:])
    macs, _ = get_model_complexity_info(network(), size, as_strings=False, print_per_layer_stat=False)
    return share(macs, network())


@check("torchinfo", "summary: multiply-adds", expected="fails")
def torchinfo():
    from torchinfo import summary

    return share(summary(network(), input_data=IMAGE[:1], verbose=0).total_mult_adds, network())


@check("captum", "IntegratedGradients")
def captum():
    from captum.attr import IntegratedGradients

    return (
        f"a map of {tuple(IntegratedGradients(network()).attribute(IMAGE[:1], target=3, n_steps=4).shape[2:])} pixels"
    )


@check("captum", "LayerGradCam on layer4")
def captum_layer():
    from captum.attr import LayerGradCam

    model = network()
    return f"a map of {tuple(LayerGradCam(model, model.layer4).attribute(IMAGE[:1], target=3).shape[2:])} pixels"


@check("grad-cam", "GradCAM on layer4[-1]", module="pytorch_grad_cam")
def grad_cam():
    from pytorch_grad_cam import GradCAM

    model = network()
    found = GradCAM(model, [model.layer4[-1]])(IMAGE[:1], targets=None)
    return f"a map of {found.shape[1:]} pixels"


@check("peft", "LoRA on the classifier and the plain stem")
def lora():
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(network(), LoraConfig(r=4, target_modules=r"^(conv1|fc)$"))
    model(IMAGE).sum().backward()
    return difference(model.eval()(IMAGE), network()(IMAGE))


@check("peft", "LoRA on octave layers", expected="fails")
def lora_octave():
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(network(), LoraConfig(r=4, target_modules=r".*layer1.*conv2"))
    return difference(model.eval()(IMAGE), network()(IMAGE))


@check("lightning", "fit two batches; its checkpoint loads as a file of weights")
def lightning():
    import lightning

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.save_hyperparameters({"lr": 0.1})
            self.model = network().train()

        def training_step(self, batch):
            return nn.functional.cross_entropy(self.model(batch[0]), batch[1])

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.01)

    data = torch.utils.data.TensorDataset(IMAGE, torch.tensor([1, 2]))
    with tempfile.TemporaryDirectory() as folder:
        trainer = lightning.Trainer(
            max_epochs=1, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
            enable_checkpointing=False, default_root_dir=folder,
        )  # fmt: skip
        module = Module()
        trainer.fit(module, torch.utils.data.DataLoader(data, batch_size=1))
        trainer.save_checkpoint(f"{folder}/c.ckpt")
        loaded = network(checkpoint_path=f"{folder}/c.ckpt")
    return difference(loaded(IMAGE), module.model.eval()(IMAGE))


@check("accelerate", "prepare, a step, save_model")
def accelerate():
    from accelerate import Accelerator

    helper = Accelerator(cpu=True)
    model = network()
    model, optimizer = helper.prepare(model, torch.optim.SGD(model.parameters(), 0.01))
    helper.backward(model(IMAGE).sum())
    optimizer.step()
    with tempfile.TemporaryDirectory() as folder:
        helper.save_model(model, folder)
        state = read(f"{folder}/model.safetensors").tensors
    return "" if torch.equal(state["fc.weight"], model.fc.weight) else "lost"


@check("segmentation-models-pytorch", "Unet, FPN and DeepLabV3Plus (stride 16) with encoder tu-oct_resnet50")
def segmentation():
    import segmentation_models_pytorch as smp

    for kind in (smp.Unet, smp.FPN, smp.DeepLabV3Plus):
        model = kind("tu-oct_resnet50", encoder_weights=None, classes=3).eval()
        assert model(torch.zeros(1, 3, 64, 96)).shape == (1, 3, 64, 96), kind
    return ""


@check("monai", "octavify SegResNet (images), UNet (volumes)")
def monai():
    from monai.networks.nets import SegResNet, UNet

    notes = []
    for model, x in (
        (SegResNet(2, 8, in_channels=3, out_channels=2), torch.randn(1, 3, 64, 64)),
        (UNet(3, 1, 2, channels=(8, 16, 32), strides=(2, 2)), torch.randn(1, 1, 8, 64, 64)),
    ):
        octave, plan = oc.octavify(model.eval(), 0.25, x)
        assert octave(x).shape == model(x).shape
        notes.append(f"{type(model).__name__} {plan.macs_after / plan.macs_before:.0%}")
    return f"multiply-adds: {', '.join(notes)}"


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


def correlation(found, expected):
    """How alike answers are that are not equal."""
    value = float(torch.corrcoef(torch.stack([found.flatten(), expected.flatten()]))[0, 1])
    if value < 0.9:
        raise AssertionError(f"the logits' correlation with float32 is {value:.3f}")
    return f"the logits' correlation with float32 is {value:.4f}"


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


@check("timm", "features_only with every feature_cls; output_stride 16; save_for_hf of an octavified network")
def timm_features():
    expected = network(features_only=True)(IMAGE)
    for kind in ("list", "hook", "fx"):
        for found, map in zip(network(features_only=True, feature_cls=kind)(IMAGE), expected):
            difference(found, map)
    assert network(features_only=True, output_stride=16)(IMAGE)[-1].shape[2:] == (5, 7)
    model = octavified()
    with tempfile.TemporaryDirectory() as folder:
        timm.models.save_for_hf(model, folder, safe_serialization=True)
        return difference(timm.create_model(f"local-dir:{folder}", pretrained=True).eval()(IMAGE), model(IMAGE))


@check("executorch", "to_edge_transform_and_lower with XNNPACK")
def executorch():
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower
    from executorch.runtime import Runtime

    model = network()
    lowered = to_edge_transform_and_lower(torch.export.export(model, (IMAGE,)), partitioner=[XnnpackPartitioner()])
    program = Runtime.get().load_program(lowered.to_executorch().buffer)
    return difference(program.load_method("forward").execute([IMAGE])[0], model(IMAGE))
