"""``octaveconv bench``: octave against the fastest dense rival, in one process, each in the runtime that suits it best.

A few runs of all candidates choose the finalists, which are then timed with many runs.
"""

from __future__ import annotations

import gc
import math
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import env
from .cases import SEED, BenchSettings, Case, images, make_cases
from .measure import PAUSE, WARM, cuda_events, interleaved, peak_bytes, wall_clock
from .ratios import Candidate, best_dense, finalists, ratios
from .roofline import counts, rates, shares
from .runtimes import Task, conditions, is_seen, layouts, prepare

QUICK_RUNS = 5
# The largest difference of logits, relative to the largest logit, that rounding may cause in each dtype.
LIMITS = {"fp32": 1e-4, "bf16": 1e-1, "fp16": 2e-2}
Log = Callable[[str], None]


class WrongOutput(RuntimeError):
    """A runtime does not compute what eager PyTorch computes, so its time would mean nothing."""


def run(settings: BenchSettings, log: Log = lambda line: None) -> dict[str, Any]:
    """Time octave networks against the fastest dense one.

    Args:
        settings: see `BenchSettings`.
        log: called with a line of text about each candidate as it gets ready, and with warnings.

    Returns:
        Plain data, as in ``results/``: settings, versions and machine; for each batch size all candidates, what did not
        run and why, the fastest dense candidate, and T, S and S/T of each alpha. On a GPU also its measured rates, and
        the shares of them that the fastest networks reach.

    Raises:
        UsageError: the settings ask for something that does not exist.
        WrongOutput: the logits of a runtime are not those of eager PyTorch.
        Exception: whatever a runtime raised that was asked for by name and cannot run.

    Example:
        >>> settings = BenchSettings("oct_resnet18", alphas=(0.5,), size=32, runtimes=("eager",), runs=2)
        >>> [batch] = run(settings)["batches"]
        >>> batch["best_dense"]["runtime"], round(batch["alphas"][0]["t"], 2)
        ('eager', 1.58)
    """
    settings = settings.checked()
    facts = _facts()  # before measuring: the files may change meanwhile, the code that runs does not
    if facts["commit"].endswith(env.DIRTY):
        log(f"note: uncommitted changes in the working tree: these figures are not fit to publish ({facts['commit']})")
    with conditions(settings), tempfile.TemporaryDirectory() as folder:
        compared = list(make_cases(settings))
        batches = [_batch(settings, compared, size, Path(folder), log) for size in settings.batch_sizes]
        rate = _rates(settings)
    if rate:
        for batch in batches:
            batch["roofline"] = _roofline(batch, compared, settings, rate)
    own = asdict(settings)
    for name in ("alphas", "batch_sizes"):  # each batch has its own
        del own[name]
    return {
        "kind": "bench",
        **own,
        "runtimes": settings.tried(dense=True),
        "pause_s": PAUSE,
        "warm_s": WARM,
        "weights": f"random, seed {SEED}",
        "env": facts,
        "rates": rate,
        "batches": batches,
    }


def _batch(
    settings: BenchSettings, compared: Sequence[Case], batch_size: int, folder: Path, log: Log
) -> dict[str, Any]:
    """All figures of one batch size."""
    clock = cuda_events if settings.device == "cuda" else wall_clock
    candidates, not_run = _candidates(settings, compared, images(settings, batch_size), folder, log)
    _check_complete(candidates, compared, not_run)
    log(f"batch {batch_size}: {len(candidates)} candidates, {QUICK_RUNS} runs each to choose the finalists")
    quick = interleaved(_calls(candidates), QUICK_RUNS, 1, isolate=True, clock=clock)
    for one in candidates:
        one.quick = quick[one.name]
    chosen = finalists(candidates)
    for one in candidates:
        if one not in chosen:
            one.call = None  # frees its weights
    gc.collect()
    log(f"batch {batch_size}: {len(chosen)} finalists, {settings.runs} runs each")
    final = interleaved(_calls(chosen), settings.runs, 1, isolate=True, clock=clock)
    for one in chosen:
        one.final, one.call = final[one.name], None
    torch.compiler.reset()
    macs = {case.alpha: case.macs for case in reversed(compared)}  # the twin comes first, so it is kept under 0
    return {
        "batch_size": batch_size,
        "networks": [{"name": case.name, "alpha": case.alpha, "macs": case.macs} for case in compared],
        "candidates": [one.to_dict() for one in candidates],
        "not_run": not_run,
        "best_dense": best_dense(candidates),
        "alphas": ratios(candidates, macs),
    }


