"""``octaveconv models``: the networks, what they cost, and their published weights."""

from __future__ import annotations

import argparse
import re
from typing import Any


def add(parser: argparse.ArgumentParser) -> None:
    """List the octave networks: names for timm.create_model, cost at 224 pixels, and published weights.

    Example: octaveconv models 'oct_resnetv2_50*'
    """
    parser.add_argument("glob", metavar="GLOB", nargs="?", default="oct_*", help="pattern of names (%(default)s)")


def run(args: argparse.Namespace) -> Any:
    """Print the table; return its rows as dicts."""
    from .._text import did_you_mean, text_table
    from ..errors import UsageError
    from ..models.create import names

    found = [name for name in names(args.glob) if name.startswith("oct_")]
    if not found:
        raise UsageError(f"no network matches {args.glob!r}{did_you_mean(args.glob, names('oct_*'))}")
    facts = [describe(name) for name in found]
    print(text_table(table(facts)))
    return facts


def describe(name: str) -> dict[str, Any]:
    """What is known about a network: its cost and, if it is published, its accuracy and file."""
    from ..models import COSTS, published

    record = published(name)
    costs = COSTS[record.network if record else name]
    if record is None:
        return dict(name=name, alpha=None, params=costs["params"], macs=costs["macs"])
    return dict(
        name=name,
        alpha=record.alpha,
        params=costs["params"],
        macs=costs["macs"][f"{record.alpha:g}"],
        published_gmacs=record.gmacs,
        published_mparams=record.mparams,
        top1=record.top1,
        top5=record.top5,
        url=record.url,
        sha256=record.sha256,
        size=record.size,
    )


def table(facts: list[dict[str, Any]]) -> list[list[str]]:
    """Rows of text. A network of any alpha has its cost at alpha 0."""
    rows = [["network", "alpha", "params M", "GMACs", "published", "top-1", "top-5", "sha256", "file"]]
    for fact in facts:
        row = [fact["name"], "any", f"{fact['params'] / 1e6:.3f}"]
        if fact["alpha"] is None:
            rows.append([*row, f"{fact['macs']['0'] / 1e9:.3f}", "", "", "", "", ""])
            continue
        row[1] = f"{fact['alpha']:g}"
        published = "-" if fact["published_gmacs"] is None else f"{fact['published_gmacs']:.4g}"
        accuracy = [f"{fact['top1']:.1f}", f"{fact['top5']:.1f}"]
        known = "known" if fact["sha256"] else "-"
        file = re.sub(r".*/", "", fact["url"])
        rows.append([*row, f"{fact['macs'] / 1e9:.3f}", published, *accuracy, known, file])
    return rows
