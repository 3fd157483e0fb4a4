"""A network as a graph: its modules' calls and functions in order."""

from __future__ import annotations

import operator
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Collection, Mapping
from dataclasses import is_dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn

from .._modes import equal, eval_mode, restored
from ..nn import Merge, OctMap, OctSqueezeExcite, Split
from ..nn.conv import OctConvNd
from .calls import Call, Mark, form, has_marks
from .decisions import Decisions, Place, canonical, drop_unread, is_check
from .handlers import handler_of
from .operations import CUTS, is_in_place

_OCTAVE_LAYERS = (OctConvNd, OctMap, OctSqueezeExcite, Merge, Split)


class Untraceable(ValueError):
    """torch.fx cannot follow what a network does.

    Attributes:
        reason: where, and why, in half a sentence.
    """

    def __init__(self, text: str, reason: str) -> None:
        super().__init__(text)
        self.reason = reason


class Changed(Untraceable):
    """A module of the network changes when it is called.

    Attributes:
        module: its name.
    """

    def __init__(self, model: nn.Module, module: str, what: str) -> None:
        super().__init__(f"{type(model).__name__} cannot be traced: its module {module!r} {what}", what)
        self.module = module


class Way(NamedTuple):
    """How to trace a network.

    Attributes:
        kept: names of the modules not to enter.
        lengths: of the lists or tuples that modules return, which tracing needs to know.
        call: the arguments; numbers and tensors in them may change, everything else is as it is.
        lenient: leave a module that cannot be traced as it is, instead of failing, and pass conditions on sizes.
        own: whether conditions in the network's own ``forward`` are passed, too.
        buffers: whether buffers that the code computes with are read when the graph runs, as parameters always are.
        flipped, refused, guarded: see `Decisions`.
    """

    kept: Collection[str]
    lengths: Mapping[nn.Module, int]
    call: Call
    lenient: bool = False
    own: bool = False
    buffers: bool = False
    flipped: frozenset[Place] = frozenset()
    refused: frozenset[Place] = frozenset()
    guarded: frozenset[Place] = frozenset()


