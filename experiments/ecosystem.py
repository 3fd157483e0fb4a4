"""Octave networks in the tools that users have: ``make test-ecosystem`` installs them, writes results/ecosystem.json.

Each check tries one thing with one tool, and says in a few words what came out: it works, we refuse it, or it fails. A
tool that is not installed is left out; a check whose outcome is not the expected one makes the program end with 1.
"""

import argparse
import importlib.metadata
import importlib.util
import json
import sys
import time
import warnings
from pathlib import Path

import ecosystem_runtimes  # noqa: F401  # registers its checks
import torch
from ecosystem_checks import CHECKS

from octaveconv import env


def outcome_of(package, tried, expected, function):
    """What came out of a check, as a row of the results."""
    begin = time.perf_counter()
    try:
        with warnings.catch_warnings(), torch.set_grad_enabled("LoRA" in tried or package in _TRAINED):
            warnings.simplefilter("ignore")
            outcome, note = "works", function()
    except Exception as error:
        outcome = "refused" if expected == "refused" else "fails"
        note = f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
    seconds = time.perf_counter() - begin
    print(f"{package:30} {tried:60} {outcome:6} {seconds:5.1f} s  {note}", flush=True)
    return {
        "tool": package, "version": importlib.metadata.version(package), "tried": tried, "outcome": outcome,
        "expected": expected, "note": note,
    }  # fmt: skip


_TRAINED = ("captum", "grad-cam", "lightning", "accelerate", "torch-pruning")


def kept(path, only):
    """The rows of the file that are not tried again."""
    return [row for row in json.loads(path.read_text())["outcomes"] if row["tool"] not in only] if only else []


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="write the outcomes to this file")
    parser.add_argument("--only", nargs="*", default=[], help="the checks of these packages; other rows stay")
    args = parser.parse_args()
    rows, missing = [], []
    for package, module, tried, expected, function in CHECKS:
        if args.only and package not in args.only:
            continue
        if importlib.util.find_spec(module) is None:
            missing.append(package)
            continue
        rows.append(outcome_of(package, tried, expected, function))
    if args.json:
        found = {
            "kind": "ecosystem",
            "outcomes": [*kept(args.json, args.only), *rows],
            "not_installed": sorted({*missing}),
            "threads": torch.get_num_threads(),
            "env": env.facts() | {"commit": env.commit()},
        }
        args.json.write_text(json.dumps(found, indent=1) + "\n")
    sys.exit(any(row["outcome"] != row["expected"] for row in rows))


if __name__ == "__main__":
    main()
