"""The fused norm of the Triton backend against PyTorch's own, one after another: natively, or interpreted."""

import copy
from contextlib import contextmanager
from unittest import mock

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from helpers import assert_close, random_octave
from torch import nn
from torch.utils.checkpoint import checkpoint
from triton_parts import DEVICE, INTERPRETED, LAYOUTS, on_cuda, on_device, on_host, pretend_gpu, quick

import octaveconv as oc
from octaveconv import backends
from octaveconv.models._build import Layers
from octaveconv.models.oct_resnet import BasicBlock, Bottleneck
from octaveconv.models.oct_resnetv2 import PreActBottleneck, PreActConv
from octaveconv.nn.fused import norm_act
from octaveconv.resolution import pool

RELU = oc.OctMap(nn.ReLU(inplace=True))
pytestmark = pytest.mark.usefixtures("poisoned", "exact_and_untuned")
PLAIN = ("contiguous", "channels_last")
CHANNELS = {"both": (9, 5), "high": (9, 0), "low": (0, 5), "many": (3, 67)}


def kernels():
    """The module: importing it imports Triton, which must not happen before it is known whether it interprets."""
    from octaveconv.backends import _triton_norm

    return _triton_norm


@pytest.fixture(autouse=True)
def _few_shares(monkeypatch):
    """So that a share has more than one tile even in small maps, and not all of them as many."""
    monkeypatch.setattr(kernels(), "SHARES", 2)


def problem(channels="both", layout="contiguous", dtype=torch.float32, size=(17, 17)):
    """Maps, a residual like them, and a weight and a bias."""
    high, low = CHANNELS[channels]
    alpha = low / (high + low)
    parts = [random_octave(high + low, alpha, size, 2, dtype, DEVICE) for _ in range(2)]
    if layout != "contiguous":
        parts = [oc.octave_map(LAYOUTS[layout], x) for x in parts]
    x, residual = (oc.octave_map(lambda part: part.detach().requires_grad_(), x) for x in parts)
    return x, residual, *(torch.randn(2, high + low, device=DEVICE, requires_grad=True).unbind())


def composed(x, weight, bias, residual, relu):
    """By PyTorch, one after another."""
    split = [0 if part is None else part.shape[1] for part in x]
    arrays = zip(weight.split(split), bias.split(split))
    y = oc.Octave(*(p if p is None else F.batch_norm(p, None, None, w, b, True) for p, (w, b) in zip(x, arrays)))
    y = y if residual is None else y + residual
    return oc.octave_map(torch.relu, y) if relu else y


def gradients(y, leaves):
    """Of a loss that has another slope at each pixel."""
    loss = sum(
        (p.double() * torch.linspace(-1, 1, p.numel()).to(p.device).view(p.shape)).sum() for p in y if p is not None
    )
    return torch.autograd.grad(loss, [leaf for leaf in leaves if leaf is not None])


def check(x, residual, weight, bias, options):
    """Values, statistics and every gradient are PyTorch's, in float64 of the same numbers."""
    relu, with_pooled = "relu" in options, "pooled" in options
    residual = residual if "residual" in options else None
    y, pooled, statistics = kernels().batch_norm(
        x, weight, bias, 1e-5, residual=residual, relu=relu, with_pooled=with_pooled
    )
    leaves = [*x, weight, bias, *(residual or ())]
    high, low, exact_weight, exact_bias, *exact_residual = exact = [
        None if leaf is None else leaf.detach().double().requires_grad_() for leaf in leaves
    ]
    expected = composed(
        oc.Octave(high, low), exact_weight, exact_bias, oc.Octave(*exact_residual) if residual else None, relu
    )
    for name, actual, value in zip(("high", "low"), y, expected):
        assert_close(actual, value, name)
    assert_close(pooled, pool(expected.high) if with_pooled and expected.high is not None else None, "pooled")
    assert not statistics.requires_grad
    moments = [torch.var_mean(part, (0, 2, 3)) for part in (high, low) if part is not None]
    for row, name in enumerate(("variance", "mean")):
        assert_close(statistics[1 - row], torch.cat([pair[row] for pair in moments]), name)
    dtype = y[y.high is None].dtype
    for number, (actual, value) in enumerate(zip(gradients(y, leaves), gradients(expected, exact))):
        assert_close(actual.to(dtype), value, f"gradient {number}")
    return y


