"""Where a network keeps the channels of maps in the last dimension between two permutations, as ConvNeXt does."""

from __future__ import annotations

from torch import fx, nn

from .handlers import FUNCTIONS, handler_of
from .maps import axes_of, is_channels_last, shape_of
from .operations import TO_CHANNELS_LAST, modes_read, permutation_of


def mark_channels_last(graph: fx.Graph, model: nn.Module) -> None:
    """In a network of images, note ``channels_last`` of such maps, and as ``shape`` the one with channels second.

    They start at a permutation and go through layers over the last dimension and elementwise operations; everything
    else gets them as they are.
    """
    for node in graph.nodes:
        x, shape = node.args[0] if node.args else None, shape_of(node)
        if not isinstance(x, fx.Node) or shape is None or len(shape) != 4 or axes_of(node) != 2:
            continue
        moved = permutation_of(node) == TO_CHANNELS_LAST and not is_channels_last(x)
        if moved or (is_channels_last(x) and _stays(node, model)):
            node.meta["channels_last"] = True
            node.meta["shape"] = (shape[0], shape[-1], *shape[1:-1])


def _stays(node: fx.Node, model: nn.Module) -> bool:
    is_layer = node.op == "call_module"
    handler = handler_of(model.get_submodule(str(node.target))) if is_layer else FUNCTIONS.get(node.target)
    known = handler is not None and handler.channels_last
    return known and node.all_input_nodes == [node.args[0], *modes_read(node)]
