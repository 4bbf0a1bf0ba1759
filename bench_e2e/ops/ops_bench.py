"""`python -m serving_ops.bench_e2e ops` and `training`: the ops alone, without and with gradients, against others.

A line as each case is done, and the JSON kept up to date beside it.
"""

from __future__ import annotations

import argparse
import re
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from serving_ops.bench_e2e import environment, result_file, table
from serving_ops.bench_e2e.arguments import check_gpu, check_writable, names, numbers, shapes
from serving_ops.bench_e2e.comparison import OURS
from serving_ops.bench_e2e.ops import cases, ops_table, peers, timing_cuda
from serving_ops.bench_e2e.ops.case_result import CaseResult
from serving_ops.bench_e2e.ops.cases import FORWARD, Case
from serving_ops.bench_e2e.ops.contestants import Contestant, copy, eager, inductor, ours
from serving_ops.bench_e2e.ops.runner import measure
from serving_ops.bench_e2e.options import check_variables
from serving_ops.bench_e2e.result_file import save
from serving_ops.bench_e2e.session import FAILED, INTERRUPTED, end_as_if_interrupted

WIDTH_WITHOUT_TERMINAL = 180  # columns: a log takes any, and a dozen contestants need them
NOTHING_TO_MEASURE = 2  # exit status, as for a bad option
SAVE_EVERY = 10  # cases: a run that is killed leaves what it had


def main(words: Sequence[str]) -> int:
    """words: "ops" or "training", and its options. The exit status: 1 if ours failed or was wrong at any size, 2 if
    there was nothing to measure."""
    bench, *argv = words
    options = _parse(bench, argv)
    others, absent = peers.load(bench, peers.adapters_for(bench, options.device, libraries=options.peers))
    available = [ours(), eager(), inductor(), *others, copy()]
    planned = cases.plan(
        bench,
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
    command = environment.command_line(f"python -m serving_ops.bench_e2e {bench}", argv)
    run = result_file.of_run(bench, command, options.device)
    run |= {"contestants": {entrant.name: entrant.version for entrant in entrants}, "absent": absent}
    session = Session(run, entrants, options.out, options.quick)
    for project, reason in absent.items():
        session.say(f"left out: {project} ({reason})")
    not_here = sorted(wanted - {entrant.name for entrant in entrants})
    if not planned or not_here:
        there_are = ", ".join(entrant.name for entrant in available)
        session.say(f"not here: {', '.join(not_here)}; there are {there_are}" if not_here else "no such size here")
        return NOTHING_TO_MEASURE
    end_as_if_interrupted()
    try:
        session.measure(planned)
    except KeyboardInterrupt:
        session.say(f"interrupted; what was measured is in {session.path}")
        return INTERRUPTED
    return FAILED if any(OURS in result.problems for result in session.results) else 0


def _parse(bench: str, argv: Sequence[str]) -> argparse.Namespace:
    """The options. Exits with status 2 and a sentence for what cannot work."""
    parser = argparse.ArgumentParser(prog=f"python -m serving_ops.bench_e2e {bench}", description=__doc__)
    add = parser.add_argument
    regimes = dict.fromkeys(name for device in ("cpu", "cuda") for name in cases.regimes_for(bench, device))
    add("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    add("--regime", type=names, default=(), help=f"of {', '.join(regimes)}")
    add("--op", type=names, default=(), help=f"of {', '.join(cases.ops_of(bench))}")
    add("--sizes", type=shapes, default=(), help="1x4096,8x16x128 (tokens x heads x head_dim), instead of the regimes'")
    add("--dtype", type=names, default=("bfloat16",), help=f"of {', '.join(cases.DTYPES)}")
    add("--threads", type=numbers, default=(1, 2), help="on the CPU; default 1,2")
    add("--contestants", type=names, help="only these, e.g. eager,'vLLM C'; ours always runs")
    add("--peers", action="store_true", help="not only engines' kernels: Quack, FlashInfer, Liger, FLA")
    add("--quick", action="store_true", help="fewer sizes and rounds")
    add("--out", type=Path, help=f"the JSON; default bench_results/{bench}-<device>.json")
    options = parser.parse_args(argv)
    check_variables(parser)
    check_gpu(parser, options.device)
    known = {
        "op": cases.ops_of(bench),
        "regime": cases.regimes_for(bench, options.device),
        "dtype": tuple(cases.DTYPES),
    }
    for option, allowed in known.items():
        unknown = [name for name in getattr(options, option) if name not in allowed]
        if unknown:
            parser.error(f"{', '.join(unknown)}: on {options.device} choose from {', '.join(allowed)}")
    options.out = options.out or _default_path(bench, options.device)
    check_writable(parser, options.out)
    return options


def _default_path(bench: str, device: str) -> Path:
    name = environment.gpu_name() if device == "cuda" else None
    slug = re.sub(r"[^a-z0-9]+", "-", (name or device).lower()).strip("-")
    return Path("bench_results") / f"{bench}-{slug}.json"


@dataclass
class Session:
    """One run. report: what the JSON says beside the results."""

    report: dict[str, Any]
    contestants: Sequence[Contestant]
    path: Path
    quick: bool = False
    results: list[CaseResult] = field(default_factory=list)
    console: Console = field(
        default_factory=lambda: Console(width=None if sys.stdout.isatty() else WIDTH_WITHOUT_TERMINAL)
    )

    def measure(self, planned: Sequence[Case]) -> None:
        """Measures, saves and shows."""
        on_cuda = self.report["device"] == "cuda"
        self.report["copy_tb_s"] = timing_cuda.copy_tb_s() if on_cuda else None
        try:
            self._measure_all(planned)
        finally:  # a device that fails half way takes the rest with it, not what was measured
            written = self.save()
        for block in ops_table.blocks(written):
            block.print(self.console)
        disturbed = sum(result.disturbed for result in self.results)
        if disturbed:
            self.say(f"{disturbed} of {len(self.results)} were timed while other programs used the machine: run again")
        self.say(f"written to {self.path}; as Markdown: {table.COMMAND} {self.path}")

    def save(self) -> dict[str, Any]:
        """The report; `path` is where it lies from now on."""
        made = self.report | {"results": [result.to_json() for result in self.results]}
        self.path = save(made, self.path)
        return made

    def say(self, line: str) -> None:
        self.console.print(line, highlight=False, markup=False, soft_wrap=True)

    def _measure_all(self, planned: Sequence[Case]) -> None:
        start = time.monotonic()
        for number, case in enumerate(planned, start=1):
            result = measure(case, self.contestants, self.report["device"], quick=self.quick)
            self.results.append(result)
            timing_cuda.release_memory()
            self.say(f"[{number}/{len(planned)}, {time.monotonic() - start:.0f} s] {_progress(case, result)}")
            if number % SAVE_EVERY == 0:
                self.save()


def _progress(case: Case, result: CaseResult) -> str:
    threads = f", threads {case.threads}" if case.threads else ""
    passes = "" if case.passes == FORWARD else f", {case.passes}"
    times = ", ".join(f"{name} {ops_table.format_us(summary.median)}" for name, summary in result.times.items())
    disturbed = f" (others used {result.other_cores:.1f} cores)" if result.disturbed else ""
    problems = "".join(
        f"\n    {name}: {reason}" for name, reason in result.problems.items() if not reason.startswith("unsupported")
    )
    return f"{case.regime} {case.op} {case.label}{threads}{passes}: {times}{disturbed}{problems}"
