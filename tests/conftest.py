"""Fixtures of several test files."""

import gc

import pytest
import torch
from hypothesis import settings
from networks import every_block, settle
from triton_parts import DEVICE, triton

from octaveconv.deploy import cache
from octaveconv.deploy.capture import Captures
from octaveconv.deploy.native import engine, library, tune

settings.register_profile("default", deadline=None, derandomize=True, max_examples=150)
settings.load_profile("default")


def pytest_configure(config):
    torch.set_num_threads(1)  # one per xdist worker


# They come first, so that no worker waits for them at the end.
LONG = {"test_interpreted", "test_no_sanitizer_reports", "test_two_processes_killed_and_continued"}


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: getattr(item, "originalname", "") not in LONG)
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs an NVIDIA GPU"))


def pytest_collection_finish(session):
    """What was imported and collected is there to stay: the garbage collector need not look through it again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture
def threads():
    """Set the number of threads; it is set back."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture
def quickly(monkeypatch):
    """The native engine's tuner tries each choice once, and keeps nothing."""
    monkeypatch.setattr(tune, "SECONDS", 0)
    monkeypatch.setattr(cache.Table, "put", lambda self, key, row: None)


@pytest.fixture
def empty_cache(monkeypatch, tmp_path):
    """No library built yet, neither on disk nor in this process."""
    monkeypatch.setenv("OCTAVECONV_CACHE", str(tmp_path / "cache"))
    library.load.cache_clear()
    yield tmp_path / "cache"
    library.load.cache_clear()


@pytest.fixture
def lightly_optimized(monkeypatch):
    """Engines for other instruction sets than "native" compile in a third of the time; they answer the same."""
    for target, flags in library.TARGETS.items():
        if target != "native":
            monkeypatch.setitem(library.TARGETS, target, [*flags, "-O1"])


@pytest.fixture
def captured_as(monkeypatch):
    """``captured_as(captures)``: the native engine takes these captures in place of its own, which take time."""
    return lambda captures: monkeypatch.setattr(engine, "Captures", lambda model: captures)


@pytest.fixture(scope="session")
def blocks():
    """`networks.every_block`, and its captures."""
    model = settle(every_block())
    return model, Captures(model)


@pytest.fixture
def poisoned():
    """What is allocated is full of NaN, so that a pixel which no program writes is found."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert torch.empty(9).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def configuration():
    """The configuration of a Triton kernel used on a GPU: to compile all of them for each case takes minutes."""
    return 0


@pytest.fixture
def exact_and_untuned(monkeypatch, configuration):
    """Convolutions without TF32, and one configuration of each Triton kernel."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    if DEVICE == "cuda" and torch.cuda.is_available():
        for kernel in (triton().octave_kernel, triton().depthwise_kernel):
            monkeypatch.setattr(kernel, "configs", [kernel.configs[configuration % len(kernel.configs)]])
