"""One case: bind everyone, check everyone, then time those that are right, alternating."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

import serving_ops
from serving_ops.bench_e2e.comparison import OURS
from serving_ops.bench_e2e.ops import timing_cpu, timing_cuda
from serving_ops.bench_e2e.ops.between_gemms import Chain, bind_chain, time_between_gemms
from serving_ops.bench_e2e.ops.case_result import CaseResult, first_line
from serving_ops.bench_e2e.ops.cases import FORWARD, Case
from serving_ops.bench_e2e.ops.check import checker
from serving_ops.bench_e2e.ops.contestants import Call, Contestant, Unsupported, variants
from serving_ops.bench_e2e.ops.inputs import Inputs, make_inputs
from serving_ops.bench_e2e.ops.machine_load import DISTURBING, OtherLoad
from serving_ops.bench_e2e.ops.rope_plans import plans
from serving_ops.bench_e2e.ops.round_robin import Samples

TRIES = 2  # of the timing of one case
OF_OURS = {"variants": variants, "rope-plans": plans}
"""Regime -> who takes part, where ours is compared with itself."""


@dataclass
class Field:
    """Who takes part in a case, each with a call for every set of tensors, and why the others do not."""

    contestants: dict[str, Contestant] = field(default_factory=dict)
    calls: dict[str, list[Call]] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)

    def drop(self, name: str, reason: str) -> None:
        self.problems[name] = reason
        self.calls.pop(name, None)


def measure(case: Case, contestants: Sequence[Contestant], device: str, *, quick: bool = False) -> CaseResult:
    """Raises nothing for a contestant that fails: its reason is in the result's problems.

    In a regime that compares ours with itself, nobody else takes part.
    """
    if case.threads is not None:
        torch.set_num_threads(case.threads)
    trained = case.passes != FORWARD
    present = OF_OURS[case.regime]() if case.regime in OF_OURS else contestants
    # A backward pass runs on the stream of its forward pass, which so must be the one that is captured.
    stream = torch.cuda.Stream() if trained and device == "cuda" else None
    with torch.set_grad_enabled(trained), torch.cuda.stream(stream):  # type: ignore[arg-type]
        sets: dict[Case, list[Inputs]] = {}
        entered = _enter(case, present, device, sets)
        if device == "cpu":
            first_calls = {name: calls[0] for name, calls in entered.calls.items()}
            samples, other_cores = time_in_calm(lambda: timing_cpu.time_calls(first_calls, quick=quick))
        else:  # the device's time does not depend on who uses the host
            samples, other_cores = _time_on_cuda(case, entered, stream), None
        path = _path(case, sets[case][0]) if OURS in entered.calls and not trained else None
    return CaseResult(case, path, samples, entered.problems, tuple(entered.contestants), other_cores)


def _path(case: Case, inputs: Inputs) -> str:
    options = {} if case.fmt is None else {"fmt": case.fmt}
    if inputs.call:
        return serving_ops.explain(case.op, **inputs.call).path
    return serving_ops.explain(case.op, *inputs.arguments, **options).path


def time_in_calm(work: Callable[[], Samples]) -> tuple[Samples, float | None]:
    """Once more if other programs disturbed it; the calmer of the two, and the cores that the others used."""
    tries = []
    for _ in range(TRIES):
        load = OtherLoad()
        samples = work()
        cores = load.cores()
        tries.append((samples, cores))
        if cores is None or cores <= DISTURBING:
            break
    return min(tries, key=lambda taken: taken[1] or 0.0)


def _enter(case: Case, contestants: Sequence[Contestant], device: str, sets: dict[Case, list[Inputs]]) -> Field:
    entered = Field(contestants={contestant.name: contestant for contestant in contestants})
    checks: dict[Case, Callable[[Call], str | None]] = {}
    for contestant in contestants:
        own = contestant.case(case)
        if own not in sets:
            sets[own] = _make_sets(own, device)
            checks[own] = checker(own, sets[own][0])
        try:
            calls = [contestant.bind(own, inputs) for inputs in sets[own]]
            wrong = checks[own](calls[0]) if contestant.computes else None
        except Unsupported as reason:
            wrong = f"unsupported: {reason}"
        except Exception as error:  # another project's kernel may fail in any way; the others are still measured
            wrong = f"failed: {first_line(error)}"
        if wrong is None:
            entered.calls[contestant.name] = calls
        else:
            entered.problems[contestant.name] = wrong
    return entered


def _make_sets(case: Case, device: str) -> list[Inputs]:
    first = make_inputs(case, device)
    if device == "cpu" or case.regime in ("host", "gemm"):
        return [first]
    count = timing_cuda.sets_for(first.bytes, timing_cuda.l2_bytes(), trained=case.passes != FORWARD)
    return [first, *(make_inputs(case, device) for _ in range(count - 1))]


def _time_on_cuda(case: Case, entered: Field, stream: torch.cuda.Stream | None) -> Samples:
    if not entered.calls:
        return {}
    if case.regime == "host":
        return timing_cuda.time_host({name: calls[0] for name, calls in entered.calls.items()})
    if case.regime == "gemm":
        return _time_between_gemms(case, entered)
    sets = len(next(iter(entered.calls.values())))
    count = timing_cuda.calls_for(case.bytes_moved, sets)
    # Eager's backward pass takes 30 GiB for one call at 32768 x 32768, so that the graphs have to share a pool.
    pool = torch.cuda.graph_pool_handle() if stream else None
    graphs = _capture_each(
        entered, lambda name: timing_cuda.capture(entered.calls[name], count, stream=stream, pool=pool)
    )
    return timing_cuda.time_graphs(graphs, count)


def _time_between_gemms(case: Case, entered: Field) -> Samples:
    chain = Chain(case)
    graphs = _capture_each(entered, lambda name: chain.graph(bind_chain(entered.contestants[name], case, chain)))
    return time_between_gemms(chain.graph(None), graphs)


def _capture_each(entered: Field, capture: Callable[[str], torch.cuda.CUDAGraph]) -> dict[str, torch.cuda.CUDAGraph]:
    graphs = {}
    for name in list(entered.calls):
        try:
            graphs[name] = capture(name)
        except Exception as error:  # a call that synchronises cannot be captured: say so, go on
            entered.drop(name, f"failed in graph capture: {first_line(error)}")
    return graphs