@on_device
@pytest.mark.parametrize(
    ("options", "layout"),
    [
        pytest.param("", "contiguous", marks=pytest.mark.slow),
        pytest.param("residual", "contiguous", marks=pytest.mark.slow),
        pytest.param("relu pooled", "channels_last", marks=pytest.mark.slow),
        pytest.param("relu pooled", "contiguous", marks=pytest.mark.slow),
        ("relu residual", "channels_last"),
        pytest.param("relu residual", "contiguous", marks=pytest.mark.slow),
    ],
)
def test_against_pytorch(options, layout):
    y = check(*problem(layout=layout), options)
    for part in y:
        assert part.is_contiguous(memory_format=torch.channels_last) == (layout == "channels_last")


@on_device
@pytest.mark.parametrize(
    ("channels", "layout"),
    [
        ("high", "channels_last"),
        ("low", "contiguous"),
        ("many", "channels_last"),
        pytest.param("high", "contiguous", marks=pytest.mark.slow),
        pytest.param("low", "channels_last", marks=pytest.mark.slow),
        pytest.param("many", "contiguous", marks=pytest.mark.slow),
    ],
)
def test_other_channels(channels, layout):
    check(*problem(channels, layout, size=(5, 7)), "relu pooled")


@on_device
@pytest.mark.parametrize("layout", quick(["strided", "transposed", "expanded"], ["expanded"]))
def test_layouts(layout):
    check(*problem(layout=layout, size=(6, 7)), "relu residual")


@on_device
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("options", quick(["relu pooled", "relu residual"], ["relu pooled"]))
def test_dtypes(options, dtype):
    check(*problem(layout="channels_last", dtype=dtype, size=(6, 7)), options)


@on_device
def test_a_large_mean_costs_the_variance_no_digits():
    """Of the squares of 100 + x, float32 keeps no more than three decimals."""
    x, _, weight, bias = problem()
    x = oc.octave_map(lambda part: part.detach() + 100, x)
    _, _, statistics = kernels().batch_norm(x, weight, bias, 1e-5)
    expected = torch.cat([part.double().var((0, 2, 3)) for part in x])
    assert_close(statistics[1], expected)


@on_device
def test_twice_is_the_same_to_the_bit():
    x, residual, weight, bias = problem(size=(9, 9))
    first, second = (
        [*y, *gradients(y, [*x, weight, bias])]
        for y in (kernels().batch_norm(x, weight, bias, 1e-5, residual=residual, relu=True)[0] for _ in range(2))
    )
    assert all(map(torch.equal, first, second))


@on_device
@pytest.mark.parametrize("with_residual", [False, True])
def test_nan_stays(with_residual):
    x, residual, weight, bias = problem(size=(3, 3))
    x = oc.octave_map(lambda part: torch.full_like(part, torch.nan).requires_grad_(), x)
    residual = residual if with_residual else None
    y, _, _ = kernels().batch_norm(x, weight, bias, 1e-5, residual=residual, relu=True)
    leaves = [*x, bias]
    expected = gradients(composed(x, weight, bias, residual, relu=True), leaves)
    for actual, value in zip((*y, *gradients(y, leaves)), (*x, *expected)):
        torch.testing.assert_close(actual, value, equal_nan=True)


@pytest.mark.slow
@on_device
def test_opcheck():
    x, residual, weight, bias = problem(size=(3, 3))
    checks = ["test_schema", "test_autograd_registration", "test_faketensor"]
    if not INTERPRETED:  # it compiles
        checks.append("test_aot_dispatch_dynamic")
    forward = kernels().operator, (*x, weight, bias, *residual, 1e-5, True, True)
    *_, statistics = kernels().operator(*forward[1])
    kept = *(part.detach() for part in (*x, weight, bias)), statistics
    for operator, args in (
        forward,
        (kernels().normalize, kept),
        (kernels().backward_operator, (*kept[:2], *kept, None, None, True, True)),
    ):
        torch.library.opcheck(operator, args, test_utils=checks)


