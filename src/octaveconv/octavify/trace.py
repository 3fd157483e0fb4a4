"""A network as a graph: its modules' calls and functions in order, with the shape of every value."""

from __future__ import annotations

import inspect
import operator
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from .._modes import eval_mode, explained
from ..nn import Merge, OctMap, OctSqueezeExcite, Split
from ..nn.conv import OctConvNd
from .handlers import handler_of
from .maps import axes_of, map_axes
from .operations import CUTS, is_in_place

_OCTAVE_LAYERS = (OctConvNd, OctMap, OctSqueezeExcite, Merge, Split)


class _Tracer(fx.Tracer):
    """Enters containers only. Leaves are PyTorch's layers, timm's own list, octave layers, layers that octavify
    replaces or that were registered, and what is to be kept.

    Arguments of ``forward`` after the first ``given`` take their defaults.
    """

    def __init__(self, kept: Collection[str], lengths: Mapping[nn.Module, int], given: int) -> None:
        from timm.layers import get_notrace_functions, get_notrace_modules

        super().__init__(autowrap_functions=tuple(f for f in get_notrace_functions() if callable(f)))
        # timm keeps tracers out of NFNet's block because of an in-place product; `_make_functional` handles that.
        self._leaves = tuple(module for module in get_notrace_modules() if module.__name__ != "NormFreeBlock")
        self._kept, self._lengths, self._given = kept, lengths, given
        self._entered: list[str] = []

    def create_args_for_root(self, root_fn: Any, is_module: bool, concrete_args: Any = None) -> tuple[Any, list[Any]]:
        fn, args = super().create_args_for_root(root_fn, is_module, concrete_args)
        parameters = list(inspect.signature(root_fn).parameters.values())
        for i, parameter in list(enumerate(parameters))[1 + self._given :]:
            if parameter.default is not parameter.empty:  # for a proxy, `if mask is not None` would be true
                self.graph.erase_node(args[i].node)
                args[i] = parameter.default
        return fn, args

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        handler = handler_of(m)
        return (
            module_qualified_name in self._kept
            or isinstance(m, self._leaves)
            or (handler is not None and (handler.make is not None or handler.registered))
            or any(isinstance(part, _OCTAVE_LAYERS) for part in m.modules())
            or super().is_leaf_module(m, module_qualified_name)
        )

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        self._entered.append(self.path_of_module(m))
        result = super().call_module(m, forward, args, kwargs)
        self._entered.pop()
        if isinstance(result, fx.Proxy) and m in self._lengths:  # the code that follows cannot slice a proxy
            return [result[i] for i in range(self._lengths[m])]  # type: ignore[index]
        return result

    def create_proxy(self, kind: str, target: Any, args: Any, kwargs: Any, *rest: Any, **more: Any) -> Any:
        proxy: Any = super().create_proxy(kind, target, args, kwargs, *rest, **more)
        if target not in CUTS:
            return proxy
        names = ("chunks", "split_size", "split_size_or_sections")
        into = next((x for x in (*args[1:2], *map(kwargs.get, names)) if x is not None), None)
        count = len(into) if isinstance(into, (list, tuple)) else into if target in (torch.chunk, "chunk") else None
        return [proxy[i] for i in range(count)] if isinstance(count, int) else proxy  # code may list them

    @property
    def where(self) -> str:
        """The module in which tracing stands, or failed."""
        return self._entered[-1] if self._entered else ""


