"""Modules and parameters whose names are Python keywords, such as ``in`` or ``lambda``, in the code of torch.fx."""

from __future__ import annotations

import keyword
import re
from collections.abc import Callable

from torch import fx

_ATTRIBUTE = re.compile(rf"\.({'|'.join(keyword.kwlist)})\b")  # as fx writes it, which no Python reads


def read_keywords(graph: fx.Graph) -> None:
    """Let the code that torch.fx writes of a graph read such attributes."""

    def also(before: Callable[[list[str]], list[str]] | None) -> Callable[[list[str]], list[str]]:
        return lambda body: _readable(before(body) if before else body)

    graph.on_generate_code(also)


def _readable(body: list[str]) -> list[str]:
    return [_ATTRIBUTE.sub(r'.__getattr__("\1")', line) for line in body]
