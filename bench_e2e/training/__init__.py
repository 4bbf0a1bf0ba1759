"""The ops as training calls them, forward and backward: ours against eager, Inductor and who else is installed."""

from __future__ import annotations

from collections.abc import Sequence


def main(argv: Sequence[str]) -> int:
    """Runs the command line of `python -m serving_ops.bench_e2e --training`; the exit status."""
    from serving_ops.bench_e2e.training.cli import main as run

    return run(argv)
