"""One case: bind everyone, check everyone, then time both passes of those that are right, alternating."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch

from serving_ops.bench_e2e.ops import timing_cpu, timing_cuda
from serving_ops.bench_e2e.ops.contestants import Call, Unsupported
from serving_ops.bench_e2e.ops.results import CaseResult, case_result, first_line
from serving_ops.bench_e2e.ops.rounds import Samples
from serving_ops.bench_e2e.ops.runner import time_in_calm
from serving_ops.bench_e2e.training.cases import BACKWARD, BOTH, PASSES, TrainingCase
from serving_ops.bench_e2e.training.check import Exact
from serving_ops.bench_e2e.training.contestants import Contestant, Norm
from serving_ops.bench_e2e.training.inputs import Inputs, make_inputs

MOST_SETS = 64  # of tensors on CUDA; where they are less than the L2 multiplied, the rows stay in it


@dataclass
class Field:
    """Who takes part in a case, each with a call a pass for every set of tensors, and why the others do not."""

    calls: dict[str, dict[str, list[Call]]] = field(default_factory=lambda: {passes: {} for passes in PASSES})
    problems: dict[str, str] = field(default_factory=dict)


def measure(
    case: TrainingCase, contestants: Sequence[Contestant], device: str, *, quick: bool = False
) -> list[CaseResult]:
    """A result for each of PASSES. Raises nothing for a contestant that fails: its reason is in the problems."""
    if device == "cuda":
        return _measure_on_cuda(case, contestants)
    torch.set_num_threads(case.threads or torch.get_num_threads())
    entered = _enter(case, contestants, [make_inputs(case, device)])
    results = []
    for passes in PASSES:
        calls = {name: of_sets[0] for name, of_sets in entered.calls[passes].items()}
        samples, other_cores = time_in_calm(lambda calls=calls: timing_cpu.time_calls(calls, quick=quick))  # type: ignore[misc]
        results.append(_result(case, passes, contestants, entered, samples, other_cores))
    return results


def _measure_on_cuda(case: TrainingCase, contestants: Sequence[Contestant]) -> list[CaseResult]:
    first = make_inputs(case, "cuda")
    sets = [first, *(make_inputs(case, "cuda") for _ in range(sets_for(first.bytes, timing_cuda.l2_bytes()) - 1))]
    torch.cuda.synchronize()
    # A backward pass runs on the stream of its forward pass, which so must be the one that is captured.
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        entered = _enter(case, contestants, sets)
        timed = [(passes, _time_on_cuda(replace(case, passes=passes), entered, stream)) for passes in PASSES]
    return [_result(case, passes, contestants, entered, samples, None) for passes, samples in timed]


def sets_for(set_bytes: int, l2: int) -> int:
    """Several times the L2: what a backward pass reads, its forward pass left there long ago."""
    return min(MOST_SETS, max(1, -(-timing_cuda.L2_MULTIPLE * l2 // set_bytes)))


def _enter(case: TrainingCase, contestants: Sequence[Contestant], sets: Sequence[Inputs]) -> Field:
    entered = Field()
    exact = Exact(case, sets[0])
    for contestant in contestants:
        try:
            norm = contestant.norm(case)
            bound = [_bind(norm, _own(contestant, inputs)) for inputs in sets]
            wrong = exact.problem(case, bound[0][BOTH]())
            bound[0][BACKWARD]()
        except Unsupported as reason:
            wrong = f"unsupported: {reason}"
        except Exception as error:  # another project's kernel may fail in any way; the others are still measured
            wrong = f"failed: {first_line(error)}"
        if wrong is None:
            for passes in PASSES:
                entered.calls[passes][contestant.name] = [calls[passes] for calls in bound]
        else:
            entered.problems[contestant.name] = wrong
    return entered


def _own(contestant: Contestant, inputs: Inputs) -> Inputs:
    if not contestant.overwrites_dout:
        return inputs
    return replace(inputs, douts=tuple(dout.clone() for dout in inputs.douts))


def _bind(norm: Norm, inputs: Inputs) -> dict[str, Call]:
    leaves, douts = inputs.leaves, inputs.douts
    results = norm(*leaves)

    def backward() -> tuple[torch.Tensor, ...]:
        return torch.autograd.grad(results, leaves, douts, retain_graph=True)

    def both() -> tuple[torch.Tensor, ...]:
        return torch.autograd.grad(norm(*leaves), leaves, douts)

    return {BACKWARD: backward, BOTH: both}


def _time_on_cuda(case: TrainingCase, entered: Field, stream: torch.cuda.Stream) -> Samples:
    calls, graphs, count = entered.calls[case.passes], {}, 0
    pool = torch.cuda.graph_pool_handle()  # of all graphs: eager takes 30 GiB for one call at 32768 x 32768
    for name, of_sets in list(calls.items()):
        count = timing_cuda.calls_for(case.bytes_moved, len(of_sets))
        try:
            graphs[name] = timing_cuda.capture(of_sets, count, stream=stream, pool=pool)
        except Exception as error:  # a call that synchronises cannot be captured: say so, go on
            entered.problems[name] = f"failed in graph capture: {first_line(error)}"
    return timing_cuda.time_graphs(graphs, count) if graphs else {}


def _result(
    case: TrainingCase,
    passes: str,
    contestants: Sequence[Contestant],
    entered: Field,
    samples: Samples,
    other_cores: float | None,
) -> CaseResult:
    names = tuple(contestant.name for contestant in contestants)
    return case_result(replace(case, passes=passes), None, samples, entered.problems, names, other_cores)
