"""What a network makes of an image: the high and low maps of each layer, their energy, and a drawing of the network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import _page
from ._modes import copied, explained
from .cost import LayerCost, cost
from .errors import UsageError
from .octave import Octave, as_octave

SHOWN = 4  # maps of each frequency
PIXELS = 64  # sides of the pictures of a high map, at most; a low one has half as many
HIGH, LOW = "#2b6cb0", "#dd6b20"
Pictures = dict[str, np.ndarray[Any, Any]]


@dataclass(frozen=True)
class LayerLook:
    """One layer that convolves, and what it made of an image.

    Attributes:
        cost: its name, kind and cost.
        channels: of the high and of the low output.
        sizes: height and width of the maps, high and low.
        energy: sums of the variance of the maps over their pixels, high and low. A constant map has none.
        smooth: the share of the high maps' energy that would be left at half resolution; None without such maps.
        pictures: of the maps with the most energy, side by side: ``"high"`` and ``"low"``, gray values.
    """

    cost: LayerCost
    channels: tuple[int, int]
    sizes: tuple[tuple[int, ...], tuple[int, ...]]
    energy: tuple[float, float]
    smooth: float | None
    pictures: Pictures = field(repr=False)

    @property
    def low_share(self) -> float:
        """The low channels' share of all channels."""
        return self.channels[1] / sum(self.channels)

    @property
    def low_energy(self) -> float:
        """The low maps' share of all energy."""
        return self.energy[1] / (sum(self.energy) or 1)


def look(model: nn.Module, image: Tensor) -> list[LayerLook]:
    """Call a network on an image, and see what each of its convolutions makes of it.

    Args:
        model: a network of images, octave or dense; it is not changed.
        image: ``[1, C, H, W]``, prepared as the network expects it.

    Returns:
        A `LayerLook` for each layer with multiply-adds whose output has maps, in the order of the calls. Of a layer
        that is called several times, the first call counts.

    Raises:
        UsageError: the network fails on the image, or no layer makes maps of it.

    Example:
        >>> import octaveconv as oc
        >>> net = nn.Sequential(oc.OctConv2d(3, 8, 3, padding=1, alpha_out=0.25), oc.Merge())
        >>> [layer] = look(net, torch.rand(1, 3, 16, 16))
        >>> layer.channels, layer.sizes, layer.low_share
        ((6, 2), ((16, 16), (8, 8)), 0.25)
    """
    twin = copied(model).eval()
    modules = dict(twin.named_modules())
    found: dict[str, LayerLook] = {}
    hooks = []
    for layer in cost(twin, image).layers:
        if not layer.total.macs:
            continue

        def hook(module: nn.Module, inputs: Any, output: Any, layer: LayerCost = layer) -> None:
            octave = as_octave(output)
            if layer.name not in found and all(part is None or part.dim() == 4 for part in octave):
                found[layer.name] = _layer_look(layer, octave)

        hooks.append(modules[layer.name].register_forward_hook(hook))
    with explained(model, (image,)), torch.inference_mode():
        twin(image)
    if not found:
        raise UsageError(f"{type(model).__name__} has no layer that makes maps of the image: there is nothing to see")
    return [*found.values()]


def pattern(size: tuple[int, int]) -> Tensor:
    """An image ``[3, H, W]`` in 0 ... 1 for those who have none: a smooth ramp, a disc, and stripes that get finer.

    Example:
        >>> pattern((32, 48)).shape
        torch.Size([3, 32, 48])
    """
    y, x = torch.meshgrid(*(torch.linspace(0, 1, n) for n in size), indexing="ij")
    disc = ((x - 0.3) ** 2 + (y - 0.4) ** 2 < 0.04).float()
    stripes = torch.sin(40 * x**2 * size[1] / 16).sign() * (y > 0.7)
    return torch.stack([0.6 * x + 0.4 * disc, 0.6 * y + 0.4 * disc, 0.5 + 0.3 * stripes]).clamp(0, 1)


def table(layers: Sequence[LayerLook]) -> list[list[str]]:
    """Rows of text: a line for each layer."""
    rows = [["layer", "kind", "high", "low", "low share", "low energy", "high kept", "multiply-adds", "of dense"]]
    for layer in layers:
        maps = [
            f"{count} x {'x'.join(map(str, size))}" if count else "-"
            for count, size in zip(layer.channels, layer.sizes)
        ]
        macs, dense = layer.cost.total.macs, layer.cost.dense.macs
        smooth = "-" if layer.smooth is None else f"{layer.smooth:.0%}"
        shares = [f"{layer.low_share:.1%}", f"{layer.low_energy:.1%}", smooth]
        rows.append([layer.cost.name, layer.cost.kind, *maps, *shares, f"{macs:,}", f"{macs / dense:.2f}"])
    return rows


