"""Device time of a decode step: what remains of TPOT when the host is taken away.

Where a step is one captured CUDA graph, that graph is replayed without the host's work in between. Elsewhere the GPU's
busy time is taken from a profile; a profiler keeps kernels from overlapping as they do without it, so replays say more.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from types import TracebackType
from typing import Any

import torch

STEPS = 16  # that a graph must be replayed for, to count as one a step
WARM_REPLAYS, REPLAYS, SAMPLES = 20, 30, 10  # the median of SAMPLES, each over REPLAYS
PROFILED_STEPS = 32

Decode = Callable[[int], object]
"""Serves the requests of one batch, with this number of tokens each."""


class Replays:
    """Counts the replays of CUDA graphs within it, and keeps the last graph."""

    def __enter__(self) -> Replays:
        self.count, self.last = 0, None
        self.original = original = torch.cuda.CUDAGraph.replay

        def counted(graph: Any) -> Any:
            self.count, self.last = self.count + 1, graph
            return original(graph)

        torch.cuda.CUDAGraph.replay = counted  # type: ignore[method-assign]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        torch.cuda.CUDAGraph.replay = self.original  # type: ignore[method-assign]


def decode_step_ms(decode: Decode) -> float:
    """Milliseconds on the GPU for one step of a batch that is decoding."""
    graph = _graph_of_a_step(decode)
    return _replayed_ms(graph) if graph is not None else _profiled_ms(decode)


def _graph_of_a_step(decode: Decode) -> torch.cuda.CUDAGraph | None:
    """The graph of the steps just run, whose buffers still describe them; None if a step is not one graph."""
    with Replays() as first:
        decode(1)
    with Replays() as all_of_them:
        decode(1 + STEPS)
    one_a_step = STEPS <= all_of_them.count - first.count <= STEPS + 1  # a scheduler may run one ahead
    return all_of_them.last if one_a_step else None


def _replayed_ms(graph: torch.cuda.CUDAGraph) -> float:
    for _ in range(WARM_REPLAYS):
        graph.replay()
    samples = []
    for _ in range(SAMPLES):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(REPLAYS):
            graph.replay()
        end.record()
        end.synchronize()
        samples.append(start.elapsed_time(end) / REPLAYS)
    return statistics.median(samples)


def _profiled_ms(decode: Decode) -> float:
    return (_busy_ms(decode, 1 + PROFILED_STEPS) - _busy_ms(decode, 1)) / PROFILED_STEPS


def _busy_ms(decode: Decode, tokens: int) -> float:
    """Time in which at least one kernel ran."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        decode(tokens)
    on_device = torch.autograd.DeviceType.CUDA
    spans = sorted((e.time_range.start, e.time_range.end) for e in profile.events() if e.device_type == on_device)
    return union_length(spans) / 1e3


def union_length(spans: list[tuple[float, float]]) -> float:
    """Of intervals sorted by their start: the length that at least one of them covers."""
    covered, reached = 0.0, float("-inf")
    for start, end in spans:
        covered += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return covered
