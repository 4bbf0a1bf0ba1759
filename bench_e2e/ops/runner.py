"""One case: bind everyone, check everyone, then time those that are right, alternating."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import torch

import serving_ops
from serving_ops.bench_e2e.comparison import OURS
from serving_ops.bench_e2e.ops import timing
from serving_ops.bench_e2e.ops.cases import FORWARD, Case
from serving_ops.bench_e2e.ops.check import problem
from serving_ops.bench_e2e.ops.contestants import Call, Contestant, Unsupported, calls, plans, variants
from serving_ops.bench_e2e.ops.inputs import Inputs, make_inputs
from serving_ops.bench_e2e.ops.peers import first_line
from serving_ops.bench_e2e.ops.timing import Samples
from serving_ops.bench_e2e.stats import median_ratio, quartiles

OF_OURS = {"variants": variants, "calls": calls, "rope-plans": plans}
"""Regime -> who takes part, where ours is compared with itself."""


def measure(case: Case, contestants: Sequence[Contestant], device: str) -> dict[str, Any]:
    """What the JSON says of a case. Times are microseconds a call: of the host in "host", added in "gemm", of the
    device elsewhere; ratios are a contestant's time over ours, round by round.

    Raises nothing for a contestant that fails: its reason is in "problems". In a regime that compares ours with itself,
    nobody else takes part.
    """
    if case.threads is not None:
        torch.set_num_threads(case.threads)
    present = {one.name: one for one in (OF_OURS[case.regime]() if case.regime in OF_OURS else contestants)}
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
        "times": {name: _times(values) for name, values in samples.items()},
        "ratios": {name: {"median": round(ratio, 4)} for name, ratio in ratios.items() if ratio},
        "problems": problems,
    }


def _times(values: Sequence[float]) -> dict[str, float]:
    low, median, high = (round(value, 4) for value in quartiles(values))
    return {"median_us": median, "p25_us": low, "p75_us": high, "rounds": len(values)}


def _enter(contestant: Contestant, case: Case, sets: Callable[[Case], list[Inputs]]) -> list[Call] | str:
    """Its call for every set of tensors of its case, or why it is not timed."""
    try:
        calls = [contestant.bind(case, inputs) for inputs in sets(case)]
        wrong = problem(case, sets(case)[0], calls[0]) if contestant.computes else None
    except Unsupported as reason:
        return f"unsupported: {reason}"
    except Exception as error:  # another project's kernel may fail in any way; the others are still measured
        return f"failed: {first_line(error)}"
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
) -> Samples:
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
            problems[name] = f"failed in graph capture: {first_line(error)}"
    if case.regime == "gemm":
        return timing.time_between_products(graphs)
    return timing.time_graphs(graphs, max(map(len, calls.values()), default=1))
