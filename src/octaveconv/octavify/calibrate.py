"""What a sample of images tells: which channels are smooth, what each layer loses, and the statistics of norms."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor, fx, nn

from .._modes import eval_mode
from ..nn.norm import OctBatchNormNd, at_least_single
from ..octave import merge_tensor, split_tensor
from ..resolution import FACTORS
from .maps import is_channels_last
from .operations import FROM_CHANNELS_LAST
from .roles import Role
from .spaces import Net
from .splits import Splits

_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm, OctBatchNormNd)
Batch = tuple[Any, ...]


def batches_of(sample: Iterable[Any], inputs: Batch) -> list[Batch]:
    """The batches of a sample as the network's inputs: the first items of each, as many as the network takes.

    Raises:
        ValueError: there is no batch, or the inputs of one do not match the example.
    """
    batches = []
    for item in [sample] if isinstance(sample, Tensor) else sample:
        given = tuple(item) if isinstance(item, (tuple, list)) else (item,)
        for x, example in zip(given, inputs):
            if isinstance(example, Tensor) and (not isinstance(x, Tensor) or x.shape[1:] != example.shape[1:]):
                shape = list(x.shape) if isinstance(x, Tensor) else type(x).__name__
                raise ValueError(
                    f"calibrate has a batch {shape}, but example_inputs {list(example.shape)}: give both one size"
                )
        device = next((x.device for x in inputs if isinstance(x, Tensor)), "cpu")
        batches.append(tuple(x.to(device) if isinstance(x, Tensor) else x for x in given[: len(inputs)]))
    if not batches or len(batches[0]) < len(inputs):
        raise ValueError("calibrate must hold batches of the network's inputs, as a list of tensors or a DataLoader")
    return batches


def high_shares(net: Net, batches: Sequence[Batch]) -> dict[fx.Node, Tensor]:
    """The share of each channel's energy above half the Nyquist frequency, ``[C]``, in the outputs of convolutions and
    in the pieces that they are split into.

    Outputs that stay dense, or whose channels cannot be reordered, are omitted. The energy omits a channel's mean over
    the sample, since a norm removes it.
    """
    wanted = {
        node
        for node, step in net.steps.items()
        if (_is_conv(net, node) or step.role is Role.PIECE)
        and net.runs.of(node) not in net.pinned
        and net.blocks(net.spaces.of(node))
    }
    high: dict[fx.Node, Any] = defaultdict(float)
    total: dict[fx.Node, Any] = defaultdict(float)
    means: dict[fx.Node, Any] = defaultdict(float)

    def watch(node: fx.Node, inputs: tuple[Any, ...], y: Any) -> None:
        if node in wanted:
            power, is_high = _power(y)
            means[node] = means[node] + y.double().flatten(2).mean(2).sum(0)
            total[node] = total[node] + power.flatten(2).sum(2, dtype=torch.float64).sum(0)
            high[node] = high[node] + (power * is_high).flatten(2).sum(2, dtype=torch.float64).sum(0)

    images = sum(len(batch[0]) for batch in batches)
    run(net, batches, watch)
    shares = {}
    for node in total:
        energy = total[node] - (means[node] / images).square() * images
        shares[node] = torch.where(energy > 1e-6 * total[node], high[node] / energy, 0.0)  # else there is only the mean
    return shares


def _power(y: Tensor) -> tuple[Tensor, Tensor]:
    """The power spectrum of maps, which adds up to the mean square, and where it is above half Nyquist.

    Frequencies are those along the axes that an octave halves: for a video not those in time.
    """
    y = at_least_single(y)
    factors = FACTORS[y.dim() - 2]
    halved = [dim for dim, factor in enumerate(factors, 2) if factor > 1]
    is_high = torch.zeros((), dtype=torch.bool, device=y.device)
    for dim in halved:
        frequency = torch.fft.fftfreq(y.shape[dim], device=y.device).abs()  # Nyquist is 1/2
        is_high = is_high | (frequency > 0.25).unflatten(0, (-1, *[1] * (y.dim() - 1 - dim)))
    pixels = y[0, 0].numel()
    lines = prod(y.shape[dim] for dim in halved)
    return torch.fft.fftn(y, dim=halved).abs().square() / (lines * pixels), is_high


def orders(net: Net, shares: dict[fx.Node, Tensor]) -> dict[fx.Node, Tensor]:
    """For each space that may be reordered, its channels from rough to smooth, block by block (see `Net.blocks`)."""
    found: dict[fx.Node, list[Tensor]] = defaultdict(list)
    for node, share in shares.items():
        found[net.spaces.of(node)].append(share)
    result = {}
    for space, all_shares in found.items():
        blocks, movable = net.blocks(space) or (1, False)
        share = torch.stack(all_shares).mean(0).view(blocks, -1)  # [blocks, C / blocks]
        order = share.argsort(dim=1, descending=True, stable=True)
        rows = torch.arange(blocks, device=order.device)[:, None] * order.shape[1] + order
        if movable:
            rows = rows[share.mean(1).argsort(descending=True, stable=True)]
        result[space] = rows.flatten()
    return result


def layer_errors(splits: Splits, batches: Sequence[Batch]) -> dict[fx.Node, float]:
    """How far each octave convolution's output is from the dense one's on the same input, relative to it.

    The net's modules must still be the dense ones.
    """
    net, wrong, whole = splits.net, defaultdict[fx.Node, float](float), defaultdict[fx.Node, float](float)
    made = {
        node: net.octave_layer(node, *splits.cuts(node))
        for node, step in net.steps.items()
        if _is_conv(net, node) and splits.converted(node)
    }

    def watch(node: fx.Node, inputs: tuple[Any, ...], y: Any) -> None:
        if node in made:
            ins, outs = splits.cuts(node)
            octave = made[node](split_tensor(inputs[0], ins))
            wrong[node] += float((merge_tensor(octave, split=outs) - y).double().square().sum())
            whole[node] += float(y.double().square().sum())

    run(net, batches, watch)
    return {node: (wrong[node] / whole[node]) ** 0.5 if whole[node] else 0.0 for node in wrong}


def run(net: Net, batches: Sequence[Batch], watch: Callable[[fx.Node, tuple[Any, ...], Any], None]) -> None:
    """Run the dense network over the sample in evaluation mode, and show ``watch`` each node's inputs and result."""

    class Watched(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            inputs, _ = self.fetch_args_kwargs_from_env(n)
            result = super().run_node(n)
            watch(n, tuple(map(_channels_second, n.args, inputs)), _channels_second(n, result))
            return result

    module = fx.GraphModule(net.model, net.graph)
    with eval_mode(module), torch.no_grad():
        for batch in batches:
            Watched(module, graph=net.graph).run(*batch)


def _channels_second(node: Any, value: Any) -> Any:
    is_last = isinstance(node, fx.Node) and is_channels_last(node)
    return value.permute(FROM_CHANNELS_LAST) if is_last else value


def reestimate_norms(model: nn.Module, batches: Sequence[Batch]) -> None:
    """Replace the running statistics of all batch norms with those of the sample."""
    norms = [part for part in model.modules() if isinstance(part, _NORMS) and part.running_mean is not None]
    momenta = {norm: norm.momentum for norm in norms}
    try:
        with eval_mode(model), torch.no_grad():
            for norm in norms:
                norm.reset_running_stats()
                norm.momentum, norm.training = None, True  # the plain average over the batches
            for batch in batches:
                model(*batch)
    finally:
        for norm, momentum in momenta.items():
            norm.momentum = momentum


def _is_conv(net: Net, node: fx.Node) -> bool:
    step = net.steps[node]
    is_depthwise = step.role is Role.SAME and step.handler is not None and step.handler.spec is not None
    return step.role is Role.CONV or is_depthwise
