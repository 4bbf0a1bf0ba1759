"""Engines with and without serving_ops, all alive at once, measured in turns: no server, no load generator between.

A comparison of a few percent drowns in what differs from one start of a server to the next, and in HTTP. Here every
variant has several engines, so that starts average out, and each round measures all of them within seconds of each
other, so that what the machine does meanwhile meets both variants alike.
"""

from __future__ import annotations

from collections.abc import Sequence


def main(argv: Sequence[str]) -> int:
    """Runs the command line of `python -m serving_ops.bench_e2e --turns`; the exit status."""
    from serving_ops.bench_e2e.turns.cli import main as run

    return run(argv)
