"""The native engine's surroundings: its library, what it refuses, who takes over then, and the sanitizers."""

import copy
import json
import os
import re
import subprocess
import sys
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
import torch
from graphs import GRAPHS, captured_graph
from helpers import compiler
from networks import difference, few_layers, image, settle
from torch import nn

import octaveconv as oc
from octaveconv import backends
from octaveconv.deploy.capture import Captures
from octaveconv.deploy.native import build, library, records
from octaveconv.deploy.native.engine import NativeNetwork
from octaveconv.errors import BackendUnavailable, UsageError

pytestmark = pytest.mark.usefixtures("quickly")


@pytest.mark.parametrize(
    ("asked", "has", "target"),
    [
        ("", "AVX2", "native"),
        ("avx512", "AVX512", "avx512"),
        ("avx2", "AVX2", "avx2"),
        ("default", "DEFAULT", "generic"),
    ],
)
def test_no_more_instructions_than_pytorch_may_use(asked, has, target, monkeypatch):
    monkeypatch.setenv("ATEN_CPU_CAPABILITY", asked)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: has)
    assert library.default_target() == target


def lanes(target):
    return library.load(target).lanes()


def test_processes_that_need_the_library_at_once_build_it_once(request, monkeypatch, tmp_path):
    log, engine = tmp_path / "log", library.load()  # that is what the stand-in "compiles"
    empty_cache = request.getfixturevalue("empty_cache")
    line = f'echo built >> {log}\nsleep 0.5\nfor out; do :; done\ncp {engine._name} "$out"'
    monkeypatch.setenv("CXX", compiler(tmp_path / "cxx", line))
    with ProcessPoolExecutor(3, get_context("fork")) as pool:
        assert list(pool.map(lanes, ["generic"] * 3)) == [engine.lanes()] * 3
    assert log.read_text() == "built\n"
    assert [path.suffix for path in sorted(empty_cache.iterdir())] in ([".lock", ".sha256", ".so"], [".sha256", ".so"])


def test_a_terminal_is_told_that_the_engine_is_built(empty_cache, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("CXX", compiler(tmp_path / "cxx", "exit 1"))
    for terminal, told in (
        (False, ""),
        (True, "octaveconv builds its engine for this CPU, once: about half a minute\n"),
    ):
        monkeypatch.setattr(sys.stderr, "isatty", lambda terminal=terminal: terminal)
        with pytest.raises(BackendUnavailable):
            library.load("generic")
        assert capsys.readouterr().err == told


def test_a_compiler_that_fails_is_named(empty_cache, monkeypatch, tmp_path):
    monkeypatch.setenv("CXX", compiler(tmp_path / "cxx", "echo 'x.cpp:1: error: no such thing' >&2; exit 1"))
    with pytest.raises(BackendUnavailable, match=r"cxx could not compile .*: x.cpp:1: error: no such thing"):
        library.load("generic")
    assert not list(empty_cache.glob("*.so"))


@pytest.mark.parametrize(
    ("given", "message"), [("g++ '", "CXX is not a command: .*No closing quotation"), (" ", "install g")]
)
def test_a_compiler_that_is_not_a_command_is_refused(empty_cache, monkeypatch, given, message):
    monkeypatch.setenv("CXX", given)
    with pytest.raises(BackendUnavailable, match=message):
        library.load("generic")


def test_a_compiler_that_hangs_is_stopped(empty_cache, monkeypatch, tmp_path):
    monkeypatch.setattr(build, "PATIENCE", 0.5)
    monkeypatch.setenv("CXX", compiler(tmp_path / "cxx", "sleep 600 & sleep 600"))
    with pytest.raises(BackendUnavailable, match=r"did not end within 0\.5 seconds"):
        library.load("generic")
    assert not list(empty_cache.glob("*.so"))


def test_a_damaged_library_is_built_again(empty_cache, monkeypatch):
    monkeypatch.setitem(library.TARGETS, "generic", ["-O0"])
    library.load("generic")
    (path,) = empty_cache.glob("*.so")
    content = path.read_bytes()
    path.unlink()  # what is loaded stays as it is
    path.write_bytes(content[: len(content) // 2])
    library.load.cache_clear()
    library.load("generic")
    assert path.stat().st_size > len(content) // 2


def make_world_writable(cache):
    cache.mkdir()
    cache.chmod(0o777)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda cache: cache.write_text(""), "cannot be kept in .*set OCTAVECONV_CACHE to a folder of your own"),
        (make_world_writable, "can be written by others, so no library is loaded from there"),
    ],
    ids=["a file", "world-writable"],
)
def test_a_folder_that_cannot_keep_libraries_is_refused_and_deploy_falls_back(empty_cache, make, message, monkeypatch):
    make(empty_cache)
    with pytest.raises(BackendUnavailable, match=message):
        library.load("generic")
    monkeypatch.setattr(torch, "compile", lambda graph: graph)
    deployed = oc.deploy(nn.Conv2d(3, 4, 1).eval(), image(2, 3, 8, 8))
    assert re.search(message, deployed.reason)


