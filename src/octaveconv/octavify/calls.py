"""How the modules of a network are called: recorded in one run of it, and compared with later calls."""

from __future__ import annotations

import inspect
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import is_dataclass
from enum import Enum, auto
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.fx.immutable_collections import immutable_dict, immutable_list

from .._modes import eval_mode, explained, restored
from .sample import cloned

_CONTAINERS = (list, tuple, dict, OrderedDict, torch.Size)
_FROZEN = (immutable_list, immutable_dict)
_PLAIN = (bool, str, bytes, Enum, torch.dtype, torch.device, torch.memory_format, slice, type(None))


class Mark(Enum):
    """What stands for a tensor and for a number in the form of a value; a traced graph takes any of them."""

    TENSOR = auto()
    NUMBER = auto()


def form(value: Any) -> Any:
    """A value with marks in place of the tensors and numbers in it.

    Raises:
        ValueError: it is an object of a kind that cannot be looked into.
    """
    if isinstance(value, Tensor):
        return Mark.TENSOR
    if isinstance(value, int | float) and not isinstance(value, bool):
        return Mark.NUMBER
    if isinstance(value, _PLAIN):
        return value
    if isinstance(value, tuple) and (type(value) in _CONTAINERS or hasattr(value, "_fields")):
        return tuple(form(item) for item in value)
    if type(value) is list:
        return [form(item) for item in value]
    if type(value) in _CONTAINERS:
        return {key: form(item) for key, item in value.items()}
    raise ValueError(f"is called with an object of type {type(value).__name__}")


def has_marks(of: Any) -> bool:
    """Whether a form has a tensor or a number in it."""
    items = of.values() if isinstance(of, dict) else of if isinstance(of, list | tuple) else ()
    return isinstance(of, Mark) or any(map(has_marks, items))


class Signature:
    """The parameters of a module's ``forward``."""

    def __init__(self, module: nn.Module) -> None:
        parameters = inspect.signature(module.forward).parameters.values()
        kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        self.positional = tuple(p.name for p in parameters if p.kind in kinds)
        self.defaults = {p.name: p.default for p in parameters if p.default is not p.empty}

    def given(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """The arguments of a call by name, in their order."""
        more = tuple(f"args_{i}" for i in range(len(args) - len(self.positional)))
        return dict(zip((*self.positional, *more), args)) | kwargs


class Call(NamedTuple):
    """One call of a module."""

    signature: Signature
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    @property
    def given(self) -> dict[str, Any]:
        """Its arguments by name."""
        return self.signature.given(self.args, self.kwargs)

    @property
    def forms(self) -> dict[str, Any]:
        """The forms of its arguments."""
        return {name: form(value) for name, value in self.given.items()}

    @property
    def values(self) -> tuple[Any, ...]:
        """The arguments that a traced graph takes, in order."""
        return tuple(value for value in self.given.values() if has_marks(form(value)))


def values_like(
    signature: Signature, forms: dict[str, Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> list[Any] | None:
    """What a graph that was traced for arguments of these ``forms`` takes of a call; None if it is another call."""
    given, values, defaults = signature.given(args, kwargs), [], signature.defaults
    for name, expected in forms.items():
        value = given.pop(name) if name in given else defaults.get(name)
        try:
            if form(value) != expected:
                return None
        except ValueError:
            return None
        if has_marks(expected):
            values.append(value)
    return values if all(name in defaults and value is defaults[name] for name, value in given.items()) else None


class Recording:
    """One run of a network, in evaluation mode.

    Attributes:
        calls: of each module that is called, by its name.
        within: for each of these calls, the names of the modules inside whose calls it stands.
        macs: multiply-accumulates of each module by itself, without those of the modules that it calls.
        lengths: of modules that return lists or tuples, always of one length, the length.
        output: what the network returns, with random numbers of seed 0.
    """

    def __init__(self, model: nn.Module, inputs: tuple[Any, ...]) -> None:
        from torch.utils.flop_counter import FlopCounterMode

        self.calls: dict[str, list[Call]] = defaultdict(list)
        self.within: dict[str, list[frozenset[str]]] = defaultdict(list)
        self.macs: dict[str, int] = defaultdict(int)
        self._found: dict[str, set[int]] = defaultdict(set)
        self._active: list[list[Any]] = []  # name, operations at its begin, operations of what it called
        trained = [p for p in model.parameters() if p.requires_grad]
        try:
            for p in trained:
                p.requires_grad_(False)  # the counter looks for gradients
            with FlopCounterMode(display=False) as self._counter, torch.random.fork_rng():
                torch.manual_seed(0)
                notes = {name: (self._enter, self._leave) for name, _ in model.named_modules()}
                self.output = run(model, cloned(inputs), notes)
        finally:
            for p in trained:
                p.requires_grad_(True)
        self.lengths = {name: max(found) for name, found in self._found.items() if len(found) == 1 and max(found)}

    def _enter(self, name: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.calls[name].append(Call(Signature(module), args, kwargs))
        self.within[name].append(frozenset(entry[0] for entry in self._active))
        self._active.append([name, self._counter.get_total_flops(), 0])

    def _leave(self, name: str, output: Any) -> None:
        _, begin, inside = self._active.pop()
        operations = self._counter.get_total_flops() - begin
        self.macs[name] += (operations - inside) // 2  # it counts a MAC as two operations
        if self._active:
            self._active[-1][2] += operations
        self._found[name].add(len(output) if type(output) in (list, tuple) else 0)


def run(model: nn.Module, inputs: tuple[Any, ...], notes: dict[str, tuple[Callable[..., None], Any]]) -> Any:
    """Call a model in evaluation mode, and tell of each call of the modules in ``notes``.

    Args:
        model: a network.
        inputs: its arguments.
        notes: for the name of a module, what to call before it, with the name, the module and its arguments, and
            after it, with the name and what it returns.

    Raises:
        ValueError: the model does not take these inputs.
    """
    hooks = []
    for name, (before, after) in notes.items():
        part = model.get_submodule(name)

        def enter(module: nn.Module, args: Any, kwargs: Any, name: str = name, note: Any = before) -> None:
            note(name, module, args, kwargs)

        def leave(module: nn.Module, args: Any, output: Any, name: str = name, note: Any = after) -> None:
            note(name, output)

        hooks.append(part.register_forward_pre_hook(enter, with_kwargs=True))
        if after is not None:
            hooks.append(part.register_forward_hook(leave))
    try:
        with explained(model, inputs), eval_mode(model), restored(model), torch.no_grad():
            return model(*inputs)
    finally:
        for hook in hooks:
            hook.remove()


def alike(found: Any, expected: Any) -> bool:
    """Whether two answers have the same types, shapes, dtypes, and nearly the same numbers."""
    pairs = zip(leaves(found), leaves(expected))
    return _kinds(found) == _kinds(expected) and all(
        x.shape == y.shape and x.dtype == y.dtype and torch.allclose(x.double(), y.double(), 1e-4, 1e-5, equal_nan=True)
        for x, y in pairs
    )


def _kinds(value: Any) -> Any:
    """The types in what a module returns; those of torch.fx stand for Python's."""
    items = [*value.values()] if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    kind = type(value)
    return kind.__base__ if kind in _FROZEN else kind, [_kinds(item) for item in items]


def leaves(value: Any) -> Iterator[Tensor]:
    """The tensors in what a module takes or returns."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from leaves(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from leaves(item)
    elif is_dataclass(value) or type(value).__module__ not in ("builtins", "torch"):
        yield from leaves(dict(getattr(value, "__dict__", {})))
