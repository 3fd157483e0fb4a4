"""The native engine in a server: threads, forks, new sizes, tuning that is kept, bounded memory."""

import copy
import json
import os
import shutil
import subprocess
import sys
import threading
import warnings
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from forks import exit_code_of_a_fork
from networks import difference, few_layers, image, settle
from torch import nn

from octaveconv.deploy import cache
from octaveconv.deploy.capture import Captures
from octaveconv.deploy.native import engine, program, sharing, tune
from octaveconv.deploy.native.engine import NativeNetwork
from octaveconv.errors import BackendUnavailable

LIMIT = 1e-5


@pytest.fixture(scope="module")
def captured():
    """A network, captured once."""
    model = settle(few_layers())
    captures = Captures(model)
    captures.of(torch.Size((1, 3, 64, 64)))
    return model, captures


@pytest.fixture
def deploy(captured, monkeypatch):
    """Deploys that network, without a capture of its own."""
    monkeypatch.setattr(engine, "Captures", lambda model: captured[1])
    return lambda **options: NativeNetwork(captured[0], image(1, 3, 64, 64), **options)


@pytest.fixture
def measured(monkeypatch):
    """The numbers of threads of each measurement, each of which takes no time."""
    log, tuned = [], program.tuned
    monkeypatch.setattr(tune, "SECONDS", 0)
    monkeypatch.setattr(
        program, "tuned", lambda work, threads, run: [log.append(threads), tuned(work, threads, run)][1]
    )
    return log


@pytest.fixture
def table(monkeypatch, tmp_path):
    """The folder of an empty table of measurements."""
    monkeypatch.setattr(cache, "cache_folder", lambda: tmp_path / "cache")
    return tmp_path / "cache"


def in_threads(calls):
    """Run all at once; what they raise is raised."""
    errors = []

    def guarded(call):
        try:
            call()
        except BaseException as error:
            errors.append(error)

    workers = [threading.Thread(target=guarded, args=(call,)) for call in calls]
    [worker.start() for worker in workers], [worker.join() for worker in workers]
    if errors:
        raise errors[0]


SIZES = [(1, 32, 32), (3, 40, 56), (9, 33, 32), (2, 64, 47)]


@pytest.mark.usefixtures("quickly", "poisoned")
def test_calls_at_once_give_what_calls_in_turn_give(deploy, threads):
    threads(3)
    networks = [deploy(), deploy()]
    inputs = [image(n, 3, height, width) for n, height, width in SIZES]
    expected = [networks[0](x) for x in inputs]
    for x, y in zip(inputs, expected):
        assert torch.equal(networks[1](x), y)

    def call(first):
        for i in range(first, first + 24):
            assert torch.equal(networks[i % 2](inputs[i % 4]), expected[i % 4])

    in_threads([lambda first=first: call(first) for first in range(5)])
    assert sharing.THREADS.running == 0
    assert all(len(network._programs._idle) <= 3 for network in networks)


def test_calls_share_the_threads_that_there_are():
    share = sharing.Threads()
    assert [share.take(4, 4), share.take(4, 4), share.take(2, 4)] == [4, 1, 1]
    share.give_back(4)
    assert share.take(4, 4) == 2
    assert share.take(3, 2**30) == 3


@pytest.mark.usefixtures("quickly")
def test_a_network_may_have_threads_of_its_own(deploy, threads, monkeypatch):
    threads(1)
    deployed, taken = deploy(), []
    run = deployed._run
    monkeypatch.setattr(deployed, "_run", lambda x, shape, threads: [taken.append(threads), run(x, shape, threads)][1])
    expected = deployed(image(1, 3, 64, 64))
    deployed.threads = 3
    assert torch.equal(deployed(image(1, 3, 64, 64)), expected)
    assert taken == [1, 3]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
@pytest.mark.usefixtures("quickly")
def test_a_forked_child_can_call(deploy, threads):
    """Even while other threads of its parent call, which it does not have; and a child of the child."""
    threads(3)
    deployed, x, new = deploy(), image(2, 3, 64, 64), image(1, 3, 48, 40)
    expected, stop = [deployed(x), deploy()(new)], threading.Event()

    def call():
        while not stop.is_set():
            deployed(x)

    def right():
        return torch.equal(deployed(x), expected[0]) and torch.equal(deployed(new), expected[1])

    def fork():
        try:
            for _ in range(5):
                assert exit_code_of_a_fork(lambda: right() and exit_code_of_a_fork(right) == 0) == 0
        finally:
            stop.set()

    in_threads([call, call, fork])
    assert right()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
