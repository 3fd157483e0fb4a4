"""Coverage-guided fuzzing of the readers of foreign bytes.

    python experiments/fuzz_mxnet.py --runs 1500000 --json results/fuzz.json

Only MXNetFormatError may come out; a crash, a hang, another exception or a large allocation ends the run and fails.
libFuzzer does not return, so each reader is fuzzed in a child process, whose counts come back in a shared file.
"""

import argparse
import contextlib
import gzip
import importlib.util
import json
import lzma
import mmap
import os
import re
import resource
import struct
import subprocess
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path

MIB = 2**20
MEMORY = 128 * MIB  # a decompressor's 66 + 16, and room for the fuzzer
LIMITS = ["-timeout=10", "-rss_limit_mb=1024", "-malloc_limit_mb=64", "-max_len=4096", "-len_control=0"]


def seeds(reader):
    """Small valid files. For parameters the first byte says how the rest is given to the reader, see `open_params`."""
    import torch

    sys.path.append(str(Path(__file__).parent.parent / "tests"))
    import mxnet_writer as writer

    from octaveconv.mxnet.params import DTYPES
    from octaveconv.mxnet.recordio import Record

    if reader == "records":
        records = [Record((3.0,), 7, b"JPEG"), Record((1.0, 2.0), 8, b"abcd" + writer.RECORD_MAGIC + b"e" * 9)]
        data, index = writer.record_file([writer.image_payload(record) for record in records])
        return [struct.pack("<H", 0) + data, struct.pack("<H", len(index)) + index + data]
    tensors = {str(dtype): torch.ones(1, 2, dtype=dtype) for dtype in DTYPES}
    each = [writer.ENCODINGS[i % 4] for i in range(len(tensors))]
    lists = [writer.params(tensors, encoding) for encoding in (*writer.ENCODINGS, each)]
    lists += [writer.params({"s": torch.tensor(1.0), "e": torch.zeros(0, 3)}, "V3"), writer.list_bytes([])]
    lists += [writer.list_bytes([writer.array_bytes(torch.ones(3))])]
    small = writer.params({"w": torch.ones(2)})
    others = [
        writer.tar({"a/": b"", "a/x.json": b"{}", "a/x.params": small}),
        gzip.compress(small),
        lzma.compress(small),
    ]
    return [bytes([form]) + data for data in lists + others for form in range(8)]


def open_params(form, body, shared):
    """Eight ways to the parameter reader: half of the cases straight, the others through a path or a container."""
    from octaveconv.mxnet.container import contents
    from octaveconv.mxnet.fields import Fields
    from octaveconv.mxnet.params import load_mxnet, read_list

    if form == 4:
        os.ftruncate(shared, 0)
        os.pwrite(shared, body, 0)
        return load_mxnet(f"/proc/self/fd/{shared}")
    if form == 5:  # a tar whose checksums are right, so that what is behind them is reached
        body = bytearray(body)
        for at in range(0, len(body) - 511, 512):
            if body[at + 257 : at + 262] == b"ustar":
                body[at + 148 : at + 156] = b" " * 8
                body[at + 148 : at + 156] = b"%06o\0 " % sum(body[at : at + 512])
    if form == 6:
        body = gzip.compress(body, 1)
    if form == 7:
        body = lzma.compress(body, preset=0)
    return read_list(contents(Fields(bytearray(body), "fuzz")))


def params(data, shared):
    body = data[1:]
    loaded = open_params(data[0] % 8, body, shared[0])
    for tensor in loaded.values():
        if tensor.numel():
            tensor.view(-1).view(dtype=_BYTES).max()  # every byte can be read
    if len(body) <= 4096 and body[:2] not in (b"\x1f\x8b", b"\xfd7"):
        assert sum(tensor.nbytes for tensor in loaded.values()) <= len(body), "more came out than went in"


def records(data, shared):
    from octaveconv.mxnet.recordio import RecordFile

    index = int.from_bytes(data[:2], "little")
    for file, part in zip(shared, (data[2 + index :], data[2 : 2 + index])):
        os.ftruncate(file, 0)
        os.pwrite(file, part, 0)
    paths = [f"/proc/self/fd/{file}" for file in shared]
    for record in RecordFile(paths[0], paths[1] if index else None):
        assert len(record.image) + 4 * len(record.labels) <= len(data) + 4, "more came out than went in"


