"""octaveconv bench: the stopwatch's order of calls, the choice of the dense rival, T, S and S/T, and what is printed.

Times are made up: no test depends on how fast this machine is.
"""

import importlib
import itertools
import json
import math
import re
import subprocess
import sys

import pytest
import torch
from torch import nn

import octaveconv as oc
from octaveconv import cli, env
from octaveconv.bench import cases, measure, ratios, report, roofline, runtimes, speed, speed_report
from octaveconv.bench.measure import Timing
from octaveconv.bench.ratios import Candidate
from octaveconv.errors import MissingExtra, UsageError
from octaveconv.models import OctResNetV2

MACS = {"dense twin": 200, "torchvision resnet18": 500, "alpha 0.25": 150, "alpha 0.5": 100}
ALPHAS = {"alpha 0.25": 0.25, "alpha 0.5": 0.5}


def test_each_timed_call_comes_after_a_pause_and_untimed_ones(monkeypatch):
    log, ticks = [], itertools.count()
    monkeypatch.setattr(measure.time, "perf_counter", lambda: next(ticks))
    monkeypatch.setattr(measure, "WARM", 3)
    monkeypatch.setattr(measure.time, "sleep", lambda seconds: log.append(f"sleep {seconds}"))

    def clock(call):
        log.append("clock")
        call()
        return 1.0

    calls = {name: lambda name=name: log.append(name) for name in "ab"}
    measure.interleaved(calls, runs=2, warm_up=1, isolate=True, clock=clock)
    rounds = [["sleep 0.012", *["clock", name] * 4] for name in "ab"]
    assert log == ["a", "b", *rounds[0], *rounds[1], *rounds[0], *rounds[1]]


def test_median_and_quartiles_are_of_what_the_clock_says():
    seconds = iter([5, 50, 1, 10, 4, 40, 2, 20, 3, 30])
    timings = measure.interleaved(dict.fromkeys("ab", lambda: None), 5, 0, clock=lambda call: next(seconds))
    assert timings == {"a": Timing(3, 1.5, 4.5, 5), "b": Timing(30, 15, 45, 5)}


def test_the_stopwatch_stops_after_its_time_but_times_each_call_twice(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(measure.time, "perf_counter", lambda: now[0])

    def clock(call):
        now[0] += 10
        return 10.0

    for limit, runs in ((0, 2), (59, 3), (1000, 9)):
        timings = measure.interleaved(dict.fromkeys("ab", lambda: None), 9, 0, limit=limit, clock=clock)
        assert [timing.runs for timing in timings.values()] == [runs, runs]


def test_the_stopwatch_takes_turns_and_reports_quartiles():
    turns = []
    timings = measure.interleaved({name: lambda name=name: turns.append(name) for name in "ab"}, runs=4, warm_up=1)
    assert turns == ["a", "b"] * 5
    timing = timings["a"]
    assert timing.lower <= timing.median <= timing.upper
    assert math.isfinite(timing.median)
    assert timing.runs == 4


def test_wall_clock_makes_one_call(monkeypatch):
    ticks = iter([10.0, 12.5])
    monkeypatch.setattr(measure.time, "perf_counter", lambda: next(ticks))
    made = []
    assert measure.wall_clock(lambda: made.append(1)) == 2.5
    assert made == [1]


def test_peak_memory_is_what_is_held_at_once(capfd):
    def one_after_the_other():
        torch.ones(10_000)
        torch.ones(10_000)

    assert 0 <= measure.peak_bytes(one_after_the_other) - 40_000 < 200
    assert 0 <= measure.peak_bytes(lambda: (torch.ones(10_000), torch.ones(10_000))) - 80_000 < 200
    assert capfd.readouterr() == ("", "")
    print("still here", file=sys.stderr)
    assert capfd.readouterr().err == "still here\n"


def candidate(network, runtime, quick, final=None, layout=None, engine=None):
    def timing(seconds):
        return seconds and Timing(seconds, seconds * 0.9, seconds * 1.1, 9)

    alpha = ALPHAS.get(network, 0.0)
    return Candidate(network, alpha, runtime, layout, engine, 1e-6, 3 << 20, 0.5, None, timing(quick), timing(final))


def test_the_dense_rival_is_the_fastest_of_all_runtimes_and_networks():
    dense = [
        candidate("dense twin", "deployed", 3, 3.0),
        candidate("dense twin", "openvino", 3, 2.5),
        candidate("torchvision resnet18", "onnxruntime", 3, 2.0),
        candidate("dense twin", "eager", 1.0),  # only quickly timed, which is no final figure
    ]
    octave = [candidate("alpha 0.5", "deployed", 1, 1.25), candidate("alpha 0.5", "compiled", 1, 1.5)]
    [row] = ratios.ratios([*dense, *octave], {0: 200, 0.5: 100})
    assert (row["t"], row["s"], row["s_over_t"]) == (2.0, 1.6, 0.8)
    assert (row["runtime"], row["median"], row["runs"]) == ("deployed", 1.25, 9)
    rival = ratios.best_dense([*dense, *octave])
    assert (rival["network"], rival["runtime"], rival["median"]) == ("torchvision resnet18", "onnxruntime", 2.0)


def test_a_disturbed_run_does_not_put_the_fastest_out():
    disturbed, calm = candidate("dense twin", "a", 1), candidate("dense twin", "b", 1)
    disturbed.quick, calm.quick = Timing(3.0, 1.0, 5.0, 5), Timing(1.5, 1.4, 1.6, 5)
    assert ratios.finalists([disturbed, calm]) == [disturbed]


def test_finalists_are_those_near_the_fastest_of_their_alpha():
    def names(*candidates):
        return [(one.alpha, one.runtime) for one in ratios.finalists(candidates)]

    dense = [candidate("dense twin", name, quick) for name, quick in (("a", 1.1), ("b", 1.0), ("c", 1.14), ("d", 1.05))]
    octave = [candidate("alpha 0.5", name, quick) for name, quick in (("a", 5.5), ("b", 5.6), ("c", 5.0), ("d", 9))]
    assert names(*dense, *octave) == [(0, "b"), (0, "d"), (0, "a"), (0.5, "c"), (0.5, "a")]
    assert names(candidate("dense twin", "a", 1.0), candidate("torchvision resnet18", "b", 1.2)) == [(0, "a")]


def tiny():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 5)).eval()


