"""Ways to write a layer, in a traced graph, that mean exactly what octavify's handlers know: they are rewritten."""

from __future__ import annotations

import operator
from collections.abc import Collection

import torch
import torch.nn.functional as F
from torch import fx, nn

from .layers import with_state
from .operations import FROM_CHANNELS_LAST, permutation_of


def rewrite_idioms(graph: fx.Graph, model: nn.Module, kept: Collection[str]) -> None:
    """Rewrite them; ``model`` and ``graph`` change, and compute the same.

    Args:
        graph: of ``model``, traced.
        model: a layer that is replaced keeps its name and its parameters.
        kept: names of layers that stay as they are.
    """
    for node in list(graph.nodes):
        _call_layer_norm(graph, model, node, kept)
        _scale_behind_permutation(graph, model, node)


def _call_layer_norm(graph: fx.Graph, model: nn.Module, node: fx.Node, kept: Collection[str]) -> None:
    """Call the layer whose parameters ``F.layer_norm`` gets, as a subclass with a ``forward`` of its own does."""
    if node.target is not F.layer_norm or node.op != "call_function":
        return
    given = dict(zip(("input", "normalized_shape", "weight", "bias", "eps"), node.args)) | node.kwargs
    weight, bias = given.get("weight"), given.get("bias")
    if not isinstance(weight, fx.Node) or not isinstance(bias, fx.Node) or {weight.op, bias.op} != {"get_attr"}:
        return
    owner = str(weight.target).rpartition(".")[0]
    layer = model.get_submodule(owner)
    reads = [other for other in graph.nodes if str(other.target).startswith(f"{owner}.") or other.target == owner]
    names = {f"{owner}.weight", f"{owner}.bias"}
    is_own = isinstance(layer, nn.LayerNorm) and {str(weight.target), str(bias.target)} == names
    if not is_own or owner in kept or len(reads) > 2 or any(len(each.users) > 1 for each in reads):
        return
    made = nn.LayerNorm(given["normalized_shape"], given.get("eps", 1e-5), device="meta")  # type: ignore[arg-type]
    model.set_submodule(owner, with_state(made.train(layer.training), layer))
    with graph.inserting_before(node):
        node.replace_all_uses_with(graph.call_module(owner, (given["input"],)))
    for dead in (node, weight, bias):
        graph.erase_node(dead)


def _scale_behind_permutation(graph: fx.Graph, model: nn.Module, node: fx.Node) -> None:
    """Scale channels after they are put second again, instead of while they are last."""
    user = next(iter(node.users), None)
    if node.target not in (operator.mul, torch.mul, "mul") or len(node.args) != 2 or node.kwargs or user is None:
        return
    scales = [x for x in node.args if isinstance(x, fx.Node) and x.op == "get_attr"]
    maps = [x for x in node.args if isinstance(x, fx.Node) and x not in scales]
    if len(scales) != 1 or len(maps) != 1 or len(node.users) > 1 or permutation_of(user) != FROM_CHANNELS_LAST:
        return
    owner, _, name = str(scales[0].target).rpartition(".")
    scale = getattr(model.get_submodule(owner), name)
    if user.args[0] is not node or not isinstance(scale, torch.Tensor) or scale.dim() != 1:
        return
    with graph.inserting_before(user):
        moved = graph.call_function(torch.permute, (maps[0], FROM_CHANNELS_LAST))
        column = graph.call_method("view", (scales[0], len(scale), 1, 1))
        user.replace_all_uses_with(graph.call_function(operator.mul, (moved, column)))
    graph.erase_node(user)
    graph.erase_node(node)
