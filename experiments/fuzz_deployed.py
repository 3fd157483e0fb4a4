"""Random changes of files of deployed networks: each is refused with a clear error, or loads and runs.

    python experiments/fuzz_deployed.py --runs 100000

The C++ is built with the address and undefined-behaviour sanitizers, so that a step outside of a map or table ends the
run. The seed of each file counts up from ``--first``; a file that ends the run is made again with ``--first SEED --runs
1``. As in the tests, checksums are right, and no file may take more than 128 MiB of memory.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path


def child(first, runs, note):
    """Change and run files; ``note`` holds the seed at which it is."""
    sys.path.append(str(Path(__file__).parent.parent / "tests"))
    import torch
    from deployed_files import SHAPES, fate, mutated, small_files, taken_apart

    from octaveconv.deploy.native import geometry, library, tune

    library.FLAGS[:1] = ["-O1", "-g", "-fno-omit-frame-pointer", "-fsanitize=address,undefined",
                         "-fno-sanitize-recover=undefined"]  # fmt: skip
    geometry.MEMORY, tune.SECONDS = 2**27, 0
    torch.set_num_threads(1)
    files = [taken_apart(data) for data in small_files()]
    start, longest, fates = time.perf_counter(), 0.0, Counter()
    for seed in range(first, first + runs):
        Path(note).write_text(str(seed))
        begun = time.perf_counter()
        fates[fate(mutated(files[seed % 2], seed), SHAPES)] += 1
        longest = max(longest, time.perf_counter() - begun)
    print(json.dumps({**fates, "seconds": round(time.perf_counter() - start), "longest_s": round(longest, 2)}))


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=int, default=10_000, help="files (default %(default)s)")
    parser.add_argument("--first", type=int, default=1000, help="seed of the first one (default %(default)s)")
    options = parser.parse_args()
    libraries = [
        subprocess.run(["g++", f"-print-file-name={name}"], capture_output=True, text=True, check=True).stdout.strip()
        for name in ("libasan.so", "libubsan.so")
    ]
    with tempfile.TemporaryDirectory() as folder:
        note = Path(folder) / "seed"
        environment = os.environ | {
            "LD_PRELOAD": " ".join(libraries),
            "ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1",
            "OCTAVECONV_CACHE": folder,
            "CXX": "g++",
        }
        command = [sys.executable, __file__, "--child", str(options.first), str(options.runs), str(note)]
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True)
        if done.returncode:
            sys.exit(f"failed at seed {note.read_text() if note.exists() else 'none'}")
    print(done.stdout, end="")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
    else:
        main()