@on_device
def test_errors():
    x, residual, weight, bias = problem(size=(3, 3))
    batch_norm = kernels().batch_norm
    with pytest.raises(ValueError, match=r"the weight has the shape \[13\], expected \[14\]"):
        batch_norm(x, weight[1:], bias, 1e-5)
    with pytest.raises(ValueError, match=r"the low part has the shape \[1, 5, 2, 2\], expected \[2, 5, 2, 2\]"):
        batch_norm(oc.Octave(x.high, x.low[:1]), weight, bias, 1e-5)
    with pytest.raises(ValueError, match=r"the residual's low part has the shape .* expected \[2, 5, 2, 2\]"):
        batch_norm(x, weight, bias, 1e-5, residual=oc.Octave(residual.high, residual.high))
    with pytest.raises(ValueError, match=r"the bias is on meta, the input on .*: move it there with .to\(\)"):
        batch_norm(x, weight, bias.to("meta"), 1e-5)
    y, _, _ = batch_norm(x, weight, bias, 1e-5)
    (first,) = torch.autograd.grad(y.high.square().sum(), x.high, create_graph=True)
    with pytest.raises(NotImplementedError, match=r'cannot be differentiated twice: .*octaveconv.backend\("merged"\)'):
        first.sum().backward()


MAKE = Layers(octave=True)
BLOCKS = {
    "basic": lambda: BasicBlock(MAKE, 8, 8, 1, 1, 0.5, 0.5),
    "bottleneck": lambda: Bottleneck(MAKE, 8, 4, 2, 1, 0.5, 0.5),
    "grouped pre-activation": lambda: PreActBottleneck(MAKE, 8, 4, 8, 1, 2, False, 0.5, 0.5, False),
}


def results(block, x, backend, run=lambda block, x: block(x)):
    """Outputs, gradients and buffers after a step of training."""
    block = copy.deepcopy(block)
    leaves = dict(block.named_parameters(), input_high=x.high, input_low=x.low)
    with oc.backend(backend):
        y = run(block, x)
        found = {"high": y.high, "low": y.low, **dict(zip(leaves, gradients(y, leaves.values())))}
    return found | {name: buffer for name, buffer in block.named_buffers() if buffer.is_floating_point()}


@on_device
@pytest.mark.parametrize("name", quick(BLOCKS, ["grouped pre-activation"]))
def test_blocks(name, calls):
    block = BLOCKS[name]().to(DEVICE)
    x = random_octave(8, 0.5, (5, 4), device=DEVICE, requires_grad=True)
    actual = results(block, x, "triton")
    assert len(calls) == (2 if name == "basic" else 3)
    exact = oc.octave_map(lambda part: part.detach().double().requires_grad_(), x)
    for key, expected in results(block.double(), exact, "merged").items():
        assert_close(actual[key], expected, key)
    assert len(calls) == (2 if name == "basic" else 3)


@pytest.fixture
def calls(monkeypatch):
    """The inputs of the norms that were fused."""
    seen = []
    original = backends.batch_norm
    monkeypatch.setattr(
        backends, "batch_norm", lambda x, *args, **kwargs: seen.append(x) or original(x, *args, **kwargs)
    )
    return seen


@pytest.mark.slow
@on_device
def test_checkpointing_changes_no_gradient():
    block = PreActConv(MAKE, 8, 6, 1, alpha_in=0.5, alpha_out=0.5).to(DEVICE)
    x = random_octave(8, 0.5, (5, 4), device=DEVICE, requires_grad=True)
    plain = results(block, x, "triton")
    recomputed = results(block, x, "triton", lambda block, x: checkpoint(block, x, use_reentrant=False))
    for key, expected in plain.items():
        assert "running" in key or torch.equal(recomputed[key], expected), key


@pytest.mark.slow
@on_device
def test_distributed_data_parallel_changes_no_gradient():
    block = PreActConv(MAKE, 8, 6, 1, alpha_in=0.5, alpha_out=0.5).to(DEVICE)
    x = random_octave(8, 0.5, (5, 4), device=DEVICE, requires_grad=True)
    plain = results(block, x, "triton")
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        parallel = results(block, x, "triton", lambda block, x: nn.parallel.DistributedDataParallel(block)(x))
    finally:
        dist.destroy_process_group()
    for key, expected in plain.items():
        assert torch.equal(parallel[key], expected), key