def test_without_a_compiler_the_message_names_the_cure(empty_cache, monkeypatch):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(build.shutil, "which", lambda name: None)
    with pytest.raises(BackendUnavailable, match=r"install g\+\+ or clang\+\+, or set CXX"):
        library.load("generic")


def test_records_laid_out_in_another_way_are_refused(monkeypatch):
    swapped = records._struct(weights=np.uintp, count=np.int32, first=np.int32)
    monkeypatch.setitem(records.RECORDS, "Slice", swapped)
    library.load.cache_clear()
    message = r"another layout .*C\+\+: Slice 16, weights 0, first 8, count 12; Python: .* count 8, first 12.*set CXX"
    with pytest.raises(BackendUnavailable, match=message):
        library.load()
    model = nn.Conv2d(3, 4, 1)
    monkeypatch.setattr(sys.modules["octaveconv.deploy"], "_inductor", lambda model, example: copy.copy(model))
    assert re.search(message, oc.deploy(model, image(1, 3, 8, 8)).reason)


@pytest.mark.parametrize("path", library.SOURCES, ids=lambda path: path.name)
def test_every_source_includes_what_it_uses(path):
    headers = {
        "algorithm": r"std::(min|max)\b",
        "chrono": "std::chrono",
        "cstddef": r"\boffsetof\b",
        "cstdint": r"int\d+_t",
        "cstring": r"std::mem(cpy|set)",
        "limits": "std::numeric_limits",
        "string": "std::string",
        "vector": "std::vector",
    }
    included, own = set(), [path.name]
    for name in own:  # which grows
        text = (path.parent / name).read_text()
        included |= set(re.findall(r"#include <(\w+)>", text))
        own += [header for header in re.findall(r'#include "(.+)"', text) if header not in own]
    assert {header for header, use in headers.items() if re.search(use, path.read_text())} <= included


class Strange(nn.Module):
    """Something that the engine does not know, inside a module with a name."""

    def forward(self, x):
        return torch.special.erfcx(x)


def strange():
    """A network that PyTorch would run for the most part."""
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.Sequential(Strange()), nn.ConvTranspose2d(4, 5, 2)).eval()


def test_an_unknown_operation_is_named_with_its_place():
    with pytest.raises(BackendUnavailable, match=r"aten.special_erfcx.default in module 1\.0 is not supported"):
        oc.deploy(strange(), image(1, 3, 8, 8), engine="native")


def test_an_absent_part_of_an_octave_stays_absent(tmp_path):
    model, x = oc.OctConv2d(3, 4, 1).eval(), image(1, 3, 8, 8)
    deployed = oc.deploy(model, x, engine="native")
    assert deployed(x).low is None
    torch.testing.assert_close(deployed(x).high, model(x).high.detach())
    with pytest.raises(oc.UsageError, match="the output None is not a tensor that depends on the input"):
        deployed.save(tmp_path / "net.octave")


def test_the_fallback_takes_over_and_says_why(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda graph: graph)  # which `test_fallback.py` tests
    model = strange()
    deployed = oc.deploy(model, image(1, 3, 8, 8))
    assert deployed.engine == "inductor"
    assert deployed.reason.startswith("not the native engine: aten.special_erfcx.default in module 1.0 is not ")
    assert difference(model, deployed, image(2, 3, 8, 8)) < 1e-5


def test_the_model_is_left_as_it_was():
    model = few_layers(0.5).train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    deployed = oc.deploy(model, image(1, 3, 32, 32))
    assert deployed.engine == "native"
    assert all(module.training for module in model.modules())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert not deployed(image(1, 3, 32, 32).requires_grad_()).requires_grad


