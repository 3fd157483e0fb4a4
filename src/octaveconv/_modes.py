"""Modes of computing: by name, and set for a while and then put back."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from .errors import BackendUnavailable, UsageError

Module = TypeVar("Module", bound=nn.Module)
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside the ``with`` block; each module's own mode after it."""
    training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, flag in training.items():
            module.training = flag


def copied(model: Module, memo: dict[int, Any] | None = None) -> Module:
    """A deep copy, each of whose modules is in the mode of the original one: those of torch.fx forget it.

    Raises:
        UsageError: it cannot be copied.
    """
    try:
        twin = copy.deepcopy(model, detached(model) | (memo or {}))
    except Exception as error:  # its own code, or that of what it holds
        raise UsageError(
            f"{type(model).__name__} cannot be copied, so that it could stay as it is ({type(error).__name__}: "
            f"{str(error).partition('.')[0]}): remove what it keeps of a call"
        ) from error
    if twin.training != model.training:
        twin.train(model.training)
    modes = {name: module.training for name, module in model.named_modules(remove_duplicate=False)}
    for name, module in twin.named_modules(remove_duplicate=False):
        module.training = modes.get(name, module.training)
    return twin


@contextmanager
def restored(model: nn.Module) -> Iterator[list[tuple[str, str]]]:
    """Put attributes and buffers back that modules change when they are called inside the ``with`` block.

    Yields:
        A list, which then gets the name of each such module, and what it does.
    """
    before = {name: (module, dict(vars(module))) for name, module in model.named_modules()}
    buffers = {name: (buffer, buffer.clone()) for name, buffer in model.named_buffers()}
    changed: list[tuple[str, str]] = []
    try:
        yield changed
    finally:
        for name, (buffer, value) in buffers.items():
            if not equal(buffer, value):
                owner, _, own = name.rpartition(".")
                changed.append((owner, f"keeps {own} of a call"))
                buffer.copy_(value)
        for name, (module, attributes) in before.items():
            now = vars(module)
            for own in [*now]:
                if now[own] is not attributes.get(own, now) and not own.startswith("_tensor_constant"):
                    changed.append((name, f"keeps {own} of a call"))
                    if own in attributes:
                        now[own] = attributes[own]
                    else:
                        del now[own]


def equal(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors of one shape hold the same; nothing is known of those without numbers."""
    return one.is_meta or bool(((one == other) | ((one != one) & (other != other))).all())


def detached(model: nn.Module) -> dict[int, Any]:
    """For the memo of a deep copy: the tensors that modules keep of a call, as the old ``weight_norm`` does."""
    kept = [value for module in model.modules() for value in vars(module).values() if isinstance(value, Tensor)]
    return {id(value): value.detach().clone() for value in kept if not value.is_leaf}


def check_network(model: object, user: str) -> None:
    """Raise TypeError unless ``model`` is a network, for the function ``user``."""
    if not isinstance(model, nn.Module):
        got = f"the class {model.__name__}" if isinstance(model, type) else type(model).__name__
        raise TypeError(f"{user} takes a network, an nn.Module, got {got}")


@contextmanager
def explained(model: nn.Module, inputs: Iterable[Any]) -> Iterator[None]:
    """A call of the user's network on ``inputs`` inside the ``with`` block; if it fails, the error says on what.

    Raises:
        UsageError: it fails.
    """
    try:
        yield
    except BackendUnavailable:
        raise
    except Exception as error:  # its code may raise anything
        inputs = list(inputs)
        own = next((p.dtype for p in model.parameters() if p.is_floating_point()), None)
        given = ", ".join(str(list(x.shape)) if isinstance(x, Tensor) else type(x).__name__ for x in inputs)
        others = {x.dtype for x in inputs if isinstance(x, Tensor)} - {own} if own else set()
        cure = f", of {own} as its weights are" if others else ""
        reason = ": ".join(filter(None, (type(error).__name__, str(error).partition("\n")[0])))
        raise UsageError(
            f"{type(model).__name__} itself fails on inputs {given} ({reason}): give example_inputs that it "
            f"accepts{cure}"
        ) from error


def check_call(model: nn.Module, example: Tensor) -> None:
    """Raise UsageError unless ``model`` takes ``example``, one or more images, in evaluation mode."""
    if not len(example):
        raise UsageError(f"example_inputs of shape {list(example.shape)} hold no image: give at least one")
    devices, twin = [example.device] if example.is_cuda else [], copied(model)  # which the call may change
    with explained(model, (example,)), torch.no_grad(), torch.random.fork_rng(devices):
        twin.eval()(example)


@contextmanager
def threads(count: int) -> Iterator[None]:
    """PyTorch computes with ``count`` threads, and then with as many as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
