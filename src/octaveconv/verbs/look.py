"""``octaveconv look``: what a network makes of an image, as a page."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ._arguments import add_alpha, add_checkpoint, add_model, add_model_args, positive


def add(parser: argparse.ArgumentParser) -> None:
    """Draw a network and its high and low maps of an image: one HTML file that opens in a browser.

    Example: octaveconv look oct_resnet18 photo.jpg --alpha 0.5 --out look.html
    """
    parser.usage = "%(prog)s MODEL [IMAGE] [options]"
    add_model(parser)
    parser.add_argument("image", metavar="IMAGE", nargs="?", help="an image file (a test pattern)")
    add_alpha(parser)
    add_checkpoint(parser)
    add_model_args(parser)
    parser.add_argument("--size", metavar="N", type=positive, help="height and width in pixels (the network's own)")
    parser.add_argument("--out", metavar="FILE", type=Path, default=Path("look.html"), help="the page (%(default)s)")


def run(args: argparse.Namespace) -> Any:
    """Write the page, print the table; return the figures of each layer."""
    import torch

    from .. import _page, look
    from .._text import say, shown, text_table
    from ..data.datasets import preprocessing
    from ..models import published
    from ..models.create import create, source

    name, file = source(args.model, args.checkpoint)
    torch.manual_seed(0)
    model = create(name, args.alpha, file, model_args=args.model_args).eval()
    prepare = preprocessing(model, args.size)
    image, what = _image(args.image and Path(args.image), prepare)
    channels = next((p.shape[1] for p in model.parameters() if p.dim() == 4), 3)
    mean, std = (torch.tensor(values)[:, None, None] for values in (prepare.mean, prepare.std))
    seen = (image * std + mean)[:3]
    if len(image) != channels:
        image = image.mean(0, keepdim=True).expand(channels, -1, -1)
    layers = look.look(model, image[None])
    weights = f"the weights of {file.file}" if file else "published weights" if published(name) else "random weights"
    alpha = getattr(model, "alpha", 0)
    kind = "octavified" if file and file.about.octavify else f"alpha {alpha:g}"
    title = f"{name}, {kind}"
    notes = [f"{weights[0].upper()}{weights[1:]}; {what}, {image.shape[2]}x{image.shape[1]} pixels."]
    if not file and not published(name):
        notes.append(
            "Random weights make random maps: name a file of weights with --checkpoint to see what is learned."
        )
    print(text_table(look.table(layers)))
    _page.save(args.out, look.html(title, notes, seen, layers))
    say("", *notes, f"page: {shown(args.out)}")
    return {"model": name, "alpha": alpha, "layers": [_figures(layer) for layer in layers]}


def _image(path: Path | None, prepare: Any) -> tuple[Any, str]:
    """The image ``[3, H, W]`` as the network gets it, and what it is."""
    from torchvision.transforms.functional import normalize

    from .. import look
    from .._text import one_line
    from ..data.images import decode

    if path is None:
        return normalize(look.pattern(prepare.size), prepare.mean, prepare.std), "a test pattern"
    try:
        image = decode(path.open("rb"))
    except OSError as error:
        if error.filename:  # there is no such file
            raise
        raise ValueError(f"{path} is damaged, or not an image: {one_line(error)}") from error
    except Exception as error:  # decoders raise nearly anything
        raise ValueError(f"{path} is damaged, or not an image: {one_line(error)}") from error
    return prepare.transform()(image), str(path)


def _figures(layer: Any) -> dict[str, Any]:
    return {
        "name": layer.cost.name,
        "kind": layer.cost.kind,
        "channels": list(layer.channels),
        "sizes": [list(size) for size in layer.sizes],
        "low_share": layer.low_share,
        "low_energy": layer.low_energy,
        "high_kept_at_half": layer.smooth,
        "macs": layer.cost.total.macs,
        "dense_macs": layer.cost.dense.macs,
    }