def test_what_cannot_be_run_is_refused():
    model = few_layers(0.5)
    with pytest.raises(UsageError, match="there is no engine 'nativ': use native, cuda, inductor"):
        oc.deploy(model, image(1, 3, 32, 32), engine="nativ")
    with pytest.raises(BackendUnavailable, match=r"float32 and bfloat16 on the CPU, not torch\.float64"):
        oc.deploy(model.double(), image(1, 3, 32, 32).double(), engine="native")
    deployed = oc.deploy(model.float(), image(1, 3, 32, 32))
    with pytest.raises(ValueError, match=r"takes torch.float32 images \[N, C, H, W\] on the CPU, got torch.float64"):
        deployed(image(1, 3, 32, 32).double())
    with pytest.raises(ValueError, match=r"got torch.float32 \[3, 32, 32\]"):
        deployed(image(3, 32, 32))
    with pytest.raises(ValueError, match=r"cannot take \[1, 4, 32, 32\]: .*3 high and 0 low channels"):
        deployed(image(1, 4, 32, 32))


def test_any_strides():
    model = settle(few_layers())
    deployed = oc.deploy(model, image(1, 3, 32, 32))
    x = image(3, 40, 3, 36)
    for view in (
        x.permute(0, 2, 1, 3),
        x.permute(0, 2, 3, 1)[:, :, ::2],
        image(3, 3, 40, 36).flip(0)[1:],
        image(2, 3, 40, 36).to(memory_format=torch.channels_last),
        image(1, 1, 40, 36).expand(2, 3, 40, 36),
    ):
        assert difference(model, deployed, view) < 1e-5
    assert deployed(image(0, 3, 40, 36)).shape == (0, 10)


def test_a_nan_comes_out():
    model = GRAPHS["pooling of other kinds"]
    x = image(1, 8, 12, 12)
    x[0, 0, 5, 5] = torch.nan
    got, expected = NativeNetwork(model.eval(), x)(x), model(x)
    assert expected.isnan().any()
    assert torch.equal(got.isnan(), expected.isnan())


