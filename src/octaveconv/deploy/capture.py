"""Capture: a module becomes a graph of aten operations, whose constants are computed and whose sizes are symbols."""

from __future__ import annotations

import logging
import threading
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram
from torch.utils import _pytree as pytree

from .._modes import copied
from .._text import one_line
from ..backends import backend
from ..errors import BackendUnavailable, UsageError
from .eagerly import in_pytorch
from .functionalize import arguments_of, functionalized
from .one_image import treats_one_image_alike
from .own_state import changes_itself, sharing_weights

CAPTURES = 16  # of a network are kept: the last ones
SECONDS = 120  # after which a network is captured for one size of image only
LENGTH = 150  # in characters; those of ordinary networks have 20 to 60
_LOUD = "fx.experimental.symbolic_shapes", "_export.non_strict_utils", "_subclasses.fake_tensor"
_exporting = threading.Lock()  # torch.export swaps the model's weights meanwhile, and sets flags of the whole process


class Captured:
    """What `capture` returns.

    Attributes:
        nodes: the graph's nodes that depend on the input, in order; none changes a tensor in place.
        constants: the values of the nodes that do not.
        input: the node of the input, whose ``meta["val"]`` has its shape.
        outputs: the nodes returned.
        guard: asserts that the graph covers an input.
        ranges, conditions: what the guard asserts, of each symbol and of several.
    """

    def __init__(self, program: ExportedProgram) -> None:
        self.constants: dict[fx.Node, Any] = {}
        self.nodes: list[fx.Node] = []
        signature = program.graph_signature
        changed = [*signature.buffers_to_mutate.values(), *signature.parameters_to_mutate.values()]
        if changed:
            raise BackendUnavailable(f"the network changes its own buffer {changed[0]!r} as it runs")
        if signature.user_inputs_to_mutate:
            raise BackendUnavailable("the network changes its input")
        state = {**program.state_dict, **program.constants}
        names = {
            **signature.inputs_to_parameters,
            **signature.inputs_to_buffers,
            **signature.inputs_to_lifted_tensor_constants,
        }
        for node in program.graph.nodes:
            if node.op == "placeholder" and node.name in names:
                self.constants[node] = state[names[node.name]].detach()
            elif node.op == "placeholder":
                self.input: fx.Node = node
            elif node.target is torch.ops.aten._assert_tensor_metadata.default:
                continue  # torch.export's assertion about a conversion's input, which was true during the capture
            elif _is_random(node):
                raise BackendUnavailable(f"the network draws random numbers as it runs ({node.target})")
            elif node.op == "output":
                self.outputs: list[fx.Node] = list(pytree.tree_leaves(node.args[0]))
            elif all(argument in self.constants for argument in node.all_input_nodes):
                self.constants[node] = node.target(*self.value(node.args), **self.value(node.kwargs))  # type: ignore[operator]
            else:
                self.nodes.append(node)
        self.out_spec = program.call_spec.out_spec
        self.any_size = True  # whether other sizes of image are worth a try
        self.alone = False  # whether the graph is that of a single image, too; torch.export assumes two or more
        self.guard = getattr(program.module(), "_guards_fn", None)
        symbols: list[Any] = [size.node for size in self.input.meta["val"].shape if isinstance(size, torch.SymInt)]
        self.environment: Any = symbols[0].shape_env if symbols else None  # of the input's symbols
        self.conditions = [guard.expr for symbol in symbols[:1] for guard in symbol.shape_env.guards]
        self.ranges: dict[Any, Any] = dict(program.range_constraints)

    @property
    def any_batch(self) -> bool:
        """Whether the number of images is a symbol."""
        return not isinstance(_symbol(self.input.meta["val"].shape[0]), int)

    def value(self, arguments: Any) -> Any:
        """The arguments with constants in place of their nodes."""
        return fx.node.map_arg(arguments, lambda node: self.constants.get(node, node))

    def sizes(self, shape: torch.Size) -> dict[Any, int] | None:
        """The values of the input's symbols for an input of ``shape``, or None if the graph does not cover it.

        A graph covers a range of sizes, which ends, for instance, where a map shrinks to one pixel.
        """
        symbols = [_symbol(size) for size in self.input.meta["val"].shape]
        if len(shape) != len(symbols) or (shape[0] == 1 and self.any_batch and not self._covers_one(shape, symbols)):
            return None
        example = torch.empty(max(shape[0], 2) if self.alone else shape[0], *shape[1:], device="meta")
        try:
            if self.guard is not None:
                self.guard(example)
        except AssertionError:
            return None
        known: dict[Any, int] = {}
        for symbol, size in zip(symbols, shape):
            if (symbol if isinstance(symbol, int) else known.setdefault(symbol, size)) != size:
                return None
        return known

    def _covers_one(self, shape: torch.Size, symbols: list[Any]) -> bool:
        """Whether a single image takes the branches that two take, where its number and another size decide."""
        if not self.alone:
            return False
        sizes = {symbol: size for symbol, size in zip(symbols, shape) if not isinstance(symbol, int)}
        conditions = map(self.environment.replace, self.conditions)
        beside_others = [each for each in conditions if symbols[0] in (read := each.free_symbols) and len(read) > 1]
        return all(bool(each.subs(sizes)) for each in beside_others)


