"""Checks an installed package by commands alone, in an empty folder: train, eval, predict, export (minutes)."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

COLORS = {"blue": (30, 40, 200), "red": (200, 40, 30)}


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        for split, count in (("train", 8), ("val", 4)):
            for name, color in COLORS.items():
                place = Path(folder, "images", split, name)
                place.mkdir(parents=True)
                for i in range(count):
                    Image.new("RGB", (32, 32), tuple(c + i for c in color)).save(place / f"{i}.png")

        def command(line: str) -> None:
            print(f"octaveconv {line}", flush=True)
            words = [sys.executable, "-m", "octaveconv", *line.split()]
            subprocess.run(words, cwd=folder, check=True, stdout=subprocess.DEVNULL)

        def labels(network: str) -> list[str]:
            command(f"predict {network} images/val --workers 0 --json found.json")
            found = json.loads(Path(folder, "found.json").read_text())["images"]
            return [one["predictions"][0]["label"] for one in found]

        command("env")
        command("train --recipe cifar10 --data images --epochs 4 --batch-size 4 --workers 0 --name first --device cpu")
        command("eval runs/first --data images --workers 0")
        seen = labels("runs/first")
        assert len(seen) == 8, seen
        assert set(seen) <= set(COLORS), seen
        command("convert runs/first --out converted.safetensors")
        assert labels("converted.safetensors") == seen
        command("export runs/first --out net.pt2 --no-timing")
        command("export runs/first --out net.octave --no-timing")
        assert labels("net.octave") == seen
    print("all of it works")


if __name__ == "__main__":
    main()
