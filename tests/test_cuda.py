"""The CUDA engine: the module's answer in every form; on CPU tensors without graphs, on a GPU natively.

Times are made up, except on a GPU. The Triton kernel is interpreted, in a process of its own.
"""

import copy
import functools
import json
import sys
import threading
import weakref
from multiprocessing import get_context
from types import SimpleNamespace

import pytest
import torch
from graphs import GRAPHS, Net, captured_graph
from networks import image, settle, shallow
from torch import nn
from triton_parts import INTERPRETED

import octaveconv as oc
from octaveconv import backends, reference
from octaveconv.deploy.capture import Captures
from octaveconv.deploy.cuda import choices, steps
from octaveconv.deploy.cuda import engine as cuda
from octaveconv.deploy.cuda.choices import Choices
from octaveconv.deploy.cuda.executor import Executor
from octaveconv.deploy.cuda.groups import groups
from octaveconv.deploy.stretches import lower
from octaveconv.errors import BackendUnavailable
from octaveconv.models import OctResNet, OctResNetV2
from octaveconv.models._build import Layers
from octaveconv.models.oct_resnet import Bottleneck
from octaveconv.models.oct_resnetv2 import PreActBottleneck

LIMITS = {torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 6e-2}  # of the largest output
CPU = torch.device("cpu")
NETWORKS = [
    ("oct_resnet18", 0.3), ("oct_resnet26", 0), ("oct_seresnetv2_50", 0.125), ("oct_densenet121", 0.25),
    ("oct_resnextv2_50_32x4d", 0.5), ("oct_mobilenetv2_100", 0.3), ("oct_resnet18", 1), ("oct_resnetv2_26", 0.75),
]  # fmt: skip
KINDS = [
    "constants", "concatenation, then all at once", "a growing concatenation", "split, slices and narrow",
    "every activation", "pooling of other kinds", "average pooling that drops the edge", "gates", "head",
    "upsampling of what is activated", "octave pooling of what is read too", "a dictionary", "the input itself",
]  # fmt: skip

