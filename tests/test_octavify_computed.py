"""Layers that compute their weight from other parameters, as GANs and speech networks have them, keep doing so."""

import copy
import warnings

import pytest
import torch
from helpers import assert_close
from torch import nn
from torch.nn.utils import parametrizations, parametrize

import octaveconv as oc
from octaveconv.nn.computed import parameter_names


class Symmetric(nn.Module):
    def forward(self, weight):
        return (weight + weight.flip(-1)) / 2


def old_weight_norm(layer):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return nn.utils.weight_norm(layer)


def symmetric(layer):
    parametrize.register_parametrization(layer, "weight", Symmetric())
    parametrize.register_parametrization(layer, "bias", nn.Identity())
    return layer


KINDS = {
    "weight norm": parametrizations.weight_norm,
    "spectral norm": parametrizations.spectral_norm,
    "old weight norm": old_weight_norm,
    "old spectral norm": nn.utils.spectral_norm,
    "two parametrizations": lambda layer: symmetric(parametrizations.weight_norm(layer)),
}


def network(norm, axes=2):
    """A discriminator, or for one axis a generator of sound."""
    conv = (nn.Conv1d, nn.Conv2d)[axes - 1]
    layers = [conv(c, 16, 3, padding=1) for c in (3, 16, 16)] + [conv(16, 16, 3, 2, 1), conv(16, 8, 3, padding=1)]
    if axes == 2:
        layers.append(nn.ConvTranspose2d(8, 8, 4, 2, 1))
    parts = [part for layer in layers for part in (norm(layer), nn.LeakyReLU(0.2))]
    return nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1) if axes == 2 else nn.AdaptiveAvgPool1d(1), nn.Flatten(1),
                         norm(nn.Linear(8, 3)))  # fmt: skip


def quick_and_slow(quick):
    return [pytest.param(name, marks=[] if name in quick else pytest.mark.slow) for name in KINDS]


@pytest.mark.parametrize("name", KINDS)
def test_networks(name):
    torch.manual_seed(0)
    model, x, training = network(KINDS[name]), torch.randn(2, 3, 16, 16), "spectral" in name
    with torch.no_grad():
        model(x)  # the first calls of spectral norm change more than others
    model.train(training)
    state = copy.deepcopy(model.state_dict())
    same, _ = oc.octavify(model, 0, x)
    net, plan = oc.octavify(model, 0.5, x)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert all(torch.equal(value, state[key]) for key, value in net.state_dict().items())
    assert net.state_dict().keys() == state.keys()
    assert sum(layer.octave and layer.convolves for layer in plan.layers) == 5, str(plan)
    assert plan.macs_after < 0.75 * plan.macs_before
    assert torch.equal(same(x), model(x))
    assert [p.requires_grad for p in net.parameters()] == [p.requires_grad for p in model.parameters()]
    before = net(x)
    net.load_state_dict(state)
    assert_close(net(x), before.detach())
    twin = copy.deepcopy(net)
    net.train()
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    net(x).square().sum().backward()
    assert all(p.grad is not None for p in net.parameters())
    optimizer.step()
    trained = net(x)
    assert not torch.equal(trained, twin.train()(x))
    copied = copy.deepcopy(net).eval()  # after a call that took gradients
    assert torch.equal(copied(x), net.eval()(x))
    again, _ = oc.octavify(model, 0.5, x)
    again.load_state_dict(net.state_dict())
    assert torch.equal(again.eval()(x), net(x))
    with pytest.raises(RuntimeError, match="these weights have alpha"):
        oc.octavify(model, 0.25, x)[0].load_state_dict(net.state_dict())


def test_constant_maps_stay_what_they_are():
    model = nn.Sequential(*(KINDS[name](nn.Conv2d(c, 8, 3, padding=1, padding_mode="replicate"))
                            for name, c in zip(KINDS, (3, 8, 8, 8, 8)))).eval()  # fmt: skip
    net, plan = oc.octavify(model, 0.5, torch.randn(1, 3, 16, 16))
    assert sum(layer.octave for layer in plan.layers) == 4
    flat = torch.randn(1, 3, 1, 1).expand(1, 3, 17, 18)
    assert_close(net(flat), model(flat).detach())
    names = [parameter_names(layer) for layer in model]
    assert names == [{"weight", "bias"}] * 5


def test_the_norms_can_be_removed():
    model = network(KINDS["weight norm"]).eval()
    net, _ = oc.octavify(model, 0.5, torch.randn(1, 3, 32, 32))
    x = torch.randn(1, 3, 32, 32)
    before = net(x)
    for part in net.modules():
        if parametrize.is_parametrized(part):
            parametrize.remove_parametrizations(part, "weight")
    assert_close(net(x), before)
    assert not any("parametrizations" in name for name in net.state_dict())
    model = network(KINDS["old weight norm"]).eval()
    net, _ = oc.octavify(model, 0.5, torch.randn(1, 3, 32, 32))
    before = net(x)
    for part in net.modules():
        if hasattr(part, "weight_g"):
            nn.utils.remove_weight_norm(part)
    assert_close(net(x), before)


@pytest.mark.parametrize("name", quick_and_slow(["spectral norm", "old weight norm"]))
def test_a_sample_leaves_their_channels_in_order_and_their_weights(name, quickly):
    model = network(KINDS[name]).train()
    x, state = torch.randn(8, 3, 32, 32), copy.deepcopy(model.state_dict())
    net, _ = oc.octavify(model, "auto", x[:1], calibrate=[x], macs=0.8)
    assert all(torch.equal(value, state[key]) for key, value in net.state_dict().items())
    assert net(x).shape == (8, 3)


def test_padding_in_front_and_series():
    norm = parametrizations.spectral_norm
    model = nn.Sequential(*(part for c in (3, 8, 8) for part in (nn.ReflectionPad2d(1), norm(nn.Conv2d(c, 8, 3)))))
    state = copy.deepcopy(model.state_dict())
    net, plan = oc.octavify(model, 0.5, torch.randn(1, 3, 16, 16), stem=True)
    assert [layer.octave for layer in plan.layers] == [True] * 3
    assert all(torch.equal(value, state[key]) for key, value in net.state_dict().items())
    model, x = network(KINDS["weight norm"], axes=1).eval(), torch.randn(1, 3, 64)
    net, plan = oc.octavify(model, 0.5, x)
    assert sum(layer.octave and layer.convolves for layer in plan.layers) == 4
    assert net(x).shape == model(x).shape


def test_other_hooks_are_still_respected():
    model = nn.Sequential(*(nn.utils.spectral_norm(nn.Conv2d(c, 8, 3, padding=1)) for c in (3, 8, 8, 8)))
    model[2].register_forward_hook(lambda module, args, output: output * 2)
    _, plan = oc.octavify(model.eval(), 0.5, torch.randn(1, 3, 16, 16), stem=True)
    assert plan.layers[2].why.endswith("has hooks, which expect plain tensors")


@pytest.mark.parametrize("name", ["weight norm", pytest.param("old weight norm", marks=pytest.mark.slow)])
def test_compiled_exported_and_deployed(name):
    model, x = network(KINDS[name]).eval(), torch.randn(2, 3, 32, 32)
    net, _ = oc.octavify(model, 0.5, x)
    with torch.no_grad():
        expected = net(x)
        assert_close(torch.compile(net, backend="eager")(x), expected)
        assert_close(oc.deploy(net, x)(x), expected)
        if name == "weight norm":
            assert_close(torch.export.export(net, (x,)).module()(x), expected)