class World:
    """A bench of tiny networks, with made-up times: ``seconds[network, runtime]``, 9 where nothing is said."""

    def __init__(self, monkeypatch):
        self.monkeypatch, self.seconds, self.phases = monkeypatch, {}, []
        monkeypatch.setattr(speed, "make_cases", self.make_cases)
        monkeypatch.setattr(speed, "interleaved", self.interleaved)
        self.module("deploy", deploy=self.unavailable)
        self.module("export", export=self.unavailable, load=self.unavailable)

    def make_cases(self, settings):
        other = ["torchvision resnet18"] if settings.dense else []
        for name in ("dense twin", *other, *(f"alpha {alpha:g}" for alpha in settings.alphas)):
            yield cases.Case(name, ALPHAS.get(name, 0.0), MACS[name], tiny())

    def interleaved(self, calls, runs, warm_up, *, isolate, clock):
        assert isolate
        assert clock is measure.wall_clock
        for call in calls.values():
            assert call().shape[1] == 5
        self.phases.append((list(calls), runs))
        return {name: self.timing(name, runs) for name in calls}

    def timing(self, name, runs):
        network, runtime, *_ = name.split(", ")
        seconds = self.seconds.get((network, runtime), 9.0)
        return Timing(seconds, seconds * 0.9, seconds * 1.1, runs)

    def unavailable(self, *args, **kwargs):
        raise MissingExtra("this needs it, which is not installed: pip install 'octaveconv[export]'")

    def module(self, name, **contents):
        module = importlib.import_module(f"octaveconv.{name}")
        for key, value in contents.items():
            self.monkeypatch.setattr(module, key, value)

    def deploys(self, change=lambda logits: logits):
        """Let ``deploy`` work, with ``change`` applied to the logits."""

        def deploy(model, example_inputs, engine=None):
            assert not model.training
            module = nn.Sequential(model, Changed(change))
            module.engine = "native"
            return module

        self.module("deploy", deploy=deploy)


class Changed(nn.Module):
    def __init__(self, change):
        super().__init__()
        self.forward = change


@pytest.fixture
def world(monkeypatch):
    return World(monkeypatch)


