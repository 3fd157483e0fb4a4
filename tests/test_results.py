"""The schema of every file in results/ that `octaveconv bench` wrote: complete, with its conditions, and consistent."""

import copy
import json
import re
from pathlib import Path

import pytest

from octaveconv import _modes, env
from octaveconv.bench import cases, report, speed

RESULTS = Path(__file__).parent.parent / "results"
KINDS = {"bench": lambda file: [file], "benches": lambda file: file["runs"]}  # of octaveconv bench, of bench/gpu.sh
FILES = {
    path.name: KINDS[kind](file)
    for path in sorted(RESULTS.glob("*.json"))
    if (kind := (file := json.loads(path.read_text())).get("kind")) in KINDS
}
CONDITIONS = {
    "kind": str, "model": str, "size": int, "threads": int, "device": str, "dtype": str, "mode": str, "runs": int,
    "runtimes": list, "pause_s": float, "warm_s": float, "weights": str, "env": dict, "batches": list,
}  # fmt: skip
# Measured before their rules: in a tree with uncommitted changes, and some with a single untimed call before each timed
# one, not WARM. Issue L measures them again. The list only gets shorter: a new file follows the rules.
DIRTY = {f"speed_oct_{name}_cpu{kind}.json" for name, kind in (
    ("densenet121", ""), ("mobilenetv1_100", ""), ("resnet101", ""), ("resnet50", ""), ("resnet50", "_1_thread"),
    ("resnet50", "_avx2"), ("resnet50", "_train"), ("resnetv2_50", ""), ("resnextv2_50_32x4d", ""),
)}  # fmt: skip
NOT_WARM = {f"speed_oct_{name}.json" for name in (
    "resnet50_cpu", "resnet50_cpu_1_thread", "resnet50_cpu_avx2", "resnetv2_50_cpu",
)}  # fmt: skip
FACTS = {"octaveconv", "commit", "torch", "timm", "torchvision", "python", "cpu", "gpu", "openvino", "onnxruntime"}
WAY = {"network", "runtime", "layout", "engine"}
TIMING = {"median", "lower", "upper", "runs"}
CANDIDATE = WAY | {"alpha", "difference", "peak_bytes", "prepare_s", "quick", "final"}


def check(result, *, exempt=()):
    """Raise AssertionError unless this is a complete and consistent result of `octaveconv bench`."""
    assert all(isinstance(result[key], kind) for key, kind in CONDITIONS.items() if key not in exempt)
    assert result["env"].keys() >= FACTS
    assert result["device"] in ("cpu", "cuda")
    assert result["dtype"] in _modes.DTYPES
    assert set(result["runtimes"]) <= set(cases.RUNTIMES[result["mode"]])
    assert result["batches"]
    for batch in result["batches"]:
        check_batch(batch, result)
    assert len(report.table(result)) == 1 + len(report.points(result))


def check_commit(result):
    """Raise AssertionError unless the figures can be traced to a commit."""
    commit = result["env"]["commit"]
    assert re.search(r"[0-9a-f]{7,}$", commit), f"measured at {commit}: commit everything, then measure"


def check_batch(batch, result):
    macs = {net["name"]: net["macs"] for net in batch["networks"]}
    for one in batch["candidates"]:
        assert one.keys() == CANDIDATE
        assert one["runtime"] in result["runtimes"]
        assert one["difference"] <= speed.LIMITS[result["dtype"]]
        check_timing(one["quick"], speed.QUICK_RUNS)
        if one["final"]:
            check_timing(one["final"], result["runs"])
    for row in batch["not_run"]:
        assert row.keys() == {"network", "runtime", "layout", "why"}
        assert row["why"]
    final = [one for one in batch["candidates"] if one["final"]]
    dense = min((one for one in final if not one["alpha"]), key=lambda one: one["final"]["median"])
    check_row(batch["best_dense"], dense)
    alphas = [row["alpha"] for row in batch["alphas"]]
    assert alphas == [net["alpha"] for net in batch["networks"] if net["alpha"]]
    for row in batch["alphas"]:
        best = min((one for one in final if one["alpha"] == row["alpha"]), key=lambda one: one["final"]["median"])
        check_row(row, best)
        assert row["macs"] == macs[row["network"]]
        assert row["t"] == pytest.approx(macs["dense twin"] / row["macs"])
        assert row["s"] == pytest.approx(dense["final"]["median"] / best["final"]["median"])
        assert row["s_over_t"] == pytest.approx(row["s"] / row["t"])


def check_timing(timing, runs):
    assert timing.keys() == TIMING
    assert 0 < timing["lower"] <= timing["median"] <= timing["upper"]
    assert timing["runs"] == runs


def check_row(row, candidate):
    assert {key: row[key] for key in WAY} == {key: candidate[key] for key in WAY}
    assert {key: row[key] for key in TIMING} == candidate["final"]


@pytest.mark.parametrize("name", FILES)
def test_results_of_bench(name):
    for result in FILES[name]:
        check(result, exempt=("warm_s",) if name in NOT_WARM else ())
        if name not in DIRTY:
            check_commit(result)


def test_what_is_exempt_needs_it():
    for name in DIRTY:
        assert all(result["env"]["commit"].endswith(env.DIRTY) for result in FILES[name]), f"take {name} off DIRTY"
    for name in NOT_WARM:
        assert all("warm_s" not in result for result in FILES[name]), f"take {name} off NOT_WARM"


@pytest.mark.parametrize("commit", ["b5c514ee8d23-dirty", "unknown", ""])
def test_a_result_without_a_commit_is_refused(commit):
    with pytest.raises(AssertionError, match="commit everything, then measure"):
        check_commit({"env": {"commit": commit}})
    check_commit({"env": {"commit": "b5c514ee8d23"}})


@pytest.fixture(scope="module")
def result():
    options = dict(runtimes=("eager",), runs=2, dense="resnet18")
    settings = cases.BenchSettings("oct_resnet18", (0.5,), 32, (1,), 1, **options)
    return json.loads(json.dumps(speed.run(settings)))


def test_what_is_written_today_has_the_schema(result):
    check(result)


def broken(result):
    """Copies of the result, each with one thing wrong."""
    for key in CONDITIONS:
        del (copied := copy.deepcopy(result))[key]
        yield f"no {key}", copied
    for fact in FACTS:
        del (copied := copy.deepcopy(result))["env"][fact]
        yield f"no {fact}", copied
    for where in ("best_dense", "alphas"):
        rows = (copied := copy.deepcopy(result))["batches"][0][where]
        (rows if where == "best_dense" else rows[0])["median"] *= 0.99
        yield f"another time in {where}", copied
    for key in ("t", "s", "s_over_t", "macs"):
        (copied := copy.deepcopy(result))["batches"][0]["alphas"][-1][key] *= 1.01
        yield f"another {key}", copied
    (copied := copy.deepcopy(result))["batches"][0]["candidates"][0]["difference"] = 1.0
    yield "a wrong output", copied
    (copied := copy.deepcopy(result))["batches"][0]["alphas"].pop()
    yield "no row of an alpha", copied


def test_a_broken_result_is_found(result):
    for what, copied in broken(result):
        try:
            check(copied)
        except (AssertionError, KeyError):
            continue
        pytest.fail(f"not found: {what}")
