"""Measures what a server sees of a deployed network: new sizes, memory, callers, one core for two threads, starting.

python experiments/serving.py --network oct_resnet50:0.5 --json results/serving.json
"""

import argparse
import contextlib
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from functools import partial
from pathlib import Path

import timm
import torch

import octaveconv as oc
import octaveconv.models  # registers the networks
from octaveconv import env

START = """
import sys, time
import torch
torch.set_num_threads(int(sys.argv[2]))
import octaveconv as oc
start = time.perf_counter()
oc.load_deployed(sys.argv[1])(torch.randn(1, 3, 224, 224))
print(time.perf_counter() - start)
"""  # without the imports, which take longer


def seconds(call):
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def resident():
    """MB of memory that this process has."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def milliseconds(value):
    return round(1e3 * value, 1)


def new_sizes(deployed):
    """The first call of each of 20 sizes, the calls after it, and what the first may take."""
    draw, rows = random.Random(0), []
    for _ in range(20):
        shape = (1, 3, draw.randint(160, 800), draw.randint(160, 800))
        call = partial(deployed, torch.randn(shape))
        first = seconds(call)
        steady = statistics.median(seconds(call) for _ in range(5))
        limit = 0.03 + 3 * steady
        rows.append(
            {
                "size": shape[2:],
                **dict(zip(("first_ms", "steady_ms", "limit_ms"), map(milliseconds, (first, steady, limit)))),
            }
        )
    return rows


def memory(deployed):
    """MB more than before, after so many sizes."""
    before, more = resident(), {}
    for i in range(200):
        deployed(torch.randn(1, 3, 160 + i % 100, 260 - i // 2))
        if i + 1 in (1, 50, 200):
            more[i + 1] = round(resident() - before)
    return {"more_mb": more, "programs": len(deployed._programs._programs.values())}


def callers(deployed, calls=4):
    """Images per second of eight callers in turn, and at once; the median of five rounds."""
    x = torch.randn(1, 3, 224, 224)
    deployed(x)

    def call():
        for _ in range(calls):
            deployed(x)

    def at_once():
        workers = [threading.Thread(target=call) for _ in range(8)]
        [worker.start() for worker in workers], [worker.join() for worker in workers]

    rounds = [(seconds(lambda: [call() for _ in range(8)]), seconds(at_once)) for _ in range(5)]
    turns, once = (statistics.median(each) for each in zip(*rounds))
    return {"in_turn": round(8 * calls / turns, 2), "at_once": round(8 * calls / once, 2)}


def pin(cores):
    """Where all threads of this process run."""
    for thread in Path("/proc/self/task").iterdir():
        with contextlib.suppress(ProcessLookupError):  # it has ended
            os.sched_setaffinity(int(thread.name), cores)


def one_core(deployed):
    """Milliseconds of one and of two threads on one core."""
    cores = os.sched_getaffinity(0)
    call = partial(deployed, torch.randn(1, 3, 224, 224))
    times, kept = {1: [], 2: []}, torch.get_num_threads()
    pin({min(cores)})
    for _ in range(15):
        for threads, each in times.items():
            torch.set_num_threads(threads)
            call()
            each.append(seconds(call))
    pin(cores)
    torch.set_num_threads(kept)
    one, two = (statistics.median(each) for each in times.values())
    return {"one_thread_ms": milliseconds(one), "two_threads_ms": milliseconds(two), "ratio": round(two / one, 3)}


def starts(deployed):
    """Seconds to load a saved network and give the first answer, in a new process; the median of five."""
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/net.octave"
        deployed.save(path)
        found = {}
        for threads in ("1", "2"):
            commands = [[sys.executable, "-c", START, path, threads]] * 5
            times = [
                float(subprocess.run(each, capture_output=True, text=True, check=True).stdout) for each in commands
            ]
            found[threads] = round(statistics.median(times), 2)
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="oct_resnet50:0.5", help="NAME:ALPHA")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    name, alpha = options.network.split(":")
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    deployed = oc.deploy(
        timm.create_model(name, alpha=float(alpha)).eval(), torch.randn(1, 3, 224, 224), engine="native"
    )
    result = {"network": options.network, "threads": options.threads, "commit": env.commit(), "env": env.facts()}
    for measure in (new_sizes, memory, callers, one_core, starts):
        result[measure.__name__] = measure(deployed)
        print(measure.__name__, result[measure.__name__], flush=True)
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