def bench(capsys, *options):
    """Exit code, standard output and standard error of a bench of tiny networks."""
    code = cli.main(["bench", "oct_resnet18", "--size", "32", *options])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_a_loss_is_printed_as_a_loss(world, capsys, tmp_path):
    world.deploys()
    world.seconds = {
        ("dense twin", "eager"): 0.004,
        ("dense twin", "deployed"): 0.002,
        ("alpha 0.25", "eager"): 0.003,
        ("alpha 0.25", "deployed"): 0.0025,
        ("alpha 0.5", "deployed"): 0.00125,
    }
    file = tmp_path / "bench.json"
    code, out, _ = bench(
        capsys, "--alpha", "0.5", "0.25", "--runtimes", "eager", "deployed", "--runs", "20", "--json", str(file)
    )
    assert code == 0
    rival = "the fastest dense network (dense twin, deployed native)"
    assert f"batch 1, alpha 0.25: octave is slower: it takes 1.250 times as long as {rival}; theory allows 1.33" in out
    assert f"batch 1, alpha 0.5: octave is 1.600 times as fast as {rival}; theory allows 2.00" in out
    rows = [line.split() for line in out.splitlines()]
    last = ["1", "0.25", "1.333", "0.800", "0.600", "2.50", "2.25-2.75", "deployed", "native"]
    assert last in [row[:9] for row in rows]
    assert ["alpha", "0.25,", "eager", "contiguous", "3.00", "2.70-3.30", "0.667"] in [row[:7] for row in rows]
    assert "; 1 thread, " in out
    assert json.loads(file.read_text())["batches"][0]["alphas"][1]["s"] == pytest.approx(1.6)
    assert [(len(names), runs) for names, runs in world.phases] == [(9, speed.QUICK_RUNS), (3, 20)]


def test_the_other_dense_network_is_a_rival_but_not_the_theory(world):
    world.seconds = {("torchvision resnet18", "eager"): 2.0, ("dense twin", "eager"): 4.0, ("alpha 0.5", "eager"): 1.0}
    settings = cases.BenchSettings("oct_resnet18", (0.5,), 32, runtimes=("eager",), dense="torchvision")
    result = speed.run(settings)
    [batch] = result["batches"]
    assert batch["best_dense"]["network"] == "torchvision resnet18"
    assert (batch["alphas"][0]["t"], batch["alphas"][0]["s"]) == (2.0, 2.0)
    assert report.table(result)[1][-1] == "torchvision resnet18, eager contiguous"


def test_equal_times_are_not_a_win(world):
    result = speed.run(cases.BenchSettings("oct_resnet18", (0.5,), 32, runtimes=("eager",)))
    [line] = speed_report.verdicts(result)
    assert "octave is no faster than" in line


@pytest.mark.parametrize("commit", ["0123456789ab", "0123456789ab-dirty"])
def test_a_dirty_tree_is_noted_and_recorded(world, capsys, monkeypatch, tmp_path, commit):
    commits = iter([commit])  # asked for before anything is measured, and only then
    monkeypatch.setattr(env, "commit", lambda: world.phases or next(commits))
    file = tmp_path / "bench.json"
    code, out, _ = bench(capsys, "--alpha", "0.5", "--runtimes", "eager", "--json", str(file))
    dirty = commit.endswith("-dirty")
    assert code == 0
    assert ("uncommitted changes in the working tree: these figures are not fit to publish" in out) is dirty
    assert ("at commit 0123456789ab with uncommitted changes;" in out) is dirty
    assert "at commit 0123456789ab" in out
    assert json.loads(file.read_text())["env"]["commit"] == commit


def test_the_commit_of_a_changed_tree_is_marked(tmp_path, monkeypatch):
    git = ["git", "-C", tmp_path, "-c", "user.name=a", "-c", "user.email=a@b.c"]
    file = tmp_path / "env.py"
    monkeypatch.setattr(env, "__file__", str(file))
    assert env.commit() == "unknown"
    for text in ("1", "2"):
        file.write_text(text)
        if text == "1":
            for command in (["init", "-q"], ["add", "env.py"], ["commit", "-q", "-m", "one"]):
                subprocess.run([*git, *command], check=True)
        assert re.fullmatch("[0-9a-f]{12}" + "-dirty" * (text == "2"), env.commit())


def test_every_batch_size_is_measured_on_its_own(world):
    result = speed.run(cases.BenchSettings("oct_resnet18", (0.5,), 32, batch_sizes=(1, 3), runtimes=("eager",)))
    assert [batch["batch_size"] for batch in result["batches"]] == [1, 3]
    assert [row[0] for row in report.table(result)[1:]] == ["1", "3"]
    assert len(world.phases) == 4


