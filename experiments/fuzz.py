"""Random files for every reader of foreign bytes.

    python experiments/fuzz.py --cases 1000000 --json results/fuzz.json

Each file is one that can be read, changed at random, or a changed copy of such a copy: those that got a reader further
than any before them, to another line that refuses them, are changed again. A file passes if it is read, or refused in
one line by an error that the reader promises; within a second of the processor; with no more memory beside its size
than the reader's table entry says; and without ending the process. A file that fails is kept in runs/fuzz, and can be
tried again:

    python experiments/fuzz.py --reader params --input runs/fuzz/params-0-17

The random numbers start again with every chunk of files, and the result is written after each, so that a run which was
stopped goes on where it was, as long as versions are the same, and for each reader the commit.
"""

import argparse
import json
import mmap
import os
import random
import re
import resource
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fuzz_readers

CHUNK = 10_000  # files from one seed
SECONDS = 1.0  # of the processor, for one file, at most; a clock would count what else the machine does
LIMIT = 30  # seconds by the clock, after which the process is ended
MIB = 2**20
GUARD = 2**31  # bytes that the process may take beside what it has: an error, not a machine without memory
KEPT = Path("runs/fuzz")
MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None  # for small files
NOTE = struct.Struct("<QQQ")  # chunk, number and length of the file that is being read; its bytes follow
COUNTS = ("cases", "read", "refused")


class Trial:
    """Reads one file after another in this process, and says what is wrong with that."""

    def __init__(self, reader):
        self.reader, self.status = reader, os.open("/proc/self/status", os.O_RDONLY)
        self.fillers = []
        for seed in reader.seeds * 2:  # what is imported and cached on the way
            self.place(reader.packed(seed))
        data = int(re.search(rb"VmData:\s*(\d+)", os.pread(self.status, 4096, 0))[1]) * 1024
        resource.setrlimit(resource.RLIMIT_DATA, (data + GUARD, resource.RLIM_INFINITY))
        self.before = self.memory()
        self.longest = 0.0

    def memory(self):
        """Bytes of address space: the most so far, and now."""
        peak, size = re.search(rb"VmPeak:\s*(\d+) kB\nVmSize:\s*(\d+)", os.pread(self.status, 4096, 0)).groups()
        return int(peak) * 1024, int(size) * 1024

    def level(self, room):
        """Take address space until the next file that needs more than ``room`` makes a new peak."""
        peak, size = self.before
        if peak - size > room:
            self.fillers.append(mmap.mmap(-1, peak - size, prot=0))
            self.before = self.memory()

    def place(self, data):
        """Where the reader refused these bytes; nothing if it has read them. Raises what no reader should."""
        try:
            self.reader.read(data)
        except self.reader.errors as error:
            return refusal(error)
        return ()

    def run(self, data):
        """What `place` returns, or a text that says what went wrong."""
        room = self.reader.room * MIB + len(data)
        self.level(room)
        signal.setitimer(signal.ITIMER_REAL, LIMIT)
        start = time.process_time()
        try:
            found = self.place(data)
        except Exception as error:
            found = f"{type(error).__name__} at {' '.join(lines(error.__cause__ or error))}: {str(error)[:300]}"
        seconds = time.process_time() - start
        if seconds > SECONDS and not isinstance(found, str):
            found = f"it takes {seconds:.1f} s"
        signal.setitimer(signal.ITIMER_REAL, 0)
        self.longest = max(self.longest, seconds)
        (before, size), self.before = self.before, self.memory()
        if self.before[0] > before and self.before[0] - size > room and not isinstance(found, str):
            found = f"it takes {(self.before[0] - size) / MIB:.0f} MiB"
        return found


def refusal(error):
    """Where a refusal came from, or raise: in the frame that caught it, `cause` would keep the file mapped."""
    cause = error
    while cause.__cause__ or cause.__context__:
        cause = cause.__cause__ or cause.__context__
        if isinstance(cause, MemoryError):
            raise RuntimeError("a refusal for want of memory") from error
    text = str(error)
    if not text or "\n" in text or len(text) > 4000 or getattr(error, "offset", 0) < 0:
        raise RuntimeError(f"an error that misleads: {text[:300]!r}") from error
    return lines(cause)


def lines(error):
    """The innermost three lines that an error came through."""
    trace, found = error.__traceback__, []
    while trace:
        found.append(f"{Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}")
        trace = trace.tb_next
    return tuple(found[-3:])


def chunk(trial, name, number, size, note):
    """Try ``size`` files; returns the counts, and what went wrong, each kind once."""
    draw = random.Random(f"{name} {number}")
    seeds, further, places, problems = trial.reader.seeds, [], set(), {}
    counts = dict.fromkeys(COUNTS, 0)
    start = time.process_time()
    for i in range(size):
        parent = draw.choice(further if further and draw.random() < 0.5 else seeds)
        case = trial.reader.changed(parent, draw)
        data = trial.reader.packed(case)
        note[: NOTE.size + len(data)] = NOTE.pack(number, i, len(data)) + data
        found = trial.run(data)
        counts["cases"] += 1
        if isinstance(found, str):
            kind = found.partition(":")[0] if " at " in found else found[:8]
            if kind not in problems and len(problems) < 20:
                problems[kind] = f"{keep(name, number, i, data)}: {found}"
            continue
        counts["refused" if found else "read"] += 1
        if found not in places:
            places.add(found)
            further.append(case)
    return counts | {
        "places": len(places),
        "cpu_s": round(time.process_time() - start, 1),
        "longest_s": round(trial.longest, 3),
        "problems": list(problems.values()),
    }


