"""Mutate checkpoints, recipes, metadata and the files of a run, and see what becomes of each.

    python experiments/fuzz_files.py --cases 10000 --json results/fuzz_files.json

A case is well if it is read, or refused with an error of one line. Counted as well: the slowest case, and how much the
process has grown.
"""

import argparse
import json
import random
import resource
import sys
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path

from octaveconv import env

sys.path.append(str(Path(__file__).parent.parent / "tests"))
from hostile import fate, kinds, mutated


def fuzz(kind, cases, seed):
    """What became of the mutations of one kind of file."""
    draw, fates, slowest = random.Random(seed), Counter(), 0.0
    with tempfile.TemporaryDirectory() as folder:
        whole, write, read = kinds(Path(folder))[kind]
        fate(lambda: read(write(whole)))  # what is imported and cached at the first call
        before, start = peak(), time.perf_counter()
        for _ in range(cases):
            data = mutated(whole, draw)
            path = write(data)
            found, seconds = fate(lambda path=path: read(path))
            if found not in ("read", "refused"):
                print(f"{kind}: {found}: {data[:2000]!r}", flush=True)
            fates[found] += 1
            slowest = max(slowest, seconds)
    return {
        "bytes": len(whole),
        "cases": cases,
        **fates,
        "slowest_ms": round(1000 * slowest, 1),
        "grown_mib": round(peak() - before, 1),
        "seconds": round(time.perf_counter() - start, 1),
    }


def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=10_000, help="of each kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="*", help="only these")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:
        names = args.kinds or [*kinds(Path(folder))]
    result = {"env": env.facts(), "seed": args.seed, "kinds": {}}
    for kind in names:
        result["kinds"][kind] = fuzz(kind, args.cases, args.seed)
        print(kind, result["kinds"][kind], flush=True)
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
