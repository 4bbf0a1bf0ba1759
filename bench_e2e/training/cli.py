"""`python -m serving_ops.bench_e2e --training`: forward and backward of the ops, against whoever else is installed."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from serving_ops.bench_e2e import environment
from serving_ops.bench_e2e.ops import bench
from serving_ops.bench_e2e.training import cases, peers, runner, table
from serving_ops.bench_e2e.training.contestants import eager, inductor, ours

COMMAND = "python -m serving_ops.bench_e2e --training"
EPILOG = "`... steps` times training steps of a Hugging Face model."


def main(argv: Sequence[str]) -> int:
    """Exit status 1 if ours failed or was wrong at any size, 2 if there was nothing to measure."""
    if list(argv[:1]) == ["steps"]:
        from serving_ops.bench_e2e.training import steps

        return steps.main(argv[1:])
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__, epilog=EPILOG)
    options = bench.parse(parser, argv, cases, "training")
    others, absent = peers.load(options.device)
    available = [ours(), eager(), inductor(), *others]
    command = environment.command_line(COMMAND, argv)
    return bench.run(options, command, cases, available, absent, runner.measure, table.blocks)