def test_a_runtime_that_cannot_run_is_listed_with_its_reason(world, capsys, monkeypatch):
    def deploy(model, example_inputs, engine=None):
        raise RuntimeError("no compiler\nand a long story")

    monkeypatch.setattr(runtimes, "_compiled", runtimes._eager)
    world.module("deploy", deploy=deploy)
    code, out, _ = bench(capsys, "--alpha", "0.5")
    assert code == 0
    lines = [line for line in out.splitlines() if line.startswith("not run")]
    missing = "this needs it, which is not installed: pip install 'octaveconv[export]'"
    assert lines == [
        "not run: deployed: RuntimeError: no compiler",
        f"not run: openvino: {missing}",
        f"not run: onnxruntime: {missing}",
    ]


def test_the_reason_names_the_networks_where_others_do_run():
    rows = [dict(network="alpha 0.5", runtime="deployed", layout=None, why="because")] * 2
    batch = {"not_run": rows, "networks": [{"name": "dense twin"}, {"name": "alpha 0.5"}]}
    assert speed_report.not_run(batch) == ["not run: deployed of alpha 0.5: because"]


@pytest.mark.parametrize("name", ["deployed", "openvino", "onnxruntime"])
def test_a_runtime_asked_for_by_name_must_run(world, capsys, name):
    code, _, err = bench(capsys, "--runtimes", "eager", name)
    assert code == 1
    assert err == "octaveconv: this needs it, which is not installed: pip install 'octaveconv[export]'\n"


def test_a_network_that_nothing_can_run_is_an_error(world, monkeypatch):
    for name in ("_eager", "_compiled"):
        monkeypatch.setattr(runtimes, name, runtimes._deployed)
    world.deploys()
    networks = list(world.make_cases(cases.BenchSettings("oct_resnet18", (0.5,))))
    why = [dict(network="alpha 0.5", runtime="eager", layout=None, why="because")]
    with pytest.raises(RuntimeError, match=r"no runtime can run alpha 0\.5: eager: because"):
        speed._check_complete([candidate("dense twin", "eager", 1)], networks, why)


@pytest.mark.parametrize(
    "change",
    [lambda y: y * (1 + 1e-3), lambda y: y * float("nan"), lambda y: y[:, :4], lambda y: torch.zeros_like(y)],
    ids=["off", "nan", "shape", "zero"],
)
@pytest.mark.parametrize("asked", [(), ("--runtimes", "eager", "deployed")], ids=["all", "by name"])
def test_a_wrong_output_is_an_error_and_is_not_timed(world, capsys, monkeypatch, change, asked):
    monkeypatch.setattr(runtimes, "_compiled", runtimes._eager)
    world.deploys(change)
    code, _, err = bench(capsys, "--alpha", "0.5", *asked)
    assert code == 1
    assert "dense twin, deployed: its logits differ from those of eager fp32 by" in err
    assert world.phases == []


def test_rounding_is_not_a_wrong_output(world, capsys):
    world.deploys(lambda y: y * (1 + 5e-5))
    assert bench(capsys, "--alpha", "0.5", "--runtimes", "eager", "deployed")[0] == 0


def test_lower_precision_is_compared_with_float32(world):
    seen = []
    world.deploys(lambda y: seen.append(y.dtype) or y)
    settings = cases.BenchSettings("oct_resnet18", (0.5,), 32, dtype="bf16", runtimes=("eager", "deployed"))
    [batch] = speed.run(settings)["batches"]
    assert set(seen) == {torch.bfloat16}
    assert all(1e-4 < one["difference"] < speed.LIMITS["bf16"] for one in batch["candidates"])


def test_an_exported_network_runs_on_the_threads_that_are_set(world):
    calls = []

    def export(model, example_inputs, path, *, format):
        calls.append(("export", format, path.suffix, example_inputs.shape[0]))
        torch.save(model, path)

    def load(path, *, format, threads, precision):
        calls.append(("load", format, threads))
        assert precision == "fp32"
        return torch.load(path, weights_only=False)

    world.module("export", export=export, load=load)
    world.monkeypatch.setattr(runtimes, "_of_fixed_size", lambda file, x: file)
    settings = cases.BenchSettings("oct_resnet18", (0.5,), 32, (2,), 1, runtimes=("openvino", "onnxruntime"))
    speed.run(settings)
    once = [
        ("export", "openvino", ".xml", 2),
        ("load", "openvino", 1),
        ("export", "onnx", ".onnx", 2),
        ("load", "onnx", 1),
    ]
    assert calls == once * 2
    with pytest.raises(runtimes.CannotRun, match="fp32 only"):
        speed.run(cases.BenchSettings("oct_resnet18", (0.5,), 32, dtype="bf16", runtimes=("onnxruntime",)))