on_host = pytest.mark.skipif(INTERPRETED, reason="needs no kernel")


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    """Nothing measured yet."""
    monkeypatch.setenv("OCTAVECONV_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def anywhere(monkeypatch):
    """Let the engine run on the CPU, where nothing is recorded."""
    monkeypatch.setattr(cuda, "cannot_run", lambda model, example: None)


def prefer(monkeypatch, *names):
    """The first of these forms that there is for a step is the fastest."""

    def seconds(calls, device):
        return {name: names.index(name) if name in names else 99.0 for name in calls}

    monkeypatch.setattr(choices, "seconds", seconds)


def check(model, *xs):
    """The deployed network, after comparing what it answers with float32 on the CPU."""
    deployed = cuda.CudaNetwork(model, xs[0])
    exact = copy.deepcopy(model).cpu().float()
    for x in xs:
        with torch.no_grad():
            expected = torch.utils._pytree.tree_leaves(exact(x.cpu().float()))
        got = torch.utils._pytree.tree_leaves(deployed(x))
        assert len(got) == len(expected)
        for a, b in zip(expected, got):
            assert (b.shape, b.dtype, b.device) == (a.shape, x.dtype, x.device)
            assert (a - b.cpu().float()).abs().max() <= LIMITS[x.dtype] * a.abs().max()
    return deployed


def small(family, alpha, **kwargs):
    """An octave network of few channels."""
    torch.manual_seed(0)
    first = (Bottleneck,) if family is OctResNet else ()
    return settle(family(*first, (1, 2, 1, 1), alpha, width=8, num_classes=5, **kwargs))


@functools.cache
def captured_small(family):
    """The captured network for images of 64 pixels, and what its symbols are then."""
    return Captures(small(family, 0.25)).of(torch.Size((2, 3, 64, 64)))


@on_host
@pytest.mark.usefixtures("anywhere")
def test_every_block(blocks, monkeypatch):
    model, captures = blocks
    monkeypatch.setattr(cuda, "Captures", lambda model: captures)
    deployed = check(model, image(1, 3, 64, 64), image(3, 3, 33, 47))
    assert set(deployed.forms) == {"aten"}
    assert (deployed.engine, deployed.reason) == ("cuda", "")


@on_host
@pytest.mark.usefixtures("anywhere")
@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_layer(name, monkeypatch):
    model, captures = captured_graph(name)
    monkeypatch.setattr(cuda, "Captures", lambda model: captures)
    check(model, image(1, 8, 12, 12), image(3, 8, 9, 15))


@on_host
@pytest.mark.usefixtures("anywhere")
def test_rounded_up_windows():
    layers = nn.Conv2d(3, 8, 3), nn.MaxPool2d(3, 2, ceil_mode=True), nn.AvgPool2d(3, 2, 1, ceil_mode=True)
    check(nn.Sequential(*layers).eval(), image(1, 3, 12, 12), image(1, 3, 11, 14))


@on_host
@pytest.mark.usefixtures("anywhere")
def test_lower_precision_folds_norms_in_float32():
    model = residual_blocks("pre-activation with gates", last=1).bfloat16()  # with norms that no convolution takes
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    deployed = check(model, image(2, 3, 33, 40).bfloat16())
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert not list(deployed.parameters())
    captured, _ = Captures(model).of(torch.Size((2, 3, 33, 40)))
    placed = [step.aten.placed(deployed.like) for step in Executor(captured).steps]
    dtypes = {(tensor.dim(), tensor.dtype) for form in placed for tensor in form.constants}
    assert dtypes == {(1, torch.bfloat16), (3, torch.float32), (4, torch.bfloat16)}


@on_host
@pytest.mark.parametrize("family", [OctResNet, pytest.param(OctResNetV2, marks=pytest.mark.slow)])
@pytest.mark.slow
def test_every_octave_convolution_of_a_residual_network_is_one_step(family):
    captured, _ = captured_small(family)
    network = lower(captured)
    grouped = groups(network)
    assert sorted(id(layer) for group in grouped for layer in group.layers) == sorted(map(id, network.layers))
    octave = [group for group in grouped if group.hh]
    # 4 blocks of 3 in the octave stages, whose shortcuts are part of the last, and the one to the last stage
    assert len(octave) == 13
    assert [len(group.layers) for group in octave] == [2] * 12 + [1]
    single = [layer for group in grouped if not group.hh for layer in group.layers]
    assert not any(layer.sum.coarse for layer in single if layer.sum)
    written = {network.input}
    for group in grouped:
        assert {ref.map.whole for layer in group.layers for ref in layer.sources} <= written
        written |= {target.whole for layer in group.layers for target in layer.targets}


def read_before(m, x):
    return [m.c(m.a(x).relu()).relu(), m.a(oc.octave.pool(x)).relu()]


def read_after(m, x):
    high, low = m.a(x).relu(), m.a(oc.octave.pool(x)).relu()
    return [m.c(high).relu(), m.c(low).relu()]


@on_host
@pytest.mark.usefixtures("anywhere")
@pytest.mark.parametrize("wires", [read_before, read_after])  # of the first's four layers none, of five two are one
def test_two_layers_are_one_step_only_where_nothing_reads_between(wires):
    model = Net(wires, a=nn.Conv2d(8, 6, 3, padding=1), c=nn.Conv2d(6, 4, 1))
    assert check(settle(model), image(1, 8, 7, 6)).forms == {"aten": 4}


@on_host
def test_maps_are_freed_after_their_last_reader():
    layers = [nn.Conv2d(3, 3, 3, padding=1) for _ in range(9)]
    captured, sizes = Captures(nn.Sequential(*layers).eval()).of(torch.Size((2, 3, 8, 8)))
    read, alive = [], []

    def choose(step, maps, shapes):
        alive.append(sum(ref() is not None for ref in read))
        read.extend(map(weakref.ref, maps))
        return step.aten

    with torch.no_grad():
        Executor(captured).run(image(2, 3, 8, 8), sizes, choose)
    assert alive == [0, *[1] * 8]  # the one that is read now


@on_host
@pytest.mark.parametrize("family", [OctResNet, pytest.param(OctResNetV2, marks=pytest.mark.slow)])
def test_only_what_is_read_is_pooled(family, monkeypatch):
    captured, sizes = captured_small(family)
    executor, pooled = Executor(captured), []
    pool = steps.pool
    monkeypatch.setattr(steps, "pool", lambda x: pooled.append(x.shape) or pool(x))
    with torch.no_grad():
        executor.run(image(2, 3, 64, 64), sizes, lambda step, maps, shapes: step.aten)
    outputs = [output for layer in executor.network.layers for output in layer.outputs]
    assert len(pooled) == sum(output.pooled is not None for output in outputs)
    assert 0 < len(pooled) < len(outputs)


@on_host
def test_what_the_kernel_pooled_is_not_pooled_again(monkeypatch):
    captured, sizes = captured_small(OctResNet)
    executor, pooled, by_kernel = Executor(captured), [], []
    pool = steps.pool

    def fused(x, weight, bias, spec, *, pooled, residual, relu, with_pooled):
        y = reference.octconv(x, weight, bias, spec)
        y = oc.Octave(*(part if more is None else part + more for part, more in zip(y, residual)))
        y = oc.octave_map(torch.relu, y) if relu else y
        by_kernel.append(with_pooled)
        return y, pool(y.high) if with_pooled else None

    monkeypatch.setitem(sys.modules, "octaveconv.backends.triton", SimpleNamespace(fused=fused))
    monkeypatch.setattr(backends, "triton", SimpleNamespace(fused=fused), raising=False)
    monkeypatch.setattr(steps, "pool", lambda x: pooled.append(x.shape) or pool(x))
    with torch.no_grad():
        executor.run(image(2, 3, 64, 64), sizes, lambda step, maps, shapes: step.triton if step.spec else step.aten)
    outputs = [output for layer in executor.network.layers for output in layer.outputs]
    assert any(by_kernel)
    assert len(pooled) + sum(by_kernel) == sum(output.pooled is not None for output in outputs)


@on_host
@pytest.mark.usefixtures("anywhere")
def test_an_answer_stays_what_it_is_and_the_input_too():
    deployed = check(GRAPHS["the input itself"], image(2, 8, 5, 5))
    x = image(2, 8, 5, 5)
    first = deployed(x)
    deployed(torch.zeros_like(x))
    assert torch.equal(first, x)
    assert first.data_ptr() != x.data_ptr()
    with torch.inference_mode():
        assert torch.equal(deployed(x.clone()), x)
    assert not deployed(x.requires_grad_()).requires_grad


@on_host
@pytest.mark.usefixtures("anywhere")
def test_the_latest_shapes_stay_ready(monkeypatch):
    monkeypatch.setattr(cuda, "SHAPES", 2)
    deployed = cuda.CudaNetwork(GRAPHS["gates"], image(1, 8, 6, 6))
    prepared, prepare = [], deployed._prepare
    monkeypatch.setattr(deployed, "_prepare", lambda x: prepared.append(x.shape[2]) or prepare(x))
    for size in (6, 7, 6, 8, 6, 7):
        deployed(image(1, 8, size, size))
    assert prepared == [7, 8, 7]


@on_host
@pytest.mark.usefixtures("anywhere")
def test_threads_take_turns():
    deployed = cuda.CudaNetwork(GRAPHS["head"], image(1, 8, 6, 6))
    inputs = [image(1, 8, 6, 6) * i for i in range(8)]
    expected, got = [deployed(x) for x in inputs], [None] * 8
    threads = [threading.Thread(target=lambda i=i: got.__setitem__(i, deployed(inputs[i]))) for i in range(8)]
    [thread.start() for thread in threads], [thread.join() for thread in threads]
    assert all(torch.equal(a, b) for a, b in zip(expected, got))


@on_host
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda model, x: (model, x), "is for NVIDIA GPUs, and the model is on cpu: move it with .to"),
        (lambda model, x: (model.to("meta"), x), "in one dtype and on one device"),
    ],
)
def test_what_it_cannot_run_is_refused_with_a_cure(change, message):
    model, x = change(nn.Sequential(nn.Conv2d(3, 4, 1)), image(1, 3, 8, 8))
    with pytest.raises(BackendUnavailable, match=message):
        oc.deploy(model, x, engine="cuda")


