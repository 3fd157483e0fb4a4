"""YAML of users and of files: plain data within bounds, which are checked before anything is built."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from ._text import one_line

LONGEST = 2**14  # characters; PyYAML takes up to half a second for them
DEEPEST = 20  # levels
_PLAIN = {f"tag:yaml.org,2002:{name}" for name in ("str", "int", "float", "bool", "null", "seq", "map")}


class _Loader(yaml.SafeLoader):
    """PyYAML's, without aliases, which let a few lines grow to gigabytes, and with text as the only keys."""

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()
        if self.depth >= DEEPEST:
            raise _wrong(event, f"it is nested more than {DEEPEST} levels deep")
        if isinstance(event, yaml.AliasEvent):
            raise _wrong(event, f"*{event.anchor} is an alias: write its value out")
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        if node.tag not in _PLAIN:
            kind = node.tag.rpartition(":")[2]
            raise _wrong(event, f"{kind} is not text, a number, true, false, null, a list or a mapping")
        return node

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        seen = set()
        for key, _ in node.value:
            if not key.tag.endswith(":str"):
                raise _wrong(key, f"a key is not text but {key.tag.rpartition(':')[2]}: write it in quotes")
            if key.value in seen:
                raise _wrong(key, f"the key {key.value[:40]!r} is there twice")
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def load(text: str) -> Any:
    """What YAML says: text, numbers, true, false and null, in lists and in mappings of text.

    Raises:
        ValueError: it is something else; the message is the reason, in one line.

    Example:
        >>> load("{stem: 3x3, width: 16}")
        {'stem': '3x3', 'width': 16}
        >>> load("a: &x [1, 2]\\nb: [*x, *x]")
        Traceback (most recent call last):
        ...
        ValueError: line 2: *x is an alias: write its value out
    """
    if len(text) > LONGEST:
        raise ValueError(f"it has more than {LONGEST:,} characters")
    try:
        return yaml.load(text, _Loader)  # a SafeLoader
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise ValueError(f"line {mark.line + 1}: {one_line(error.problem)}" if mark else one_line(error)) from error
    except yaml.YAMLError as error:
        raise ValueError(one_line(error)) from error
    except Exception as error:  # PyYAML raises nearly anything about a number that is none
        raise ValueError(f"a value cannot be read ({one_line(error)})") from error


def read(path: Path) -> Any:
    """What a YAML file says, as `load` does.

    Raises:
        ValueError: it is something else; the message is the reason, in one line.
        OSError: it cannot be read.
    """
    try:
        with path.open(encoding="utf-8") as file:
            return load(file.read(LONGEST + 1))
    except UnicodeDecodeError as error:
        raise ValueError("it is not text in UTF-8") from error


def dump(data: Any) -> str:
    """YAML that `load` reads; ValueError for what it would not read."""
    text: str = yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True)
    load(text)
    return text


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True


def _wrong(where: Any, problem: str) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=where.start_mark)
