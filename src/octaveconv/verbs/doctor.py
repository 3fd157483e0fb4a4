"""``octaveconv doctor``: what is wrong with a run, a file or a data set, and what to do."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from .._text import counted, say
from ._arguments import whole


def add(parser: argparse.ArgumentParser) -> None:
    """Check a run, a file of weights or a data set: checksums, structure, counts; exit code 1 if anything is wrong.

    Example: octaveconv doctor runs/oct_resnetv2_26-0.25
    """
    parser.usage = "%(prog)s PATH [options]"
    parser.add_argument(
        "path", metavar="PATH", type=Path, help="run folder, folder of runs, file of weights, .octave, or data set"
    )
    parser.add_argument(
        "--workers", metavar="N", type=whole, default=2, help="processes that read images (%(default)s)"
    )


def run(args: argparse.Namespace) -> Any:
    """Print each finding; return them, and the number of problems."""
    from ..doctor import examine

    findings = []
    for finding in examine(args.path, args.workers):
        say(f"{'WRONG' if finding.wrong else 'ok':5}  {finding.path}: {finding.text}")
        findings.append(finding._asdict())
    problems = sum(finding["wrong"] for finding in findings)
    say(f"{counted(problems, 'problem')} in {args.path}" if problems else f"nothing is wrong with {args.path}")
    return {"path": str(args.path), "problems": problems, "findings": findings}