def _symbol(size: int | torch.SymInt) -> Any:
    """The symbol of a size, or the number if there is but one: a network that calls ``len(x)`` fixes its batch."""
    expression: Any = size.node.expr if isinstance(size, torch.SymInt) else size
    return int(expression) if isinstance(size, int) or expression.is_number else expression


def only_input(example_inputs: Tensor | tuple[Tensor]) -> Tensor:
    """The tensor that ``example_inputs`` is or holds.

    Raises:
        UsageError: it is something else.
    """
    inputs = example_inputs if isinstance(example_inputs, tuple) else (example_inputs,)
    if len(inputs) != 1 or not isinstance(inputs[0], Tensor):
        got = f"({', '.join(type(x).__name__ for x in inputs)})" if isinstance(example_inputs, tuple) else ""
        raise UsageError(
            f"example_inputs must be one tensor of images [N, C, H, W], or a tuple of one, got "
            f"{got or type(example_inputs).__name__}: a network of several inputs runs as it is, or with torch.compile"
        )
    return inputs[0]


def exported(model: nn.Module, example: Tensor, dynamic: Sequence[int], form: str) -> Captured:
    """The graph of ``model``, from torch.export. Threads take turns.

    Args:
        model: in evaluation mode.
        example: its input; a single image is doubled where the batch is dynamic, for a size of 1 would be fixed.
        dynamic: the dimensions of the input that may differ from the example's.
        form: the backend whose operations octave convolutions become.

    Raises:
        BackendUnavailable: the network draws random numbers, or changes its buffers or its input.
        _TooLong: sizes of image as symbols would take too long.
        Exception: whatever torch.export raises for a module that it cannot capture.
    """
    if 0 in dynamic and len(example) == 1:
        example = torch.cat([example, example])
    sizes: dict[int, Any] = dict.fromkeys(dynamic, Dim.AUTO)
    twin = sharing_weights(model)  # on which the network may keep what it makes: here that has no numbers
    # in its turn: the time to wait is not the network's, and its hooks are not for another thread's capture
    in_time = _in_time(twin) if 2 in dynamic else nullcontext()
    with _exporting, _quietly(), backend(form), torch.no_grad(), in_time:
        program = torch.export.export(twin, (example,), dynamic_shapes=(sizes,))
        captured = Captured(functionalized(program))
    if changes_itself(model, example):
        raise BackendUnavailable("the network keeps something on itself that changes its answer from call to call")
    return captured


