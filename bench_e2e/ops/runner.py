"""One case: bind everyone, check everyone, then time those that are right, alternating."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

import serving_ops
from serving_ops.bench_e2e.ops import timing_cpu, timing_cuda
from serving_ops.bench_e2e.ops.between_gemms import Chain, bind_chain, time_between_gemms
from serving_ops.bench_e2e.ops.cases import Case
from serving_ops.bench_e2e.ops.check import problem
from serving_ops.bench_e2e.ops.contestants import OURS, Call, Contestant, Unsupported, variants
from serving_ops.bench_e2e.ops.inputs import Inputs, make_inputs
from serving_ops.bench_e2e.ops.load import DISTURBING, OtherLoad
from serving_ops.bench_e2e.ops.results import CaseResult, case_result, first_line
from serving_ops.bench_e2e.ops.rounds import Samples

TRIES = 2  # of the timing of one case


@dataclass
class Field:
    """Who takes part in a case, each with a call for every set of tensors, and why the others do not."""

    contestants: dict[str, Contestant] = field(default_factory=dict)
    calls: dict[str, list[Call]] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)

    def drop(self, name: str, reason: str) -> None:
        self.problems[name] = reason
        self.calls.pop(name, None)


def measure_case(
    case: Case, contestants: Sequence[Contestant], device: str, *, quick: bool = False
) -> list[CaseResult]:
    """Of ours alone in the regime that compares its own variants. Raises nothing for a contestant that fails."""
    return [measure(case, variants() if case.regime == "variants" else contestants, device, quick=quick)]


@torch.no_grad()
def measure(case: Case, contestants: Sequence[Contestant], device: str, *, quick: bool = False) -> CaseResult:
    """Raises nothing for a contestant that fails: its reason is in the result's problems."""
    if case.threads is not None:
        torch.set_num_threads(case.threads)
    sets: dict[Case, list[Inputs]] = {}
    entered = _enter(case, contestants, device, sets)
    if device == "cpu":
        first_calls = {name: calls[0] for name, calls in entered.calls.items()}
        samples, other_cores = time_in_calm(lambda: timing_cpu.time_calls(first_calls, quick=quick))
    else:  # the device's time does not depend on who uses the host
        samples, other_cores = _time_on_cuda(case, entered), None
    path = _path(case, sets[case][0]) if OURS in entered.calls else None
    return case_result(case, path, samples, entered.problems, tuple(entered.contestants), other_cores)


def _path(case: Case, inputs: Inputs) -> str:
    options = {} if case.fmt is None else {"fmt": case.fmt}
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
    for contestant in contestants:
        own = contestant.case(case)
        if own not in sets:
            sets[own] = _make_sets(own, device)
        try:
            calls = [contestant.bind(own, inputs) for inputs in sets[own]]
            wrong = problem(own, sets[own][0], calls[0])
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
    count = timing_cuda.sets_for(first.bytes, timing_cuda.l2_bytes())
    return [first, *(make_inputs(case, device) for _ in range(count - 1))]


def _time_on_cuda(case: Case, entered: Field) -> Samples:
    if not entered.calls:
        return {}
    if case.regime == "host":
        return timing_cuda.time_host({name: calls[0] for name, calls in entered.calls.items()})
    if case.regime == "gemm":
        return _time_between_gemms(case, entered)
    sets = len(next(iter(entered.calls.values())))
    count = timing_cuda.calls_for(case.bytes_moved, sets)
    graphs = _capture_each(entered, lambda name: timing_cuda.capture(entered.calls[name], count))
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
