"""Random networks, deployed, against eager PyTorch: ``python experiments/fuzz_deploy.py --networks 1000``.

Each network runs at its example's shape and at shapes that it has not seen: other batches, odd and large sizes. A
network counts as wrong if values, shapes, dtypes or the structure differ, the input was changed, deploy answers where
eager PyTorch raises, or the process dies. ``--engine fallback`` tries the folded graph that Inductor would compile.
"""

import argparse
import importlib
import json
import random
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import torch
from torch.utils import _pytree as pytree

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))
from random_networks import RandomNetwork  # noqa: E402

import octaveconv as oc  # noqa: E402
from octaveconv import env  # noqa: E402
from octaveconv.errors import BackendUnavailable  # noqa: E402

CHUNK = 50  # networks of one process: one that dies takes no more with it
LIMIT = 2e-4  # of the largest value


def shapes(network, draw):
    """The example's shape, then others."""
    channels, height, width = network.example.shape[1:]
    found = [tuple(network.example.shape), (1, channels, height, width), (draw.randint(2, 5), channels, height, width)]
    sizes = [(draw.randint(20, 70), draw.randint(20, 70)), (draw.choice((33, 64, 97)), draw.randint(24, 60))]
    if draw.random() < 0.05:
        sizes.append((draw.randint(300, 800), draw.randint(300, 800)))
    return found + [(draw.choice((1, 2, 3)), channels, *size) for size in sizes]


def answer(model, x):
    """What a model gives, or the error that it raises."""
    try:
        with torch.no_grad():
            return model(x)
    except Exception as error:  # whatever the network's own code raises at this size
        return error


def difference(expected, found):
    """In what two answers differ, or nothing."""
    if isinstance(expected, Exception):
        return "" if isinstance(found, Exception) else f"answers where eager raises {type(expected).__name__}"
    if isinstance(found, Exception):
        return f"{type(found).__name__}: {str(found)[:200]}"
    (ours, form), (theirs, their_form) = pytree.tree_flatten(found), pytree.tree_flatten(expected)
    if form != their_form:
        return "another structure"
    for y, z in zip(ours, theirs):
        if not isinstance(z, torch.Tensor):
            if y != z:
                return f"{y} for {z}"
            continue
        if y.shape != z.shape or y.dtype != z.dtype:
            return f"{y.dtype} {list(y.shape)} for {z.dtype} {list(z.shape)}"
        largest = z.abs().max().item() if z.numel() else 0.0
        limit = LIMIT * max(1.0, largest) if z.isfinite().all() else 0.0
        if not torch.allclose(y, z, rtol=LIMIT, atol=limit, equal_nan=True):
            return f"values differ by {(y - z).abs().max().item():.3g}"
    return ""


def try_network(seed, engine):
    """One network: how it ran, and what was wrong."""
    network = RandomNetwork(seed)
    draw = random.Random(seed)
    row = {"seed": seed, "operations": network.names, "comparisons": 0}
    try:
        deployed = oc.deploy(network, network.example.clone(), engine="native" if engine == "native" else "inductor")
    except BackendUnavailable as error:
        return row | {"engine": "refused", "why": str(error)[:200]}
    except Exception as error:  # it must be refused instead
        return row | {"engine": engine, "wrong": f"deploy raises {type(error).__name__}: {str(error)[:200]}"}
    row |= {"engine": deployed.engine, "stretches": len(deployed.report)}
    for shape in shapes(network, draw):
        x = torch.randn(shape)
        kept = x.clone()
        wrong = difference(answer(network, x.clone()), answer(deployed, x))
        row["comparisons"] += 1
        if not torch.equal(x, kept):
            wrong = wrong or "the input was changed"
        if wrong:
            return row | {"wrong": f"{list(shape)}: {wrong}"}
    return row


@contextmanager
def quick_captures():
    """Captures in half the time: without a cache for networks that repeat themselves, and without notes of strides."""
    no_note = patch("torch.fx.experimental.proxy_tensor._extract_tensor_metadata", lambda value: None)
    with no_note, patch("torch._dynamo.config.fake_tensor_cache_enabled", False):
        yield


def run_chunk(first, count, engine):
    """Try networks, printing a line before and after each."""
    torch.set_num_threads(1)
    importlib.import_module("octaveconv.deploy.native.tune").SECONDS = 0.0  # any choice is right
    with quick_captures(), patch("torch.compile", lambda graph, **kwargs: graph):  # not Inductor itself is tried
        for seed in range(first, first + count):
            print(json.dumps({"begins": seed}), flush=True)
            print(json.dumps(try_network(seed, engine)), flush=True)


def run(first, count, engine):
    """Try networks in a process of their own. One that dies is wrong, and the rest goes on in another process."""
    rows, seed = [], first
    while seed < first + count:
        numbers = str(seed), str(first + count - seed)
        command = [sys.executable, __file__, "--chunk", *numbers, "--engine", engine]
        done = subprocess.run(command, capture_output=True, text=True)
        lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
        rows += [line for line in lines if "operations" in line]
        if done.returncode:
            last = lines[-1].get("begins", seed) if lines else seed
            rows.append({"seed": last, "engine": engine, "comparisons": 0, "wrong": f"died: {done.stderr[-200:]}"})
        seed = rows[-1]["seed"] + 1
    return rows


def added(result, rows):
    """The result with more rows."""
    counted = {
        "ran": [row["engine"] for row in rows],
        "stretches": [row["stretches"] for row in rows if "stretches" in row],
        "refused": [row["why"].split(" in ")[0].split(" (")[0][:80] for row in rows if "why" in row],
    }
    for name, values in counted.items():
        result[name] = dict((Counter(result.get(name, {})) + Counter(map(str, values))).most_common())
    result["networks"] = result.get("networks", 0) + len(rows)
    result["comparisons"] = result.get("comparisons", 0) + sum(row["comparisons"] for row in rows)
    result["wrong"] = result.get("wrong", []) + [row for row in rows if "wrong" in row]
    return result


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", type=int, default=100, help="how many, from the first seed on")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--engine", choices=("native", "fallback"), default="native")
    parser.add_argument("--json", type=Path, help="the result; what is there already is not done again")
    parser.add_argument("--jobs", type=int, default=1, help="processes at a time")
    parser.add_argument("--chunk", type=int, nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.chunk:
        return run_chunk(*options.chunk, options.engine)
    result = {"engine": options.engine, "first_seed": options.first, "threads": 1, "env": env.facts()}
    if options.json and options.json.exists():
        result = json.loads(options.json.read_text())
    first = result["first_seed"]
    while (done := result.get("networks", 0)) < options.networks:
        starts = range(done, min(done + CHUNK * options.jobs, options.networks), CHUNK)
        with ThreadPoolExecutor(options.jobs) as pool:
            chunks = pool.map(lambda at: run(first + at, min(CHUNK, options.networks - at), options.engine), starts)
            rows = [row for chunk in chunks for row in chunk]
        result = added(result, rows)
        for row in rows:
            if "wrong" in row:
                print(row, flush=True)
        if options.json:
            options.json.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))
    return None


if __name__ == "__main__":
    main()