@on_host
@pytest.mark.usefixtures("anywhere")
def test_an_input_of_another_kind_is_refused():
    deployed = cuda.CudaNetwork(GRAPHS["head"], image(1, 8, 6, 6))
    for x in (image(1, 8, 6, 6).half(), image(1, 8, 6, 6)[0]):
        with pytest.raises(ValueError, match=r"takes images \[N, C, H, W\] of torch.float32 on cpu, got torch"):
            deployed(x)


@pytest.mark.slow
@on_host
@pytest.mark.usefixtures("anywhere")
def test_a_step_by_inductor():
    captured, sizes = captured_small(OctResNetV2)
    executor, seen = Executor(captured), []

    def choose(step, maps, shapes):
        if step.spec and len(seen) < 2:
            expected, got = step.aten(maps, shapes), cuda._by_inductor(lambda: step.aten)(maps, shapes)
            seen.append(max((a - b).abs().max() / a.abs().max() for a, b in zip(expected, got, strict=True)))
        return step.aten

    with torch.no_grad(), cuda._tuning():
        executor.run(image(2, 3, 64, 64), sizes, choose)
    assert len(seen) == 2
    assert max(seen) < 1e-5


# Choosing. What is computed is a tensor; the times are those of a fake stopwatch.


def makers(log=None, **values):
    def make(name):
        if log is not None:
            log.append(name)
        if isinstance(values[name], Exception):
            raise values[name]
        return lambda: [torch.full((2, 3), float(values[name]))]

    return {name: lambda name=name: make(name) for name in values}


