"""Networks that torch.fx cannot trace as a whole become octave part by part."""

import copy
import io
from collections import OrderedDict
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from helpers import assert_close
from torch import nn

import octaveconv as oc
from octaveconv.octavify.octavify import rebuild
from octaveconv.octavify.parts import leaves


def block(ins, outs, stride=1):
    return nn.Sequential(nn.Conv2d(ins, outs, 3, stride, 1, bias=False), nn.BatchNorm2d(outs), nn.ReLU(inplace=True))


def body(ins=8, outs=8):
    return nn.Sequential(block(ins, 8), block(8, 8), block(8, outs))


class Checked(nn.Module):
    """Checks the size of its input, as segmentation models do, and takes options, as those of transformers."""

    def __init__(self):
        super().__init__()
        self.stem, self.encoder, self.decoder, self.head = block(3, 8), body(), body(), nn.Conv2d(8, 2, 1)

    def encode(self, x):
        return self.encoder(self.stem(x))

    def forward(self, x, labels=None, **options):
        if x.shape[-1] % 2 and not options:
            raise ValueError("the width is odd")
        scores = self.head(self.decoder(self.encode(x)))
        return scores if labels is None else F.mse_loss(scores, labels)


@dataclass
class Output(OrderedDict):
    """A dictionary with attributes, as of transformers."""

    maps: torch.Tensor = None
    pooled: torch.Tensor = None

    def __post_init__(self):
        super().__init__(maps=self.maps, pooled=self.pooled)


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = body()

    def forward(self, x, output_all=None, return_dict=True, **options):
        maps = self.body(x)
        pooled = maps.mean((2, 3)) if not output_all else None
        return Output(maps=maps, pooled=pooled) if return_dict else (maps, pooled)


class Records(nn.Module):
    """A part that returns a dataclass and takes flags."""

    def __init__(self):
        super().__init__()
        self.stem, self.encoder, self.head = block(3, 8), Encoder(), nn.Linear(8, 3)

    def forward(self, x):
        out = self.encoder(self.stem(x), output_all=False, return_dict=True)
        if not isinstance(out, Output):
            raise TypeError(f"got {type(out)}")
        return {"logits": self.head(out.pooled), "maps": out["maps"] if x.sum() < 1e9 else None}


class Levels(nn.Module):
    """A head that loops over the levels of a pyramid, and looks at the number of images."""

    def __init__(self):
        super().__init__()
        self.stem, self.down, self.tower = block(3, 8), block(8, 8, 2), body(8, 8)
        self.score = nn.Conv2d(8, 4, 3, padding=1)

    def forward(self, x):
        maps = [self.down(self.stem(x))]
        for _ in range(2):
            maps.append(F.max_pool2d(maps[-1], 2))
        answers = [self.score(self.tower(level)).flatten(2) for level in maps if len(level)]
        return torch.cat(answers, 2)


class Fusing(nn.Module):
    """Several inputs of maps, in a list and in a dictionary."""

    def __init__(self):
        super().__init__()
        self.stem, self.fuse, self.last = block(3, 8), Fuse(), block(8, 2)

    def forward(self, maps, more):
        maps = [self.stem(x) for x in maps]
        return self.last(self.fuse(maps, {"b": self.stem(more["b"])})) if bool((more["b"] > -9).all()) else None


class Fuse(nn.Module):
    def __init__(self):
        super().__init__()
        self.lateral = nn.ModuleList(nn.Conv2d(8, 8, 1) for _ in range(2))
        self.out = body()

    def forward(self, maps, more):
        x = sum(conv(each) for conv, each in zip(self.lateral, maps))
        return self.out(x + more["b"])


class Unrolled(nn.Module):
    """Items of a Sequential, called one after the other with what earlier ones made, and a head that has two modes."""

    def __init__(self):
        super().__init__()
        self.model = nn.Sequential(block(3, 8), block(8, 8), block(8, 8), block(8, 8), Head())
        for i, item in enumerate(self.model):
            item.index = i
        self.act = nn.SiLU()

    def forward(self, x, *args, **kwargs):
        if isinstance(x, dict):
            return self.forward(x["image"])["raw"].sum()
        made = []
        for item in self.model:
            if item.index == 3:
                x = self.act(x + made[1])
            x = item([x, made[0]] if item.index == 4 else x)
            made.append(x)
        return x


class Head(nn.Module):
    """Another answer in training, and anchors that it keeps."""

    shape = None

    def __init__(self):
        super().__init__()
        self.towers = nn.ModuleList(body(8, 8) for _ in range(2))
        self.out = nn.Conv2d(8, 2, 1)

    def forward(self, maps):
        raw = sum(self.out(tower(x)) for tower, x in zip(self.towers, maps))
        if self.training:
            return {"raw": raw}
        if self.shape != maps[0].shape:
            self.shape = maps[0].shape
            self.grid = torch.linspace(0, 1, self.shape[-1])
        return raw.sigmoid() * self.grid, {"raw": raw}