def capture(model: nn.Module, example: Tensor, form: str = "reference", any_size: bool = True) -> Captured:
    """Capture ``model`` for the shape of ``example``, and for as many other batch and image sizes as torch.export can.

    Where that would take too long, or without ``any_size``, it is the size of the example's images alone.

    Raises:
        Exception: what `exported` raises.
    """
    alone = treats_one_image_alike(model, example[:1])
    for dynamic in ((0, 2, 3), (0,), ()) if alone or len(example) > 1 else ((2, 3), ()):
        if 2 in dynamic and not any_size:
            continue
        try:
            captured = exported(model, example, dynamic, form)
        except _TooLong:
            any_size = False
            continue
        captured.any_size = any_size
        captured.alone = alone
        if captured.sizes(example.shape) is not None:
            break
    return captured


@contextmanager
def _quietly() -> Iterator[None]:
    """Without what PyTorch says of inequalities that it cannot simplify, sizes of 1, operations that fail, and
    attributes that a copy of the network sets."""
    loggers = [logging.getLogger(f"torch.{name}") for name in _LOUD]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The tensor attribute")
            yield
    finally:
        for logger, level in zip(loggers, levels):
            logger.setLevel(level)


class _TooLong(Exception):
    """Sizes as symbols would take too long."""


@contextmanager
def _in_time(model: nn.Module) -> Iterator[None]:
    """Raise `_TooLong` after a layer of ``model`` whose sizes are long expressions, or after `SECONDS`.

    Where padding depends on the size, as TensorFlow's does, each layer more than doubles the expressions and the time.
    """
    deadline = time.monotonic() + SECONDS

    def check(module: nn.Module, args: Any, output: Any) -> None:
        sizes = output.shape if isinstance(output, Tensor) else ()
        if time.monotonic() > deadline or any(len(str(size)) > LENGTH for size in sizes):
            raise _TooLong

    layers = [module for module in model.modules() if not list(module.children())]
    hooks = [layer.register_forward_hook(check) for layer in layers]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _is_random(node: fx.Node) -> bool:
    """Whether a node's result differs from call to call, as noise and dropout in training mode do."""
    if torch.Tag.nondeterministic_seeded not in getattr(node.target, "tags", ()):
        return False
    schema: Any = node.target._schema  # type: ignore[union-attr]
    defaults = {each.name: each.default_value for each in schema.arguments if each.has_default_value()}
    named = defaults | arguments_of(node)
    return bool(named.get("train", named.get("training", True)) and named.get("p", named.get("dropout_p", 1.0)))


class Captures:
    """A model, captured as often as the shapes that come require: each capture covers a range of sizes.

    Args:
        model: in evaluation mode. It is copied: later changes of its weights have no effect.
        like: a tensor of the dtype and device of the model's input; without it the copy is on the CPU, and a bfloat16
            model's in float32, in which the engines fold norms.
        form: the backend whose operations octave convolutions become; the four paths of the reference are the terms of
            the engines' layers.
    """

    def __init__(self, model: nn.Module, like: Tensor | None = None, form: str = "reference") -> None:
        model = copied(model).eval()
        if like is None:
            model = model.cpu()
            is_float32 = next(model.parameters(), torch.empty(0)).dtype == torch.float32
            model = model if is_float32 else model.float()
        self.model = model
        self.like, self.form = torch.empty(0) if like is None else like, form
        self._all: list[Captured] = []

    def __iter__(self) -> Iterator[Captured]:
        return iter(list(self._all))

    def of(self, shape: torch.Size) -> tuple[Captured, dict[Any, int]]:
        """The capture that covers an input's shape, and the values of its symbols there.

        Raises:
            BackendUnavailable: torch.export cannot capture the model for this shape.
        """
        for captured in self._all:
            if (sizes := captured.sizes(shape)) is not None:
                return captured, sizes
        try:
            any_size = all(captured.any_size for captured in self._all)
            with in_pytorch():
                captured = capture(self.model, self.like.new_zeros(shape), self.form, any_size)
        except BackendUnavailable:
            raise
        except Exception as error:  # torch.export raises many kinds
            raise BackendUnavailable(f"torch.export cannot capture the network: {one_line(error)}") from error
        sizes = captured.sizes(shape)
        if sizes is None:
            raise BackendUnavailable(f"torch.export does not cover inputs of shape {list(shape)}")
        self._all.append(captured)
        del self._all[:-CAPTURES]
        return captured, sizes