@pytest.mark.usefixtures("quickly")
@pytest.mark.parametrize(
    "layer", [nn.ChannelShuffle(2), nn.Conv2d(16, 16, 3, groups=4)], ids=["a part in PyTorch", "a search for NaN"]
)
def test_a_forked_child_can_call_a_network_that_needs_pytorch(threads, layer):
    """At a size that the parent has called, and at one that has to be captured."""
    threads(2)
    model = nn.Sequential(nn.Conv2d(3, 16, 3), layer, nn.Conv2d(16, 16, 3), nn.Softmax(1)).eval()
    images = image(4, 3, 64, 64), image(1, 3, 150, 152)
    deployed = NativeNetwork(model, images[0])
    expected = [deployed(images[0]), copy.deepcopy(deployed)(images[1])]  # with threads that a child does not have
    with torch.autocast("cpu"):
        assert torch.equal(deployed(images[0]), expected[0])

    def right():
        found, count = list(map(deployed, images)), torch.get_num_threads()
        torch.set_num_threads(1)  # for the comparison, in a child
        return all(map(torch.allclose, found, expected)) and count == 2

    assert exit_code_of_a_fork(right) == 0


@pytest.mark.usefixtures("table")
def test_a_new_size_is_not_measured_unless_asked(captured, deploy, measured, threads):
    threads(2)
    deployed = deploy()
    assert measured == [2]  # for the example
    for shape in ((1, 3, 64, 64), (2, 3, 40, 72), (9, 3, 33, 32)):
        assert difference(captured[0], deployed, image(*shape)) < LIMIT
    assert measured == [2]
    deployed.tune(image(9, 3, 33, 32))
    deployed.tune(image(9, 3, 33, 32))
    assert measured == [2, 2, 2]  # eight images, and one
    assert difference(captured[0], deployed, image(9, 3, 33, 32)) < LIMIT
    eager_to_tune = deploy(tune=True)
    for _ in range(2):
        assert difference(captured[0], eager_to_tune, image(1, 3, 56, 56)) < LIMIT
    assert measured == [2] * 4


def test_what_was_measured_is_kept(deploy, measured, table, threads):
    threads(2)
    expected = deploy()._programs._programs.values()[0].choices[2]
    [path] = table.glob("tuning-*.json")
    again = deploy()
    assert measured == [2]
    assert np.array_equal(again._programs._programs.values()[0].choices[2], expected)
    threads(1)
    deploy()  # with another number of threads
    assert measured == [2, 1]
    [row] = json.loads(path.read_text())["rows"].values()
    assert sorted(row) == ["1", "2"]


@pytest.mark.parametrize("content", ["", "{", "[1]", "rows of wrong numbers", "rows of wrong length", "rows of text"])
def test_a_damaged_table_is_measured_and_written_again(deploy, measured, table, threads, content):
    threads(2)
    deploy()
    [path] = table.glob("tuning-*.json")
    [(key, row)] = json.loads(path.read_text())["rows"].items()
    wrong = {"numbers": [3] * len(row["2"]), "length": row["2"][1:], "text": "1" * len(row["2"])}
    name = content.split()[-1] if content else ""
    path.write_text(json.dumps({key: {"2": wrong[name]}}) if name in wrong else content)
    damaged = nullcontext() if name in wrong else pytest.warns(RuntimeWarning, match=r"tuning-.*\.json is damaged: its")
    with damaged:
        deployed = deploy()
    assert measured == [2, 2]
    assert deployed(image(1, 3, 64, 64)).isfinite().all()
    assert sorted(json.loads(path.read_text())["rows"]) == [key]
    deploy()
    assert measured == [2, 2]


def test_other_layers_have_other_keys():
    def digest(*layers):
        deployed = NativeNetwork(nn.Sequential(*layers).eval(), image(1, 3, 8, 8))
        return deployed._forms.values()[0].natives[0].digest

    made = [
        digest(nn.Conv2d(3, 4, 1)),
        digest(nn.Conv2d(3, 5, 1)),
        digest(nn.Conv2d(3, 4, 3, padding=1)),
        digest(nn.Conv2d(3, 4, 1), nn.AvgPool2d(2)),
        digest(nn.Conv2d(3, 4, 1), nn.MaxPool2d(2)),
    ]
    assert len(set(made)) == 5
    assert digest(nn.Conv2d(3, 4, 1)) == made[0]


