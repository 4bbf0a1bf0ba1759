"""The ops' own benchmark: ours against eager, Inductor and the kernels of whichever engines are installed."""

from __future__ import annotations

from collections.abc import Sequence


def main(argv: Sequence[str]) -> int:
    """Runs the command line of `python -m serving_ops.bench_e2e --ops`; the exit status."""
    from serving_ops.bench_e2e.ops.cli import main as run

    return run(argv)
