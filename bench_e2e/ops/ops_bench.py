"""`python -m serving_ops.bench_e2e ops` and `training`: the ops alone, without and with gradients, against others.

A line as each case is done, and the JSON kept up to date beside it.
"""

from __future__ import annotations

import argparse
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from serving_ops.bench_e2e import environment, result_file, table
from serving_ops.bench_e2e.comparison import OURS
from serving_ops.bench_e2e.ops import cases, ops_table, peers, timing
from serving_ops.bench_e2e.ops.cases import FORWARD, Case
from serving_ops.bench_e2e.ops.contestants import Contestant, copy, eager, inductor, ours
from serving_ops.bench_e2e.ops.runner import CaseResult, measure
from serving_ops.bench_e2e.options import COMMAND, check_gpu, check_variables, check_writable, names, numbers, shapes
from serving_ops.bench_e2e.session import FAILED, INTERRUPTED, end_as_if_interrupted

WIDTH_WITHOUT_TERMINAL = 180  # columns: a log takes any, and a dozen contestants need them
NOTHING_TO_MEASURE = 2  # exit status, as for a bad option
SAVE_EVERY = 10  # cases: a run that is killed leaves what it had


def main(words: Sequence[str]) -> int:
    """words: "ops" or "training", and its options. The exit status: 1 if ours failed or was wrong at any size, 2 if
    there was nothing to measure."""
    bench, *argv = words
    chosen = _parse(bench, argv)
    others, absent = peers.load(peers.adapters_for(bench, chosen.device, libraries=chosen.peers))
    available = [ours(), eager(), inductor(), *others, copy()]
    wanted = {OURS, *(chosen.contestants or [entrant.name for entrant in available])}
    entrants = [entrant for entrant in available if entrant.name in wanted]
    planned = cases.plan(
        *(bench, chosen.device, chosen.regime),
        **{"ops": chosen.op, "shapes": chosen.sizes, "dtypes": chosen.dtype},
        **{"threads": chosen.threads, "quick": chosen.quick},
    )
    run = result_file.of_run(bench, environment.command_line(f"{COMMAND} {bench}", argv), chosen.device)
    run |= {"contestants": {entrant.name: entrant.version for entrant in entrants}, "absent": absent}
    session = Session(run, entrants, chosen.out, chosen.quick)
    for project, reason in absent.items():
        session.say(f"left out: {project} ({reason})")
    if not_here := sorted(wanted - {entrant.name for entrant in entrants}):
        session.say(f"not here: {', '.join(not_here)}; there are {', '.join(entrant.name for entrant in available)}")
        return NOTHING_TO_MEASURE
    if not planned:
        session.say("no such size here")
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
    parser = argparse.ArgumentParser(prog=f"{COMMAND} {bench}", description=__doc__)
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
    chosen = parser.parse_args(argv)
    check_variables(parser)
    check_gpu(parser, chosen.device)
    known = {"op": cases.ops_of(bench), "regime": cases.regimes_for(bench, chosen.device), "dtype": tuple(cases.DTYPES)}
    for option, allowed in known.items():
        if unknown := [name for name in getattr(chosen, option) if name not in allowed]:
            parser.error(f"{', '.join(unknown)}: on {chosen.device} choose from {', '.join(allowed)}")
    on = (environment.gpu_name() if chosen.device == "cuda" else None) or chosen.device
    slug = re.sub(r"[^a-z0-9]+", "-", on.lower()).strip("-")
    chosen.out = chosen.out or Path("bench_results") / f"{bench}-{slug}.json"
    check_writable(parser, chosen.out)
    return chosen


class Session:
    """One run. report: what the JSON says beside the results; `path`: where it lies."""

    def __init__(self, report: dict[str, Any], contestants: Sequence[Contestant], path: Path, quick: bool) -> None:
        self.report, self.contestants, self.path, self.quick = report, contestants, path, quick
        self.results: list[CaseResult] = []
        self.console = Console(width=None if sys.stdout.isatty() else WIDTH_WITHOUT_TERMINAL)

    def measure(self, planned: Sequence[Case]) -> None:
        """Measures, saves and shows."""
        start, device = time.monotonic(), self.report["device"]
        self.report["copy_tb_s"] = timing.copy_tb_s() if device == "cuda" else None
        try:
            for number, case in enumerate(planned, start=1):
                self.results.append(measure(case, self.contestants, device, quick=self.quick))
                torch.cuda.empty_cache()  # what the last graphs held: the largest cases need most of the device
                done = f"{number}/{len(planned)}, {time.monotonic() - start:.0f} s"
                self.say(f"[{done}] {_progress(self.results[-1])}")
                if number % SAVE_EVERY == 0:
                    self.save()
        finally:  # a device that fails half way takes the rest with it, not what was measured
            written = self.save()
        for block in ops_table.blocks(written):
            block.print(self.console)
        self.say(f"written to {self.path}; as Markdown: {table.COMMAND} {self.path}")

    def save(self) -> dict[str, Any]:
        made = self.report | {"results": [result.to_json() for result in self.results]}
        self.path = result_file.save(made, self.path)
        return made

    def say(self, line: str) -> None:
        self.console.print(line, highlight=False, markup=False, soft_wrap=True)


def _progress(result: CaseResult) -> str:
    case = result.case
    threads = f", threads {case.threads}" if case.threads else ""
    passes = "" if case.passes == FORWARD else f", {case.passes}"
    times = ", ".join(f"{name} {ops_table.format_us(summary.median)}" for name, summary in result.times.items())
    failed = {name: why for name, why in result.problems.items() if not why.startswith("unsupported")}
    problems = "".join(f"\n    {name}: {why}" for name, why in failed.items())
    return f"{case.regime} {case.op} {case.label}{threads}{passes}: {times}{problems}"
