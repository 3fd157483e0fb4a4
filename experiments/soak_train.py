"""Stop training runs at random moments in every way that happens, resume each until it is done, and compare its end.

    python experiments/soak_train.py --json results/soak.json

Each run is two processes (gloo) on a small set of made images. It is stopped one to four times, by one of
    kill       SIGKILL of both processes
    terminate  SIGTERM to one of them or to both, which save and say how to resume
    full disk  no file can grow beyond a random number of bytes (RLIMIT_FSIZE, set from outside), as on a full disk
    dead rank  SIGKILL of one process: the other must end by itself
at a moment drawn over all that is left of it, start-up and validation included, and resumed as a user would. It passes
if it ends with the very weights of the run that nothing disturbed, the same in its model.safetensors, with the same
results.csv (every epoch once), no checkpoint was unreadable on the way, no process stalled, and doctor finds nothing
wrong. The file is written after each run; started again, the soak goes on where it stopped. One run is repeated by
``--first SEED --runs 1`` without ``--json``; the folder of one that failed is in runs/soak.
"""

import argparse
import hashlib
import json
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import load_file

sys.path.append(str(Path(__file__).parent.parent / "tests"))
from folders import make_folder
from forks import Fork, ranks

from octaveconv import cli, doctor, env
from octaveconv.train.folder import RunFolder

NAME = "soak"
RECIPE = dict(
    alpha=0.5, model_args='{"layers": [1, 1, 1, 1], "width": 4, "stem": "3x3"}', size=16,
    batch_size=8, lr=0.1, warmup_epochs=1, crop="padded", crop_pct=1.0, save_steps=1, ema=0.9,
)  # fmt: skip
CONFIGURATIONS = {
    "mixed": dict(dropout=0.2, workers=0, mixup=0.2, color_jitter=0.4),
    "loaded": dict(workers=1, accumulate=2, dtype="bf16", opt="adamw", lr=0.001),  # by a process of its own
}
CALIBRATION = 10  # epochs
SPEED = ("images_per_s", "data_wait")  # columns that depend on the time
KEPT = Path("runs/soak")
PATIENCE = 120  # seconds for a process that should end
FAULTS = ("kill", "terminate", "full disk", "dead rank")


class Failed(Exception):
    pass


def train(data, out, configuration, epochs):
    fields = RECIPE | CONFIGURATIONS[configuration] | dict(data=data, epochs=epochs, out=out, name=NAME)
    return start(["train", "oct_resnetv2_26", *(f"--{key.replace('_', '-')}={value}" for key, value in fields.items())])


def start(words):
    return ranks(cli.main, [*words, "--device", "cpu", "--threads", "1"])


def ended(processes, patience=PATIENCE):
    """The exit codes; a process that does not end is killed, and the run has failed."""
    end = time.monotonic() + patience
    while any(process.running() for process in processes) and time.monotonic() < end:
        time.sleep(0.05)
    stalled = [rank for rank, process in enumerate(processes) if process.running()]
    for rank in stalled:
        processes[rank].kill()
    codes = [process.wait() for process in processes]
    if stalled:
        raise Failed(f"process {stalled} stalled for {patience} s")
    return codes


def end_of(folder):
    """A digest of what a run ends with: the weights and their averages, and the table without the speeds."""
    state, digest = RunFolder.open(folder).load(), hashlib.sha256()
    final = load_file(folder / "model.safetensors")
    if final.keys() != state["ema"].keys() or not all(torch.equal(final[key], state["ema"][key]) for key in final):
        raise Failed("model.safetensors does not have the averaged weights of last.pth")
    for part in ("model", "ema"):
        for key, tensor in state[part].items():
            digest.update(f"{part}.{key}".encode())
            digest.update(tensor.contiguous().numpy().tobytes())
    rows = [{key: cell for key, cell in row.items() if key not in SPEED} for row in RunFolder(folder).rows()]
    digest.update(json.dumps(rows).encode())
    return digest.hexdigest(), [row["epoch"] for row in rows]


def reference(data, root, configuration, seconds):
    """The run that nothing disturbs: its epochs, seconds, and end; its epochs take about ``seconds``."""
    per_epoch = timed(data, root / "calibration", configuration, CALIBRATION)[0] / CALIBRATION
    epochs = max(2, round(seconds / per_epoch))
    work, whole = timed(data, root / configuration, configuration, epochs)
    digest, found = end_of(root / configuration / NAME)
    assert found == [str(epoch + 1) for epoch in range(epochs)], found
    return {"epochs": epochs, "seconds": round(whole, 1), "start_up_s": round(whole - work, 1), "digest": digest}


def timed(data, out, configuration, epochs):
    """Seconds of the work of an undisturbed run, and of all of it."""
    shutil.rmtree(out, ignore_errors=True)
    began = time.time()
    processes = train(data, out, configuration, epochs)
    if any(ended(processes, 3600)):
        raise SystemExit(f"an undisturbed run failed: {processes[0].output()[1]}")
    return time.time() - (out / NAME / "env.json").stat().st_mtime, time.time() - began


