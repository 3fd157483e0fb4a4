"""What octavify makes computes what the given network does: in both modes, after a call, with other weights."""

import copy
import sys
import warnings

import pytest
import torch
import torchvision
from torch import nn

import octaveconv as oc
from octaveconv.octavify.parts import leaves


def conv(channels=8):
    return nn.Conv2d(channels, 8, 3, padding=1)


class Net(nn.Module):
    """A stem, a body between two convolutions, and perhaps something that torch.fx cannot follow."""

    def __init__(self, body, traceable=True):
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.body, self.traceable = conv(3), nn.Sequential(conv(), body, conv(), conv()), traceable

    def forward(self, x):
        y = self.body(self.stem(x))
        return y if self.traceable or y.abs().sum() > -1 else -y


def answers(model, x, training=False):
    torch.manual_seed(0)
    return list(leaves(model.train(training)(x.clone())))


def same_in_both_modes(model, octave, x):
    for training in (False, True, False):
        pairs = zip(answers(octave, x, training), answers(model, x, training), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)
    state = octave.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


class Auxiliary(nn.Module):
    """Does more in training mode."""

    def __init__(self):
        super().__init__()
        self.first, self.more, self.last = conv(), conv(), conv()

    def forward(self, x):
        x = self.first(x)
        return self.last(x + self.more(x) if self.training else x)


class Counting(nn.Module):
    """Has a buffer that each call changes."""

    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))
        self.conv = conv()

    def forward(self, x):
        self.calls += 1
        return self.conv(x) / self.calls


class Drawing(nn.Module):
    """Draws numbers that do not depend on the input."""

    def __init__(self):
        super().__init__()
        self.conv = conv()

    def forward(self, x):
        return self.conv(x) * torch.rand(8, 1, 1)


class Sizes(nn.Module):
    """Asks for sizes behind a layer with statistics."""

    def __init__(self):
        super().__init__()
        self.norm, self.conv = nn.BatchNorm2d(8), conv()

    def forward(self, x):
        x = self.norm(x)
        assert x.shape[1] == 8
        return self.conv(x)


@pytest.mark.parametrize("body", [Auxiliary, Counting, Drawing, Sizes])
@pytest.mark.parametrize("traceable", [True, False])
def test_both_modes(body, traceable):
    model, x = Net(body(), traceable), torch.randn(2, 3, 16, 16)
    before = copy.deepcopy(model.state_dict())
    dense, _ = oc.octavify(model.eval(), 0, x)
    octave, plan = oc.octavify(model, 0.5, x, stem=True)
    assert sum(layer.octave for layer in plan.layers if layer.convolves) >= 2, str(plan)
    for net in (model, dense, octave):
        assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    same_in_both_modes(model, dense, x)


def test_what_the_whole_network_does_only_in_training_is_noted():
    class Whole(Auxiliary):
        def __init__(self):
            super().__init__()
            self.first = conv(3)

    _, plan = oc.octavify(Whole().eval(), 0.5, torch.randn(1, 3, 16, 16))
    assert "in training mode the given model does more" in plan.notes[0]


@pytest.mark.parametrize("traceable", [True, False])
def test_what_is_computed_from_buffers_follows_them(traceable):
    """As in detection: other weights are loaded later."""
    model, x = Net(torchvision.ops.FrozenBatchNorm2d(8), traceable).eval(), torch.randn(1, 3, 16, 16)
    dense, _ = oc.octavify(model, 0, x)
    octave, plan = oc.octavify(model, 0.5, x, stem=True)
    assert sum(layer.octave for layer in plan.layers) >= 3
    norm = model.body[1]
    for buffer in norm.buffers():
        buffer.uniform_(0.5, 2)
    after, _ = oc.octavify(model, 0.5, x, stem=True)
    for net in (dense, octave):
        net.load_state_dict(model.state_dict())
    assert torch.equal(dense(x), model(x))
    assert torch.equal(octave(x), after(x))


def test_the_example_stays_as_it_is():
    x = torch.randn(1, 3, 16, 16)
    before = x.clone()
    oc.octavify(nn.Sequential(nn.ReLU(inplace=True), conv(3), conv()).eval(), 0.5, x)
    assert torch.equal(x, before)


def test_a_network_without_anything_to_save_is_no_error():
    class Small(Net):
        def __init__(self):
            super().__init__(nn.Identity())
            self.body = Conditional(3)

    class Conditional(nn.Conv2d):
        def __init__(self, channels):
            super().__init__(8, 8, 3, padding=1)

        def forward(self, x):
            return super().forward(x) if x.sum() < 1e9 else x

    model, x = Small().eval(), torch.randn(1, 3, 16, 16)
    dense, plan = oc.octavify(model, 0, x)
    assert torch.equal(dense(x), model(x))
    assert "does what" not in str(plan)


def test_a_part_with_weight_norm_can_be_copied_after_a_call():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        model, x = Net(nn.utils.weight_norm(conv()), traceable=False).eval(), torch.randn(1, 3, 16, 16)
    octave, _ = oc.octavify(model, 0.5, x)
    expected = octave(x)
    assert torch.equal(copy.deepcopy(octave)(x), expected)


CODE = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(*(Asking() for _ in range(3)))

    def forward(self, x):
        return self.body(x) if x.sum() < 1e9 else x

class Asking(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x):
        if x.shape[1] != 8:
            raise ValueError("channels")
        if x.shape[-1] > 20:
            x = 2 * x
        return self.conv(x)
"""


@pytest.mark.parametrize("folder", ["octavify", "torch/fx"])
def test_code_in_a_folder_called_like_ours(folder, tmp_path, monkeypatch):
    """Its conditions are told apart, and one that decides is not passed."""
    place = tmp_path / folder
    place.mkdir(parents=True)
    (place / "network_of_a_user.py").write_text(CODE)
    monkeypatch.syspath_prepend(str(place))
    try:
        from network_of_a_user import Net as Theirs
    finally:
        sys.modules.pop("network_of_a_user", None)
    model = Theirs().eval()
    dense, _ = oc.octavify(model, 0, torch.randn(1, 8, 16, 16))
    for size in (16, 24):
        x = torch.randn(1, 8, size, size)
        assert torch.equal(dense(x), model(x))