def test_calls_from_several_threads():
    model = settle(few_layers())
    deployed = oc.deploy(model, image(1, 3, 32, 32))
    inputs = [image(2, 3, 32, 32) * scale for scale in (1, 2, 3, 4)]
    expected = [deployed(x) for x in inputs]
    got = [None] * 4

    def call(i):
        for _ in range(20):
            got[i] = deployed(inputs[i])

    workers = [threading.Thread(target=call, args=(i,)) for i in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert all(torch.equal(a, b) for a, b in zip(got, expected))


def test_threads_with_unseen_sizes_leave_the_backend_as_it_was(monkeypatch):
    """Two threads capture: the first to begin is the first to end. A third one computes meanwhile."""
    model = settle(few_layers())
    deployed = oc.deploy(model, image(1, 3, 64, 64))
    layer, x = oc.OctConv2d(4, 4, 1, alpha_out=0.5), image(1, 4, 8, 8)
    octave, sizes = oc.Octave(x, None), ((33, 1), (1, 33))  # which no capture covers yet
    began, ended, meanwhile, differences = [], [], [], {}
    export = torch.export.export

    def wait_for(events, count):
        deadline = time.monotonic() + 1
        while len(events) < count and time.monotonic() < deadline:
            time.sleep(0.01)

    def slowly(*args, **kwargs):
        began.append(threading.get_ident())
        wait_for(began, 2)  # in vain, where threads take turns
        if began[0] != threading.get_ident():
            wait_for(ended, 1)
        other = threading.Thread(target=lambda: meanwhile.append(backends.choose(octave, layer.spec).name))
        other.start(), other.join()
        return export(*args, **kwargs)

    def call(height, width):
        differences[height] = difference(model, deployed, image(2, 3, height, width))
        ended.append(height)

    monkeypatch.setattr(torch.export, "export", slowly)
    workers = [threading.Thread(target=call, args=size) for size in sizes]
    [worker.start() for worker in workers], [worker.join() for worker in workers]
    assert len(differences) == 2
    assert max(differences.values()) < 1e-5
    assert len(set(began)) == 2
    assert set(meanwhile) == {"merged"}
    assert backends.choose(octave, layer.spec).name == "merged"


SANITIZED = """
import ctypes
import json
import sys
import numpy as np
import torch
import octaveconv as oc
from octaveconv.deploy import cache
from octaveconv.deploy.native import library, memory, program, tune
draw = np.random.default_rng(0).integers
tune._fastest = lambda trials, run: draw(len(trials), size=len(run(trials[0])))
cache.Table.put = lambda self, key, row: None

def drawn(work, threads):
    splits = tune._splits(threads)
    count = len(work.units)
    return np.stack([splits[draw(len(splits), size=count)], draw(2, size=count)], axis=1).astype(np.int32)

program.ruled = drawn
memory.GAP = 1024

def guarded(frame, program, scratch, make=program.Frame.__init__):
    asan, start = ctypes.CDLL(None), ctypes.c_void_p
    getattr(asan, "__asan_unpoison_memory_region")(start(scratch.ctypes.data), start(scratch.nbytes))
    make(frame, program, scratch)
    size = program.constants.dtype.itemsize
    for place in program.memory.owners.values():
        end = scratch.ctypes.data + (place.start + place.images * place.image + memory.SLACK) * size
        getattr(asan, "__asan_poison_memory_region")(start(end), start(memory.GAP * size))

program.Frame.__init__ = guarded
library.FLAGS[:1] = ["-O0", "-g", "-fno-omit-frame-pointer", "-fsanitize=address,undefined",
                     "-fno-sanitize-recover=undefined"]
for path, dtype, example, calls in json.loads(sys.argv[1]):
    deployed = oc.load_deployed(path)
    deployed.tune(torch.randn(example).to(getattr(torch, dtype)))
    for threads, shape in calls:
        torch.set_num_threads(threads)
        deployed(torch.randn(shape).to(getattr(torch, dtype)))
print("clean")
"""


LIKE_OTHERS = {  # their maps lie in memory as those of another graph do: for ``make sanitize`` alone
    "sum with a map used twice", "sum with itself", "constants", "read, then in place", "every other activation",
    "activation of an activation", "two concatenations of the same maps", "chunks", "average without the padding",
    "octave pooling", "upsampling", "dropout", "a dictionary", "the input itself",
}  # fmt: skip


def to_sanitize(folder, dtypes, graphs, captured_as):
    """Files of networks with everything, for what is to be called: a sanitizer makes capturing take a minute."""
    depthwise = nn.Sequential(
        oc.OctConv2d(3, 40, 3, 2, 1, alpha_out=0.25),
        oc.OctConv2d(40, 40, 3, 1, 1, groups=40, alpha_in=0.25, alpha_out=0.25),
        oc.OctMap(nn.ReLU6()),
        oc.OctConv2d(40, 40, 5, 2, 2, groups=40, alpha_in=0.25, alpha_out=0.25),
        oc.OctConv2d(40, 24, 3, 2, 1, groups=2, alpha_in=0.25, alpha_out=0.5),
        oc.Merge(),
    )
    sizes = (1, (1, 3, 32, 33)), (2, (3, 3, 47, 32)), (3, (2, 3, 35, 39))
    networks = {name: (model, Captures(model)) for name, model in (("a", settle(few_layers())), ("b", depthwise))}
    for name, (model, captures), example, calls in (
        *((name, network, (1, 3, 64, 64), sizes) for name, network in networks.items()),
        *((name, captured_graph(name), (1, 8, 12, 12), [(1, (2, 8, 9, 7)), (2, (3, 8, 12, 15))]) for name in graphs),
    ):
        captured_as(captures)
        for dtype in dtypes:
            deployed = NativeNetwork(copy.deepcopy(model).to(dtype), image(*example).to(dtype))
            for _, shape in calls:
                deployed(image(*shape).to(dtype))
            path = folder / f"{name} {dtype}.octave"
            deployed.save(path)
            yield str(path), str(dtype).split(".")[1], example, calls


@pytest.mark.skipif(sys.platform != "linux", reason="preloads the sanitizers' libraries as Linux does")
@pytest.mark.slow
def test_no_sanitizer_reports(tmp_path, captured_as):
    """Every table is a block of its own, and after every map there is a forbidden gap, so that a step outside is seen.

    How threads share a layer, and which loop is outside, is drawn at random. ``make sanitize`` runs bfloat16, too,
    which is another library, and more graphs.
    """
    asked = os.environ.get("OCTAVECONV_SANITIZE", "")
    dtypes = [getattr(torch, name) for name in (asked or "float32").split()]
    graphs = [name for name in GRAPHS if asked or name not in LIKE_OTHERS]
    files = json.dumps(list(to_sanitize(tmp_path, dtypes, graphs, captured_as)))
    libraries = [
        subprocess.run(["g++", f"-print-file-name={name}"], capture_output=True, text=True, check=True).stdout.strip()
        for name in ("libasan.so", "libubsan.so")
    ]
    environment = os.environ | {
        "LD_PRELOAD": " ".join(libraries),
        "ASAN_OPTIONS": "detect_leaks=0",
        "OCTAVECONV_CACHE": str(tmp_path),
        "PYTHONPATH": str(Path(oc.__file__).parents[1]),
        "CXX": "g++",
    }
    done = subprocess.run([sys.executable, "-c", SANITIZED, files], capture_output=True, text=True, env=environment)
    assert done.stdout.endswith("clean\n"), done.stderr[-4000:]