def keep(name, number, i, data):
    """Write a file that failed; returns its path."""
    KEPT.mkdir(parents=True, exist_ok=True)
    path = KEPT / f"{name}-{number}-{i}"
    path.write_bytes(data)
    return path


def child(name, first, last, size, folder):
    """Try chunks of files in this process, and print a line of JSON for each."""
    import torch

    torch.set_num_threads(1)
    tempfile.tempdir = folder
    trial = Trial(fuzz_readers.READERS[name]())
    with open(Path(folder) / "note", "w+b") as file:
        file.truncate(2**24)
        note = mmap.mmap(file.fileno(), 0)
        for number in range(first, last):
            print(json.dumps(chunk(trial, name, number, size, note)), flush=True)


def attempts(name, first, last, size):
    """Results of chunks, from processes of their own: one that a file ended is followed by the next."""
    while first < last:
        with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
            command = [sys.executable, __file__, "--child", name, str(first), str(last), str(size), folder]
            environment = {
                "MALLOC_ARENA_MAX": "1",
                "OMP_NUM_THREADS": "1",
                "OCTAVECONV_CACHE": str(KEPT.absolute() / "cache"),
            }
            environment |= fuzz_readers.sanitizers() if name == "deployed" else {}
            with subprocess.Popen(command, env=os.environ | environment, stdout=subprocess.PIPE, text=True) as process:
                for line in process.stdout:
                    yield first, json.loads(line)
                    first += 1
            if process.returncode:
                note = Path(folder) / "note"
                if not note.exists():
                    raise SystemExit(f"the process for {name} ended with {process.returncode} before the first file")
                number, i, length = NOTE.unpack(note.read_bytes()[: NOTE.size])
                path = keep(name, number, i, note.read_bytes()[NOTE.size : NOTE.size + length])
                yield first, {"problems": [f"{path}: it ended the process with {process.returncode}"]}
                first += 1


def add(total, result):
    """A reader's figures with those of one more chunk."""
    summed = {key: total.get(key, 0) + result.get(key, 0) for key in COUNTS}
    largest = {key: max(total.get(key, 0), result.get(key, 0)) for key in ("places", "longest_s")}
    problems = (total.get("problems", []) + result["problems"])[:40]
    seconds = round(total.get("cpu_s", 0) + result.get("cpu_s", 0), 1)
    return summed | largest | {"cpu_s": seconds, "result": "failed" if problems else "passed", "problems": problems}


def fuzz(options, commit, report, write):
    """Try the files that are missing in the report, and write it after each chunk."""

    def one(name):
        found = report["readers"].get(name, {})
        found = found if found.get("commit") == commit else {"commit": commit, "chunks": 0}
        for number, result in attempts(name, found["chunks"], -(-options.cases // options.chunk), options.chunk):
            found = {"commit": commit, "chunks": number + 1} | add(found, result)
            print(name, json.dumps(found | {"problems": result["problems"]}), flush=True)
            write(name, found)

    with ThreadPoolExecutor(options.jobs) as pool:
        list(pool.map(one, options.reader))


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--cases", type=int, default=10_000, help="files for each reader (default %(default)s)")
    parser.add_argument("--chunk", type=int, default=CHUNK, help="files from one seed (default %(default)s)")
    parser.add_argument("--reader", choices=fuzz_readers.READERS, nargs="+", default=[*fuzz_readers.READERS])
    parser.add_argument("--jobs", type=int, default=1, help="readers at a time (default %(default)s)")
    parser.add_argument("--input", type=Path, help="read this one file instead, and show how it fails")
    parser.add_argument("--json", type=Path, help="write the figures here, and go on from those that are there")
    options = parser.parse_args()
    if options.input:
        tempfile.tempdir = tempfile.mkdtemp()
        fuzz_readers.READERS[options.reader[0]]().read(options.input.read_bytes())
        return 0
    from octaveconv import env

    report = {
        "env": env.facts(),
        "threads": 1,
        "chunk": options.chunk,
        "seconds_limit": SECONDS,
    }
    commit = env.commit().removesuffix(env.DIRTY)
    known = json.loads(options.json.read_text()) if options.json and options.json.exists() else {}
    same = all(known.get(key) == report[key] for key in report)
    report["readers"], lock = known["readers"] if same else {}, threading.Lock()
    if known and not same:
        print(f"{options.json} is of another machine: starting again", flush=True)

    def write(name, found):
        with lock:
            report["readers"][name] = found
            if options.json:
                options.json.write_text(json.dumps(report, indent=1) + "\n")

    fuzz(options, commit, report, write)
    return any(found["problems"] for found in report["readers"].values())


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(sys.argv[2], *map(int, sys.argv[3:6]), sys.argv[6])
    else:
        sys.exit(main())
