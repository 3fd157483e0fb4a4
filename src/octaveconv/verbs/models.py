"""``octaveconv models``: the networks, what they cost, and their published weights."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from typing import Any


def add(parser: argparse.ArgumentParser) -> None:
    """List the octave networks: names for timm.create_model, cost at 224 pixels, and published weights.

    Example: octaveconv models 'oct_resnet*' --alpha 0.25 --sort macs
    """
    parser.usage = "%(prog)s [GLOB] [options]"
    parser.add_argument("glob", metavar="GLOB", nargs="?", default="oct_*", help="pattern of names (%(default)s)")
    parser.add_argument("--alpha", metavar="A", type=float, help="cost at this alpha, and weights of it")
    parser.add_argument("--sort", choices=[*SORTS], default="name", help="cheapest or best first (%(default)s)")
    parser.add_argument("--max-gmacs", metavar="G", type=float, help="only those of at most G thousand million MACs")
    parser.add_argument("--min-top1", metavar="P", type=float, help="only weights of at least P percent on ImageNet")


def run(args: argparse.Namespace) -> Any:
    """Print the table; return its rows as dicts."""
    from .._text import did_you_mean, text_table
    from ..errors import UsageError
    from ..models.create import names

    found = [name for name in names(args.glob) if name.startswith("oct_")]
    if not found:
        raise UsageError(f"no network matches {args.glob!r}{did_you_mean(args.glob, names('oct_*'))}")
    facts = [fact for fact in map(describe, found) if _is_wanted(fact, args)]
    if not facts:
        alphas = sorted({float(alpha) for name in found for alpha in _costs(describe(name))})
        raise UsageError(
            f"none of {len(found)} networks is like that: known are the costs at alpha "
            f"{', '.join(map('{:g}'.format, alphas))} (octaveconv cost NETWORK --alpha A counts any)"
        )
    facts.sort(key=lambda fact: SORTS[args.sort](fact, _macs(fact, args.alpha) or 0))
    print(text_table(table(facts, args.alpha or 0)))
    return facts


SORTS: dict[str, Callable[[dict[str, Any], int], Any]] = {  # a key of what is known of a network, and of its MACs
    "name": lambda fact, macs: fact["name"],
    "macs": lambda fact, macs: macs,
    "params": lambda fact, macs: fact["params"],
    "top1": lambda fact, macs: -fact.get("top1", 0),
}


def _costs(fact: dict[str, Any]) -> dict[str, int]:
    """MACs by alpha."""
    return fact["macs"] if fact["alpha"] is None else {f"{fact['alpha']:g}": fact["macs"]}


def _macs(fact: dict[str, Any], alpha: float | None) -> int | None:
    """MACs at an alpha, or of a network of any alpha those of its dense twin; None if they are not known."""
    costs = _costs(fact)
    return costs.get(f"{alpha:g}") if alpha is not None else costs.get("0", next(iter(costs.values())))


def _is_wanted(fact: dict[str, Any], args: argparse.Namespace) -> bool:
    macs = _macs(fact, args.alpha)
    if macs is None or (args.max_gmacs is not None and macs > args.max_gmacs * 1e9):
        return False
    return args.min_top1 is None or fact.get("top1", -1) >= args.min_top1


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


def table(facts: list[dict[str, Any]], alpha: float = 0) -> list[list[str]]:
    """Rows of text. A network of any alpha has its cost at ``alpha``."""
    rows = [["network", "alpha", "params M", "GMACs", "published", "top-1", "top-5", "sha256", "file"]]
    for fact in facts:
        row = [fact["name"], f"any (cost at {alpha:g})", f"{fact['params'] / 1e6:.3f}"]
        if fact["alpha"] is None:
            rows.append([*row, f"{fact['macs'][f'{alpha:g}'] / 1e9:.3f}", "", "", "", "", ""])
            continue
        row[1] = f"{fact['alpha']:g}"
        published = "-" if fact["published_gmacs"] is None else f"{fact['published_gmacs']:.4g}"
        accuracy = [f"{fact['top1']:.1f}", f"{fact['top5']:.1f}"]
        known = "known" if fact["sha256"] else "-"
        file = re.sub(r".*/", "", fact["url"])
        rows.append([*row, f"{fact['macs'] / 1e9:.3f}", published, *accuracy, known, file])
    return rows
