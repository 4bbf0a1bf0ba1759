"""`python -m serving_ops.bench_e2e ops` and `training`: the ops alone, without and with gradients, against others.

A line as each case is done, and the JSON kept up to date beside it.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from serving_ops.bench_e2e import environment, result_file
from serving_ops.bench_e2e.comparison import OURS
from serving_ops.bench_e2e.ops import cases, ops_table, peers, timing
from serving_ops.bench_e2e.ops.cases import Case
from serving_ops.bench_e2e.ops.contestants import Contestant, copy, eager, inductor, ours
from serving_ops.bench_e2e.ops.runner import measure
from serving_ops.bench_e2e.options import COMMAND, check_gpu, check_variables, check_writable, names, numbers, shapes
from serving_ops.bench_e2e.session import FAILED


def main(bench: str, argv: Sequence[str]) -> int:
    """bench: "ops" or "training". The exit status is 1 if ours failed or was wrong at any size."""
    parser, chosen = _parse(bench, argv)
    others, absent = peers.load(peers.adapters_for(bench, chosen.device, libraries=chosen.peers))
    known = (ours(), eager(), inductor(), *others, copy())
    available = {one.name: one for one in known if (one.call if bench == "ops" else one.norm)}
    for project, reason in absent.items():
        print(f"left out: {project} ({reason})")
    if not_here := [name for name in chosen.contestants or () if name not in available]:
        parser.error(f"not here: {', '.join(not_here)}; there are {', '.join(available)}")
    entrants = [one for name, one in available.items() if name in (chosen.contestants or available) or name == OURS]
    given = {"ops": chosen.op, "shapes": chosen.sizes, "dtypes": chosen.dtype, "threads": chosen.threads}
    planned = cases.plan(bench, chosen.device, chosen.regime, **given)
    if not planned:
        there = ", ".join(cases.regimes_for(bench, chosen.device))
        parser.error(f"no such size here: on {chosen.device} there are {there}")
    run = result_file.of_run(bench, environment.command_line(f"{COMMAND} {bench}", argv), chosen.device)
    run |= {"contestants": {entrant.name: entrant.version for entrant in entrants}, "absent": absent}
    run |= {"copy_tb_s": timing.copy_tb_s() if chosen.device == "cuda" else None, "results": []}
    _measure(planned, entrants, run, chosen.out)
    return FAILED if any(OURS in result["problems"] for result in run["results"]) else 0


ops, training = partial(main, "ops"), partial(main, "training")


def _parse(bench: str, argv: Sequence[str]) -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    """The options, and their parser. Exits with status 2 and a sentence for what cannot work."""
    parser = argparse.ArgumentParser(prog=f"{COMMAND} {bench}", description=__doc__)
    add = parser.add_argument
    regimes, by_op = cases.regimes_for(bench, "cpu", "cuda"), cases.ops_of(bench)
    add("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    add("--regime", type=names(*regimes), default=(), help=f"of {', '.join(regimes)}")
    add("--op", type=names(*by_op), default=(), help=f"of {', '.join(by_op)}")
    add("--dtype", type=names(*cases.DTYPES), default=("bfloat16",), help=f"of {', '.join(cases.DTYPES)}")
    add("--sizes", type=shapes, default=(), help="1x4096,8x16x128 (tokens x heads x head_dim), instead of the regimes'")
    add("--threads", type=numbers, default=(1, 2), help="on the CPU; default 1,2")
    add("--contestants", type=names(), help="only these, e.g. eager,'vLLM C'; ours always runs")
    add("--peers", action="store_true", help="not only engines' kernels: Quack, FlashInfer, Liger, FLA")
    add("--out", type=Path, help=f"the JSON; default bench_results/{bench}-<device>.json")
    chosen = parser.parse_args(argv)
    check_variables(parser)
    check_gpu(parser, chosen.device)
    chosen.out = chosen.out or Path("bench_results") / f"{bench}-{chosen.device}.json"
    check_writable(parser, chosen.out)
    return parser, chosen


def _measure(planned: Sequence[Case], contestants: Sequence[Contestant], run: dict[str, Any], out: Path) -> None:
    """Fills the run's results and shows them. Each is saved at once, since a device that fails takes the rest."""
    start = time.monotonic()
    for number, case in enumerate(planned, start=1):
        run["results"].append(measure(case, contestants, run["device"]))
        out = result_file.save(run, out)
        torch.cuda.empty_cache()  # what the last graphs held: the largest cases need most of the device
        done = f"{number}/{len(planned)}, {time.monotonic() - start:.0f} s"
        print(f"[{done}] {ops_table.line(run['results'][-1])}", flush=True)
    print(f"\n{ops_table.markdown(run)}\n\nwritten to {out}")
