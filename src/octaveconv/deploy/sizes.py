"""Sizes that follow from the input's, and conditions on them, as expressions that a file can hold.

An expression is a number, the name of a dimension of the input, or an operation with its arguments:
``["+", ["//", ["+", "h", -1], 2], 1]``. It is computed here, never compiled.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Collection, Mapping
from typing import Any

from ..errors import UsageError

DIMENSIONS = ("n", "c", "h", "w")  # of the input
LARGEST = 2**31  # number in an expression, exclusive
NODES = 500  # of one expression, at most
DEPTH = 40

_Operation = tuple[Callable[..., Any], tuple[str, ...]]
_COMPARISONS: dict[str, _Operation] = {
    "==": (operator.eq, ("Equality",)),
    "!=": (operator.ne, ("Unequality",)),
    "<": (operator.lt, ("StrictLessThan",)),
    "<=": (operator.le, ("LessThan",)),
    ">": (operator.gt, ("StrictGreaterThan",)),
    ">=": (operator.ge, ("GreaterThan",)),
}
_PAIRS: dict[str, _Operation] = {  # of exactly two arguments
    "//": (operator.floordiv, ("FloorDiv", "CleanDiv")),
    "%": (operator.mod, ("Mod", "PythonMod")),
    **_COMPARISONS,
}
_MANY: dict[str, _Operation] = {
    "+": (lambda *values: sum(values), ("Add",)),
    "*": (lambda *values: math.prod(values), ("Mul",)),
    "max": (lambda *values: max(values), ("Max",)),
    "min": (lambda *values: min(values), ("Min",)),
    "and": (lambda *values: all(values), ("And",)),
    "or": (lambda *values: any(values), ("Or",)),
}
_OPERATIONS = _PAIRS | _MANY
_OF_SYMPY = {kind: name for name, (_, kinds) in _OPERATIONS.items() for kind in kinds}


class Size:
    """A size that depends on the input's."""

    __slots__ = ("_hash", "tree")

    def __init__(self, tree: Any) -> None:
        self.tree = tree
        self._hash = hash(tree)

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, Size) and self.tree == other.tree)

    def __hash__(self) -> int:
        return self._hash

    def value(self, sizes: Mapping[Any, int]) -> int:
        """The number, given the input's sizes by their names."""
        return int(value(self.tree, sizes))


def value(tree: Any, sizes: Mapping[Any, int]) -> Any:
    """What an expression that `checked` returned comes to, a number or a truth value.

    Raises:
        ZeroDivisionError: it divides by zero.
    """
    if isinstance(tree, int):
        return tree
    if isinstance(tree, str):
        return sizes[tree]
    return _OPERATIONS[tree[0]][0](*[value(argument, sizes) for argument in tree[1:]])


def names_in(tree: Any) -> set[str]:
    """The names in an expression that `checked` returned."""
    if isinstance(tree, (tuple, list)):
        return {name for argument in tree[1:] for name in names_in(argument)}
    return {tree} if isinstance(tree, str) else set()


def checked(tree: Any, names: Collection[str]) -> Any:
    """An expression out of a file, if it is one, with no names besides ``names``.

    Raises:
        ValueError: it is not.
    """
    left = NODES

    def visit(part: Any, depth: int) -> Any:
        nonlocal left
        left -= 1
        if left < 0 or depth > DEPTH:
            raise ValueError("an expression is too long")
        if type(part) is int and abs(part) < LARGEST:
            return part
        if type(part) is str and part in names:
            return part
        operation = part[0] if type(part) is list and len(part) > 2 and type(part[0]) is str else ""
        if operation in _MANY or (operation in _PAIRS and len(part) == 3):
            return (operation, *[visit(argument, depth + 1) for argument in part[1:]])
        raise ValueError(f"{str(part)[:80]} is not an expression of {', '.join(names) or 'numbers'}")

    return visit(tree, 0)


def written(expression: Any, names: Mapping[Any, str]) -> Any:
    """A SymPy expression, whose symbols have these names, as one of ours.

    Raises:
        UsageError: it has another operation, or another symbol.
    """
    if expression in names:
        return names[expression]
    kind = type(expression).__name__
    if expression.is_Integer:
        return int(expression)
    if kind in ("BooleanTrue", "BooleanFalse"):
        return int(kind == "BooleanTrue")
    if kind == "Pow" and expression.exp.is_Integer and 2 <= expression.exp <= 8:
        return ["*", *[written(expression.base, names)] * int(expression.exp)]
    if kind in _OF_SYMPY:
        return [_OF_SYMPY[kind], *(written(argument, names) for argument in expression.args)]
    raise UsageError(f"a file cannot hold the size {expression}")