KINDS = {  # the network, its inputs, how many of its convolutions become octave
    "checked": (Checked, lambda n: (torch.randn(2, 3, 16, n),), 6),
    "records": (Records, lambda n: (torch.randn(2, 3, 16, n),), 3),
    "levels": (Levels, lambda n: (torch.randn(2, 3, 40, 2 * n),), 3),
    "fusing": (Fusing, lambda n: ([torch.randn(2, 3, 16, n)] * 2, {"b": torch.randn(2, 3, 16, n)}), 5),
    "unrolled": (Unrolled, lambda n: (torch.randn(2, 3, 16, n),), 9),
}


def made(kind):
    torch.manual_seed(0)
    model, inputs, count = KINDS[kind]
    model = model()
    for part in model.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.normal_()
            part.running_var.uniform_(0.5, 2)
    return model, inputs, count


def same(found, expected):
    pairs = list(zip(leaves(found), leaves(expected), strict=True))
    return type(found) is type(expected) and pairs and all(torch.equal(x, y) for x, y in pairs)


@pytest.mark.parametrize("kind", KINDS)
def test_the_largest_parts_become_octave(kind):
    model, inputs, count = made(kind)
    octave, plan = oc.octavify(model, 0.25, inputs(16))
    assert sum(layer.octave and layer.convolves for layer in plan.layers) == count, str(plan)
    assert isinstance(octave, type(model))
    assert octave.training
    layers = {name for name, part in model.named_modules() if next(part.parameters(recurse=False), None) is not None}
    assert layers == {layer.name for layer in plan.layers}
    assert all(layer.why for layer in plan.layers if not layer.octave)
    assert plan.parts
    octave.eval()
    out = octave(*inputs(24))  # another size
    assert all(x.isfinite().all() for x in leaves(out))
    octave.train()
    sum(x.sum() for x in leaves(octave(*inputs(16)))).backward()
    assert all(p.grad is not None for name, p in octave.named_parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_at_alpha_0_nothing_changes_in_either_mode(kind):
    model, inputs, _ = made(kind)
    dense, plan = oc.octavify(model, 0, inputs(16))
    assert any(not part.why for part in plan.parts)
    for n, training in ((16, False), (24, True), (24, False)):
        x = inputs(n)
        assert same(dense.train(training)(*x), model.train(training)(*x))
    assert [*dense.state_dict()] == [*model.state_dict()]


SLOW = ("records", "fusing", "unrolled")


@pytest.mark.parametrize("kind", [pytest.param(k, marks=pytest.mark.slow) if k in SLOW else k for k in KINDS])
def test_it_is_copied_saved_and_loaded(kind):
    model, inputs, _ = made(kind)
    octave, plan = oc.octavify(model.eval(), 0.5, inputs(16))
    x = inputs(16)
    twin = copy.deepcopy(octave)
    with torch.no_grad():
        assert same(twin(*x), octave(*x))
        next(twin.parameters()).add_(1)
    assert not torch.equal(next(twin.parameters()), next(octave.parameters()))
    file = io.BytesIO()
    torch.save(octave.state_dict(), file)
    file.seek(0)
    again, _ = oc.octavify(KINDS[kind][0]().eval(), 0.5, inputs(16))
    again.load_state_dict(torch.load(file, weights_only=True))
    with torch.no_grad():
        assert same(again(*x), octave(*x))
    with pytest.raises(TypeError, match="cannot be pickled whole: save its state_dict"):
        torch.save(octave, io.BytesIO())
    with pytest.raises(TypeError, match="cannot be pickled whole: save its state_dict"):
        torch.save(octave.get_submodule(next(part.name for part in plan.parts if not part.why)), io.BytesIO())
    octave.double()
    assert all(p.dtype is torch.float64 for p in octave.parameters())


def test_it_is_rebuilt_from_its_record():
    model, inputs, _ = made("checked")
    octave, plan = oc.octavify(model, {"encoder.*": 0.5, "decoder.?.0": 0.25, "*": 0}, inputs(16))
    assert {layer.alpha_out for layer in plan.layers if layer.name.startswith("encoder.0")} == {0.5}
    twin = rebuild(KINDS["checked"][0](), plan.conversion)
    twin.load_state_dict(octave.state_dict())
    assert torch.equal(twin(inputs(16)[0][:1] * 0), octave(inputs(16)[0][:1] * 0))
    with pytest.raises(ValueError, match="alpha pattern 'encodre' matches no convolution"):
        oc.octavify(model, {"encodre": 0.5}, inputs(16))


def test_the_plan_counts_every_call():
    from torch.utils.flop_counter import FlopCounterMode

    for kind in ("levels", "records"):  # called several times, and once
        model, inputs, _ = made(kind)
        x = inputs(16)
        octave, plan = oc.octavify(model.eval(), 0.25, x)
        for network, macs in ((model, plan.macs_before), (octave, plan.macs_after)):
            with FlopCounterMode(display=False) as counter, torch.no_grad():
                network(*x)
            assert counter.get_total_flops() == 2 * 2 * macs  # of two images
        borders = [part for part in octave.modules() if isinstance(part, (oc.Merge, oc.Split))]
        assert len(borders) == len(plan.borders)


def test_methods_and_attributes_stay():
    model, inputs, _ = made("checked")
    octave, _ = oc.octavify(model, 0.25, inputs(16))
    assert octave.eval().encode(inputs(16)[0]).shape == (2, 8, 16, 16)
    assert octave(inputs(16)[0], labels=torch.zeros(2, 2, 16, 16)).dim() == 0
    with pytest.raises(ValueError, match="the width is odd"):
        octave(inputs(15)[0])
    model, inputs, _ = made("unrolled")
    octave, _ = oc.octavify(model, 0.25, inputs(16))
    assert octave.model[3].index == 3
    assert octave.train()({"image": inputs(16)[0]}).dim() == 0  # comes back to the call that was traced


def test_another_call_than_the_traced_one_is_refused():
    model, inputs, _ = made("records")
    octave, _ = oc.octavify(model.eval(), 0.25, inputs(16))
    x = torch.randn(2, 8, 16, 16)
    assert isinstance(octave.encoder(x, False), Output)
    with pytest.raises(ValueError, match="Encoder was octavified for calls like that of the example"):
        octave.encoder(x, return_dict=False)


def test_the_modes_of_parts():
    model, inputs, _ = made("checked")
    model.eval().decoder.train()
    octave, _ = oc.octavify(model, 0.25, inputs(16))
    assert [part.training for part in (octave, octave.encoder, octave.decoder)] == [False, False, True]


def test_a_sample():
    model, inputs, _ = made("checked")
    batches = [inputs(8)[0] for _ in range(5)]
    _, plan = oc.octavify(model.eval(), 0.5, inputs(8), calibrate=batches)
    assert {step.name for step in plan.steps} >= {"encoder: as given", "decoder: refitted"}
    kept = {step.name.partition(":")[0]: step.divergence for step in plan.steps if step.kept}
    first = {step.name.partition(":")[0]: step.divergence for step in plan.steps if step.name.endswith("as given")}
    assert all(kept[name] <= first[name] for name in first)
    dense, _ = oc.octavify(model, 0, inputs(8), calibrate=batches)
    assert_close(dense(batches[0]), model(batches[0]))
    _, plan = oc.octavify(model, "auto", inputs(8), calibrate=batches, macs=0.8)
    assert 0.6 < plan.macs_after / plan.macs_before <= 0.8
    with pytest.raises(ValueError, match=r"macs=0.05 is out of reach"):
        oc.octavify(model, "auto", inputs(8), calibrate=batches, macs=0.05)
    with pytest.raises(ValueError, match=r"agreement is a budget of networks that torch.fx traces.*give macs=0.8"):
        oc.octavify(model, "auto", inputs(8), calibrate=batches, agreement=0.9)


def test_what_is_kept():
    model, inputs, _ = made("checked")
    _, plan = oc.octavify(model, 0.25, inputs(16), keep=["encoder"])
    assert {layer.why for layer in plan.layers if layer.name.startswith("encoder.")} == {"listed in keep"}
    assert all(layer.octave for layer in plan.layers if layer.name.startswith("decoder.0"))


class Typed(nn.Module):
    """Asks for a type that values do not have while they are traced, as in MONAI."""

    def __init__(self):
        super().__init__()
        self.stem, self.body, self.last = block(3, 8), body(), nn.Conv2d(16, 2, 1)

    def forward(self, x):
        x = self.stem(x)
        y = self.body(x)
        return self.last(torch.cat([x, y], 1) if isinstance(y, torch.Tensor) else y)


def test_a_network_that_asks_for_types():
    octave, plan = oc.octavify(Typed().eval(), 0.25, torch.randn(1, 3, 16, 16))
    assert sum(layer.octave and layer.convolves for layer in plan.layers) == 3
    assert "does what the types of its values decide" in plan.summary()
    assert octave(torch.randn(1, 3, 24, 24)).isfinite().all()


class FromConstant(nn.Module):
    """Maps that begin with a parameter, as in StyleGAN, in a network that asks for values."""

    def __init__(self):
        super().__init__()
        self.const, self.body = nn.Parameter(torch.randn(1, 8, 16, 16)), nn.Sequential(body(), nn.Conv2d(8, 3, 1))

    def forward(self, z):
        return self.body(self.const if z.sum() < 1e9 else self.const.expand(len(z), -1, -1, -1))


def test_maps_that_begin_with_a_parameter():
    model, z = FromConstant().eval(), torch.randn(1, 4)
    octave, plan = oc.octavify(model, 0.25, z)
    assert sum(layer.octave and layer.convolves for layer in plan.layers) == 3
    assert octave.const.requires_grad
    assert torch.equal(oc.octavify(model, 0, z)[0](z), model(z))


class Shares(Checked):
    """A layer that is also called from elsewhere, and one whose weight is read elsewhere."""

    def forward(self, x):
        if x.sum() > 1e9:
            return x
        x = self.encoder[0](self.encode(x))
        return self.head(self.decoder(F.conv2d(x, self.decoder[2][0].weight, padding=1)))


def test_what_is_called_or_read_from_elsewhere():
    torch.manual_seed(0)
    model, x = Shares().eval(), torch.randn(1, 3, 16, 16)
    octave, plan = oc.octavify(model, 0.5, x)
    assert any(part.name == "encoder" and "encoder.0" in part.why for part in plan.parts)
    assert octave(x).isfinite().all()
    assert torch.equal(oc.octavify(model, 0, x)[0](x), model(x))


class Counting(Checked):
    """Keeps something of each call."""

    calls = 0

    def encode(self, x):
        self.calls += 1
        return super().encode(x) * (1 + 1 / self.calls)


def test_what_keeps_something_of_a_call_keeps_its_forward():
    torch.manual_seed(0)
    model, x = Counting().eval(), torch.randn(1, 3, 16, 16)
    octave, _ = oc.octavify(model, 0.25, x)
    calls = octave.calls
    assert not torch.equal(octave(x), octave(x))
    assert octave.calls == calls + 2


class Asking(nn.Module):
    """Asks for sizes and types in its code, as in diffusers."""

    def __init__(self, doubles=False):
        super().__init__()
        self.conv, self.doubles = nn.Conv2d(8, 8, 3, padding=1), doubles

    def forward(self, x):
        assert x.shape[1] == self.conv.in_channels
        if x.shape[-1] % 2:
            raise ValueError("odd")
        if x.shape[0] >= 3:
            x = x.contiguous()
        if x.dtype == torch.bfloat16 and not self.doubles:
            assert x.dim() == 4
        if self.doubles and x.shape[-1] > 20:
            x = 2 * x
        return self.conv(x)


class Asked(nn.Module):
    def __init__(self, doubles=False):
        super().__init__()
        self.stem, self.body = block(3, 8), nn.Sequential(block(8, 8), Asking(doubles), block(8, 8))

    def forward(self, x):
        return self.body(self.stem(x)) if x.sum() < 1e9 else x


def test_conditions_on_sizes_and_types():
    octave, plan = oc.octavify(Asked().eval(), 0.25, torch.randn(1, 3, 16, 16))
    assert [layer.octave for layer in plan.layers if layer.kind == "Conv2d"] == [False, True, True, True], str(plan)
    assert octave(torch.randn(3, 3, 24, 24)).isfinite().all()  # the other answer leads to the same graph
    with pytest.raises(ValueError, match="refuses inputs of this size or dtype"):
        octave.body(torch.randn(1, 8, 16, 15))


def test_a_condition_that_decides_what_is_computed():
    torch.manual_seed(0)
    model = Asked(doubles=True).eval()
    dense, plan = oc.octavify(model, 0, torch.randn(1, 3, 16, 16))
    assert any(part.name == "body.1" and part.why for part in plan.parts)
    for size in (16, 24):
        x = torch.randn(2, 3, size, size)
        assert torch.equal(dense(x), model(x))
    with pytest.raises(ValueError, match="odd"):
        dense(torch.randn(1, 3, 15, 15))


@pytest.mark.parametrize("kind", ["checked", pytest.param("unrolled", marks=pytest.mark.slow)])
def test_it_compiles_and_exports(kind):
    model, inputs, _ = made(kind)
    octave, _ = oc.octavify(model.eval(), 0.25, inputs(16))
    x = inputs(16)
    with torch.no_grad():
        expected = list(leaves(octave(*x)))
        compiled = torch.compile(octave, backend="eager", fullgraph=True)
        exported = torch.export.export(octave, x).module()
        for found in (compiled(*x), exported(*x)):
            assert all(torch.equal(a, b) for a, b in zip(leaves(found), expected, strict=True))
    torch.compiler.reset()
