"""One case: bind everyone, check everyone, then time those that are right, alternating."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

import serving_ops
from serving_ops.bench_e2e.comparison import OURS
from serving_ops.bench_e2e.ops import timing
from serving_ops.bench_e2e.ops.between_gemms import time_between_gemms
from serving_ops.bench_e2e.ops.cases import FORWARD, Case
from serving_ops.bench_e2e.ops.check import checker
from serving_ops.bench_e2e.ops.contestants import Call, Contestant, Unsupported, variants
from serving_ops.bench_e2e.ops.inputs import Inputs, make_inputs
from serving_ops.bench_e2e.ops.peers import first_line
from serving_ops.bench_e2e.ops.rope_plans import plans
from serving_ops.bench_e2e.ops.timing import Samples
from serving_ops.bench_e2e.stats import Summary, ratio_to, summarize

OF_OURS = {"variants": variants, "rope-plans": plans}
"""Regime -> who takes part, where ours is compared with itself."""


@dataclass(frozen=True)
class CaseResult:
    """Times are microseconds a call: of the host in "host", added in "gemm", of the device elsewhere."""

    case: Case
    path: str | None  # how ours ran it: "cpu", "triton.row", "reference", ...
    samples: Samples
    problems: Mapping[str, str]  # why a contestant has no time
    contestants: tuple[str, ...]  # in the order in which the tables show them

    @property
    def times(self) -> dict[str, Summary]:
        return {name: summarize(values) for name, values in self.samples.items()}

    @property
    def ratios(self) -> dict[str, Summary]:
        """A contestant's time over ours, round by round: above 1 ours is faster."""
        others = {name: values for name, values in self.samples.items() if name != OURS and OURS in self.samples}
        found = {name: ratio_to(self.samples[OURS], values) for name, values in others.items()}
        return {name: ratio for name, ratio in found.items() if ratio is not None}

    def to_json(self) -> dict[str, Any]:
        return {
            **asdict(self.case),
            "bytes_moved": self.case.bytes_moved,
            "path": self.path,
            "contestants": list(self.contestants),
            "times": {name: _rounded(summary, "_us") for name, summary in self.times.items()},
            "ratios": {name: _rounded(summary) for name, summary in self.ratios.items()},
            "problems": dict(self.problems),
        }


def _rounded(summary: Summary, unit: str = "") -> dict[str, float]:
    values = {key: round(value, 4) for key, value in asdict(summary).items()}
    return {key if key == "rounds" else f"{key}{unit}": value for key, value in values.items()}


@dataclass
class Field:
    """Who takes part in a case, each with a call for every set of tensors, and why the others do not."""

    contestants: dict[str, Contestant]
    calls: dict[str, list[Call]] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)

    def graphs(self, capture: Callable[[str], torch.cuda.CUDAGraph]) -> dict[str, torch.cuda.CUDAGraph]:
        """Of those that can be captured; the others are dropped."""
        graphs = {}
        for name in list(self.calls):
            try:
                graphs[name] = capture(name)
            except Exception as error:  # a call that synchronises cannot be captured: say so, go on
                self.problems[name] = f"failed in graph capture: {first_line(error)}"
                del self.calls[name]
        return graphs


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
        first_calls = {name: calls[0] for name, calls in entered.calls.items()}
        if device == "cpu":
            samples = timing.time_on_cpu(first_calls, quick=quick)
        elif case.regime == "host":
            samples = timing.time_host(first_calls)
        elif case.regime == "gemm":
            samples = time_between_gemms(case, entered.contestants, entered.graphs)
        else:
            samples = _time_on_cuda(case, entered, len(sets[case]), stream)
        path = _path(case, sets[case][0]) if OURS in entered.calls and not trained else None
    return CaseResult(case, path, samples, entered.problems, tuple(entered.contestants))


def _path(case: Case, inputs: Inputs) -> str:
    if inputs.call:
        return serving_ops.explain(case.op, **inputs.call).path
    return serving_ops.explain(case.op, *inputs.arguments, **({} if case.fmt is None else {"fmt": case.fmt})).path


def _enter(case: Case, contestants: Sequence[Contestant], device: str, sets: dict[Case, list[Inputs]]) -> Field:
    entered = Field({contestant.name: contestant for contestant in contestants})
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
    l2 = torch.cuda.get_device_properties(torch.cuda.current_device()).L2_cache_size
    count = timing.sets_for(first.bytes, l2, trained=case.passes != FORWARD)
    return [first, *(make_inputs(case, device) for _ in range(count - 1))]


def _time_on_cuda(case: Case, entered: Field, sets: int, stream: torch.cuda.Stream | None) -> Samples:
    count = timing.calls_for(case.bytes_moved, sets)
    # Eager's backward pass takes 30 GiB for one call at 32768 x 32768, so that the graphs have to share a pool.
    pool = torch.cuda.graph_pool_handle() if stream else None
    graphs = entered.graphs(lambda name: timing.capture(entered.calls[name], count, stream=stream, pool=pool))
    return timing.time_graphs(graphs, count)