class _Tracer(fx.Tracer):
    """Enters containers only. Leaves are PyTorch's layers, timm's own list, octave layers, layers that octavify
    replaces or that were registered, and what is to be kept.

    Attributes:
        left: of modules that could not be traced, the reasons.
    """

    def __init__(self, way: Way) -> None:
        from timm.layers import get_notrace_functions, get_notrace_modules

        super().__init__(autowrap_functions=tuple(f for f in get_notrace_functions() if callable(f)))
        # timm keeps tracers out of NFNet's block because of an in-place product; `_make_functional` handles that.
        self._leaves = tuple(module for module in get_notrace_modules() if module.__name__ != "NormFreeBlock")
        self._way = way
        self.proxy_buffer_attributes = way.buffers
        self._entered: list[str] = []
        self._attributes: dict[str, fx.Proxy] = {}
        self._listed: dict[int, tuple[tuple[Any, ...], Any]] = {}  # what modules returned, by the identity of the list
        self._alive: list[Any] = []
        self.left: dict[str, str] = {}
        self.decisions = Decisions(way.call.values, way.flipped, way.refused, way.guarded)

    def to_bool(self, obj: fx.Proxy) -> bool:
        answer = None
        if self._way.lenient and (self._entered or self._way.own):
            answer = self.decisions.answer(self.root, obj.node)
        return super().to_bool(obj) if answer is None else answer

    def create_args_for_root(self, root_fn: Any, is_module: bool, concrete_args: Any = None) -> tuple[Any, list[Any]]:
        _, args, kwargs = call = self._way.call
        opened = {name: self._placeholder(name, value) for name, value in call.given.items()}
        values = [*opened.values()][: len(args)]
        rest = {name: opened[name] for name in kwargs}
        return (lambda root: root.forward(*values, **rest)), [self.root]

    def create_arg(self, a: Any) -> Any:
        """Dictionaries of a kind of their own are made as they are: torch.fx returns plain ones."""
        listed, proxy = self._listed.get(id(a), ((), None))
        if proxy is not None and len(a) == len(listed) and all(one is other for one, other in zip(a, listed)):
            return proxy.node  # what a module returned, as it was
        if isinstance(a, OrderedDict):
            pairs = {key: self.create_arg(item) for key, item in a.items()}
            is_record = is_dataclass(a)  # as of transformers
            return self.create_node("call_function", type(a), () if is_record else (pairs,), pairs if is_record else {})
        return super().create_arg(a)

    def _placeholder(self, name: str, value: Any) -> Any:
        if not has_marks(form(value)):
            return value
        return self._opened(self.create_proxy("placeholder", name, (), {}), value)

    def _opened(self, proxy: Any, value: Any) -> Any:
        """The value with proxies in place of what may change in it."""
        of = form(value)
        if isinstance(of, Mark):
            return proxy
        if not has_marks(of):
            return value
        if isinstance(value, dict):
            return type(value)((key, self._opened(proxy[key], item)) for key, item in value.items())
        items = [self._opened(proxy[i], item) for i, item in enumerate(value)]
        if isinstance(value, list):
            return items
        return type(value)(*items) if hasattr(value, "_fields") else tuple(items)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        handler = handler_of(m)
        return (
            module_qualified_name in self._way.kept
            or isinstance(m, self._leaves)
            or (handler is not None and (handler.make is not None or handler.registered))
            or any(isinstance(part, _OCTAVE_LAYERS) for part in m.modules())
            or super().is_leaf_module(m, module_qualified_name)
        )

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        if self.decisions.running:
            return forward(*args, **kwargs)
        last, depth, stack = next(reversed(self.graph.nodes), None), len(self._entered), self.module_stack.copy()
        self._entered.append(self.path_of_module(m))
        try:
            result = super().call_module(m, forward, args, kwargs)
        except Exception as error:  # with proxies, Python code may raise anything
            if not self._way.lenient:
                raise
            self._undo(last)
            self.module_stack = stack
            name = self.path_of_module(m)
            self.left.setdefault(name, _in_short(error))
            result = self.create_proxy("call_module", name, args, kwargs)
        del self._entered[depth:]
        if isinstance(result, fx.Proxy) and m in self._way.lengths:  # the code that follows cannot slice a proxy
            items = [result[i] for i in range(self._way.lengths[m])]  # type: ignore[index]
            self._listed[id(items)] = tuple(items), result
            self._alive.append(items)
            return items
        return result

    def _undo(self, last: fx.Node | None) -> None:
        """Remove all nodes behind ``last``."""
        nodes = list(self.graph.nodes)
        dead = nodes[nodes.index(last) + 1 :] if last is not None else nodes
        for node in reversed(dead):
            self.graph.erase_node(node)
        for name, proxy in [*self._attributes.items()]:
            if proxy.node in dead:
                del self._attributes[name]

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        if self.decisions.running:
            return attr_val
        self._attributes = parameter_proxy_cache
        return super().getattr(attr, attr_val, parameter_proxy_cache)  # type: ignore[no-untyped-call]

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


def trace(model: nn.Module, way: Way) -> tuple[fx.Graph, list[str], dict[str, str]]:
    """Trace ``model`` in evaluation mode; flags that follow the mode, like dropout's, are read when the graph runs.

    Args:
        model: the network; constants that it creates as it runs become its buffers.
        way: how.

    Returns:
        The graph; notes about what the model does only in training mode, which is not in the graph; and the modules
        that were left as they are because they cannot be traced, with the reasons.

    Raises:
        Untraceable: what the model does depends on values; the message names the module and the cure.
    """
    with eval_mode(model):
        left: dict[str, str] = {}
        while True:
            try:
                way = _judged(model.eval(), way)
                graph, constants, found, _ = _trace(model, way)
                if constants and not way.buffers and next(model.buffers(), None) is not None:
                    way = way._replace(buffers=True)  # a constant may be computed from them, and they can be loaded
                    continue
                left |= found
                way = way._replace(kept={*way.kept, *left})
                in_training, others, _, _ = _trace(model.train(), way)
            except Changed as error:
                if not way.lenient or error.module in ("", *way.kept):
                    raise
                where, reason = error.module, error.reason
            else:
                where, reason = _parting(graph, in_training), "does more in training mode than in evaluation"
                if not where:
                    where, reason = _drawing(graph, constants, others), "draws random numbers"
                if not where:
                    break
                if not way.lenient:
                    raise Untraceable(f"{type(model).__name__} cannot be traced: its module {where!r} {reason}", reason)
            left[where] = reason
            way = way._replace(kept={*way.kept, where})
    for name, constant in constants.items():
        model.register_buffer(name, constant, persistent=False)  # it moves with the network, and adds no key
    notes = []
    equal = constants.keys() == others.keys() and all(torch.equal(constants[name], others[name]) for name in constants)
    if not _follow_mode(graph, in_training) or not equal:
        notes.append("in training mode the given model does more than in evaluation; the octave network does not")
    _make_functional(graph, model)
    return graph, notes, left


