"""`python -m serving_ops.bench_e2e --training`: forward and backward of the ops, against whoever else is installed."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console

from serving_ops.bench_e2e import environment
from serving_ops.bench_e2e.arguments import check_writable, names, numbers, shapes
from serving_ops.bench_e2e.ops import report
from serving_ops.bench_e2e.ops.cases import DTYPES
from serving_ops.bench_e2e.ops.cli import NOTHING_TO_MEASURE, WIDTH_WITHOUT_TERMINAL, check_gpu, measure_all
from serving_ops.bench_e2e.ops.contestants import OURS
from serving_ops.bench_e2e.options import check_variables
from serving_ops.bench_e2e.training import cases, peers, table
from serving_ops.bench_e2e.training.contestants import eager, inductor, ours
from serving_ops.bench_e2e.training.session import Session

COMMAND = "python -m serving_ops.bench_e2e --training"
EPILOG = "`... table FILE...` renders results as Markdown; `... steps` times training steps of a Hugging Face model."


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status 1 if ours failed or was wrong at any size, 2 if there was nothing to measure."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments[:1] == ["table"]:
        return table.main(arguments[1:])
    if arguments[:1] == ["steps"]:
        from serving_ops.bench_e2e.training import steps

        return steps.main(arguments[1:])
    return _run(_parse(arguments), environment.command_line(COMMAND, arguments))


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__, epilog=EPILOG)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--op", type=names, default=cases.OPS, help=f"of {', '.join(cases.OPS)}")
    parser.add_argument("--regime", type=names, default=(), help=f"on CUDA, of {', '.join(cases.regimes_for('cuda'))}")
    parser.add_argument("--sizes", type=shapes, default=(), help="4096x1024,32768x64, instead of the regimes' own")
    parser.add_argument("--dtype", type=names, default=("bfloat16",), help=f"of {', '.join(DTYPES)}")
    parser.add_argument("--threads", type=numbers, default=(1, 2), help="on the CPU; default 1,2")
    parser.add_argument("--contestants", type=names, help="only these, e.g. eager,Quack; ours always runs")
    parser.add_argument("--quick", action="store_true", help="every second size; on the CPU, fewer rounds")
    parser.add_argument("--out", type=Path, help="the JSON; default bench_results/training-<device>.json")
    options = parser.parse_args(arguments)
    check_variables(parser)
    check_gpu(parser, options.device)
    known = {"op": cases.OPS, "regime": cases.regimes_for(options.device), "dtype": tuple(DTYPES)}
    for option, allowed in known.items():
        unknown = [name for name in getattr(options, option) if name not in allowed]
        if unknown:
            parser.error(f"{', '.join(unknown)}: on {options.device} choose from {', '.join(allowed)}")
    options.out = options.out or report.default_path(options.device, "training")
    check_writable(parser, options.out)
    return options


def _run(options: argparse.Namespace, command: str) -> int:
    planned = cases.plan(
        options.device,
        ops=options.op,
        regimes=options.regime,
        shapes=options.sizes,
        dtypes=options.dtype,
        threads=options.threads,
        quick=options.quick,
    )
    others, absent = peers.load(options.device)
    available = [ours(), eager(), inductor(), *others]
    wanted = {OURS, *(options.contestants or [entrant.name for entrant in available])}
    entrants = [entrant for entrant in available if entrant.name in wanted]
    console = Console(width=None if sys.stdout.isatty() else WIDTH_WITHOUT_TERMINAL)
    session = Session(console, options.device, command, entrants, absent, options.out, options.quick)
    for project, reason in absent.items():
        session.say(f"left out: {project} ({reason})")
    not_here = sorted(wanted - {entrant.name for entrant in available})
    if not planned or not_here:
        session.say(f"not here: {', '.join(not_here)}" if not_here else "no such size here")
        return NOTHING_TO_MEASURE
    return measure_all(session, planned)