def _candidates(
    settings: BenchSettings, compared: Sequence[Case], x: Tensor, folder: Path, log: Log
) -> tuple[list[Candidate], list[dict[str, Any]]]:
    """Give every network to every runtime; list what cannot run, with the reason."""
    ready, not_run = [], []
    exact = replace(settings, dtype="fp32")
    for number, case in enumerate(compared):
        reference = prepare("eager", Task(case.model, x, "contiguous", exact, folder)).call()
        dense = not case.alpha
        asked = (*settings.runtimes, *(settings.rivals if dense else ()))
        for runtime in settings.tried(dense):
            for layout in layouts(runtime, settings.device):
                place = folder / f"{number}-{runtime}"
                place.mkdir(exist_ok=True)
                try:
                    one = _candidate(case, runtime, Task(case.model, x, layout, settings, place, dense), reference)
                except WrongOutput:
                    raise
                except Exception as error:  # a runtime is foreign code: it may raise anything
                    if runtime in asked:
                        raise
                    not_run.append({"network": case.name, "runtime": runtime, "layout": layout, "why": _reason(error)})
                    log(f"{case.name}, {runtime}: not run: {_reason(error)}")
                    continue
                ready.append(one)
                log(f"{one.name}: ready in {one.prepare_s:.1f} s, differs from eager by {one.difference:.1e}")
    return ready, not_run


def _rates(settings: BenchSettings) -> dict[str, float] | None:
    return rates(settings.dtype) if settings.device == "cuda" else None


def _roofline(
    batch: dict[str, Any], compared: Sequence[Case], settings: BenchSettings, rate: dict[str, float]
) -> list[dict[str, Any]]:
    """The shares that the fastest network of each alpha reaches, the dense one first, and its memory."""
    cases = {case.name: case for case in compared}
    rows = []
    for fastest in (batch["best_dense"], *batch["alphas"]):
        case = cases[fastest["network"]]
        way = {key: fastest[key] for key in ("network", "runtime", "layout", "engine")}
        [memory] = [one["peak_bytes"] for one in batch["candidates"] if way.items() <= one.items()]
        count = counts(case, batch["batch_size"], settings.dtype, settings.mode)
        rows.append({**way, "median": fastest["median"], "peak_bytes": memory, **shares(fastest, count, rate)})
    return rows


def _candidate(case: Case, runtime: str, task: Task, reference: Tensor) -> Candidate:
    """Prepare one candidate, and compare its logits with those of eager PyTorch."""
    start = time.perf_counter()
    prepared = prepare(runtime, task)
    output = prepared.call()
    seconds = time.perf_counter() - start
    one = Candidate(
        case.name,
        case.alpha,
        runtime,
        task.layout,
        prepared.engine,
        difference(output, reference),
        peak_bytes(prepared.call, task.settings.device) if is_seen(runtime, task.settings) else None,
        seconds,
        prepared.call,
    )
    limit = LIMITS[task.settings.dtype]
    if not one.difference <= limit:  # written so that NaN is wrong too
        raise WrongOutput(
            f"{one.name}: its logits differ from those of eager fp32 by {one.difference:.1e}, more than {limit:g}, so "
            f"its time would mean nothing: name the other runtimes to measure without it, and please report this"
        )
    return one


def difference(output: Tensor, reference: Tensor) -> float:
    """The largest difference of two tensors of logits, relative to the largest reference; infinite if shapes differ.

    Example:
        >>> difference(torch.tensor([1.0, 3.0]), torch.tensor([1.0, 4.0]))
        0.25
    """
    if output.shape != reference.shape:
        return math.inf
    output, reference = output.detach().cpu().double(), reference.detach().cpu().double()
    return float((output - reference).abs().max() / reference.abs().max())


def _calls(candidates: Sequence[Candidate]) -> dict[str, Callable[[], Any]]:
    return {one.name: one.call for one in candidates if one.call}


def _check_complete(candidates: Sequence[Candidate], compared: Sequence[Case], not_run: list[dict[str, Any]]) -> None:
    for case in compared:
        if not any(one.network == case.name for one in candidates):
            why = {f"{row['runtime']}: {row['why']}" for row in not_run if row["network"] == case.name}
            raise RuntimeError(f"no runtime can run {case.name}: {'; '.join(sorted(why))}")


def _reason(error: Exception) -> str:
    """The first line of an error, with its type unless the message says enough."""
    text = next(iter(str(error).strip().splitlines()), "")[:200]
    kind = type(error).__name__
    return text if kind in ("MissingExtra", "CannotRun") else f"{kind}: {text}".rstrip(": ")


def _facts() -> dict[str, str]:
    """The machine, and all versions, including those of the runtimes and our own commit."""
    facts = env.facts()
    for package in ("openvino", "onnxruntime"):
        try:
            facts[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            facts[package] = "not installed"
    return facts | {"commit": env.commit()}