def test_an_exported_network_is_exported_once_and_fixed_to_each_batch_size(world):
    exported, fixed = [], []

    def export(model, example_inputs, path, *, format):
        exported.append(path)
        torch.save(model, path)

    world.module("export", export=export, load=lambda path, **_: torch.load(path, weights_only=False))
    world.monkeypatch.setattr(runtimes, "_of_fixed_size", lambda file, x: fixed.append((file, len(x))) or file)
    speed.run(cases.BenchSettings("oct_resnet18", (0.5,), 32, (1, 3), runtimes=("openvino",)))
    assert len(set(exported)) == len(exported) == 2
    assert fixed == [(path, size) for size in (1, 3) for path in exported]


def test_the_threads_are_set_and_restored(world):
    before, seen = torch.get_num_threads(), []
    world.deploys(lambda y: seen.append(torch.get_num_threads()) or y)
    speed.run(cases.BenchSettings("oct_resnet18", (0.5,), 32, threads=before + 2, runtimes=("deployed",)))
    assert set(seen) == {before + 2}
    assert torch.get_num_threads() == before


def test_compiled_networks_of_one_class_do_not_fall_back_to_eager():
    compiled = []

    def backend(graph, inputs):
        compiled.append(graph)
        return graph

    with runtimes.conditions(cases.BenchSettings("oct_resnet18")):
        for width in range(1, 13):  # PyTorch's own limit is 8
            torch.compile(nn.Linear(3, width), backend=backend, dynamic=False)(torch.ones(1, 3))
    assert len(compiled) == 12


def test_further_runtimes_of_dense_networks_alone(world):
    world.deploys()
    settings = cases.BenchSettings("oct_resnet18", (0.5,), 32, runtimes=("eager",), rivals=("deployed",))
    result = speed.run(settings)
    [batch] = result["batches"]
    assert {(one["network"], one["runtime"]) for one in batch["candidates"]} == {
        ("dense twin", "eager"),
        ("dense twin", "deployed"),
        ("alpha 0.5", "eager"),
    }
    assert result["runtimes"] == ["eager", "deployed"]
    world.module("deploy", deploy=world.unavailable)
    with pytest.raises(MissingExtra):
        speed.run(settings)


RATES = {"copy_bytes_per_s": 2e6, "matrix_flops_per_s": 1e6}


def test_the_roofline_is_of_the_fastest_networks(world, capsys, monkeypatch):
    monkeypatch.setattr(speed, "_rates", lambda settings: RATES)
    world.seconds = {("dense twin", "eager"): 0.004, ("alpha 0.5", "eager"): 0.002}
    code, out, _ = bench(capsys, "--alpha", "0.5", "--runtimes", "eager", "--batch-size", "2")
    assert code == 0
    rows = [line.split() for line in out.splitlines()]
    # 200 and 100 multiply-adds of one image; 1e6 FLOP/s for 4 ms and 2 ms are 4,000 and 2,000
    assert ["2", "dense", "twin", "4.00", "0.0", "20.0%", "0.0", "0.0%"] in [row[:8] for row in rows]
    assert ["2", "alpha", "0.5", "2.00", "0.0", "20.0%", "0.0", "0.0%"] in [row[:8] for row in rows]
    assert "measured copy 0 GB/s (read and written), matrix product 0.0 TFLOP/s" in out


