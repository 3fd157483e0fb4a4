"""The containers of an octavified network: called as in the given one, so that hooks on them fire."""

import copy
import importlib

import octavify_parts as parts
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
import torchvision
from timm.optim import param_groups_layer_decay
from torch import nn

import octaveconv as oc

conversion = importlib.import_module("octaveconv.octavify.conversion")
CONTAINERS = ("layer1", "layer1.0", "layer1.1", "layer2", "layer2.0", "layer2.0.downsample", "layer3.1", "layer4")


class Inside(nn.Module):
    """A network as a part of another."""

    def __init__(self, part):
        super().__init__()
        self.inner = part

    def forward(self, x):
        return self.inner(x) * 2


def resnet():
    torch.manual_seed(0)
    return torchvision.models.resnet18(num_classes=5).eval()


@pytest.fixture(scope="module")
def images():
    return torch.randn(2, 3, 96, 96, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def octave(images):
    return oc.octavify(resnet(), 0.25, images)[0]


def flat(model, monkeypatch, *args):
    """What octavify makes without nesting: a graph of leaves."""
    with monkeypatch.context() as patch:
        patch.setattr(conversion, "nest", lambda network: None)
        return oc.octavify(model, 0.25, *args)[0]


def check_equal(one, other, x):
    """Answers and gradients, bit for bit, in both modes."""
    for mode in (False, True):
        results = []
        for network in (one, other):
            torch.manual_seed(0)
            y = network.train(mode)(x)
            results.append((y, *torch.autograd.grad(y.square().sum(), list(network.parameters()), allow_unused=True)))
        for a, b in zip(*results):
            assert a is b is None or torch.equal(a, b)


NETWORKS = [cls for cls in vars(parts).values() if isinstance(cls, type) and parts.Part in cls.__bases__]
QUICK = ("Residual", "GatedPieces", "Merged", "InPlace")


@pytest.mark.parametrize(
    "part", [pytest.param(p, marks=[pytest.mark.slow] * (p.__name__ not in QUICK), id=p.__name__) for p in NETWORKS]
)
def test_nested_and_flat_networks_are_equal(part, monkeypatch):
    model, x = Inside(part()).eval(), torch.randn(2, 3, 32, 32)
    octave, seen = oc.octavify(model, 0.25, x)[0], []
    octave.inner.register_forward_hook(lambda module, args, y: seen.append(y))
    check_equal(octave, flat(model, monkeypatch, x), x)
    assert len(seen) == 2
    assert octave.state_dict().keys() == model.state_dict().keys()
    assert not [name for name, _ in octave.named_children() if name != "inner"]  # borders are where they are used


def test_hooks_on_containers_fire_once_with_octaves(octave, images, monkeypatch):
    seen = []
    for name in CONTAINERS:
        octave.get_submodule(name).register_forward_hook(lambda module, args, y, name=name: seen.append((name, y)))
    check_equal(octave, flat(resnet(), monkeypatch, images), images)
    assert sorted(name for name, _ in seen) == sorted(2 * CONTAINERS)
    kinds = {name: type(y) for name, y in seen}
    assert kinds["layer1"] is kinds["layer2.0.downsample"] is oc.Octave
    assert kinds["layer4"] is torch.Tensor
    assert type(octave.layer1).forward is nn.Sequential.forward
    assert isinstance(octave.layer1[0], torchvision.models.resnet.BasicBlock)


def test_blocks_can_be_called_taken_and_replaced(octave, images):
    features = nn.Sequential(*list(octave.children())[:-2])
    with torch.no_grad():
        expected = octave(images)
        y = features(images)
        assert torch.equal(octave.fc(octave.avgpool(y).flatten(1)), expected)
        x = octave.maxpool(octave.relu(octave.bn1(octave.conv1(images))))
        low = octave.layer1[:1](x).low
        assert low.shape == (2, 16, 12, 12)
        octave.layer4[1] = nn.Identity()
        assert not torch.equal(octave(images), expected)
    with pytest.raises(ValueError, match=r"takes an Octave with a high and a low part: octaveconv\.Split"):
        octave.layer1[1](x)
    groups = param_groups_layer_decay(octave)
    assert sum(len(group["params"]) for group in groups) == len(list(octave.parameters()))


def test_copied_loaded_and_marked(octave, images):
    twin = copy.deepcopy(octave)
    twin.layer1[0].conv1.weight.data.zero_()
    again, _ = oc.octavify(resnet(), 0.25, images)
    again.load_state_dict(octave.state_dict())
    with torch.no_grad():
        assert torch.equal(again(images), octave(images))
        assert not torch.equal(twin(images), octave(images))
    assert resnet().layer1[0].__class__ is torchvision.models.resnet.BasicBlock


def test_grad_cam_and_checkpointing(octave, images):
    maps = {}
    octave.layer1[-1].register_forward_hook(lambda module, args, y: maps.update(y=y))
    high, low = torch.autograd.grad(octave(images)[0, 0], maps["y"])
    assert high.abs().sum() > 0
    assert low.abs().sum() > 0
    x = octave.maxpool(octave.relu(octave.bn1(octave.conv1(images))))
    again = torch.utils.checkpoint.checkpoint(octave.layer1, x, use_reentrant=False)
    assert all(map(torch.equal, again, maps["y"]))


def test_compiled_exported_and_deployed(images, quickly):
    model = Inside(parts.Residual()).eval()
    octave, _ = oc.octavify(model, 0.25, images[..., :32, :32])
    x = torch.randn(2, 3, 37, 33)
    with torch.no_grad():
        expected = octave(x)
        torch.testing.assert_close(torch.compile(octave, fullgraph=True, backend="eager")(x), expected)
        torch.testing.assert_close(torch.export.export(octave, (x,), strict=False).module()(x), expected)
        torch.testing.assert_close(oc.deploy(octave, x)(x), expected, rtol=1e-4, atol=1e-4)


def test_sharded_by_block(octave, images):
    expected = octave(images)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        mesh = dist.device_mesh.init_device_mesh("cpu", (1,))
        for block in (*octave.layer1, *octave.layer2, octave):
            dist.fsdp.fully_shard(block, mesh=mesh)
        y = octave(images)
        y.sum().backward()
    finally:
        dist.destroy_process_group()
    torch.testing.assert_close(y, expected)


class Functions(nn.Module):
    """A block of functions: one that joins a padding and a layer's weight, one that follows the mode."""

    def __init__(self):
        super().__init__()
        self.conv, self.first = nn.Conv2d(16, 16, 3), parts.conv(16, 16)

    def forward(self, x):
        y = F.conv2d(F.pad(self.first(x), (1, 1, 1, 1)), self.conv.weight, self.conv.bias)
        return x + F.dropout(F.relu(y), 0.1, self.training)


def test_blocks_of_functions(monkeypatch):
    model = nn.Sequential(parts.conv(3, 8), parts.conv(8, 16), Functions(), parts.conv(16, 16)).eval()
    x, seen = torch.randn(2, 3, 33, 32), []
    octave, plan = oc.octavify(model, 0.25, x)
    octave.get_submodule("2").register_forward_hook(lambda module, args, y: seen.append(y))
    check_equal(octave, flat(model, monkeypatch, x), x)
    assert parts.layer(plan, "2.conv").alpha_out == 0.25
    assert [type(y) for y in seen] == [oc.Octave] * 2


class Twice(nn.Module):
    """A container called twice, one with a hook, one that needs a border, and one with a pooling."""

    def __init__(self):
        super().__init__()
        self.stem, self.first, self.last = parts.conv(3, 8), parts.conv(8, 16), parts.conv(16, 16)
        self.again = nn.Sequential(nn.ReLU(), nn.Dropout(0.1))
        self.hooked = nn.Sequential(parts.conv(16, 16), nn.ReLU())
        self.hooked.register_forward_hook(lambda module, args, y: y * 2)
        self.unknown = nn.Sequential(nn.ChannelShuffle(2), parts.conv(16, 16))
        self.side = parts.conv(16, 16)
        self.pools = nn.Sequential(parts.conv(16, 16), nn.MaxPool2d(3, 1, 1), nn.BatchNorm2d(16))

    def forward(self, x):
        x = self.again(self.again(self.first(self.stem(x))))
        x = self.hooked(x)
        return self.last(self.pools(self.unknown(x) + self.side(x))).mean((2, 3))


def test_containers_without_a_way_of_their_own(monkeypatch):
    model, x = Twice().eval(), torch.randn(2, 3, 33, 32)
    octave = oc.octavify(model, 0.25, x)[0]
    check_equal(octave, flat(model, monkeypatch, x), x)
    with torch.no_grad():
        assert torch.equal(oc.octavify(model, 0, x)[0].eval()(x), model(x))
    called = [str(node.target) for node in octave.graph.nodes if node.op == "call_module"]
    assert "pools" in called
    assert not {"again", "hooked", "unknown"} & {*called}
    assert isinstance(octave.pools, nn.Sequential)
    assert len(octave.pools) == 3
    assert octave.pools[0] is next(iter(octave.pools))
    with pytest.raises(TypeError, match="take them singly"):
        octave.pools[:2]
