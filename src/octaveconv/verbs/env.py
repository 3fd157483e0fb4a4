"""``octaveconv env``: versions and machine."""

from __future__ import annotations

import argparse
from typing import Any


def add(parser: argparse.ArgumentParser) -> None:
    """Print versions and machine: paste them into a bug report.

    Example: octaveconv env --json env.json
    """


def run(args: argparse.Namespace) -> Any:
    """Print the facts; return them."""
    from .. import env

    facts = env.facts()
    for name, value in facts.items():
        print(f"{name:12}{value}")
    return facts