def _judged(model: nn.Module, way: Way) -> Way:
    """The way with a judgement of each condition that is met."""
    if not way.lenient:
        return way
    judged, guarded = set[Place](), set[Place]()
    while True:
        way = way._replace(guarded=frozenset())
        graph, _, left, met = _trace(model, way)
        if not (places := [place for place in met if place not in judged]):
            return way._replace(guarded=frozenset(guarded))
        for place in places:
            judged.add(place)
            if is_check(place):
                guarded.add(place)
                continue
            try:
                other, _, more, _ = _trace(model, way._replace(flipped=frozenset({place})))
                raised = more.keys() != left.keys()
            except Untraceable:
                raised = True
            if raised:
                guarded.add(place)
            elif canonical(other) != canonical(graph):
                way = way._replace(refused=way.refused | {place})


def _trace(model: nn.Module, way: Way) -> tuple[fx.Graph, dict[str, Tensor], dict[str, str], Collection[Place]]:
    """The graph, the constants that the model creates as it runs, what was left as it is, and the conditions met."""
    tracer = _Tracer(way)
    try:
        with restored(model) as changed:
            graph = tracer.trace(model)
        if changed:
            raise Changed(model, *changed[0])
    except Changed:
        raise
    except Exception as error:  # with proxies, Python code may raise anything
        where = tracer.where
        part = f"module {where!r} ({type(model.get_submodule(where)).__name__})" if where else "forward of the model"
        cure = (
            f"pass keep={[where]!r} to leave that module as it is"
            if where
            else "octavify only its convolutional part, as in model.backbone, _ = octavify(model.backbone, ...)"
        )
        reason = _in_short(error)
        text = f"the {part} branches on values, or is not plain tensor code ({reason})"
        raise Untraceable(f"{type(model).__name__} cannot be traced: {text}. {cure}", text) from error
    finally:
        constants = {name: vars(model).pop(name) for name in [*vars(model)] if name.startswith("_tensor_constant")}
    drop_unread(graph)  # there may be fewer pieces than asked for, or conditions alone have read it
    return graph, constants, tracer.left, tracer.decisions.met


def _in_short(error: Exception) -> str:
    reason = str(error).partition("\n")[0].partition(". ")[0]
    return f"{type(error).__name__}: {reason}"


def _steps(graph: fx.Graph) -> list[fx.Node]:
    """The nodes that compute something."""
    return [node for node in graph.nodes if node.target != "contiguous"]


def _parting(graph: fx.Graph, in_training: fx.Graph) -> str:
    """The innermost module that is called in both graphs and does something else; nothing if there is none."""
    ours, theirs = _inside(graph), _inside(in_training)
    other = [name for name in ours if name in theirs and ours[name] != theirs[name]]
    return max(other, key=lambda name: name.count("."), default="")


def _drawing(graph: fx.Graph, constants: Mapping[str, Tensor], others: Mapping[str, Tensor]) -> str:
    """A module whose constants are others when it is called again; nothing if there is none."""
    for node in graph.nodes:
        one, other = constants.get(str(node.target)), others.get(str(node.target))
        if one is not None and other is not None and one.shape == other.shape and not equal(one, other):
            return next((name for name, _ in reversed(node.meta.get("nn_module_stack", {}).values())), "")
    return ""


def _inside(graph: fx.Graph) -> dict[str, list[Any]]:
    """What is computed inside each module, by its name."""
    found = defaultdict(list)
    for node in _steps(graph):
        for name in {name for name, _ in node.meta.get("nn_module_stack", {}).values()} - {node.target}:
            found[name].append((node.op, node.target))
    return found


def _follow_mode(graph: fx.Graph, in_training: fx.Graph) -> bool:
    """Where the two graphs differ only in a flag, let ``graph`` read it from the module; return whether that is all."""
    ours, theirs = _steps(graph), _steps(in_training)
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