@on_device
@pytest.mark.parametrize("dtype", quick([torch.float16, torch.bfloat16], [torch.bfloat16]))
def test_autocast(dtype, calls):
    unit = PreActConv(MAKE, 8, 6, 3, alpha_in=0.5, alpha_out=0.5).to(DEVICE)
    x = random_octave(8, 0.5, (5, 4), device=DEVICE, requires_grad=True)

    def run(unit, x):
        with torch.autocast(DEVICE, dtype):
            return unit(x)

    actual = results(unit, x, "triton", run)
    assert len(calls) == 1
    expected = results(unit, x, "merged")
    for key, value in actual.items():
        assert value.dtype == (dtype if key in ("high", "low") else torch.float32)
        assert_close(value.to(dtype), expected[key], key)


@on_device
@pytest.mark.parametrize("more", [dict(momentum=None), dict(track_running_stats=False)])
def test_statistics_kept_or_not(more, calls):
    norms = [oc.OctBatchNorm2d(8, alpha=0.5, cut=2, **more).to(DEVICE) for _ in range(2)]
    for training in (True, True, False):
        x = random_octave(8, 0.5, (5, 4), device=DEVICE)
        found = []
        for norm, backend in zip(norms, ("triton", "merged")):
            with oc.backend(backend):
                found.append(norm_act(norm.train(training), RELU, x))
        for actual, expected in zip(*found):
            assert_close(actual, expected)
    for actual, expected in zip(*(norm.buffers() for norm in norms)):
        assert_close(actual.float(), expected.float())
    assert len(calls) == (2 if "momentum" in more else 3)


@on_device
def test_what_is_kept_for_the_gradient():
    """Neither the activation, nor a pooled map: the norm's input."""
    unit = PreActConv(MAKE, 8, 6, 3, alpha_in=0.5, alpha_out=0.5).to(DEVICE)
    x = random_octave(8, 0.5, (5, 4), device=DEVICE, requires_grad=True)
    kept = {}
    with saved(kept), oc.backend("triton"):
        unit(x)
    known = {t.data_ptr() for t in (*x, *unit.parameters())}
    (statistics,) = (tensor for place, tensor in kept.items() if place not in known)
    assert statistics.shape == (3, 8)
    assert known <= kept.keys()


@contextmanager
def saved(kept):
    """Collect what autograd keeps, by its address."""
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.setdefault(t.data_ptr(), t), lambda t: t):
        yield


@on_device
@pytest.mark.slow
def test_training_gives_the_same_losses():
    unit = PreActConv(MAKE, 8, 8, 1, alpha_in=0.5, alpha_out=0.5)
    net = nn.Sequential(oc.OctConv2d(3, 8, 1, alpha_out=0.5), unit, oc.Merge()).to(DEVICE)
    size, steps = ((4, 4), 6) if INTERPRETED else ((8, 8), 50)
    x, target = torch.randn(1, 3, *size, device=DEVICE), torch.randn(1, 8, *size, device=DEVICE)
    curves = []
    for backend in ("triton", "merged"):
        model, losses = copy.deepcopy(net), []
        optimizer = torch.optim.SGD(model.parameters(), 0.1, 0.9)
        with oc.backend(backend):
            for _ in range(steps):
                losses.append(F.mse_loss(model(x), target))
                optimizer.zero_grad()
                losses[-1].backward()
                optimizer.step()
        curves.append(torch.stack(losses).detach())
    assert curves[1][-1] < 0.95 * curves[1][0]
    assert_close(*curves)


def fused(norm, act=RELU, x=None, residual=None):
    """Whether `norm_act` fuses them; on the meta device, where no kernel runs."""
    x = random_octave(8, 0.5, (4, 4), device="meta") if x is None else x
    with oc.backend("triton"), mock.patch.object(norm, "_forward_fused", side_effect=lambda *args: ("fused",)):
        return norm_act(norm.to("meta"), act, x, residual) == "fused"


def norm(**options):
    return oc.OctBatchNorm2d(8, alpha=0.5, **options)


@on_host
def test_what_is_fused():
    x = random_octave(8, 0.5, (4, 4), device="meta")
    assert fused(norm())
    assert fused(norm(), residual=x)
    assert fused(norm(track_running_stats=False).eval())
    assert fused(oc.OctBatchNorm2d(8), x=torch.empty(2, 8, 4, 4, device="meta"))
    assert fused(norm(), x=random_octave(8, 0.5, (1, 1), device="meta"))  # two images
    assert not fused(norm(), x=random_octave(8, 0.5, (4, 4), dtype=torch.float64, device="meta"))
    assert not fused(norm(), residual=oc.octave_map(torch.Tensor.half, x))
    assert not fused(norm().eval())
    assert not fused(norm(affine=False))
    assert not fused(nn.SyncBatchNorm.convert_sync_batchnorm(norm()))
    assert not fused(norm(), oc.OctMap(nn.ReLU6()))
    assert not fused(type("Mine", (oc.OctBatchNorm2d,), {})(8, alpha=0.5))


