"""What ecosystem.py tries: one function for each thing, which returns a note, or raises if it does not work."""

import io
import tempfile

import timm
import torch
from torch import nn

import octaveconv as oc
import octaveconv.models
from octaveconv.cost import MAC_HOOKS
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


def correlation(found, expected):
    """How alike answers are that are not equal."""
    value = float(torch.corrcoef(torch.stack([found.flatten(), expected.flatten()]))[0, 1])
    if value < 0.9:
        raise AssertionError(f"the logits' correlation with float32 is {value:.3f}")
    return f"the logits' correlation with float32 is {value:.4f}"


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


@check("torch", "torch.export with a named Dim alone", expected="fails")
def exported_by_name():
    return _exported_by_name()


@check("torch", "torch.export with a named Dim and prefer_deferred_runtime_asserts_over_guards=True")
def exported_by_name_with_asserts():
    return _exported_by_name(prefer_deferred_runtime_asserts_over_guards=True)


def _exported_by_name(**arguments):
    model, sizes = network(), {axis: torch.export.Dim(name, min=33, max=512) for axis, name in ((2, "h"), (3, "w"))}
    program = torch.export.export(model, (IMAGE,), dynamic_shapes=(sizes,), **arguments)
    return difference(program.module()(IMAGE[..., :48, :63]), model(IMAGE[..., :48, :63]))


@check("torch", "torch.save of a whole octavified network", expected="refused")
def saved_whole():
    torch.save(octavified(), io.BytesIO())


@check("fvcore", "FlopCountAnalysis")
def fvcore():
    from fvcore.nn import FlopCountAnalysis

    model = network()
    return share(FlopCountAnalysis(model, IMAGE[:1]).unsupported_ops_warnings(False).total(), model)


@check("thop", "profile alone", expected="fails")
def thop():
    import thop

    return share(thop.profile(network(), (IMAGE[:1],), verbose=False)[0], network())


@check("thop", "profile with custom_ops=MAC_HOOKS")
def thop_with_hooks():
    import thop

    return share(thop.profile(network(), (IMAGE[:1],), custom_ops=MAC_HOOKS, verbose=False)[0], network())


def ptflops_count(**arguments):
    from ptflops import get_model_complexity_info

    size = tuple(IMAGE.shape[1:])
    macs, _ = get_model_complexity_info(network(), size, as_strings=False, print_per_layer_stat=False, **arguments)
    return share(macs, network())


@check("ptflops", "get_model_complexity_info alone", expected="fails")
def ptflops():
    return ptflops_count()


@check("ptflops", 'get_model_complexity_info with backend="aten"')
def ptflops_aten():
    return ptflops_count(backend="aten")


@check("ptflops", "get_model_complexity_info with custom_modules_hooks=MAC_HOOKS")
def ptflops_with_hooks():
    return ptflops_count(custom_modules_hooks=MAC_HOOKS)


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


@check("peft", "LoRA on octave layers", expected="refused")
def lora_octave():
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(network(), LoraConfig(r=4, target_modules=r".*layer1.*conv2"))
    return difference(model.eval()(IMAGE), network()(IMAGE))


@check("peft", "LoRA on the dense twin, merged, loaded into the octave network")
def lora_dense():
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=4, target_modules=r".*conv2", init_lora_weights=False)
    merged = get_peft_model(network(alpha=0.0), config).merge_and_unload()
    octave = network()
    octave.load_state_dict(merged.state_dict())
    assert not torch.equal(octave(IMAGE), network()(IMAGE))
    dense = network(alpha=0.0)
    dense.load_state_dict(octave.state_dict() | {})
    return difference(dense(IMAGE), merged(IMAGE))


@check("torch-pruning", "prune a dense network, then octavify it", module="torch_pruning")
def pruned():
    import torch_pruning

    dense = timm.create_model("resnet18", num_classes=10).eval()
    importance = torch_pruning.importance.MagnitudeImportance(p=2)
    arguments = dict(importance=importance, pruning_ratio=0.5, ignored_layers=[dense.fc])
    torch_pruning.pruner.MagnitudePruner(dense, IMAGE, **arguments).step()
    octave, plan = oc.octavify(dense, 0.25, IMAGE)
    assert octave(IMAGE).shape == (2, 10)
    return f"multiply-adds of the pruned network: {plan.macs_after / plan.macs_before:.0%}"


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
