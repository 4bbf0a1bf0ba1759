"""`python -m serving_ops.bench_e2e SUBCOMMAND`: each subcommand has a function, with options of its own."""

import importlib
import sys
from collections.abc import Sequence

from serving_ops.bench_e2e.environment import COMMAND

COMMANDS = {
    "serve": ("serve.main", "serve a model with and without serving_ops in turns: TTFT and TPOT over HTTP"),
    "step": ("step.main", "engines side by side, no server: differences of a percent, the device time of a step"),
    "ops": ("ops.ops_bench.ops", "the ops alone, against eager, Inductor and installed engines' kernels"),
    "training": ("ops.ops_bench.training", "the same, forward and backward"),
    "training-steps": ("training_steps.main", "training steps of a Hugging Face model, its own norms and ours"),
    "accuracy": ("accuracy.accuracy_bench.main", "perplexity of a real model, and its divergence from fp32"),
    "table": ("table.main", "Markdown tables from result files"),
    "plot": ("plot.main", "pictures from result files"),
    "compare": ("table.compare", "two result files beside each other"),
}
"""Subcommand -> its function, and what it does. A module is imported when it is asked for: some need torch."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; the exit status. 3: the figures are there, but serving_ops was not active."""
    name, *words = [*(sys.argv[1:] if argv is None else argv), ""]
    if name not in COMMANDS:
        stream = sys.stdout if name in ("-h", "--help") else sys.stderr
        lines = [f"  {command:15} {what}" for command, (_, what) in COMMANDS.items()]
        print(f"{COMMAND} SUBCOMMAND [--help]", *lines, sep="\n", file=stream)
        return 0 if stream is sys.stdout else 2
    module, _, function = COMMANDS[name][0].rpartition(".")
    return int(getattr(importlib.import_module(f"serving_ops.bench_e2e.{module}"), function)(words[:-1]))
