"""A captured program without in-place operations: quickly where that is safe, by torch.export's own pass elsewhere."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram

_OPS = torch.ops.aten

# Composite operations with results of their own. Any other one might return its argument, or a view of it.
_NEW_RESULTS: set[Any] = {
    _OPS.adaptive_avg_pool2d, _OPS.adaptive_max_pool2d, _OPS.batch_norm, _OPS.conv1d, _OPS.conv2d, _OPS.conv3d,
    _OPS.conv_transpose1d, _OPS.conv_transpose2d, _OPS.conv_transpose3d, _OPS.group_norm, _OPS.instance_norm,
    _OPS.layer_norm, _OPS.linear, _OPS.log_softmax, _OPS.matmul, _OPS.max_pool2d, _OPS.relu6, _OPS.softmax,
    _OPS.upsample_bilinear2d, _OPS.upsample_nearest2d,
}  # fmt: skip
_MOVES_ITSELF = {_OPS.detach_.default}  # of the operations that change a tensor's strides or flags, the harmless ones


def functionalized(program: ExportedProgram) -> ExportedProgram:
    """``program``, which may be changed, without operations that write to a tensor.

    An in-place operation becomes the plain one if nothing reads its tensor's memory by another name afterwards. If
    something might, torch.export's ``run_decompositions`` traces the program again, which takes two to three times as
    long as the capture.
    """
    plain = _plain_forms(program.graph)
    if plain is None:
        decomposed: ExportedProgram = program.run_decompositions({})
        return decomposed
    for node, target in plain.items():
        node.target = target
    for node in program.graph.find_nodes(op="call_function", target=_OPS.batch_norm.default):
        _use_core_norm(program.graph, node)
    return program


def _plain_forms(graph: fx.Graph) -> dict[fx.Node, Any] | None:
    """The plain operation for each in-place one, or None if one of them cannot be told from its graph to be safe."""
    memory: dict[fx.Node, set[fx.Node]] = {}  # of each value: the nodes that may have made what it shares
    outdated: set[fx.Node] = set()  # memory that an in-place operation has written to
    plain: dict[fx.Node, Any] = {}
    for node in graph.nodes:
        if any(memory[argument] & outdated for argument in node.all_input_nodes):
            return None
        memory[node] = {node}
        if node.op != "call_function" or not isinstance(node.meta.get("val"), (Tensor, tuple, list)):
            continue
        if node.target is operator.getitem:
            memory[node] = memory[node.args[0]]
            continue
        if not isinstance(node.target, torch._ops.OpOverload) or _trains(node):
            return None
        if node.target._schema.is_mutable:
            target = _plain_form(node)
            written = memory[node.args[0]]
            if target is None or any(source.op == "placeholder" for source in written):
                return None
            plain[node] = target
            outdated |= written
        else:
            memory[node] = {node}.union(*(memory[argument] for argument in _shared(node)))
    return plain


def arguments_of(node: fx.Node) -> dict[str, Any]:
    """The arguments that are given to an operation, by their names."""
    target: Any = node.target
    return dict(zip((argument.name for argument in target._schema.arguments), node.args)) | node.kwargs


def _trains(node: fx.Node) -> bool:
    """Whether a norm updates its statistics, which its schema does not tell."""
    named = arguments_of(node)
    return "running_mean" in named and bool(named.get("training") or named.get("use_input_stats"))


def _plain_form(node: fx.Node) -> Any:
    """The operation with the same arguments and the same result that writes nothing, or None."""
    target: Any = node.target
    name = target._schema.name.removeprefix("aten::")
    if torch.Tag.inplace_view in target.tags and target not in _MOVES_ITSELF:
        return None
    packet = getattr(_OPS, name.removesuffix("_"), None) if name.endswith("_") else None
    plain = getattr(packet, target._overloadname, None)
    values = [argument.meta.get("val") for argument in node.all_input_nodes]
    dtypes = {value.dtype for value in values if isinstance(value, Tensor)}
    same = [[argument.name for argument in op._schema.arguments] for op in (target, plain) if op is not None]
    return plain if len(same) == 2 and same[0] == same[1] and len(dtypes) == 1 and name != "copy_" else None


def _shared(node: fx.Node) -> Iterable[fx.Node]:
    """The arguments whose memory the result may share."""
    target: Any = node.target
    composite = torch._C._dispatch_has_kernel_for_dispatch_key(target.name(), "CompositeImplicitAutograd")
    if composite and target.overloadpacket not in _NEW_RESULTS:
        return node.all_input_nodes
    given = arguments_of(node)
    aliased = [given.get(argument.name) for argument in target._schema.arguments if argument.alias_info]
    found: list[fx.Node] = []
    fx.node.map_arg(aliased, found.append)
    return found


def _use_core_norm(graph: fx.Graph, node: fx.Node) -> None:
    """Write a norm as ``run_decompositions`` does, for the readers of the graph to know one form."""
    *state, _training, momentum, eps, _cudnn = node.args
    with graph.inserting_before(node):
        norm = graph.call_function(_OPS._native_batch_norm_legit_no_training.default, (*state, momentum, eps))
        output = graph.call_function(operator.getitem, (norm, 0))
    norm.meta["val"] = (node.meta["val"],)
    output.meta["val"] = node.meta["val"]
    node.replace_all_uses_with(output)
    graph.erase_node(node)