def test_the_roofline_has_what_is_counted_and_the_memory():
    nets = [cases.Case("dense twin", 0, 100, None, 10, 50), cases.Case("alpha 0.5", 0.5, 50, None, 10, 30)]
    rows = [
        dict(network=net.name, runtime="eager", layout=None, engine=None, median=0.5, alpha=net.alpha, peak_bytes=size)
        for net, size in zip(nets, (8 << 20, 6 << 20))
    ]
    batch = dict(batch_size=2, candidates=rows, best_dense=rows[0], alphas=rows[1:])
    settings = cases.BenchSettings("oct_resnet18", dtype="bf16", mode="train", device="cuda")
    batch["roofline"] = speed._roofline(batch, nets, settings, dict(copy_bytes_per_s=1e4, matrix_flops_per_s=1e4))
    dense, octave = batch["roofline"]
    assert (dense["flops"], dense["bytes"]) == (3 * 2 * 2 * 100, 3 * 2 * (10 + 2 * 2 * 50))
    assert (octave["flops"], octave["bytes"]) == (3 * 2 * 2 * 50, 3 * 2 * (10 + 2 * 2 * 30))
    assert (dense["matrix_share"], dense["copy_share"]) == (pytest.approx(0.24), pytest.approx(0.252))
    table = speed_report.roofline_table({"batches": [batch]})
    assert [row[-2:] for row in table[1:]] == [["8", "1.000"], ["6", "0.750"]]
    assert speed_report.roofline_table({"batches": [{}]}) == []


def test_the_rates_are_the_best_of_several_runs():
    seconds = iter([*range(20, 40), *range(5, 25)])
    rates = roofline.rates("bf16", "cpu", copy_bytes=100, matrix=10, clock=lambda call: next(seconds))
    assert rates == {"copy_bytes_per_s": 10.0, "matrix_flops_per_s": 400.0}


def test_on_a_gpu_the_dense_twin_is_compiled_at_its_best(monkeypatch, tmp_path):
    options = []
    monkeypatch.setattr(runtimes, "_laid_out", lambda task: (task.model, task.x))
    monkeypatch.setattr(torch, "compile", lambda model, dynamic, options: seen(options) or model)
    seen = options.append
    for device, dense in (("cuda", True), ("cuda", False), ("cpu", True)):
        settings = cases.BenchSettings("oct_resnet18", device=device)
        runtimes.prepare("compiled", runtimes.Task(tiny(), torch.ones(1), None, settings, tmp_path, dense))
    graphs = {"freezing": True, "triton.cudagraphs": True}
    assert options == [graphs | {"max_autotune": True}, graphs | {"max_autotune": False}, {"freezing": True}]
    assert runtimes.layouts("compiled", "cuda") == ["channels_last"]
    assert runtimes.layouts("eager", "cuda") == runtimes.layouts("compiled", "cpu") == ["contiguous", "channels_last"]


def test_memory_in_a_cuda_graph_is_not_seen():
    def seen(runtime, device, mode):
        return runtimes.is_seen(runtime, cases.BenchSettings("oct_resnet18", device=device, mode=mode))

    names = ("eager", "compiled", "deployed")
    assert [seen(name, "cuda", "infer") for name in names] == [True, False, False]
    assert [seen(name, "cuda", "train") for name in names[:2]] == [True, True]
    assert [seen(name, "cpu", "infer") for name in names] == [True, True, False]


