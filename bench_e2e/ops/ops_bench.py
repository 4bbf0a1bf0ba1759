"""`python -m serving_ops.bench_e2e ops` and `training`: the ops alone, without and with gradients, against others.

Of a case, everyone is bound, everyone checked, and those that are right are timed, alternating. A line as each case is
done, and the JSON kept up to date beside it.
"""

import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

import serving_ops
from serving_ops.bench_e2e import options, result_file
from serving_ops.bench_e2e.comparison import OURS
from serving_ops.bench_e2e.ops import cases, contestants, ops_table, peers, timing
from serving_ops.bench_e2e.ops.cases import FORWARD, Case
from serving_ops.bench_e2e.ops.check import problem
from serving_ops.bench_e2e.ops.contestants import OF_OURS, Call, Contestant, Unsupported
from serving_ops.bench_e2e.ops.inputs import Inputs, make_inputs
from serving_ops.bench_e2e.session import FAILED
from serving_ops.bench_e2e.stats import median_ratio, quartiles


def main(bench: str, argv: Sequence[str]) -> int:
    """bench: "ops" or "training". The exit status is 1 if ours failed or was wrong at any size."""
    parser = options.parser(bench, __doc__)
    add = parser.add_argument
    regimes, by_op = cases.regimes_for(bench, "cpu", "cuda"), cases.ops_of(bench)
    add("--regime", type=options.names(*regimes), default=(), help=f"of {', '.join(regimes)}")
    add("--op", type=options.names(*by_op), default=(), help=f"of {', '.join(by_op)}")
    add("--dtype", type=options.names(*cases.DTYPES), default=("bfloat16",), help=f"of {', '.join(cases.DTYPES)}")
    add("--sizes", type=options.shapes, default=(), help="instead of the regimes', such as 1x4096,8x16x128")
    add("--threads", type=options.numbers, default=(1, 2), help="on the CPU; default 1,2")
    add("--contestants", type=options.names(), help="only these, e.g. eager,'vLLM C'; ours always runs")
    add("--peers", action="store_true", help="not only engines' kernels: Quack, FlashInfer, Liger, FLA")
    chosen = options.parse_without_engine(parser, argv)
    there = cases.regimes_for(bench, chosen.device)
    if elsewhere := [name for name in chosen.regime if name not in there]:
        parser.error(f"--regime {','.join(elsewhere)}: on {chosen.device} there are {', '.join(there)}")
    others, absent = peers.load(peers.adapters_for(bench, chosen.device, libraries=chosen.peers))
    known = (contestants.ours, contestants.eager, contestants.inductor, *others, contestants.copy)
    available = {one.name: one for one in known if (one.call if bench == "ops" else one.norm)}
    for project, reason in absent.items():
        print(f"left out: {project} ({reason})")
    if not_here := [name for name in chosen.contestants or () if name not in available]:
        parser.error(f"not here: {', '.join(not_here)}; there are {', '.join(available)}")
    entrants = [one for name, one in available.items() if name in (chosen.contestants or available) or name == OURS]
    given = {"ops": chosen.op, "shapes": chosen.sizes, "dtypes": chosen.dtype, "threads": chosen.threads}
    planned = cases.plan(bench, chosen.device, chosen.regime, **given)
    if not planned:
        parser.error("no such size here")
    run = result_file.of_run(bench, argv, chosen.device)
    run |= {"contestants": {entrant.name: entrant.version for entrant in entrants}, "absent": absent}
    run |= {"copy_tb_s": timing.copy_tb_s() if chosen.device == "cuda" else None, "results": []}
    _measure(planned, entrants, run, chosen.out)
    return FAILED if any(OURS in result["problems"] for result in run["results"]) else 0


ops, training = functools.partial(main, "ops"), functools.partial(main, "training")


def _measure(planned: Sequence[Case], entrants: Sequence[Contestant], run: dict[str, Any], out: Path) -> None:
    """Fills the run's results and shows them. Each is saved at once, since a device that fails takes the rest."""
    start = time.monotonic()
    for number, case in enumerate(planned, start=1):
        run["results"].append(measure(case, entrants, run["device"]))
        out = result_file.save(run, out)
        torch.cuda.empty_cache()  # what the last graphs held: the largest cases need most of the device
        done = f"{number}/{len(planned)}, {time.monotonic() - start:.0f} s"
        print(f"[{done}] {ops_table.line(run['results'][-1])}", flush=True)
    print(f"\n{ops_table.markdown(run)}\n\nwritten to {out}")


