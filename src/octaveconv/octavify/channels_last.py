"""Where a network keeps the channels of maps in the last dimension between two permutations, as ConvNeXt does."""

from __future__ import annotations

from torch import fx, nn

from .maps import axes_of, is_channels_last, shape_of
from .operations import (
    BY_PIXEL,
    CHANNEL_DROPOUT_LAYERS,
    CHANNEL_DROPOUTS,
    METHODS_BY_PIXEL,
    TO_CHANNELS_LAST,
    is_by_pixel,
    is_layer_norm,
    modes_read,
    permutation_of,
)


def mark_channels_last(graph: fx.Graph, model: nn.Module) -> None:
    """In a network of images, note ``channels_last`` of such maps, and as ``shape`` that with channels in the second.

    They come from a permutation, through layers over the last dimension and operations on each number; whatever else
    takes one gets it as it is.
    """
    for node in graph.nodes:
        x, shape = node.args[0] if node.args else None, shape_of(node)
        if not isinstance(x, fx.Node) or shape is None or len(shape) != 4 or axes_of(node) != 2:
            continue
        moved = permutation_of(node) == TO_CHANNELS_LAST and not is_channels_last(x)
        if moved or (is_channels_last(x) and _is_by_pixel(node, model)):
            node.meta["channels_last"] = True
            node.meta["shape"] = (shape[0], shape[-1], *shape[1:-1])


def _is_by_pixel(node: fx.Node, model: nn.Module) -> bool:
    if node.op == "call_module":
        module = model.get_submodule(str(node.target))
        by_number = is_by_pixel(module) and not isinstance(module, CHANNEL_DROPOUT_LAYERS)
        return type(module) is nn.Linear or is_layer_norm(module) or by_number
    known = METHODS_BY_PIXEL if node.op == "call_method" else BY_PIXEL - CHANNEL_DROPOUTS
    return node.target in known and node.all_input_nodes == [node.args[0], *modes_read(node)]