def test_the_cuda_engine_says_what_runs_the_steps(world, monkeypatch):
    def deploy(model, example_inputs, engine=None):
        model.engine, model.forms = "cuda", {"triton": 9, "aten": 2}
        return model

    world.module("deploy", deploy=deploy)
    [batch] = speed.run(cases.BenchSettings("oct_resnet18", (0.5,), 32, runtimes=("deployed",)))["batches"]
    assert batch["best_dense"]["engine"] == "cuda: 9 triton, 2 aten"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--rivals", "openvin"], "mode 'infer' has no runtime 'openvin': did you mean openvino?"),
        (["--runtimes", "openvin"], "mode 'infer' has no runtime 'openvin': did you mean openvino?"),
        (["--runtimes", "tvm"], "choose from eager, compiled, deployed, openvino, onnxruntime"),
        (
            ["--runtimes", "deployed", "--mode", "train"],
            "'train' has no runtime 'deployed': choose from eager, compiled",
        ),
        (["--alpha", "0.5", "0"], "alpha must be above 0 and at most 1, got 0: the dense twin is timed anyway"),
        (["--alpha", "1.5"], "alpha must be above 0 and at most 1, got 1.5"),
        (["--runs", "1"], "runs must be at least 2, for quartiles, got 1"),
        (["--mode", "train", "--dtype", "fp16"], "a training step in fp16 needs its loss scaled: use bf16"),
        (["--dense", "resnet5O"], "has a network 'resnet5O': did you mean resnet50?"),
        (["--dense", "oct_resnet50"], "oct_resnet50 is an octave network: name a dense one to beat"),
        (["--dense", "torchvision/resnet5O"], "torchvision has no classifier 'resnet5O': did you mean resnet50?"),
    ],
)
def test_wrong_use(capsys, options, message):
    code, out, err = bench(capsys, "--runtimes", "eager", *options)
    assert (code, out) == (2, "")
    assert message in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["resnet50"], "resnet50 has no alpha"),
        (["oct_resnet5O"], "did you mean oct_resnet50?"),
        (["oct_resnext50_32x4d", "--alpha", "0.1"], "use an alpha of"),
        (["oct_resnetv2_50_a250", "--alpha", "0.5"], "oct_resnetv2_50 takes every alpha"),
        (["oct_resnetv2_26", "--dense", "torchvision"], "'resnetv2_26': name another one, as torchvision/resnet50"),
    ],
)
def test_networks_that_do_not_exist(capsys, argv, message):
    assert cli.main(["bench", *argv]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_cuda_is_refused(capsys):
    code, _, err = bench(capsys, "--device", "cuda")
    assert code == 2
    assert "device cuda: PyTorch sees no GPU here" in err


def test_networks_have_ordinary_weights_and_statistics():
    settings = cases.BenchSettings("oct_resnetv2_26_a250", (0.25,), 32, dense="torchvision/mobilenet_v2")
    made = list(cases.make_cases(settings))
    assert [(net.name, net.alpha) for net in made] == [
        ("dense twin", 0),
        ("torchvision mobilenet_v2", 0),
        ("alpha 0.25", 0.25),
    ]
    assert [net.model.alpha for net in (made[0], made[2])] == [0, 0.25]
    assert made[0].macs > made[2].macs
    for net in made:
        assert not any(module.training for module in net.model.modules())
        assert all(module.p == 0 for module in net.model.modules() if isinstance(module, nn.Dropout))
        norms = [module for module in net.model.modules() if getattr(module, "running_var", None) is not None]
        assert all(0.5 <= norm.weight.min() < norm.weight.max() <= 1.5 for norm in norms)
        assert all(norm.running_mean.any() and norm.momentum < 0.2 for norm in norms)
        logits = net.model(cases.images(settings, 2))
        assert logits.isfinite().all()
        assert 1e-3 < logits.std() < 1e3
    for one, other in zip(made[0].model.parameters(), made[2].model.parameters(), strict=True):
        assert torch.equal(one, other)


def small(settings):
    """Real octave networks, but small ones."""
    for name, alpha in (("dense twin", 0.0), *((f"alpha {alpha:g}", alpha) for alpha in settings.alphas)):
        torch.manual_seed(0)
        model = OctResNetV2((1, 1, 1, 1), alpha=alpha, width=8, stem="3x3", num_classes=10)
        cases._calibrate(model, settings.size)
        yield cases.Case(name, alpha, round(1e6 * (1 - alpha / 2)), model)


def smaller(settings):
    """A layer and a head: a compiler takes seconds for each."""
    for alpha in (0.0, *settings.alphas):
        name = f"alpha {alpha:g}" if alpha else "dense twin"
        layer, head = oc.OctConv2d(3, 8, 1, alpha_out=alpha), (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))
        yield cases.Case(name, alpha, round(1e6 * (1 - alpha / 2)), nn.Sequential(layer, oc.Merge(), *head).eval())


def test_a_training_step_trains(tmp_path):
    [net] = small(cases.BenchSettings("oct_resnet18", (), 32))
    settings = cases.BenchSettings("oct_resnet18", (), 32, mode="train")
    x = cases.images(settings, 4)
    before = {name: tensor.clone() for name, tensor in net.model.state_dict().items()}
    prepared = runtimes.prepare("eager", runtimes.Task(net.model, x, "channels_last", settings, tmp_path))
    step = prepared.call
    weight = step.forward.fc.weight if hasattr(step.forward, "fc") else next(step.forward.parameters())
    own = weight.detach().clone()
    logits = step()
    assert logits.shape == (4, 10)
    assert not logits.requires_grad
    assert not torch.equal(own, weight)
    assert weight.grad is None
    assert all(torch.equal(before[name], tensor) for name, tensor in net.model.state_dict().items())


@pytest.mark.parametrize("mode", [pytest.param("infer", marks=pytest.mark.slow), "train"])
def test_a_real_run_in_eager_mode(monkeypatch, capsys, mode):
    monkeypatch.setattr(speed, "make_cases", small)
    options = ["--alpha", "0.5", "--runtimes", "eager", "--runs", "2", "--batch-size", "2"]
    code, out, _ = bench(capsys, *options, "--mode", mode)
    assert code == 0
    assert "batch 2, alpha 0.5: octave is" in out