def bound_memory():
    """Let no case take more than MEMORY; reset now and then, for the fuzzer itself grows by about 70 bytes a case."""
    in_use = int(re.search(r"VmData:\s*(\d+)", Path("/proc/self/status").read_text())[1]) * 1024
    resource.setrlimit(resource.RLIMIT_DATA, (in_use + MEMORY, resource.RLIM_INFINITY))  # beyond it: MemoryError


def child(reader, counts, arguments):
    """Fuzz one reader; never returns. ``counts`` holds how many cases were read, and how many refused."""
    global _BYTES
    import atheris
    import torch

    with atheris.instrument_imports(include=["octaveconv.mxnet"]):
        import octaveconv.mxnet.params
        import octaveconv.mxnet.recordio  # noqa: F401
    from octaveconv.errors import MXNetFormatError

    _BYTES = torch.uint8
    torch.set_num_threads(1)
    target = {"params": params, "records": records}[reader]
    shared = [os.memfd_create("fuzz"), os.memfd_create("index")]
    with open(counts, "r+b") as file:
        tally = memoryview(mmap.mmap(file.fileno(), 0)).cast("Q")

    def one(data):
        if sum(tally) % 2**14 == 0:
            bound_memory()
        if len(data) < 2:
            return
        try:
            target(data, shared)
            tally[0] += 1
        except MXNetFormatError as error:
            tally[1] += 1
            if error.offset < 0 or "\n" in str(error):
                raise ValueError("an error that misleads") from error

    atheris.Setup([sys.argv[0], *arguments], one)
    atheris.Fuzz()


def fuzz(reader, runs, seed):
    """Run the child; return what is known of the run."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        corpus, counts = folder / "corpus", folder / "counts"
        corpus.mkdir()
        counts.write_bytes(bytes(16))
        for i, data in enumerate(seeds(reader)):
            (corpus / str(i)).write_bytes(data)
        command = [sys.executable, __file__, "--child", reader, str(counts), *LIMITS, "-print_final_stats=1",
                   f"-runs={runs}", f"-seed={seed}", f"-artifact_prefix={reader}-", str(corpus)]  # fmt: skip
        start = time.perf_counter()
        done = subprocess.run(command, stderr=subprocess.PIPE, text=True)
        seconds = time.perf_counter() - start
        read, refused = struct.unpack("<2Q", counts.read_bytes())
    stats = {key: int(value) for key, value in re.findall(r"stat::(\w+):\s*(\d+)", done.stderr)}
    if done.returncode:
        print(done.stderr[-6000:], file=sys.stderr)
    return {
        "result": "failed" if done.returncode else "passed",
        "cases": stats.get("number_of_executed_units", read + refused),
        "read": read,
        "refused": refused,
        "seconds": round(seconds, 1),
        "peak_rss_mib": stats.get("peak_rss_mb"),
        "inputs_kept_for_new_coverage": stats.get("new_units_added"),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=int, default=100_000, help="cases for each reader (default %(default)s)")
    parser.add_argument("--reader", choices=["params", "records"], nargs="+", default=["params", "records"])
    parser.add_argument("--seed", type=int, default=1, help="of the fuzzer's random numbers; 0: by the clock")
    parser.add_argument("--json", metavar="FILE", help="write the result to this file")
    options = parser.parse_args()
    if importlib.util.find_spec("atheris") is None:
        sys.exit("this needs atheris, a coverage-guided fuzzer, which [dev] does not bring: pip install atheris")
    from octaveconv.env import facts

    report = {
        "command": f"python experiments/fuzz_mxnet.py --runs {options.runs}",
        "env": {**facts(), "atheris": metadata.version("atheris")},
        "threads": 1,
        "seed": options.seed,
        "libfuzzer": LIMITS,
        "allocation_limit_mib": MEMORY // MIB,
        "readers": {reader: fuzz(reader, options.runs, options.seed) for reader in options.reader},
    }
    print(json.dumps(report, indent=1))
    if options.json:
        Path(options.json).write_text(json.dumps(report, indent=1) + "\n")
    return any(reader["result"] == "failed" for reader in report["readers"].values())


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(sys.argv[2], sys.argv[3], sys.argv[4:])
    sys.exit(main())
