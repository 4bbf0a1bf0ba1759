"""`python -m serving_ops.bench_e2e --ops`: the ops alone, against whoever else is installed."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console

from serving_ops.bench_e2e import environment
from serving_ops.bench_e2e.arguments import check_writable, names, numbers, shapes
from serving_ops.bench_e2e.cli import FAILED, INTERRUPTED, end_as_if_interrupted
from serving_ops.bench_e2e.ops import cases, peers, report, table
from serving_ops.bench_e2e.ops.cases import Case
from serving_ops.bench_e2e.ops.contestants import OURS, Contestant, eager, inductor, ours
from serving_ops.bench_e2e.ops.session import Session
from serving_ops.bench_e2e.options import check_variables

COMMAND = "python -m serving_ops.bench_e2e --ops"
WIDTH_WITHOUT_TERMINAL = 180  # columns: a log takes any, and a dozen contestants need them
NOTHING_TO_MEASURE = 2  # exit status, as for a bad option


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status 1 if ours failed or was wrong at any size, 2 if there was nothing to measure."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments[:1] == ["table"]:
        return table.main(arguments[1:])
    return _run(_parse(arguments), environment.command_line(COMMAND, arguments))


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--regime", type=names, help=f"of {', '.join((*cases.CPU_REGIMES, *cases.CUDA_REGIMES))}")
    parser.add_argument("--op", type=names, default=cases.OPS, help=f"of {', '.join(cases.OPS)}")
    parser.add_argument("--sizes", type=shapes, help="1x4096,8x2048; tokens x heads x head_dim for the gated norm")
    parser.add_argument("--dtype", choices=tuple(cases.DTYPES), default="bfloat16")
    parser.add_argument("--threads", type=numbers, default=(1, 2), help="on the CPU; default 1,2")
    parser.add_argument("--peers", action="store_true", help="not only engines' kernels: Quack, FlashInfer, Liger, FLA")
    parser.add_argument("--contestants", type=names, help="only these, e.g. eager,'vLLM C'; ours always runs")
    parser.add_argument("--quick", action="store_true", help="fewer sizes and rounds")
    parser.add_argument("--out", type=Path, help="the JSON; default bench_results/ops-<device>.json")
    options = parser.parse_args(arguments)
    check_variables(parser)
    check_gpu(parser, options.device)
    known = cases.regimes_for(options.device)
    options.regime = options.regime or (cases.CUDA_STANDARD if options.device == "cuda" else known)
    for given, allowed in ((options.regime, known), (options.op, cases.OPS)):
        unknown = [name for name in given if name not in allowed]
        if unknown:
            parser.error(f"{', '.join(unknown)}: on {options.device} choose from {', '.join(allowed)}")
    options.out = options.out or report.default_path(options.device)
    check_writable(parser, options.out)
    return options


def _run(options: argparse.Namespace, command: str) -> int:
    planned = cases.plan(
        options.device,
        options.regime,
        ops=options.op,
        shapes=options.sizes,
        dtype=options.dtype,
        threads=options.threads,
        quick=options.quick,
    )
    available, absent = _available(options)
    wanted = {OURS, *(options.contestants or [entrant.name for entrant in available])}
    entrants = [entrant for entrant in available if entrant.name in wanted]
    console = Console(width=None if sys.stdout.isatty() else WIDTH_WITHOUT_TERMINAL)
    session = Session(console, options.device, command, entrants, absent, options.out, options.quick)
    for adapter, reason in absent.items():
        session.say(f"left out: {adapter} ({reason})")
    not_here = sorted(wanted - {entrant.name for entrant in entrants})
    if not planned or not_here:
        there_are = ", ".join(entrant.name for entrant in available)
        fault = f"not here: {', '.join(not_here)}; there are {there_are}" if not_here else "no such size here"
        session.say(fault)
        return NOTHING_TO_MEASURE
    return measure_all(session, planned)


def measure_all(session: Session, planned: Sequence[Case]) -> int:
    """The exit status of a run of these cases."""
    end_as_if_interrupted()
    try:
        session.run(planned)
    except KeyboardInterrupt:
        session.say(f"interrupted; what was measured is in {session.path}")
        return INTERRUPTED
    return FAILED if any(OURS in result.problems for result in session.results) else 0


def check_gpu(parser: argparse.ArgumentParser, device: str) -> None:
    if device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch finds no GPU on this machine")


def _available(options: argparse.Namespace) -> tuple[list[Contestant], dict[str, str]]:
    others, absent = peers.load(peers.adapters_for(options.device, libraries=options.peers))
    return [ours(), eager(), inductor(), *others], absent