@pytest.mark.parametrize("threads", [1, 2, 3, 4, 12, 64])
def test_rules_are_choices_that_can_be(threads):
    draw = np.random.default_rng(0).integers
    units = draw(0, 5000, 100)
    work = tune.Work(units, units * draw(1, 3, 100), draw(0, 90, 100), draw(0, 10**7, 100), np.arange(100))
    choice = tune.ruled(work, threads)
    assert np.array_equal(tune.restored(tune.kept({threads: choice}), work)[threads], choice)


@pytest.mark.usefixtures("quickly", "poisoned")
def test_memory_is_bounded_over_200_sizes(captured, deploy):
    """Each size leaves its own numbers in the shared memory; those after it must find their borders empty."""
    deployed = deploy()
    programs = deployed._programs
    shapes = [(1, 3, 32 + i % 50, 96 - i // 3) for i in range(200)]
    first = deployed(image(*shapes[0]))
    for i, shape in enumerate(shapes):
        y = deployed(image(*shape))
        assert y.isfinite().all()
        if i % 40 == 0:
            assert difference(captured[0], deployed, image(*shape)) < LIMIT
        assert len(programs._programs.values()) <= sharing.KEPT
        [frame] = programs._idle
        assert frame.scratch.nbytes <= programs._largest == max(each.scratch for each in programs._programs.values())
    assert len(programs._programs.values()) == sharing.KEPT
    assert len(deployed._shapes.values()) <= engine.SHAPES
    assert torch.equal(deployed(image(*shapes[0])), first)


@pytest.mark.usefixtures("quickly")
def test_a_large_size_is_forgotten_with_its_memory(deploy, monkeypatch):
    monkeypatch.setattr(sharing, "KEPT", 3)
    deployed = deploy()
    deployed(image(1, 3, 320, 320))
    large = deployed._programs._idle[0].scratch.nbytes
    for i in range(3):
        deployed(image(1, 3, 32 + i, 32))
    [frame] = deployed._programs._idle
    assert frame.scratch.nbytes < large / 20


@pytest.mark.usefixtures("quickly")
def test_tables_are_bounded_in_bytes(deploy, monkeypatch):
    monkeypatch.setattr(sharing, "KEPT_BYTES", 150_000)
    deployed = deploy()
    for i in range(20):
        deployed(image(1, 3, 64 + i, 64))
    kept = deployed._programs._programs.values()
    assert 1 < len(kept) < 15
    assert sum(each.nbytes for each in kept) <= 150_000
    deployed(image(1, 3, 400, 400))
    assert len(deployed._programs._programs.values()) == 1


@pytest.mark.usefixtures("quickly")
def test_forms_of_captures_are_bounded_too(monkeypatch):
    """A network that is captured for each size anew packs its weights each time."""
    monkeypatch.setattr(engine, "FORMS", 2)
    model = nn.Conv2d(3, 4, 3)
    captures = Captures(model)
    for size in (8, 9, 10, 11):
        one = Captures(model)
        monkeypatch.setattr(captures, f"_of_{size}", one, raising=False)
    monkeypatch.setattr(captures, "of", lambda shape: getattr(captures, f"_of_{shape[-1]}").of(shape))
    monkeypatch.setattr(engine, "Captures", lambda model: captures)
    deployed = NativeNetwork(model.eval(), image(1, 3, 8, 8))
    for size in (8, 9, 10, 11, 8, 10):
        assert difference(model, deployed, image(1, 3, size, size)) < LIMIT
        forms = deployed._forms.values()
        assert len(forms) <= 2
        assert {shape.form for shape in deployed._shapes.values()} <= set(forms)
        constants = [native.constants for form in forms for native in form.natives]
        assert all(each.constants in constants for each in deployed._programs._programs.values())


@pytest.mark.usefixtures("quickly")
def test_a_size_that_cannot_be_captured_runs_eagerly_with_one_warning(captured, deploy, monkeypatch):
    model, captures = captured
    deployed = deploy()

    def refuse(shape):
        raise BackendUnavailable("torch.export cannot capture the network: no such size")

    expected = deployed(image(1, 3, 64, 64))
    monkeypatch.setattr(captures, "of", refuse)
    with pytest.warns(RuntimeWarning, match=r"cannot run \[2, 3, 40, 40\].*eager PyTorch.*no such size"):
        assert difference(model, deployed, image(2, 3, 40, 40)) < LIMIT
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert difference(model, deployed, image(2, 3, 40, 40)) < LIMIT
        assert difference(model, deployed, image(1, 3, 41, 41)) < LIMIT
        assert torch.equal(deployed(image(1, 3, 64, 64)), expected)
    with pytest.raises(ValueError, match=r"cannot take \[1, 4, 32, 32\]: .*3 high and 0 low channels"):
        deployed(image(1, 4, 32, 32))


@pytest.mark.usefixtures("quickly")
def test_maps_that_are_too_large_for_several_images_run_one_by_one(deploy, monkeypatch):
    deployed = deploy()
    x = image(3, 3, 64, 64)
    expected = deployed(x)
    deployed = deploy()
    monkeypatch.setattr(program.Memory, "LIMIT", 32 * 32 * 24 * 2)
    assert torch.equal(deployed(x), expected)
    assert [part.together for part in deployed._shape(x.shape).parts] == [1]


@pytest.mark.usefixtures("quickly")
def test_numbers_that_are_not_in_memory(captured, deploy):
    """Negative views, and the zeros of gradients that were not computed."""
    deployed = deploy()
    zeros = torch._efficientzerotensor((1, 3, 64, 64))
    assert torch.equal(deployed(zeros), deployed(torch.zeros(1, 3, 64, 64)))
    x = torch.complex(image(1, 3, 64, 64), image(1, 3, 64, 64)).conj().imag
    assert x.is_neg()
    assert difference(captured[0], deployed, x) < LIMIT
    assert torch.equal(deployed(x), deployed(-image(1, 3, 64, 64)))


RACE = """
#include <cstdio>
#include <cstdlib>
#include "threads.h"

// Callers with teams of several sizes; each phase reads what other threads wrote in the phase before.
void call(int threads) {
    constexpr int PHASES = 300;
    auto seen = std::make_shared<std::vector<long>>(2 * threads, 1);
    long* at = seen->data();
    thread_pool().run(threads, [=](int thread, Team& team) {
        for (int phase = 0; phase < PHASES; phase++) {
            long sum = 0;
            for (int i = 0; i < team.threads; i++) sum += at[phase % 2 * team.threads + i];
            at[(phase + 1) % 2 * team.threads + thread] = sum % 1000003;
            team.barrier.wait();
        }
    });
    long sum = 1;
    for (int i = 0; i < PHASES; i++) sum = sum * threads % 1000003;
    for (int i = 0; i < threads; i++)
        if (at[i] != sum) std::exit(1);
}

int main() {
    std::vector<std::thread> callers;
    for (int c = 0; c < 3; c++)
        callers.emplace_back([c] {
            for (int i = 0; i < 20; i++) call(1 + (c + i) % 4);
        });
    for (auto& caller : callers) caller.join();
    std::puts("clean");
    std::fflush(stdout);
    std::_Exit(0);  // workers still wait
}
"""


@pytest.mark.skipif(sys.platform != "linux" or not shutil.which("g++"), reason="needs g++ and its thread sanitizer")
def test_threads_do_not_race(tmp_path):
    """The pool and its barrier alone: Python and PyTorch are not built for the thread sanitizer."""
    (tmp_path / "race.cpp").write_text(RACE)
    folder = Path(engine.__file__).parent
    options = ["-std=c++17", "-O1", "-g", "-fsanitize=thread", f"-I{folder}", "-pthread"]
    subprocess.run(["g++", *options, tmp_path / "race.cpp", "-o", tmp_path / "race"], check=True)
    run = ["env", "TSAN_OPTIONS=halt_on_error=1", "setarch", "-R", tmp_path / "race"]  # at addresses that it expects
    done = subprocess.run(run, capture_output=True, text=True, timeout=120)
    assert (done.stdout, done.returncode) == ("clean\n", 0), done.stderr[-4000:]