@pytest.fixture
def stopwatch(monkeypatch):
    """Set the times of names; the log says what was timed."""
    times, log = {}, []

    def seconds(calls, device):
        log.append(sorted(calls))
        return {name: times[name] for name in calls}

    monkeypatch.setattr(choices, "seconds", seconds)
    return times, log


@on_host
def test_the_fastest_is_measured_once_and_kept(stopwatch):
    times, log = stopwatch
    times.update(a=3.0, b=1.0, c=2.0)
    name, call = Choices(CPU).fastest("key", makers(a=1, b=1, c=1))
    assert (name, call()[0][0, 0]) == ("b", 1)
    again, made = Choices(CPU), []
    assert again.fastest("key", makers(made, a=1, b=1, c=1))[0] == "b"
    assert (log, made) == ([["a", "b", "c"]], ["b"])
    times.update(a=0.5)
    assert again.fastest("another key", makers(a=1, b=1))[0] == "a"
    assert again.fastest("key", makers(a=1, c=1))[0] == "a"  # what was fastest is no more
    rows = json.loads(again.path.read_text())["rows"]
    assert sorted(row["fastest"] for row in rows.values()) == ["a", "a"]
    assert {"fastest": "a", "microseconds": {"a": 5e5, "b": 1e6}} in rows.values()


@on_host
def test_one_way_alone_is_neither_measured_nor_kept(stopwatch):
    chosen = Choices(CPU)
    assert chosen.fastest("key", makers(a=1))[0] == "a"
    assert stopwatch[1] == []
    assert not chosen.path.exists()


@on_host
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (RuntimeError("no\ncompiler"), "deploy omits the form 'b': RuntimeError: no compiler$"),
        (1.1, "deploy omits the form 'b': ArithmeticError: its result is off by 0.1, where the largest value is 1"),
        (float("nan"), "its result is off by nan"),
    ],
)
def test_a_way_that_fails_or_is_wrong_is_omitted_with_a_warning(stopwatch, wrong, message):
    stopwatch[0].update(a=2.0, b=0.1)
    with pytest.warns(RuntimeWarning, match=message):
        assert Choices(CPU).fastest("key", makers(a=1, b=wrong))[0] == "a"


@on_host
def test_rounding_is_not_wrong_and_the_first_way_must_run(stopwatch):
    stopwatch[0].update(a=2.0, b=0.1)
    assert Choices(CPU).fastest("key", makers(a=1, b=1.005))[0] == "b"
    with pytest.raises(RuntimeError, match="out of memory"):
        Choices(CPU).fastest("another key", makers(a=RuntimeError("out of memory"), b=1))


