"""octavify of random networks in the forms of other projects: ``python experiments/foreign.py --networks 2000``.

Each is checked as `tests/foreign_promises.py` says: at alpha 0 and above, at two sizes, in training and evaluation
mode, copied, saved and loaded, wrapped for several processes. What is in the file already is not done again.
"""

import argparse
import json
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path
from sys import path as places

import torch

ROOT = Path(__file__).parent.parent
places.insert(0, str(ROOT / "tests"))
from foreign_promises import check  # noqa: E402

from octaveconv import env  # noqa: E402


def tried(seed, file):
    """What became of one network, or what was wrong."""
    try:
        return check(seed, file)
    except Exception as error:  # whatever it is, it is wrong
        return {"wrong": f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"[:300]}


def added(result, seed, row):
    """The result with one more network."""
    result["networks"] = seed + 1 - result["first_seed"]
    if "wrong" in row:
        result["wrong"].append({"seed": seed, **row})
        return
    result["forms"] = dict(sorted((Counter(result["forms"]) + Counter(row["forms"])).items()))
    for name in ("convolutions", "octave"):
        result[name] += row[name]
    for name in ("parts", "refused", "flat"):
        result[name] += bool(row[name])


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--networks", type=int, default=2000)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--minutes", type=float, default=1e9, help="begin no network after this time")
    parser.add_argument("--json", type=Path, default=ROOT / "results" / "foreign.json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    counts = dict.fromkeys(("networks", "convolutions", "octave", "parts", "refused", "flat"), 0)
    result = {"first_seed": args.first, "threads": 1, "env": env.facts(), **counts, "forms": {}, "wrong": []}
    if args.json.exists():
        result = json.loads(args.json.read_text())
    began = time.time()
    with tempfile.TemporaryDirectory() as folder:
        while result["networks"] < args.networks and time.time() - began < 60 * args.minutes:
            seed = result["first_seed"] + result["networks"]
            added(result, seed, tried(seed, Path(folder) / "octave.safetensors"))
            args.json.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps({name: value for name, value in result.items() if name not in ("env", "forms")}, indent=1))


if __name__ == "__main__":
    main()
