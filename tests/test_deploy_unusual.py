"""What a fresh reader broke `oc.deploy` with: unusual arguments and dtypes, one image, tensors without numbers."""

import pickle

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from fuzz_deploy import answer, difference
from graphs import Wired, agree
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

import octaveconv as oc
from octaveconv.deploy.fallback import Fallback
from octaveconv.deploy.native.engine import NativeNetwork

pytestmark = pytest.mark.usefixtures("quickly")
SHAPES = (2, 3, 24, 26), (1, 3, 24, 26), (5, 3, 24, 26), (1, 3, 41, 33)


def pooled(m, x):
    return m.conv(x).mean((2, 3))


def one_pixel(m, x):
    return m.conv(x).mean((2, 3), True).flatten(2)


UNUSUAL = {
    "a negative start": lambda m, x: torch.narrow(m.conv(x), 1, -3, 2),
    "a negative start in a concatenation": lambda m, x: m.mix(torch.narrow(torch.cat([m.conv(x)] * 2, 1), 1, -8, 8)),
    "a mean in float64": lambda m, x: (m.conv(x), m.conv(x).mean((2, 3), dtype=torch.float64)),
    "a weight from the input": lambda m, x: (m.conv(x), F.linear(pooled(m, x), F.normalize(pooled(m, x)))),
    "a linear layer of a constant": lambda m, x: (m.conv(x), F.linear(m.mix.weight[:, :, 0, 0], pooled(m, x))),
    "constants beside a map": lambda m, x: m.mix(
        torch.cat([m.conv(x)[:, :7], m.scale.sum().expand(x[:, :1].shape)], 1)
    ),
    "a complex constant": lambda m, x: (m.conv(x) * (m.scale + 1j), 2j - m.conv(x), m.conv(x) / 2j),
    "a constant in float64": lambda m, x: (m.conv(x) * m.scale.double(), m.conv(x) + m.vector.double()[:, None, None]),
    "infinity as a factor": lambda m, x: (m.conv(x) * float("inf"), m.conv(x) / 0, m.conv(x) + float("nan")),
    "pools without the axis of images": lambda m, x: (
        m.conv(x),
        F.max_pool2d(one_pixel(m, x), (2, 1)),
        F.avg_pool2d(one_pixel(m, x), 3, 1, 1),
        F.adaptive_avg_pool2d(one_pixel(m, x), 1),
    ),
    "a bound that is NaN": lambda m, x: m.conv(x).clamp(float("nan"), 1),
}


@pytest.mark.parametrize("name", UNUSUAL)
def test_unusual_arguments(name):
    model = Wired(UNUSUAL[name]).eval()
    agree(model, NativeNetwork(model, torch.randn(SHAPES[0])), SHAPES)


def test_a_map_is_multiplied_as_its_dimensions_say():
    """Of the shape ``[N, C]`` where ``[H, W]`` is meant."""
    model = Wired(lambda m, x: m.conv(x) * pooled(m, x)).eval()
    agree(model, NativeNetwork(model, torch.randn(24, 3, 24, 8)), [(24, 3, 24, 8), (9, 3, 9, 8)])


def test_channels_are_not_taken_for_rows():
    model = Wired(lambda m, x: F.conv2d(one_pixel(m, x), m.conv.weight, padding=1)).eval()
    agree(model, oc.deploy(model, torch.randn(3, 3, 24, 26)), [(3, 3, 24, 26), (3, 3, 9, 7)])


def test_buffers_keep_their_dtypes():
    model = Wired(lambda m, x: (m.conv(x) * m.twice, m.twice, m.halves))
    model.register_buffer("twice", torch.full((8, 1, 1), 2, dtype=torch.float64))
    model.register_buffer("halves", torch.ones(3).half())
    agree(model.eval(), NativeNetwork(model, torch.randn(SHAPES[0])), SHAPES)


@pytest.mark.parametrize(
    "wires",
    [lambda m, x: m.conv(x).float(), lambda m, x: (m.conv(x), torch.ones(3)), lambda m, x: m.conv(x) * torch.ones(1)],
)
def test_an_output_in_another_dtype_than_the_model_is_refused(wires):
    model, x = Wired(wires).bfloat16().eval(), torch.randn(SHAPES[0]).bfloat16()
    with pytest.raises(
        oc.BackendUnavailable, match=r"model is in torch\.bfloat16, but an output of it is in torch\.float32"
    ):
        NativeNetwork(model, x)


class OtherWeights(nn.Module):
    """Which weights it uses depends on the number of images."""

    def __init__(self):
        super().__init__()
        self.one, self.several = nn.Conv2d(3, 8, 3), nn.Conv2d(3, 8, 3)

    def forward(self, x):
        return (self.one if x.shape[0] == 1 else self.several)(x)


def minus(m, x):
    a, b = m.conv(x), m.mix(m.conv(x)).relu()
    return a - b if x.shape[0] == 1 else b - a


