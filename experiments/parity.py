"""How far our networks are from the logits of the original MXNet code, written into results/parity.json.

python experiments/parity.py --json results/parity.json
"""

import argparse
import contextlib
import io
import json
import sys
import tempfile
from pathlib import Path

import torch

from octaveconv import env

sys.path.append(str(Path(__file__).parent.parent / "tests"))
from goldens import FILES, GOLDENS, difference, file_difference


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--json", type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = {name: {"network": GOLDENS[name][0], "difference": difference(name)} for name in GOLDENS}
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        rows |= {file: {"network": FILES[file][1], "difference": file_difference(file, Path(folder))} for file in FILES}
    result = {"env": env.facts(), "threads": 1, "dtype": "float32", "goldens": rows}
    args.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
