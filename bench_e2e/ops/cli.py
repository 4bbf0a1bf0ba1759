"""`python -m serving_ops.bench_e2e --ops`: the ops alone, against whoever else is installed."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from serving_ops.bench_e2e import environment
from serving_ops.bench_e2e.ops import bench, cases, peers, runner, table
from serving_ops.bench_e2e.ops.contestants import eager, inductor, ours

COMMAND = "python -m serving_ops.bench_e2e --ops"


def main(argv: Sequence[str]) -> int:
    """Exit status 1 if ours failed or was wrong at any size, 2 if there was nothing to measure."""
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__)
    parser.add_argument("--peers", action="store_true", help="not only engines' kernels: Quack, FlashInfer, Liger, FLA")
    options = bench.parse(parser, argv, cases, "ops")
    others, absent = peers.load(peers.adapters_for(options.device, libraries=options.peers))
    available = [ours(), eager(), inductor(), *others]
    command = environment.command_line(COMMAND, argv)
    return bench.run(options, command, cases, available, absent, runner.measure_case, table.blocks)