ONE_IMAGE = {
    "other weights": OtherWeights(),
    "another order": Wired(minus),
    "another number": Wired(lambda m, x: (m.conv(x), 1.0 if x.shape[0] == 1 else 2.0)),
    "another structure": Wired(lambda m, x: m.conv(x) if x.shape[0] == 1 else [m.conv(x)]),
    "another axis": Wired(lambda m, x: m.conv(x).flip(1 if x.shape[0] == 1 else 3)),
    "its height decides, too": Wired(lambda m, x: m.conv(x) * (2.0 if x.shape[0] * x.shape[2] > 50 else 1.0)),
    "its numbers decide, too": Wired(lambda m, x: m.conv(x) * (2.0 if x.numel() > 4000 else 1.0)),
}


@pytest.mark.parametrize(
    ("engine", "example"),
    [
        ("native", SHAPES[0]),
        pytest.param("native", SHAPES[1], marks=pytest.mark.slow),
        pytest.param("fallback", SHAPES[0], marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("name", ONE_IMAGE)
def test_one_image_is_treated_differently(name, engine, example, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda graph: graph)  # Inductor itself is not what is tested
    model = ONE_IMAGE[name].eval()
    deployed = (NativeNetwork if engine == "native" else Fallback)(model, torch.randn(example))
    agree(model, deployed, [*SHAPES, (1, 3, 61, 60), (1, 3, 20, 20)])


@pytest.mark.parametrize("name", [name for name in ONE_IMAGE if name not in ("another number", "another axis")])
def test_a_saved_network_knows_what_holds_for_one_image(name, tmp_path):
    model = ONE_IMAGE[name].eval()
    deployed = NativeNetwork(model, torch.randn(SHAPES[0]))
    deployed.save(tmp_path / "net.octave")
    loaded = oc.load_deployed(tmp_path / "net.octave")
    for shape in (*SHAPES, (1, 3, 61, 60), (2, 3, 61, 60), (1, 3, 20, 20)):
        x = torch.randn(shape)
        found = answer(loaded, x)
        assert isinstance(found, ValueError) or not difference(answer(model, x), found), shape
    assert not isinstance(answer(loaded, torch.randn(SHAPES[0])), ValueError)


def test_a_map_without_pixels_is_not_convolved():
    model = Wired(lambda m, x: m.mix(m.conv(x[..., 1::2, 1::2]))).eval()
    agree(model, NativeNetwork(model, torch.randn(SHAPES[0])), [(2, 3, 1, 1), (2, 3, 2, 3)])


@pytest.fixture
def deployed():
    return NativeNetwork(Wired(lambda m, x: m.conv(x)).eval(), torch.randn(SHAPES[0]))


def of_a_fake(network, x):
    with FakeTensorMode() as mode:
        return network(mode.from_tensor(x))


def beside_fakes(network, x):
    with FakeTensorMode():
        return network(x)


@pytest.mark.parametrize(
    "use",
    [
        of_a_fake,
        beside_fakes,
        lambda network, x: torch.func.vmap(network)(x[None]),
        lambda network, x: torch.func.jvp(network, (x,), (x,)),
        lambda network, x: torch.export.export(network, (x,)),
        lambda network, x: torch.jit.trace(network, x),
        lambda network, x: make_fx(network)(x),
    ],
)
def test_what_has_no_numbers_is_refused(deployed, use):
    """Some of these ended the process."""
    with pytest.raises(ValueError, match="cannot be traced, exported or transformed; do that with the model"):
        use(deployed, torch.randn(SHAPES[0]))


@pytest.mark.parametrize(
    "of", [lambda x: None, np.asarray, torch.Tensor.to_sparse, torch.Tensor.to_mkldnn, torch.nested.as_nested_tensor]
)
def test_what_is_no_dense_tensor_is_refused(deployed, of):
    with pytest.raises(ValueError, match="takes a dense tensor of images"):
        deployed(of(torch.randn(SHAPES[0])))


def test_another_default_device_changes_nothing(deployed):
    x = torch.randn(SHAPES[0])
    expected = deployed(x)
    with torch.device("meta"):
        assert torch.equal(deployed(x), expected)


def test_a_capture_logs_nothing(caplog):
    model = Wired(lambda m, x: F.interpolate(m.conv(x), scale_factor=0.5, mode="bilinear", antialias=True)).eval()
    deployed = NativeNetwork(model, torch.randn(SHAPES[0]))
    answer(deployed, torch.randn(2, 3, 1, 1))
    assert not [record for record in caplog.records if record.levelname != "DEBUG"]


def test_one_image_comes_without_a_stall():
    """Whether a capture of several images is right for one is known before the first call."""
    model = Wired(lambda m, x: m.mix(F.channel_shuffle(m.conv(x), 2))).eval()
    deployed, x = NativeNetwork(model, torch.randn(SHAPES[0])), torch.randn(SHAPES[-1])
    expected = model(x)
    deployed._captures.model = None
    torch.testing.assert_close(deployed(x), expected, rtol=1e-4, atol=1e-5)


def test_a_number_of_images_that_the_network_refuses_is_refused():
    """One and five, that is; the capture is of two."""
    model = Wired(lambda m, x: m.conv(x.unflatten(0, (2, -1)).flatten(0, 1))).eval()
    agree(model, NativeNetwork(model, torch.randn(SHAPES[0])), [(2, 3, 24, 26), (1, 3, 24, 26), (4, 3, 9, 8)])


def keeps_a_feature(m, x):
    m.feature = m.conv(x)
    m.sizes = [*getattr(m, "sizes", []), x.shape][-1:]
    return m.mix(m.feature)


def keeps_a_grid(m, x):
    if not hasattr(m, "grid") or m.grid.shape != x.shape[2:]:
        m.grid, m.last = torch.ones(x.shape[2:]) * x.shape[2], int(x.shape[2])
    return m.mix(m.conv(x) * m.grid)


def keeps_a_weight(m, x):
    if not hasattr(m, "made"):
        m.made = m.conv.weight * 2
    return m.mix(F.conv2d(x, m.made, padding=1) * (2 if x.shape[2] % 2 else 1))


@pytest.mark.parametrize("wires", [keeps_a_feature, keeps_a_grid, keeps_a_weight])
@pytest.mark.parametrize("used", [False, True])
def test_what_a_network_keeps_on_itself_reaches_no_later_capture(wires, used):
    model = Wired(wires).eval()
    if used:
        answer(model, torch.randn(SHAPES[0]))
    deployed = NativeNetwork(model, torch.randn(SHAPES[0]))
    agree(model, deployed, (*SHAPES, (2, 3, 31, 26), (2, 3, 1, 1)))
    agree(model, pickle.loads(pickle.dumps(deployed)), SHAPES[:2])
    assert type(deployed._captures.model.conv.weight) is nn.Parameter
    assert not isinstance(getattr(deployed._captures.model, "made", None), FakeTensor)


class Counter:
    n = 0


def counts(m, x):
    m.count = getattr(m, "count", 0) + 1
    return m.conv(x) * m.count


def counts_up(m, x):
    m.scale_by += 1
    return m.conv(x) * m.scale_by


def counts_elsewhere(m, x):
    m.counter.n += 1
    return m.conv(x) * m.counter.n


def counts_in_a_list(m, x):
    m.seen.append(0)
    return m.conv(x) * len(m.seen)


def counts_in_a_dict(m, x):
    m.notes["n"] = m.notes.get("n", 0) + 1
    return m.conv(x) * m.notes["n"]


def remembers(m, x):
    y, m.before = m.conv(x), getattr(m, "before", None)
    y, m.before = (y if m.before is None else y + m.before), y
    return m.mix(y)


@pytest.mark.parametrize("wires", [counts, counts_up, counts_elsewhere, counts_in_a_list, counts_in_a_dict, remembers])
def test_what_differs_from_call_to_call_is_refused(wires):
    def build():
        torch.manual_seed(0)
        model = Wired(wires).eval()
        model.scale_by, model.counter, model.seen, model.notes = 0, Counter(), [], {}
        return model

    with pytest.raises(oc.BackendUnavailable, match="changes its answer from call to call"):
        NativeNetwork(build(), torch.randn(SHAPES[0]))
    deployed, model = oc.deploy(build(), torch.randn(SHAPES[0])), build()
    for _ in range(2):
        x = torch.randn(SHAPES[0])
        assert not difference(answer(model, x), answer(deployed, x))


ACTIVATIONS = {
    "gelu": F.gelu, "silu": F.silu, "gelu_tanh": lambda y: F.gelu(y, approximate="tanh"), "mish": F.mish,
    "sigmoid": torch.sigmoid, "tanh": torch.tanh, "elu": F.elu, "softplus": F.softplus,
}  # fmt: skip
EXTREME = [torch.inf, -torch.inf, torch.nan, -1e38, -3e38, 3e38, -101, -88, -87, -20, -9, 9, 20, 87, 88, 101, 0, -1e-38]


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_far_out(name):
    model = Wired(lambda m, x: ACTIVATIONS[name](F.conv2d(x, m.vector[:1, None, None, None] * 0 + 1))).eval()
    x = torch.tensor(EXTREME).expand(1, 1, 3, -1).contiguous()
    deployed = NativeNetwork(model, torch.zeros_like(x))
    expected = model.double()(x.double()).detach().float()  # in float32 PyTorch's own gelu(inf) differs from CPU to CPU
    torch.testing.assert_close(deployed(x), expected, rtol=1e-5, atol=1e-6, equal_nan=True)


def test_a_compiled_network_around_it_takes_every_size():
    model = Wired(lambda m, x: m.mix(m.conv(x).relu())).eval()
    deployed = NativeNetwork(model, torch.randn(SHAPES[0]))
    around = torch.compile(lambda x: deployed(x) * 2, backend="eager")
    for shape in (SHAPES[0], SHAPES[3]):
        x = torch.randn(shape)
        assert torch.equal(around(x), deployed(x) * 2)
