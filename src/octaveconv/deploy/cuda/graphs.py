"""CUDA graphs: work on a GPU that is recorded once and then launched as a whole."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

WARM_UP = 3  # runs before recording: what is compiled, tuned or allocated at first must not be recorded


class Graph:
    """The work that ``call`` launches on the current GPU.

    Args:
        call: takes nothing, reads and writes the same memory at each call, and does not wait for the GPU.
        pool: a memory pool, shared with graphs that never run at the same time; their results are then valid until the
            next one of them runs.

    Attributes:
        result: what ``call`` returned; `replay` computes it again in the same memory.
    """

    def __init__(self, call: Callable[[], Any], pool: Any = None) -> None:
        stream = torch.cuda.Stream()  # the default stream cannot be recorded
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP):
                call()
        torch.cuda.current_stream().wait_stream(stream)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph, pool, stream, capture_error_mode="thread_local"):
            self.result = call()

    def replay(self) -> Any:
        """Launch the work on the current stream, and return its result."""
        self.graph.replay()
        return self.result

    def seconds(self) -> float:
        """How long the GPU takes for it, with the caches as earlier work left them."""
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()  # type: ignore[no-untyped-call]
        self.graph.replay()
        end.record()  # type: ignore[no-untyped-call]
        end.synchronize()  # type: ignore[no-untyped-call]
        return float(begin.elapsed_time(end)) / 1e3  # type: ignore[no-untyped-call]
