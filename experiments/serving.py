"""Measures what a server sees of a deployed network: new sizes, memory, several callers, and one core for two threads.

python experiments/serving.py --network oct_resnet50:0.5
"""

import argparse
import contextlib
import os
import statistics
import threading
import time
from functools import partial
from pathlib import Path

import timm
import torch

import octaveconv as oc
import octaveconv.models  # registers the networks


def seconds(call):
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def resident():
    """MB of memory that this process has."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def new_sizes(deployed):
    """The first call of a size, and the calls after it."""
    for shape in ((1, 3, 72, 80), (1, 3, 160, 176), (1, 3, 224, 224), (8, 3, 96, 96)):
        call = partial(deployed, torch.randn(shape))
        first = seconds(call)
        steady = statistics.median(seconds(call) for _ in range(9))
        limit = 0.03 + 4 * steady  # the plan, and the call itself
        print(f"{list(shape)}: first call {1e3 * first:.1f} ms, then {1e3 * steady:.1f}; limit {1e3 * limit:.1f}")


def memory(deployed):
    """What 200 sizes leave."""
    before = resident()
    for i in range(200):
        deployed(torch.randn(1, 3, 64 + i % 100, 224 - i // 2))
        if i in (0, 49, 199):
            print(f"after {i + 1} sizes: {resident() - before:.0f} MB more than before")
    programs = deployed._programs
    scratch = [frame.scratch.nbytes / 1e6 for frame in programs._idle]
    print(f"{len(programs._programs.values())} programs, scratch memory {scratch} MB")


def callers(deployed, count=4, calls=12):
    """Several callers in turn, and at once."""
    x = torch.randn(1, 3, 128, 128)
    deployed(x)

    def call():
        for _ in range(calls):
            deployed(x)

    def at_once():
        workers = [threading.Thread(target=call) for _ in range(count)]
        [worker.start() for worker in workers], [worker.join() for worker in workers]

    for _ in range(3):
        turns, once = seconds(lambda: [call() for _ in range(count)]), seconds(at_once)
        print(f"{count} callers: {count * calls / turns:.1f} images/s in turn, {count * calls / once:.1f} at once")


def pin(cores):
    """Where all threads of this process run."""
    for thread in Path("/proc/self/task").iterdir():
        with contextlib.suppress(ProcessLookupError):  # it has ended
            os.sched_setaffinity(int(thread.name), cores)


def one_core(deployed):
    """Two threads on one core, against one thread there."""
    cores = os.sched_getaffinity(0)
    call = partial(deployed, torch.randn(1, 3, 128, 128))
    times = {1: [], 2: []}
    pin({min(cores)})
    for _ in range(15):
        for threads, each in times.items():
            torch.set_num_threads(threads)
            call()
            each.append(seconds(call))
    pin(cores)
    one, two = (statistics.median(each) for each in times.values())
    print(f"on one core: one thread {1e3 * one:.1f} ms, two threads {1e3 * two:.1f} ms, {two / one:.2f} times")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="oct_resnet50:0.5", help="NAME:ALPHA")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    name, alpha = options.network.split(":")
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    model = timm.create_model(name, alpha=float(alpha)).eval()
    deployed = oc.deploy(model, torch.randn(1, 3, 64, 64), engine="native")
    del model
    for measure in (new_sizes, memory, callers, one_core):
        measure(deployed)


if __name__ == "__main__":
    main()
