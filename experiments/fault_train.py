"""Kill training runs at random moments, continue them, and compare what they end with.

    python experiments/fault_train.py --json results/fault.json

Each run is two processes (gloo) on a small set of made images, killed by SIGKILL at a moment drawn over its whole
length, start-up and validation included, then continued. It must end with the very weights of the uninterrupted run,
and no checkpoint may ever be unreadable.
"""

import argparse
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from octaveconv import env
from octaveconv.train.folder import RunFolder

sys.path.append(str(Path(__file__).parent.parent / "tests"))
from folders import make_folder

NAME = "oct_resnetv2_26-0.5"
RECIPE = dict(
    model="oct_resnetv2_26", alpha=0.5, model_args='{"layers": [1, 1, 1, 1], "width": 4, "stem": "3x3"}', size=16,
    epochs=30, batch_size=8, lr=0.1, warmup_epochs=1, crop="padded", crop_pct=1.0, dropout=0.2, workers=0,
    save_steps=1, ema=0.9, mixup=0.2, color_jitter=0.4,
)  # fmt: skip


def arguments(data, out):
    words = [f"--{name.replace('_', '-')}={value}" for name, value in (dict(data=data) | RECIPE).items()]
    return ["train", "--out", str(out), "--device", "cpu", "--threads", "1", *words]


def start(words):
    """Two processes, as torchrun would start them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = os.environ | dict(
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), WORLD_SIZE="2", OMP_NUM_THREADS="1", GLOO_SOCKET_IFNAME="lo"
    )
    command = [sys.executable, "-m", "octaveconv", *words]
    return [
        subprocess.Popen(
            command,
            env=common | dict(RANK=str(rank), LOCAL_RANK=str(rank)),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]


def finish(processes):
    for process in processes:
        _, error = process.communicate(timeout=3600)
        if process.returncode:
            raise SystemExit(f"a run failed: {error}")


def final(folder):
    state = RunFolder.open(folder).load()
    return {f"{part}.{key}": tensor for part in ("model", "ema") for key, tensor in state[part].items()}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=50)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    rng, began = random.Random(0), time.time()
    counts = dict(runs=0, identical=0, killed_before_a_checkpoint=0, unreadable=0)
    with tempfile.TemporaryDirectory() as root:
        root = Path(root)
        make_folder(root / "images" / "train", (20, 14))
        make_folder(root / "images" / "val", (3, 4))
        once = time.time()
        finish(start(arguments(root / "images", root / "whole")))
        length, expected = time.time() - once, final(root / "whole" / NAME)
        for i in range(args.runs):
            out = root / f"run{i}"
            processes = start(arguments(root / "images", out))
            time.sleep(rng.uniform(0.3, 1.0) * length)
            for process in rng.sample(processes, 2):
                process.send_signal(signal.SIGKILL)
                time.sleep(rng.choice([0, 0.05]))
            for process in processes:
                process.communicate()
            counts["runs"] += 1
            folder = out / NAME
            if any(folder.glob("last*.pth")):
                try:
                    RunFolder.open(folder).load()
                except (OSError, ValueError, RuntimeError):
                    counts["unreadable"] += 1
                finish(start(["train", "--resume", str(folder), "--device", "cpu", "--threads", "1"]))
            else:
                counts["killed_before_a_checkpoint"] += 1
                finish(start(arguments(root / "images", out)))
                folder = max(out.iterdir(), key=lambda path: path.stat().st_mtime)
            found = final(folder)
            same = found.keys() == expected.keys() and all(torch.equal(found[key], expected[key]) for key in expected)
            rows = len((folder / "results.csv").read_text().splitlines()) - 1
            counts["identical"] += same and rows == RECIPE["epochs"]
            print(counts, flush=True)
    result = {"env": env.facts(), "threads": 1, "processes": 2, "seconds": round(time.time() - began), **counts}
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