@on_host
@pytest.mark.parametrize("content", ["", "{", "[1]", '{"key": 1}', '{"0": {}}', "\x00\xff"])
def test_a_broken_file_is_measured_again(stopwatch, content):
    stopwatch[0].update(a=2.0, b=1.0)
    path = Choices(CPU).path
    path.parent.mkdir()
    path.write_text(content)
    assert Choices(CPU).fastest("key", makers(a=1, b=1))[0] == "b"
    assert Choices(CPU).fastest("key", makers(a=1, b=1))[0] == "b"
    assert len(stopwatch[1]) == 1


@on_host
def test_processes_keep_what_others_found(stopwatch):
    stopwatch[0].update(a=2.0, b=1.0)
    one, other = Choices(CPU), Choices(CPU)
    one.fastest("first", makers(a=1, b=1))
    other.fastest("second", makers(a=1, b=1))
    one.fastest("third", makers(a=1, b=1))
    assert len(json.loads(one.path.read_text())["rows"]) == 3
    assert list(one.path.parent.glob("*.part")) == []


@on_host
def test_processes_at_the_same_time(cache):
    def choose(name):
        chosen = Choices(CPU)
        for i in range(20):
            chosen.fastest(f"{name}{i}", {"a": lambda: lambda: 1, "b": lambda: lambda: 1})

    processes = [get_context("fork").Process(target=choose, args=(name,)) for name in "xy"]
    [process.start() for process in processes], [process.join() for process in processes]
    assert [process.exitcode for process in processes] == [0, 0]
    [path] = cache.glob("*.json")
    assert len(json.loads(path.read_text())["rows"]) == 40


@on_host
def test_where_nothing_can_be_written_it_continues_with_a_warning(stopwatch, cache):
    stopwatch[0].update(a=2.0, b=1.0)
    cache.write_text("a file")
    chosen = Choices(CPU)
    with pytest.warns(RuntimeWarning, match="deploy cannot store its measurements"):
        assert chosen.fastest("key", makers(a=1, b=1))[0] == "b"
    assert chosen.fastest("key", makers(a=1, b=1))[0] == "b"
    assert len(stopwatch[1]) == 1


