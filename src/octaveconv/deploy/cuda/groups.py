"""Groups: which layers of a network are the high and the low output of one octave convolution, and run as one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from ..ir import Finish, Layer, Lowered, Map, Term

NEAR = 6  # how far apart the two layers may be in the network's order
Terms = tuple[Term, ...]


class Group(NamedTuple):
    """Layers that run as one. If they are an octave convolution: high output first, with the terms of its four paths.

    The maps that ``hl`` reads are those of ``hh``, pooled; ``ll`` reads what ``lh`` reads.
    """

    layers: tuple[Layer, ...]
    hh: Terms = ()
    hl: Terms = ()
    lh: Terms = ()
    ll: Terms = ()

    @property
    def is_convolution(self) -> bool:
        """Whether the terms are blocks of one weight, at stride 1 and with a padding that keeps the size."""
        terms = self[1] + self[2] + self[3] + self[4]
        ways = {(tuple(term.weight.shape[2:]), *term[2:]) for term in terms}
        if len(ways) != 1 or not self.hh or any(term.depthwise for term in terms):
            return False
        kernel, stride, padding, dilation, count = ways.pop()
        keeps_size = all(2 * p == d * (k - 1) for k, p, d in zip(kernel, padding, dilation))
        return stride == (1, 1) and keeps_size and (count == 1 or all(len(path) <= 1 for path in self[1:]))


def groups(network: Lowered) -> list[Group]:
    """Every layer in one group, in an order in which they can run."""
    layers, origins = network.layers, _origins(network)
    found: dict[int, Group] = {}  # by the index of its last layer
    taken: set[int] = set()

    def take(group: Group | None, *places: int) -> None:
        first, last = min(places), max(places)
        if group is not None and not taken & {*places} and not _is_read(layers[first], layers[first + 1 : last + 1]):
            found[last] = group
            taken.update(places)

    for i, layer in enumerate(layers):
        for j in sorted(range(max(0, i - NEAR), min(len(layers), i + NEAR + 1)), key=lambda j: abs(j - i)):
            take(_octave(layer, layers[j], origins) if j != i else None, i, j)
    for i, layer in enumerate(layers):
        take(_to_high(layer) or Group((layer,)), i)
    return [found[place] for place in sorted(found)]


def _octave(high: Layer, low: Layer, origins: Mapping[Map, Map]) -> Group | None:
    """The two layers as an octave convolution, if they are one."""
    if high.sum is None or low.sum is None or low.sum.coarse:
        return None
    hh, lh = high.sum.terms, high.sum.coarse
    reads = {term.source: term for term in low.sum.terms}
    ll = tuple(reads.pop(term.source) for term in lh if term.source in reads)
    group = Group((high, low), hh, tuple(reads.values()), lh, ll)
    fits = (
        len(ll) == len(lh)
        and len(ll) + len(group.hl) == len(low.sum.terms)
        and {origins.get(term.source.map) for term in group.hl} == {term.source.map for term in hh}
        and sum(term.source.channels for term in group.hl) == sum(term.source.channels for term in hh)
    )
    return group if fits and group.is_convolution else None


def _to_high(layer: Layer) -> Group | None:
    """The layer as an octave convolution without a low output, if it is one."""
    if layer.sum is None or not layer.sum.coarse:
        return None
    group = Group((layer,), hh=layer.sum.terms, lh=layer.sum.coarse)
    return group if group.is_convolution else None


def _origins(network: Lowered) -> dict[Map, Map]:
    """For each pooled map, the map that was pooled."""
    origins = {}
    for layer in network.layers:
        for output in layer.outputs:
            if output.pooled is not None and output.full is not None:
                origins[output.pooled] = output.full
            elif output.pooled is not None and layer.sum is not None and output.finish == Finish():
                total = layer.sum
                if len(total.addends) == 1 and not (total.terms or total.coarse):
                    origins[output.pooled] = total.addends[0].source.map
    return origins


def _is_read(layer: Layer, by: Sequence[Layer]) -> bool:
    """Whether other layers read what a layer writes."""
    written = {target.whole for target in layer.targets}
    return any(ref.map.whole in written for other in by for ref in other.sources)