@on_host
def test_one_value_per_channel_is_refused_as_by_pytorch():
    with pytest.raises(ValueError, match="Expected more than 1 value per channel"), oc.backend("triton"):
        norm_act(norm().to("meta"), RELU, random_octave(8, 0.5, (1, 1), batch=1, device="meta"))


@on_host
@pytest.mark.parametrize("hooked", ["norm", "act", "inner act", "conv", "all"])
def test_a_module_with_a_hook_is_called(hooked):
    unit = PreActConv(MAKE, 8, 8, 1, alpha_in=0.5, alpha_out=0.5).to("meta")
    module = {"norm": unit.bn, "act": unit.act, "inner act": unit.act.module, "conv": unit.conv}.get(hooked)
    register = nn.modules.module.register_module_forward_hook if module is None else module.register_forward_hook
    called = []
    handle = register(lambda module, args, output: called.append(module))
    try:
        with oc.backend("triton"):
            unit(random_octave(8, 0.5, (4, 4), device="meta"))
    finally:
        handle.remove()
    assert called[0] is (module or unit.bn)


@on_host
def test_it_fuses_on_new_gpus_alone_and_only_if_asked_for(monkeypatch):
    pretend_gpu(monkeypatch, 8)
    x, _ = on_cuda()
    assert not backends.fuses_norm(x)
    with oc.backend("merged", "triton"):
        assert not backends.fuses_norm(x)
    with oc.backend("triton", "merged"):
        assert backends.fuses_norm(x)
        assert not backends.fuses_norm(oc.octave_map(lambda part: torch.empty(part.shape), x))
        pretend_gpu(monkeypatch, 7)
        assert not backends.fuses_norm(x)


@on_host
@pytest.mark.parametrize(
    ("name", "maps"), [("basic", 5), pytest.param("grouped pre-activation", 4, marks=pytest.mark.slow)]
)
def test_compiled_it_keeps_no_activation(name, maps):
    """No graph break, forward or backward; and kernels that are known to write their outputs alone.

    Both parts of these are kept: the input, the sums of each convolution, the output's gradient; and for a ReLU beside
    a residual the output.
    """
    from torch._dynamo.backends.common import aot_autograd
    from torch._functorch.partitioners import min_cut_rematerialization_partition
    from triton_resources import h100

    kept, written = [], []

    def stop(graph, inputs, **options):
        forward, backward = min_cut_rematerialization_partition(graph, inputs, **options)
        kept.extend(node.meta["val"] for node in backward.graph.nodes if node.op == "placeholder")
        for node in (*forward.graph.nodes, *backward.graph.nodes):
            written.extend(node.kwargs.get("tensors_to_clone", ()))
        raise NotImplementedError("nothing to run this on")

    block = BLOCKS[name]().to("meta")
    x = random_octave(8, 0.5, (9, 7), batch=3, device="meta", requires_grad=True)
    backend = aot_autograd(fw_compiler=None, partition_fn=stop)
    compiled = torch.compile(block, fullgraph=True, dynamic=False, backend=backend)
    with pytest.raises(Exception, match="nothing to run this on"), oc.backend("triton"), h100():
        compiled(x)
    outputs = {f"{kind}_{part}" for kind in ("out", "to", "to_residual") for part in ("high", "low")}
    assert set(written) - outputs == {"out_pooled", "out", "shares"}
    assert len([tensor for tensor in kept if tensor.dim() == 4 and tensor.shape[0] == 3]) == 2 * maps


@on_host
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_compiles_for_an_h100(layout):
    """Without spilling a register, and with reads of 16 bytes; see triton_resources.py."""
    import triton_resources

    for name, launch in triton_resources.norm_launches(torch.bfloat16, layout).items():
        binary = triton_resources.compile_for_h100(launch)
        assert triton_resources.usage(binary)["stack"] == 0, name
        assert "ld.global.v4" in binary.asm["ptx"], name
