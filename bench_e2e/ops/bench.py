"""What the benches of ops share, with gradients or without: options, contestants, and the run of all cases."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from rich.console import Console

from serving_ops.bench_e2e.arguments import check_writable, names, numbers, shapes
from serving_ops.bench_e2e.cli import FAILED, INTERRUPTED, end_as_if_interrupted
from serving_ops.bench_e2e.ops import report
from serving_ops.bench_e2e.ops.cases import DTYPES
from serving_ops.bench_e2e.ops.contestants import OURS
from serving_ops.bench_e2e.ops.session import Measure, Session
from serving_ops.bench_e2e.ops.table import Block
from serving_ops.bench_e2e.options import check_variables

WIDTH_WITHOUT_TERMINAL = 180  # columns: a log takes any, and a dozen contestants need them
NOTHING_TO_MEASURE = 2  # exit status, as for a bad option


def parse(
    parser: argparse.ArgumentParser, arguments: Sequence[str], cases: ModuleType, what: str
) -> argparse.Namespace:
    """The options; `cases` has OPS and `regimes_for`. Exits with status 2 and a sentence for what cannot work."""
    add = parser.add_argument
    regimes = dict.fromkeys((*cases.regimes_for("cpu"), *cases.regimes_for("cuda")))
    add("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    add("--regime", type=names, default=(), help=f"of {', '.join(regimes)}")
    add("--op", type=names, default=cases.OPS, help=f"of {', '.join(cases.OPS)}")
    add("--sizes", type=shapes, default=(), help="1x4096,8x16x128 (tokens x heads x head_dim), instead of the regimes'")
    add("--dtype", type=names, default=("bfloat16",), help=f"of {', '.join(DTYPES)}")
    add("--threads", type=numbers, default=(1, 2), help="on the CPU; default 1,2")
    add("--contestants", type=names, help="only these, e.g. eager,'vLLM C'; ours always runs")
    add("--quick", action="store_true", help="fewer sizes and rounds")
    add("--out", type=Path, help=f"the JSON; default bench_results/{what}-<device>.json")
    options = parser.parse_args(arguments)
    check_variables(parser)
    check_gpu(parser, options.device)
    known = {"op": cases.OPS, "regime": cases.regimes_for(options.device), "dtype": tuple(DTYPES)}
    for option, allowed in known.items():
        unknown = [name for name in getattr(options, option) if name not in allowed]
        if unknown:
            parser.error(f"{', '.join(unknown)}: on {options.device} choose from {', '.join(allowed)}")
    options.out = options.out or report.default_path(options.device, what)
    check_writable(parser, options.out)
    return options


def check_gpu(parser: argparse.ArgumentParser, device: str) -> None:
    if device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch finds no GPU on this machine")


def run(
    options: argparse.Namespace,
    command: str,
    cases: ModuleType,
    available: Sequence[Any],
    absent: dict[str, str],
    measure: Measure,
    blocks: Callable[[dict[str, Any]], list[Block]],
) -> int:
    """The exit status: 1 if ours failed or was wrong at any size, 2 if there was nothing to measure.

    cases: the module whose `plan` says what is measured. available: everyone who can be; absent: the reasons of others.
    """
    planned = cases.plan(
        options.device,
        options.regime,
        ops=options.op,
        shapes=options.sizes,
        dtypes=options.dtype,
        threads=options.threads,
        quick=options.quick,
    )
    wanted = {OURS, *(options.contestants or [entrant.name for entrant in available])}
    entrants = [entrant for entrant in available if entrant.name in wanted]
    console = Console(width=None if sys.stdout.isatty() else WIDTH_WITHOUT_TERMINAL)
    session = Session(console, options.device, command, entrants, absent, options.out, measure, blocks, options.quick)
    for project, reason in absent.items():
        session.say(f"left out: {project} ({reason})")
    not_here = sorted(wanted - {entrant.name for entrant in entrants})
    if not planned or not_here:
        there_are = ", ".join(entrant.name for entrant in available)
        session.say(f"not here: {', '.join(not_here)}; there are {there_are}" if not_here else "no such size here")
        return NOTHING_TO_MEASURE
    end_as_if_interrupted()
    try:
        session.run(planned)
    except KeyboardInterrupt:
        session.say(f"interrupted; what was measured is in {session.path}")
        return INTERRUPTED
    return FAILED if any(OURS in result.problems for result in session.results) else 0