@on_host
def test_the_stopwatch_takes_turns_and_the_least_time(monkeypatch):
    ticks = iter([0, 3, 0, 1] * (choices.ROUNDS - 1) + [0, 2, 0, 5])
    order = []
    monkeypatch.setattr(choices.time, "perf_counter", lambda: next(ticks))
    assert choices.seconds({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, CPU) == {"a": 2, "b": 1}
    assert order == ["a", "b"] * choices.ROUNDS


@on_host
def test_times_depend_on_the_kernel_and_on_the_steps():
    assert {"steps.py", "triton.py", "_triton_kernels.py"} <= {path.name for path in choices.SOURCES}


# The Triton kernel's form, in the process that `test_triton.py` starts.


def residual_blocks(kind, last):
    """Residual blocks from one frequency to two, with two, with a stride, and back to one frequency."""
    torch.manual_seed(0)
    make, layers = Layers(octave=True), [nn.Conv2d(3, 6, 3, padding=1)]
    sizes = (6, 4, 1, 0.0, 0.5), (16, 4, 1, 0.5, 0.5), (16, 8, 2, 0.5, 0.5), (32, 5, 1, 0.5, 0.0)
    for ins, width, stride, *alphas in sizes[:last]:
        if kind == "pre-activation with gates":
            layers.append(PreActBottleneck(make, ins, width, 4 * width, stride, 1, True, *alphas, ins != 4 * width))
        else:
            layers.append(Bottleneck(make, ins, width, stride, 2 if kind == "grouped" else 1, *alphas))
    return settle(nn.Sequential(*layers, oc.Merge()))


@pytest.mark.skipif(not INTERPRETED, reason="runs the kernel on the CPU")
@pytest.mark.parametrize(
    ("kind", "last", "steps"),
    # of 12 convolutions the last two have one frequency; shortcuts count where a gate keeps them apart
    [
        pytest.param("pre-activation with gates", 3, 11, marks=pytest.mark.slow),
        pytest.param("grouped", 2, 6, marks=pytest.mark.slow),
        pytest.param("post-activation", 4, 11, marks=pytest.mark.slow),
        pytest.param("pre-activation with gates", 4, 13, marks=pytest.mark.slow),
    ],
)
def test_by_the_kernel(kind, last, steps):
    model, x, fused = residual_blocks(kind, last=last), image(1, 3, 5, 6), []
    captured, sizes = Captures(model).of(x.shape)

    def choose(step, maps, shapes):
        fused.append(step.spec is not None)
        return step.triton if step.spec else step.aten

    with torch.no_grad():
        got, expected = Executor(captured).run(x, sizes, choose), model(x)
    assert sum(fused) == steps
    assert (got - expected).abs().max() <= LIMITS[x.dtype] * expected.abs().max()


@pytest.mark.slow
@pytest.mark.skipif(not INTERPRETED, reason="runs the kernel on the CPU")
@pytest.mark.usefixtures("anywhere")
def test_the_kernel_is_taken_where_it_is_the_fastest(monkeypatch):
    prefer(monkeypatch, "triton")
    assert check(residual_blocks("grouped", last=1), image(1, 3, 3, 4)).forms["triton"] == 3


# On a GPU: graphs, streams, and every form.


def on_gpu(model, *shape, dtype=torch.float32):
    return model.to("cuda", dtype), torch.randn(shape, device="cuda", dtype=dtype)


@pytest.fixture
def exact():
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield


@pytest.mark.gpu
@pytest.mark.usefixtures("exact")
@pytest.mark.parametrize("dtype", list(LIMITS))
@pytest.mark.parametrize(
    ("family", "form"),
    [
        *((family, form) for family in (OctResNet, OctResNetV2) for form in ("aten", "triton", "aten by inductor")),
        (OctResNetV2, "triton by inductor"),  # the kernel leaves some norms
    ],
)
def test_every_form_on_a_gpu(monkeypatch, family, form, dtype):
    prefer(monkeypatch, "steps", form, "aten")
    deployed = check(*on_gpu(small(family, 0.5), 2, 3, 65, 48, dtype=dtype))
    assert deployed.forms[form] >= 3


@pytest.mark.gpu
@pytest.mark.usefixtures("exact")
def test_the_whole_network_by_inductor_on_a_gpu(monkeypatch):
    prefer(monkeypatch, "inductor", "aten")
    assert check(*on_gpu(small(OctResNet, 0.5), 2, 3, 64, 64)).forms == {"inductor": 1}


@pytest.mark.gpu
@pytest.mark.usefixtures("exact")
@pytest.mark.parametrize(("name", "alpha"), NETWORKS)
def test_every_network_on_a_gpu(monkeypatch, name, alpha):
    prefer(monkeypatch, "steps", "triton", "aten")
    model, x = on_gpu(settle(shallow(name, alpha, tiny=True)), 1, 3, 64, 64)
    check(model, x, x.new_ones(3, 3, 33, 47), x * 2)


@pytest.mark.gpu
@pytest.mark.usefixtures("exact")
def test_measured_on_a_gpu(cache):
    model, x = on_gpu(small(OctResNet, 0.5), 2, 3, 64, 64)
    deployed = check(model, x)
    [path] = cache.glob("choices-*.json")
    rows = json.loads(path.read_text())["rows"]
    assert all(time > 0 for row in rows.values() for time in row["microseconds"].values())
    written = path.stat().st_mtime_ns
    assert cuda.CudaNetwork(model, x).forms == deployed.forms
    assert path.stat().st_mtime_ns == written


@pytest.mark.gpu
def test_streams_and_shapes_on_a_gpu(monkeypatch):
    prefer(monkeypatch, "steps", "aten")
    model, x = on_gpu(GRAPHS["head"], 4, 8, 64, 64)
    deployed = oc.deploy(model, x)
    assert (deployed.engine, deployed.reason) == ("cuda", "")
    inputs = [torch.randn(size, 8, 64, 64, device="cuda") for size in (4, 2, 4, 2, 4, 4, 2, 2)]
    expected = [deployed(x) for x in inputs]
    streams = [torch.cuda.Stream() for _ in inputs]
    torch.cuda.synchronize()
    got = []
    for stream, x in zip(streams, inputs):
        with torch.cuda.stream(stream):
            got.append(deployed(x))
    torch.cuda.synchronize()
    assert all(torch.equal(a, b) for a, b in zip(expected, got))
