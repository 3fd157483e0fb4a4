"""The modules of an octave network, called one inside the other as in the given one, so that hooks on blocks fire."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor, fx, nn

from ..nn._dense import MayReturnTensor
from ..nn._hooks import has_hooks
from ..octave import Octave, as_octave
from .keywords import read_keywords

BORDER = "octave_"  # how the names of borders begin, which belong to the network until a container takes them in
STACK, PARTNER = "octave_stack", "octave_partner"  # keys of a node's meta, see `mark` and `join`


def mark(nodes: Iterable[fx.Node], dense: fx.Node) -> None:
    """Note with the nodes that stand for a dense node in which containers it was called."""
    while (dense.op == "get_attr" or dense.target is operator.not_) and "nn_module_stack" not in dense.meta:
        dense = next(iter(dense.users))  # a flag belongs to what reads it
    own = str(dense.target) if dense.op == "call_module" else ""
    stack = dense.meta.get("nn_module_stack", {})
    for node in nodes:
        node.meta[STACK] = [(key, path) for key, (path, _) in stack.items() if path != own]


def join(high: fx.Node, low: fx.Node) -> None:
    """Note that two nodes are the parts of one octave."""
    high.meta[PARTNER] = low.meta[PARTNER] = (high, low)


def both(x: Tensor | Octave) -> Octave:
    """An octave with both of its parts.

    Raises:
        ValueError: it is a tensor or lacks a part.
    """
    octave = as_octave(x)
    if octave.high is None or octave.low is None:
        raise ValueError("this block takes an Octave with a high and a low part: octaveconv.Split makes it of a tensor")
    return octave


def nest(octave: fx.GraphModule) -> None:
    """Give every container a forward of its own, if its nodes follow one another; the others stay without.

    A container that is called more than once, that had hooks when it was traced, or whose code uses what does not
    belong to it, has its nodes in the container around it.
    """
    graph = octave.graph
    _return_tensors(octave)
    calls = [call for node in graph.nodes for call in node.meta.get(STACK, ())]
    again = {path for key, path in calls if key != path}
    layers = {str(node.target) for node in graph.nodes if node.op == "call_module"}  # some with code of their own
    paths = {path for _, path in calls} - again - layers - {""}
    for path in sorted(paths, key=lambda path: (-path.count("."), path)):
        container = octave.get_submodule(path)
        nodes = [n for n in graph.nodes if (path, path) in n.meta.get(STACK, ()) and not _is_foreign(n, path)]
        if nodes and not has_hooks(container) and _follow_one_another(nodes):
            _nest(octave, path, container, nodes)
    for node in graph.nodes:
        node.meta = {key: value for key, value in node.meta.items() if key not in (STACK, PARTNER)}
    graph.lint()
    octave.recompile()


def _return_tensors(octave: fx.GraphModule) -> None:
    """Let layers without a low output return a tensor where the graph took the high part of an octave."""
    for node in list(octave.graph.nodes):
        layer = octave.get_submodule(str(node.target)) if node.op == "call_module" else None
        if isinstance(layer, MayReturnTensor) and len(node.users) == 1:
            (part,) = node.users
            if part.target is operator.getitem and part.args[1] == 0 and PARTNER not in part.meta:
                layer._returns_tensor = True
                part.replace_all_uses_with(node)
                octave.graph.erase_node(part)


def _is_foreign(node: fx.Node, path: str) -> bool:
    """Whether a node reads a parameter or buffer from outside of the container, which is then an input."""
    return node.op == "get_attr" and node.target != "training" and not str(node.target).startswith(f"{path}.")


def _follow_one_another(nodes: Sequence[fx.Node]) -> bool:
    """Whether no other node stands between them, except attributes, which can be read before."""
    inside, node = set(nodes), nodes[0]
    while node is not nodes[-1]:
        if node not in inside and node.op != "get_attr":
            return False
        node = node.next
    return True


def _nest(octave: fx.GraphModule, path: str, container: nn.Module, nodes: Sequence[fx.Node]) -> None:
    """Move nodes into a forward of their container, and call it instead."""
    graph, inside = octave.graph, set(nodes)
    owned = [n for n in nodes if n.op == "call_module"]
    borders = [n for n in owned if str(n.target).startswith(BORDER) and hasattr(octave, str(n.target))]
    strange = [n for n in owned if n not in borders and not str(n.target).startswith(f"{path}.")]
    outputs = _values(n for n in nodes if any(user not in inside for user in n.users))
    if strange or not outputs or (borders and isinstance(container, (nn.Sequential, nn.ModuleList, nn.ModuleDict))):
        return
    inputs = _values(x for n in nodes for x in n.all_input_nodes if x not in inside)
    for node in borders:
        container.add_module(str(node.target), octave.get_submodule(str(node.target)))
        octave.delete_submodule(str(node.target))
        node.target = f"{path}.{node.target}"
    own = _graph_of(nodes, inputs, outputs, path)
    if not (type(container).forward is nn.Sequential.forward and _is_chain(own, container)):
        _set_forward(container, own)
    _call_instead(graph, path, nodes, inputs, outputs)


def _values(nodes: Iterable[fx.Node]) -> list[tuple[fx.Node, ...]]:
    """The values that nodes are part of, each once: one node, or the two of an octave."""
    return list(dict.fromkeys(node.meta.get(PARTNER, (node,)) for node in nodes))


def _graph_of(
    nodes: Sequence[fx.Node], inputs: Sequence[tuple[fx.Node, ...]], outputs: Sequence[tuple[fx.Node, ...]], path: str
) -> fx.Graph:
    """The nodes as a graph of their own."""
    graph, copies = fx.Graph(), {}
    read_keywords(graph)
    placeholders = [graph.placeholder(value[0].name) for value in inputs]
    for value, placeholder in zip(inputs, placeholders):
        if len(value) == 1:
            copies[value[0]] = placeholder
        else:
            copies.update(zip(value, _parts(graph, graph.call_function(both, (placeholder,)))))
    for node in nodes:
        copies[node] = graph.node_copy(node, copies.__getitem__)
        if node.op in ("call_module", "get_attr"):
            copies[node].target = str(node.target).removeprefix(f"{path}.")
    packed = [_packed(tuple(copies[node] for node in value)) for value in outputs]
    graph.output(packed[0] if len(packed) == 1 else tuple(packed))
    return graph


def _packed(value: tuple[fx.Node, ...]) -> Any:
    return value[0] if len(value) == 1 else Octave._make(value)  # type: ignore[arg-type]


def _parts(graph: fx.Graph, pair: fx.Node) -> tuple[fx.Node, fx.Node]:
    high, low = (graph.call_function(operator.getitem, (pair, i)) for i in (0, 1))
    return high, low


def _call_instead(
    graph: fx.Graph,
    path: str,
    nodes: Sequence[fx.Node],
    inputs: Sequence[tuple[fx.Node, ...]],
    outputs: Sequence[tuple[fx.Node, ...]],
) -> None:
    """Put a call of the container in place of its nodes."""
    stack = [call for call in nodes[0].meta[STACK] if call != (path, path)]
    stack = stack[: next((i for i, (_, p) in enumerate(stack) if p.startswith(f"{path}.")), len(stack))]
    with graph.inserting_after(nodes[-1]):
        called = graph.call_module(path, tuple(map(_packed, inputs)))
    with graph.inserting_before(called.next):
        for i, value in enumerate(outputs):
            result = called if len(outputs) == 1 else graph.call_function(operator.getitem, (called, i))
            parts = (result,) if len(value) == 1 else _parts(graph, result)
            if len(parts) == 2:
                join(*parts)
            for node, part in zip(value, parts):
                node.replace_all_uses_with(part)
                part.meta[STACK] = result.meta[STACK] = stack
    called.meta[STACK] = stack
    for node in reversed(nodes):
        graph.erase_node(node)


def _is_chain(graph: fx.Graph, container: nn.Module) -> bool:
    """Whether the children are called one after the other with what the last one returned, as `nn.Sequential` does."""
    calls = [node for node in graph.nodes if node.op == "call_module"]
    value: Any = next(node for node in graph.nodes if node.op == "placeholder")
    if [node.target for node in calls] != [name for name, _ in container.named_children()]:
        return False
    for node in [*calls, next(iter(reversed(graph.nodes)))]:
        given = node.args[0]
        if isinstance(given, Octave):
            sources = {part.args[0] if part.target is operator.getitem else None for part in given}  # type: ignore[union-attr]
            given = sources.pop() if len(sources) == 1 else None
            given = given.args[0] if isinstance(given, fx.Node) and given.target is both else given
        if given is not value or len(node.args) != 1 or node.kwargs:
            return False
        value = node
    return len([node for node in graph.nodes if node.op == "placeholder"]) == 1


def _set_forward(container: nn.Module, graph: fx.Graph) -> None:
    """Make the container one of a class of its own, which inherits from its class and runs the graph."""
    members: dict[str, Any] = {"forward": type(fx.GraphModule(container, graph)).forward, "__module__": __name__}
    if isinstance(container, nn.Sequential):
        members["__getitem__"] = _item
    container.__class__ = type(type(container).__name__, (type(container),), members)


def _item(self: nn.Sequential, index: Any) -> nn.Module:
    """A layer; layers of an octave network cannot be taken out in a row, since octaves go from one to the next."""
    if isinstance(index, slice):
        raise TypeError("a slice of this Sequential would lose what happens between its layers: take them singly")
    return nn.Sequential.__getitem__(self, index)  # type: ignore[no-any-return]