def list_lengths(model: nn.Module, inputs: tuple[Any, ...]) -> dict[nn.Module, int]:
    """Run the model itself and note, for each module that returns lists or tuples, how many items they have.

    Raises:
        ValueError: the model does not take these inputs.
    """
    found: dict[nn.Module, set[int]] = defaultdict(set)

    def note(module: nn.Module, inputs: Any, output: Any) -> None:
        found[module].add(len(output) if type(output) in (list, tuple) else 0)

    hooks = [part.register_forward_hook(note) for part in model.modules()]
    try:
        with explained(model, inputs), eval_mode(model), torch.no_grad():
            model(*inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return {module: max(lengths) for module, lengths in found.items() if len(lengths) == 1 and max(lengths)}


def trace(
    model: nn.Module, kept: Collection[str], lengths: Mapping[nn.Module, int], given: int
) -> tuple[fx.Graph, list[str]]:
    """Trace ``model`` in evaluation mode; flags that follow the mode, like dropout's, are read when the graph runs.

    Args:
        model: the network; constants that it creates as it runs become its buffers.
        kept: names of the modules not to enter.
        lengths: of what modules return, see `list_lengths`.
        given: how many inputs the model gets; its other arguments take their defaults.

    Returns:
        The graph, and notes about what the model does only in training mode, which is not in the graph.

    Raises:
        ValueError: what the model does depends on values; the message names the module and the cure.
    """
    with eval_mode(model):
        (graph, constants), (in_training, others) = (
            _trace(model.train(mode), _Tracer(kept, lengths, given)) for mode in (False, True)
        )
    for name, constant in constants.items():
        model.register_buffer(name, constant, persistent=False)  # it moves with the network, and adds no key
    notes = []
    same = constants.keys() == others.keys() and all(torch.equal(constants[name], others[name]) for name in constants)
    if not _follow_mode(graph, in_training) or not same:
        notes.append("in training mode the given model does more than in evaluation; the octave network does not")
    _make_functional(graph, model)
    return graph, notes


def _trace(model: nn.Module, tracer: _Tracer) -> tuple[fx.Graph, dict[str, Tensor]]:
    """The graph, and the constants that the model creates as it runs, which the tracer has left in the model."""
    try:
        graph = tracer.trace(model)
        for node in reversed(graph.nodes):
            if node.target is operator.getitem and node.args[0].target in CUTS and not node.users:
                graph.erase_node(node)  # there may be fewer pieces than asked for
        return graph, {name: vars(model).pop(name) for name in [*vars(model)] if name.startswith("_tensor_constant")}
    except Exception as error:  # with proxies, Python code may raise anything
        where = tracer.where
        part = f"module {where!r} ({type(model.get_submodule(where)).__name__})" if where else "forward of the model"
        cure = (
            f"pass keep={[where]!r} to leave that module as it is"
            if where
            else "octavify only its convolutional part, as in model.backbone, _ = octavify(model.backbone, ...)"
        )
        reason = str(error).partition("\n")[0].partition(". ")[0]
        raise ValueError(
            f"{type(model).__name__} cannot be traced: the {part} branches on values, or is not plain tensor code "
            f"({type(error).__name__}: {reason}). {cure}"
        ) from error


def _follow_mode(graph: fx.Graph, in_training: fx.Graph) -> bool:
    """Where the two graphs differ only in a flag, let ``graph`` read it from the module; return whether that is all."""
    ours, theirs = list(graph.nodes), list(in_training.nodes)
    if [(n.op, n.target) for n in ours] != [(n.op, n.target) for n in theirs]:
        return False
    same = True
    for node, other in zip(ours, theirs):
        flags: dict[Any, Any] = {}
        for key, value, their in _arguments(node, other):
            if isinstance(value, bool) and isinstance(their, bool) and value != their:
                flags[key] = value
            elif not isinstance(value, fx.Node) and not isinstance(their, fx.Node) and str(value) != str(their):
                same = False
        if flags:
            with graph.inserting_before(node):
                mode = graph.create_node("get_attr", "training")  # the mode when the network runs
                for key, value in flags.items():
                    now = graph.call_function(operator.not_, (mode,)) if value else mode
                    if isinstance(key, int):
                        node.update_arg(key, now)
                    else:
                        node.update_kwarg(key, now)
    return same


def _arguments(node: fx.Node, other: fx.Node) -> list[tuple[int | str, Any, Any]]:
    positional = [(i, *pair) for i, pair in enumerate(zip(node.args, other.args))]
    return [*positional, *((key, node.kwargs[key], other.kwargs.get(key)) for key in node.kwargs)]


def _make_functional(graph: fx.Graph, model: nn.Module) -> None:
    """Let everything after an in-place operation read its result, since a merged or split value is a copy."""
    nodes = list(graph.nodes)
    place = {node: i for i, node in enumerate(nodes)}
    for node in nodes:
        if is_in_place(node, model) and node.args and isinstance(node.args[0], fx.Node):
            source = node.args[0]
            source.replace_all_uses_with(node, lambda user, own=node: place[user] > place[own])  # type: ignore[misc]


class _Shapes(fx.Interpreter):
    """Notes for each node the shape of its value and the multiply-accumulates of computing it."""

    def run_node(self, n: fx.Node) -> Any:
        before = self.counter.get_total_flops()
        result = super().run_node(n)
        n.meta["shape"] = tuple(result.shape) if isinstance(result, Tensor) else None
        n.meta["count"] = len(result) if isinstance(result, (list, tuple)) else None
        n.meta["macs"] = (self.counter.get_total_flops() - before) // 2  # it counts a MAC as two operations
        return result

    def run(self, *args: Any, **kwargs: Any) -> Any:
        from torch.utils.flop_counter import FlopCounterMode

        with FlopCounterMode(display=False) as self.counter:
            return super().run(*args, **kwargs)


def drop_expansions(graph: fx.Graph) -> None:
    """Let a product with a gate that was expanded to the map's size read the gate itself, which means the same."""
    for node in list(graph.nodes):
        if node.target in ("expand_as", "expand") and node.op == "call_method":
            gate, shape = node.args[0], node.meta["shape"]
            small = gate.meta["shape"] or ()
            pixel = (1,) * axes_of(node)
            if len(small) == len(shape) == len(pixel) + 2 and small[:2] == shape[:2] and small[2:] == pixel:
                products = [user for user in node.users if user.target in (operator.mul, torch.mul, "mul")]
                for user in products:
                    if any(x is not node and x.meta["shape"] == shape for x in user.all_input_nodes):
                        user.replace_input_with(node, gate)
            if not node.users:
                graph.erase_node(node)


def add_shapes(model: nn.Module, graph: fx.Graph, inputs: tuple[Any, ...]) -> None:
    """Run the graph once, in evaluation mode, noting ``shape``, ``macs`` and ``axes`` in the ``meta`` of each node."""
    module = fx.GraphModule(model, graph)
    with eval_mode(module), torch.no_grad():
        _Shapes(module, graph=graph).run(*inputs)
    axes = map_axes(graph, model)
    for node in graph.nodes:
        node.meta["axes"] = axes
