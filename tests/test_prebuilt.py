"""Libraries that come with the package: which one is taken, when none is, and the hook that puts them into a wheel."""

import hashlib
import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from helpers import compiler
from networks import difference, few_layers, image, settle

import octaveconv as oc
from octaveconv.deploy.native import build, library, targets
from octaveconv.errors import BackendUnavailable

HOOK = Path(__file__).parent.parent / "hatch_build.py"
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="engines are prebuilt for Linux")


@pytest.mark.parametrize(
    ("capability", "flags", "float32", "bfloat16"),
    [
        ("DEFAULT", "sse2", "generic", "generic"),
        ("AVX2", "avx2 fma", "avx2", "avx2"),
        ("AVX2", "avx2 fma avx512f avx512_bf16 amx_tile amx_bf16", "avx2", "avx2"),  # ATEN_CPU_CAPABILITY=avx2
        ("AVX512", "avx2 fma avx512f", "avx512", "avx512"),
        ("AVX512", "avx2 fma avx512f avx512_bf16", "avx512", "avx512_bf16"),
        ("AVX512", "avx2 fma avx512f avx512_bf16 amx_tile amx_int8", "avx512", "avx512_bf16"),
        ("AVX512", "avx2 fma avx512f avx512_bf16 amx_tile amx_bf16", "avx512", "amx"),
    ],
)
def test_the_best_that_the_cpu_can_run_is_chosen(capability, flags, float32, bfloat16, monkeypatch):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(library, "_flags", lambda: set(flags.split()))
    assert [library.runnable(dtype)[0] for dtype in library.DTYPES] == [float32, bfloat16]
    assert library.runnable(torch.bfloat16)[-1] == "generic"


@pytest.fixture
def package(request, monkeypatch, tmp_path):
    """A package with one library, that of the best instruction set here, on a machine without a compiler."""
    built = library.load()._name
    request.getfixturevalue("empty_cache")
    monkeypatch.setattr(library, "PREBUILT_FOLDER", tmp_path / "prebuilt")
    monkeypatch.setenv("CXX", compiler(tmp_path / "cxx", "echo 'error: none here' >&2; exit 1"))
    path = tmp_path / "prebuilt" / targets.prebuilt_name(library.runnable()[0], "float32")
    path.parent.mkdir(mode=0o777)  # pip's folders may belong to a group, or to root
    shutil.copyfile(built, path)
    path.with_suffix(".sha256").write_text(hashlib.sha256(path.read_bytes()).hexdigest())
    return path


@pytest.mark.usefixtures("quickly")
def test_a_library_in_the_package_needs_no_compiler_and_no_cache(package, empty_cache):
    model = settle(few_layers())
    deployed = oc.deploy(model, image(1, 3, 32, 32))
    assert (deployed.engine, deployed.library._name) == ("native", str(package))
    assert difference(model, deployed, image(2, 3, 33, 40)) < 1e-5
    assert not list(empty_cache.glob("*.so"))


def damage(package, monkeypatch):
    package.write_bytes(package.read_bytes()[:-100])


def lose_the_checksum(package, monkeypatch):
    package.with_suffix(".sha256").unlink()


def change_a_source(package, monkeypatch):
    source = package.with_name("engine.cpp")
    source.write_text("// another one")
    monkeypatch.setattr(targets, "SOURCES", [*targets.SOURCES[:-1], source])


def change_a_flag(package, monkeypatch):
    monkeypatch.setattr(targets, "FLAGS", ["-O1"])


@pytest.mark.parametrize("change", [damage, lose_the_checksum, change_a_source, change_a_flag])
def test_one_that_is_not_whole_or_of_other_sources_is_not_taken(change, package, monkeypatch):
    change(package, monkeypatch)
    with pytest.raises(BackendUnavailable, match="cxx could not compile the native engine: error: none here"):
        library.load()


def test_measurements_are_kept_by_library_and_cpu(package, monkeypatch):
    first = library.table_of(library.load())
    assert library.table_of(library.load()) == first
    monkeypatch.setattr(library, "_cpu", lambda: "another one")
    assert library.table_of(library.load()) != first


@pytest.mark.parametrize(("cpu", "tuned"), [("model name : AMD EPYC", True), ("model name : Intel(R) Xeon(R)", False)])
def test_the_engine_is_not_tuned_for_amd(cpu, tuned, monkeypatch):
    commands = []
    monkeypatch.setattr(library, "_cpu", lambda: cpu)
    monkeypatch.setattr(library, "built", lambda command, *rest: commands.append(command))
    library._built("native", torch.float32), library._built("avx2", torch.float32)
    assert ["-mtune=generic" in command for command in commands] == [tuned, False]


@pytest.fixture
def hook(monkeypatch):
    """hatch_build.py, which hatchling runs where it is installed."""
    interface = ModuleType("hatchling.builders.hooks.plugin.interface")
    interface.BuildHookInterface = object
    monkeypatch.setitem(sys.modules, interface.__name__, interface)
    spec = importlib.util.spec_from_file_location("hatch_build", HOOK)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.skipif(library.platform.machine() != "x86_64", reason="engines are prebuilt for x86-64")
def test_the_hook_adds_a_library_for_each_instruction_set_and_says_what_it_needs(hook, monkeypatch, tmp_path):
    source = tmp_path / "engine.cpp"
    source.write_text('#include <thread>\nextern "C" void run() { std::thread([] {}).detach(); }')
    line = f'for out; do :; done\ng++ -shared -fPIC {source} {" ".join(hook.LINKING)} -o "$out"'
    linked = compiler(tmp_path / "cxx", line)
    monkeypatch.setenv("CXX", linked)
    engines = hook.Engines()
    engines.root, engines.app = str(HOOK.parent), SimpleNamespace(display_info=lambda text: None)
    build_data = {"force_include": {}}
    engines.initialize("standard", build_data)
    inside = {Path(path).name for path in build_data["force_include"].values() if path.endswith(".so")}
    assert inside == {targets.prebuilt_name(each, dtype) for dtype, names in targets.PREBUILT.items() for each in names}
    assert all(library.is_whole(Path(path)) for path in build_data["force_include"] if path.endswith(".so"))
    assert build_data["pure_python"] is False
    assert build_data["tag"].startswith("py3-none-manylinux_2_")
    engines.finalize("standard", build_data, "")
    assert not any(Path(path).exists() for path in build_data["force_include"])


def test_the_hook_refuses_what_not_every_linux_has(hook, tmp_path):
    made = tmp_path / "engine.so"
    (tmp_path / "engine.cpp").write_text("#include <iostream>\nvoid run() { std::cout << 1; }")
    subprocess.run(["g++", "-shared", "-fPIC", tmp_path / "engine.cpp", "-o", made], check=True)
    with pytest.raises(SystemExit, match=r"engine\.so needs libstdc\+\+\.so\.6, which not every Linux has"):
        hook.oldest_glibc(made)


def test_an_editable_installation_needs_no_compiler(hook, monkeypatch):
    monkeypatch.setenv("CXX", "/bin/false")
    build_data = {}
    hook.Engines().initialize("editable", build_data)
    assert build_data == {}


def test_on_windows_the_engine_says_that_it_cannot_run(monkeypatch):
    monkeypatch.setattr(build.sys, "platform", "win32")
    with pytest.raises(BackendUnavailable, match="does not run on Windows: use it in WSL 2"):
        build.compiler()
