"""Processes beside the one that tests. They are new ones: after a backward pass, a forked one could not run another."""

import os
import socket
import sys
import tempfile
from multiprocessing import get_context
from pathlib import Path

CONTEXT = get_context("spawn")


def _run(outputs, function, arguments, environment):
    os.environ |= environment
    sys.stdout, sys.stderr = (path.open("w", buffering=1) for path in outputs)
    for number, file in ((1, sys.stdout), (2, sys.stderr)):
        os.dup2(file.fileno(), number)
    sys.exit(function(*arguments))


class Fork:
    """A process that calls ``function(*arguments)`` and exits with what that returns, if it is a number."""

    def __init__(self, function, *arguments, **environment):
        self._folder = tempfile.TemporaryDirectory()
        self._outputs = [Path(self._folder.name) / name for name in ("out", "error")]
        self._process = CONTEXT.Process(target=_run, args=(self._outputs, function, arguments, environment))
        self._process.start()
        self.pid = self._process.pid

    def send_signal(self, number):
        os.kill(self.pid, number)

    def kill(self):
        self._process.kill()

    def wait(self, timeout=240):
        """The exit code."""
        self._process.join(timeout)
        assert self._process.exitcode is not None, f"it still runs after {timeout} s"
        return self._process.exitcode

    def output(self):
        """Standard output and standard error, so far."""
        return tuple(path.read_text() for path in self._outputs)


def ranks(function, *arguments, count=2):
    """Processes that find each other, as those that torchrun starts."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    group = dict(MASTER_ADDR="127.0.0.1", MASTER_PORT=port, WORLD_SIZE=str(count), GLOO_SOCKET_IFNAME="lo")
    return [Fork(function, *arguments, **group, RANK=str(rank), LOCAL_RANK=str(rank)) for rank in range(count)]
