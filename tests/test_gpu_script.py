"""bench/gpu.sh with a stand-in for Python: what it runs, what it keeps, and when it stops."""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import pytest

from octaveconv.verbs import bench

ROOT = Path(__file__).parent.parent
STAND_IN = """#!/usr/bin/env bash
[[ $1 == - ]] && exec {python} "$@"
echo "$@" >> {log}
[[ $2 == pytest ]] && exit {tests}
while [[ $1 != --json ]]; do shift; done
[[ $2 == *{fails}* ]] && {{ : > "$2"; exit 1; }}
echo '{{"of": "'"$(basename "$2")"'"}}' > "$2"
"""


@pytest.fixture
def script(tmp_path):
    """A copy of the script, run with a stand-in; returns its exit code, what was run, and what the file holds."""
    (tmp_path / "bench").mkdir()
    (tmp_path / "bench" / "gpu.sh").write_text((ROOT / "bench" / "gpu.sh").read_text())

    def run(*options, fails="nothing", tests=0):
        log = tmp_path / "log"
        log.write_text("")
        stand_in = tmp_path / "python"
        stand_in.write_text(STAND_IN.format(python=sys.executable, log=log, tests=tests, fails=fails))
        stand_in.chmod(0o755)
        command = ["bash", tmp_path / "bench" / "gpu.sh", "--out", tmp_path / "out.json", *options]
        done = subprocess.run(command, env={"PYTHON": str(stand_in), "PATH": "/usr/bin:/bin"}, capture_output=True)
        out = tmp_path / "out.json"
        kept = [run["of"] for run in json.loads(out.read_text())["runs"]] if out.exists() else None
        return done.returncode, log.read_text().splitlines(), kept

    return run


def test_what_was_not_measured_is_measured_when_it_is_called_again(script):
    code, commands, kept = script("--", "--size", "64", fails="oct_resnet50-train")
    assert code == 0
    assert "pytest" in commands[0]
    assert len(commands) == 9
    assert all(command.endswith("--size 64") for command in commands[1:])
    assert len(kept) == 7
    assert "oct_resnet50-infer-32.json" in kept
    code, commands, kept = script()
    assert len(commands) == 2
    assert "oct_resnet50 --device cuda --dtype bf16 --alpha 0.125 0.25 0.5 0.75" in commands[1]
    assert "--mode train" in commands[1]
    assert len(kept) == 8


def test_without_time_nothing_is_lost(script):
    code, commands, kept = script("--minutes", "0")
    assert (code, len(commands), kept) == (0, 1, [])  # the tests alone


def test_wrong_kernels_are_not_timed(script):
    code, commands, kept = script(tests=1)
    assert (code, len(commands), kept) == (1, 1, None)
    assert script(tests=124)[2] is not None


def test_what_is_printed_in_a_dry_run_parses():
    done = subprocess.run(["bash", ROOT / "bench" / "gpu.sh", "--dry-run"], capture_output=True, text=True)
    assert done.returncode == 0
    lines = [line.split(" -m octaveconv bench ")[1].split() for line in done.stdout.splitlines() if " bench " in line]
    parser = argparse.ArgumentParser()
    bench.add(parser)
    parser.add_argument("--json")
    modes = [(args.model, args.mode, args.batch_size) for args in map(parser.parse_args, lines)]
    assert modes == [
        (model, *case)
        for model in ("oct_resnet50", "oct_resnetv2_101")
        for case in (("infer", [32]), ("train", [64]), ("infer", [256]), ("infer", [1]))
    ]


def test_a_wrong_option_is_refused(script):
    assert script("--minute", "3")[:2] == (2, [])