@pytest.mark.parametrize("mode", [pytest.param("infer", marks=pytest.mark.slow), "train"])
def test_a_real_run_compiled(monkeypatch, mode):
    monkeypatch.setattr(speed, "make_cases", smaller)
    settings = cases.BenchSettings("oct_resnet18", (0.5,), 32, (4,), 1, mode=mode, runtimes=("compiled",), runs=2)
    [batch] = speed.run(settings)["batches"]
    assert [one["layout"] for one in batch["candidates"]] == ["contiguous", "channels_last"] * 2
    assert all(one["peak_bytes"] > 0 for one in batch["candidates"])


@pytest.mark.parametrize(
    "runtimes", [("onnxruntime",), pytest.param(("openvino", "onnxruntime"), marks=pytest.mark.slow)]
)
@pytest.mark.slow
def test_a_real_run_exported(monkeypatch, runtimes):
    for runtime in runtimes:
        pytest.importorskip(runtime)
    monkeypatch.setattr(speed, "make_cases", smaller)
    result = speed.run(cases.BenchSettings("oct_resnet18", (0.5,), 32, (2,), 1, runtimes=runtimes, runs=2))
    for batch in result["batches"]:
        assert [one["runtime"] for one in batch["candidates"]] == [*runtimes, *runtimes]


@pytest.mark.gpu
def test_a_real_run_on_a_gpu(monkeypatch):
    monkeypatch.setattr(speed, "make_cases", small)
    settings = cases.BenchSettings("oct_resnet18", (0.5,), 32, (4,), 1, "cuda", runtimes=("eager",), runs=2)
    [batch] = speed.run(settings)["batches"]
    assert all(one["peak_bytes"] > 0 and one["final"]["median"] > 0 for one in batch["candidates"] if one["final"])
    assert all(0 < row[share] < 1 for row in batch["roofline"] for share in ("matrix_share", "copy_share"))


@pytest.mark.gpu
def test_cuda_events_see_the_work_of_the_device():
    x = torch.ones(4096, 4096, device="cuda")
    short, long = (min(measure.cuda_events(lambda n=n: [x @ x for _ in range(n)]) for _ in range(5)) for n in (1, 50))
    assert long > short > 0


@pytest.fixture
def file(world, tmp_path):
    world.seconds = {("dense twin", "eager"): 0.004, ("alpha 0.25", "eager"): 0.005, ("alpha 0.5", "eager"): 0.0025}
    settings = cases.BenchSettings("oct_resnet18", (0.25, 0.5), 32, (1, 8), 1, runtimes=("eager",))
    (tmp_path / "bench.json").write_text(json.dumps(speed.run(settings)))
    return tmp_path / "bench.json"


def test_report_shows_a_bench_file(file, capsys, tmp_path):
    picture, points = tmp_path / "bench.svg", tmp_path / "points.json"
    assert cli.main(["report", str(file), "--plot", str(picture), "--json", str(points)]) == 0
    out = capsys.readouterr().out
    assert [line.split()[:5] for line in out.splitlines()[1:3]] == [
        ["1", "0.25", "1.333", "0.800", "0.600"],
        ["1", "0.5", "2.000", "1.600", "0.800"],
    ]
    assert "octave is slower: it takes 1.250 times as long" in out
    assert "interleaved runs" in out
    assert [(point["batch_size"], point["alpha"]) for point in json.loads(points.read_text())] == [
        (1, 0.25),
        (1, 0.5),
        (8, 0.25),
        (8, 0.5),
    ]
    first = picture.read_text()
    for text in ("S = T", "batch 1", "batch 8", "oct_resnet18"):
        assert text in first
    report.plot(report.read(file), picture)
    assert picture.read_text() == first


@pytest.mark.parametrize("key", ["batches", "env", "threads"])
def test_a_broken_bench_file_is_one_line(file, capsys, key):
    result = json.loads(file.read_text())
    del result[key]
    file.write_text(json.dumps(result))
    assert cli.main(["report", str(file)]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_usage_errors_are_found_before_anything_is_built(monkeypatch):
    monkeypatch.setattr(speed, "make_cases", None)
    with pytest.raises(UsageError, match="torchvision has no classifier"):
        speed.run(cases.BenchSettings("oct_resnet18", (0.5,), 32, dense="torchvision/x"))