def measure(case: Case, entrants: Sequence[Contestant], device: str) -> dict[str, Any]:
    """What the JSON says of a case. Times are microseconds a call: of the host in "host", added in "gemm", of the
    device elsewhere; ratios are a contestant's time over ours, round by round.

    Raises nothing for a contestant that fails: its reason is in "problems". In a regime that compares ours with itself,
    nobody else takes part.
    """
    if case.threads is not None:
        torch.set_num_threads(case.threads)
    present = {one.name: one for one in OF_OURS.get(case.regime, entrants)}
    stream = torch.cuda.Stream() if device == "cuda" else None
    with torch.set_grad_enabled(case.passes != FORWARD), torch.cuda.stream(stream):  # type: ignore[arg-type]
        sets = functools.cache(lambda own: _make_sets(own, device))
        entered = {name: _enter(one, one.case(case), sets) for name, one in present.items()}
        problems = {name: wrong for name, wrong in entered.items() if isinstance(wrong, str)}
        calls = {name: bound for name, bound in entered.items() if not isinstance(bound, str)}
        samples = _timed(case, calls, present, device, problems)
        explained = case.passes == FORWARD and OURS in calls
        path = serving_ops.explain(case.op, **sets(case)[0].call).path if explained else None
    ours = samples.get(OURS)
    ratios = {name: median_ratio(ours, values) for name, values in samples.items() if ours and name != OURS}
    return {
        **asdict(case),
        "bytes_moved": case.bytes_moved,
        "path": path,  # how ours ran it: "cpu", "triton.row", "reference", ...
        "contestants": list(present),  # in the order in which the tables show them
        "times": {name: quartiles(values) for name, values in samples.items()},
        "ratios": {name: {"median": round(ratio, 4)} for name, ratio in ratios.items() if ratio},
        "problems": problems,
    }


def _enter(contestant: Contestant, case: Case, sets: Callable[[Case], list[Inputs]]) -> list[Call] | str:
    """Its call for every set of tensors of its case, or why it is not timed."""
    try:
        calls = [contestant.bind(case, inputs) for inputs in sets(case)]
        wrong = problem(case, sets(case)[0], calls[0]) if contestant.computes else None
    except Unsupported as reason:
        return f"unsupported: {reason}"
    except Exception as error:  # another project's kernel may fail in any way; the others are still measured
        return f"failed: {peers.first_line(error)}"
    return wrong or calls


def _make_sets(case: Case, device: str) -> list[Inputs]:
    first = make_inputs(case, device)
    if device == "cpu" or case.regime in ("host", "gemm"):
        return [first]
    l2 = torch.cuda.get_device_properties(torch.cuda.current_device()).L2_cache_size
    count = timing.sets_for(first.bytes, l2, trained=case.passes != FORWARD)
    return [first, *(make_inputs(case, device) for _ in range(count - 1))]


def _timed(
    case: Case, calls: dict[str, list[Call]], present: dict[str, Contestant], device: str, problems: dict[str, str]
) -> timing.Samples:
    if device == "cpu" or case.regime == "host":
        time = timing.time_on_cpu if device == "cpu" else timing.time_host
        return time({name: of_sets[0] for name, of_sets in calls.items()})
    if case.regime == "gemm":
        chain = timing.chains(case)
        calls = {name: chain(present.get(name)) for name in (*calls, timing.BARE)}
    else:
        calls = {name: of_sets * timing.times_for(case.bytes_moved, len(of_sets)) for name, of_sets in calls.items()}
    pool = torch.cuda.graph_pool_handle() if case.passes != FORWARD else None
    graphs = {}
    for name, in_a_graph in calls.items():
        try:
            graphs[name] = timing.capture(in_a_graph, pool)
        except Exception as error:  # a call that synchronises cannot be captured: say so, go on
            problems[name] = f"failed in graph capture: {peers.first_line(error)}"
    if case.regime == "gemm":
        return timing.time_between_products(graphs)
    return timing.time_graphs(graphs, max(map(len, calls.values()), default=1))