def drawing(layers: Sequence[LayerLook]) -> str:
    """The network as SVG: the high maps above, the low ones below, by the square roots of their sizes and numbers."""
    highest = max(max(size[0], 1) for layer in layers for size in layer.sizes if size)
    scale, gap, top = 120 / highest**0.5, 3, 10
    parts, x = [], gap
    for layer in layers:
        wide = 1
        for (count, size, color, floor), name in zip(_rows(layer, top), ("high", "low")):
            if not count:
                continue
            width, height = max(2, round(count**0.5)), max(2.0, scale * size[0] ** 0.5)
            text = f"{layer.cost.name}: {count} {name} maps of {'x'.join(map(str, size))}"
            parts.append(
                f'<rect class="{name}" x="{x}" y="{floor - height:.1f}" width="{width}" height="{height:.1f}" '
                f'fill="{color}"><title>{escape(text)}</title></rect>'
            )
            wide = max(wide, width)
        x += wide + gap
    return (
        f'<svg id="network" role="img" aria-label="the network" viewBox="0 0 {x} 240" width="100%" height="240" '
        f'preserveAspectRatio="none" xmlns="http://www.w3.org/2000/svg">{"".join(parts)}</svg>'
    )


def maps(layer: LayerLook, width: int = 96) -> str:
    """The pictures of a layer's maps as HTML, high and low ones of the same size; ``width`` of each in pixels."""
    shown = [
        _page.image(strip, f"{layer.cost.name}, {name} maps", round(width * strip.shape[1] / strip.shape[0]))
        for name, strip in layer.pictures.items()
    ]
    return f'<div class="maps">{"".join(shown)}</div>'


def html(title: str, notes: Sequence[str], image: Tensor, layers: Sequence[LayerLook]) -> str:
    """The page of ``octaveconv look``: the image ``[3, H, W]`` in 0 ... 1, the drawing, the table, and the maps."""
    picture = (image.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
    low = [layer for layer in layers if layer.channels[1]]
    parts = [
        *map(_page.paragraph, notes),
        _page.caption(_page.image(picture, "the image", 224), "The image, as the network gets it."),
        _page.heading("The network"),
        _page.caption(
            drawing(layers),
            "Each column is a layer that convolves, the first one on the left: high maps above, low maps below. Height "
            "stands for the size of the maps, width for their number, both by square root.",
        ),
        _page.heading("Layers"),
        _page.paragraph(
            "Energy is the variance of the maps over their pixels. “High kept” is the share of the high maps' "
            "energy that would be left at half resolution: where it is near 100%, more channels could be low."
        ),
        _page.table(table(layers), "layers"),
        _page.heading("Maps"),
        _page.paragraph(
            f"Of each layer with low maps, up to {SHOWN} high maps (left) and low maps (right) with the most energy, "
            f"each from black to white by its own range."
            if low
            else "No layer has low maps: this network is dense. These are its layers' maps with the most energy."
        ),
        *(_page.caption(maps(layer), layer.cost.name) for layer in low or layers),
    ]
    return _page.page(title, *parts)


def _rows(layer: LayerLook, top: int) -> list[tuple[int, tuple[int, ...], str, float]]:
    floors = (top + 125.0, top + 225.0)
    return [*zip(layer.channels, layer.sizes, (HIGH, LOW), floors)]


def _layer_look(layer: LayerCost, octave: Octave) -> LayerLook:
    channels = tuple(0 if part is None else part.shape[1] for part in octave)
    sizes = tuple(() if part is None else tuple(part.shape[2:]) for part in octave)
    variances = [torch.zeros(0) if part is None else _variance(part) for part in octave]
    energy = tuple(float(each.sum()) for each in variances)
    smooth = None
    if octave.high is not None and energy[0]:
        smooth = float(_variance(F.avg_pool2d(octave.high.float(), 2, ceil_mode=True)).sum()) / energy[0]
    pictures = {
        name: _strip(part[0], variance, pixels)
        for name, part, variance, pixels in zip(("high", "low"), octave, variances, (PIXELS, PIXELS // 2))
        if part is not None
    }
    return LayerLook(layer, channels, sizes, energy, smooth, pictures)  # type: ignore[arg-type]


def _variance(x: Tensor) -> Tensor:
    """``[N, C, H, W]`` to the variance of each channel over its pixels, the mean of all images."""
    return x.float().flatten(2).var(2, unbiased=False).mean(0)


def _strip(maps: Tensor, variance: Tensor, pixels: int) -> np.ndarray[Any, Any]:
    """The maps ``[C, H, W]`` of the most variance, side by side, as gray values."""
    chosen = maps[variance.nan_to_num(-1).argsort(descending=True, stable=True)[:SHOWN]].float().nan_to_num()
    longest = max(chosen.shape[1:])
    if longest > pixels:
        size = [max(1, round(n * pixels / longest)) for n in chosen.shape[1:]]
        chosen = F.interpolate(chosen[None], size=size, mode="area")[0]
    least, most = chosen.amin((1, 2), keepdim=True), chosen.amax((1, 2), keepdim=True)
    gray = ((chosen - least) / (most - least).clamp(min=1e-12) * 255).round().byte()
    gray = gray.repeat_interleave(times := max(1, PIXELS // max(gray.shape[1:])), 1).repeat_interleave(times, 2)
    return np.concatenate([np.pad(one.numpy(), ((0, 0), (0, 2)), constant_values=255) for one in gray], axis=1)
