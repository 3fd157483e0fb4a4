"""Processes forked from one that has imported everything already, which takes a new one seconds.

Not from the one that tests: where autograd has started threads, a fork cannot train.
"""

import os
import signal
import socket
import sys
import tempfile
import time
from multiprocessing import get_context, set_start_method
from pathlib import Path

import torch

CONTEXT = get_context("forkserver")
CONTEXT.set_forkserver_preload(["octaveconv.cli", "octaveconv.models", "octaveconv.evaluate", "octaveconv.train.loop"])


def _call(function, arguments, environment, outputs):
    os.environ.clear()
    os.environ |= environment
    torch.set_num_threads(1)
    set_start_method(
        "fork", force=True
    )  # as by itself: loading workers that a fork server made outlive a killed parent
    sys.stdout, sys.stderr = (path.open("w", buffering=1) for path in outputs)
    for number, file in ((1, sys.stdout), (2, sys.stderr)):
        os.dup2(file.fileno(), number)
    sys.exit(function(*arguments))


def impatient(argv):
    """`octaveconv.cli.main`, which does not wait for a lock."""
    from octaveconv import cli
    from octaveconv.train import lock

    lock.PATIENCE = 0.5
    return cli.main(argv)


class Fork:
    """A process that calls ``function(*arguments)`` and exits with what that returns, if it is a number."""

    def __init__(self, function, *arguments, **environment):
        self._folder = tempfile.TemporaryDirectory()
        self._outputs = [Path(self._folder.name) / name for name in ("out", "error")]
        for path in self._outputs:  # which a process that is killed at once would not make
            path.touch()
        call = function, arguments, dict(os.environ) | environment, self._outputs
        self._process = CONTEXT.Process(target=_call, args=call)
        self._process.start()
        self.pid = self._process.pid

    def send_signal(self, number):
        os.kill(self.pid, number)

    def kill(self):
        self._process.kill()

    def running(self):
        return self._process.is_alive()

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


def wait_for(path, seconds=240):
    """Until there is a file that another process writes."""
    end = time.time() + seconds
    while not path.exists():
        assert time.time() < end, f"{path} did not come"
        time.sleep(0.02)


def exit_code_of_a_fork(check):
    """0 if ``check()`` holds in a forked child, which has half a minute."""
    child = os.fork()
    if not child:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(30)
        try:
            os._exit(0 if check() else 1)
        finally:
            os._exit(2)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
