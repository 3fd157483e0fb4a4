"""Flip a random bit in every kind of file that we write, and see whether loading it notices.

    python experiments/bit_flips.py --json results/bit_flips.json

A flip is noticed if an error of one line names the file, harmless if what is loaded is equal to the bit. It also times
the checksums of files of 100 MB that are in the disk's cache.
"""

import argparse
import json
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import torch

from octaveconv import _checksum, env
from octaveconv.weights import files as weights

sys.path.append(str(Path(__file__).parent.parent / "tests"))
from flips import fate, make

BYTES = 10**8


def flips(tries, seed):
    """For each kind of file: its size, and what became of each flip."""
    draw, kinds = random.Random(seed), {}
    with tempfile.TemporaryDirectory() as folder:
        for path, read in make(Path(folder)).items():
            expected, size = read(path), path.stat().st_size
            fates = Counter(fate(path, read, expected, draw.randrange(8 * size)) for _ in range(tries))
            kinds[path.name] = {"bytes": size, "tries": tries, **fates}
            print(path.name, kinds[path.name], flush=True)
    return kinds


def times():
    """Milliseconds to check the checksum of a file of 100 MB, and to load it all, checked: the least of 9 times."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in ("last.pth", "model.safetensors"):
            path, state = Path(folder) / name, {"fc.weight": torch.randn(BYTES // 4)}
            if name.endswith(".pth"):
                torch.save(state, path)
            else:
                weights.write(path, state, {})
            found[name] = {"check_ms": least(_checksum.problem, path), "load_ms": least(weights.read, path)}
    return found


def least(call, path):
    seconds = []
    for _ in range(9):  # on a machine that does other work, too
        start = time.perf_counter()
        call(path)
        seconds.append(time.perf_counter() - start)
    return round(1000 * min(seconds), 1)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--tries", type=int, default=400, help="flips for each kind of file (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write the figures here")
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    torch.set_num_threads(1)
    kinds = flips(options.tries, options.seed)
    result = {"env": env.facts(), "commit": env.commit(), "seed": options.seed, "threads": 1, "kinds": kinds}
    result["bytes_timed"], result["times"] = BYTES, times()
    print(result["times"])
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")
    bad = {
        name: kind for name, kind in kinds.items() if kind.get("noticed", 0) + kind.get("harmless", 0) < kind["tries"]
    }
    sys.exit(f"went wrong: {bad}" if bad else 0)


if __name__ == "__main__":
    main()