def soak(draw, data, out, configuration, known):
    """One run: returns what stopped it, in words; raises Failed if it did not end as the reference."""
    stops, faults = [], [draw.choice(FAULTS) for _ in range(draw.randint(1, 4))]
    for fault in [*faults, None]:
        folder = max(out.glob("*"), key=lambda path: path.stat().st_ctime, default=out)
        resumes = any(folder.glob("last*.pth"))
        done = len(RunFolder(folder).rows()) / known["epochs"] if resumes else 0
        starts = len([*out.glob("*/env*.json")])
        processes = (
            start(["train", "--resume", str(folder)]) if resumes else train(data, out, configuration, known["epochs"])
        )
        if fault:
            left = known["start_up_s"] + (known["seconds"] - known["start_up_s"]) * (1 - done)
            moment = draw.uniform(0, left)
            wait(processes, moment)
            trains = len([*out.glob("*/env*.json")]) > starts
            stops.append(f"{stop(draw, fault, processes, trains)} after {moment:.1f} s")
        codes = ended(processes, PATIENCE + 5 * known["seconds"])
        # The loading worker of a process that is killed complains.
        ended_by_themselves = (process for process, code in zip(processes, codes) if code != -signal.SIGKILL)
        said = " | ".join(
            process.output()[1].strip() for process in ended_by_themselves
        )  # not the workers of a killed one
        if "Traceback" in said or "cannot be read" in said:
            raise Failed(f"{stops}: {said}")
        if codes == [0, 0]:
            break
    else:
        raise Failed(f"{stops}: exit codes {codes} of processes that were left alone: {said}")
    compare(max(out.glob("*"), key=lambda path: path.stat().st_ctime), known)
    return stops


def wait(processes, seconds):
    end = time.monotonic() + seconds
    while time.monotonic() < end and all(process.running() for process in processes):
        time.sleep(0.02)


def stop(draw, fault, processes, trains):
    """Let it happen to the processes; returns what did. Before they train, torchrun would end both."""
    count = 1 if fault == "dead rank" else draw.choice((1, 2)) if fault == "terminate" else 2
    victims = draw.sample(processes, count if trains else 2)
    limit = draw.choice((0, draw.randrange(200_000)))
    for process in filter(Fork.running, victims):
        if fault == "full disk":
            resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        else:
            process.send_signal(signal.SIGTERM if fault == "terminate" else signal.SIGKILL)
        time.sleep(draw.choice((0, 0.05)))
    return fault


def compare(folder, known):
    digest, epochs = end_of(folder)
    if epochs != [str(epoch + 1) for epoch in range(known["epochs"])]:
        raise Failed(f"the epochs of results.csv are {epochs}")
    if digest != known["digest"]:
        raise Failed("other weights, or another results.csv, than the undisturbed run")
    if wrong := [finding for finding in doctor.examine(folder) if finding.wrong]:
        raise Failed(f"doctor: {wrong}")


def one(seed, data, root, report):
    """The run of a seed, and what became of it; its folder is kept if it failed."""
    names = list(CONFIGURATIONS)
    name, out = names[seed % len(names)], root / str(seed)
    found, began = {"seed": seed, "configuration": name}, time.time()
    out.mkdir()
    try:
        found |= {"stops": soak(random.Random(seed), data, out, name, report["configurations"][name])}
        found |= {"result": "identical"}
    except Failed as error:
        shutil.copytree(out, KEPT / str(seed), dirs_exist_ok=True)
        found |= {"result": f"failed: {error}", "folder": str(KEPT / str(seed))}
    shutil.rmtree(out)
    return found | {"seconds": round(time.time() - began, 1)}


def begun(options):
    """The report to continue: the one in the file, if it is of the same commit, machine and work; or a new one."""
    report = {"env": env.facts(), "commit": env.commit().removesuffix(env.DIRTY), "seconds_of_work": options.seconds}
    report |= {"threads": 1, "processes": 2}
    known = json.loads(options.json.read_text()) if options.json and options.json.exists() else {}
    if known and all(known.get(key) == value for key, value in report.items()):
        return known
    return report | {"configurations": {}, "runs": []}


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--runs", type=int, default=100, help="of all, those in the file included (default %(default)s)"
    )
    parser.add_argument("--first", type=int, default=0, help="seed of the first run (default %(default)s)")
    parser.add_argument(
        "--seconds-of-work", dest="seconds", type=float, default=60, help="of an undisturbed run (default %(default)g)"
    )
    parser.add_argument("--json", type=Path, help="write the figures here, and go on from those that are there")
    options = parser.parse_args()
    report = begun(options)

    def write():
        if options.json:
            options.json.write_text(json.dumps(report, indent=1) + "\n")

    with tempfile.TemporaryDirectory() as root:
        root = Path(root)
        data = root / "images"
        make_folder(data / "train", (20, 14))
        make_folder(data / "val", (3, 4))
        done = {run["seed"] for run in report["runs"]}
        for seed in range(options.first, options.first + options.runs):
            name = list(CONFIGURATIONS)[seed % len(CONFIGURATIONS)]
            if seed in done:
                continue
            if name not in report["configurations"]:
                report["configurations"][name] = reference(data, root, name, options.seconds)
                print(name, report["configurations"][name], flush=True)
            report["runs"].append(one(seed, data, root, report))
            print(json.dumps(report["runs"][-1]), flush=True)
            write()
    return any(run["result"] != "identical" for run in report["runs"])


if __name__ == "__main__":
    sys.exit(main())
