"""Device time of a decode step: what remains of TPOT when the host is taken away.

Where a step is one captured CUDA graph, that graph is replayed without the host's work in between. Elsewhere the GPU's
busy time is taken from a profile; a profiler keeps kernels from overlapping as they do without it, so replays say more.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch

STEPS = 16  # that a graph must be replayed for, to count as one a step
WARM_REPLAYS, REPLAYS, SAMPLES = 20, 30, 10  # the median of SAMPLES, each over REPLAYS
PROFILED_STEPS = 32

Decode = Callable[[int], object]
"""Serves the requests of one batch, with this number of tokens each."""


class Gpu(Protocol):
    """What the processes that have the GPUs are asked, in pairs around the serving of requests."""

    def count_replays(self) -> None: ...

    def replays(self) -> int:
        """Of CUDA graphs, since `count_replays`."""

    def replayed_ms(self) -> float:
        """Of the graph that was replayed last, whose buffers still describe its step."""

    def profile(self) -> None: ...

    def busy_ms(self) -> float:
        """Time since `profile` in which at least one kernel ran."""


class OwnGpu:
    """The GPU of this process."""

    def __init__(self) -> None:
        self.count = 0
        self.last: Any = None
        self.original: Any = None
        self.profiler: Any = None

    def count_replays(self) -> None:
        self.count, self.last = 0, None
        self.original = original = torch.cuda.CUDAGraph.replay

        def counted(graph: Any) -> Any:
            self.count, self.last = self.count + 1, graph
            return original(graph)

        torch.cuda.CUDAGraph.replay = counted  # type: ignore[method-assign]

    def replays(self) -> int:
        torch.cuda.CUDAGraph.replay = self.original  # type: ignore[method-assign]
        return self.count

    def replayed_ms(self) -> float:
        torch.cuda.synchronize()
        for _ in range(WARM_REPLAYS):
            self.last.replay()
        samples = []
        for _ in range(SAMPLES):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            for _ in range(REPLAYS):
                self.last.replay()
            end.record()
            end.synchronize()
            samples.append(start.elapsed_time(end) / REPLAYS)
        return statistics.median(samples)

    def profile(self) -> None:
        self.profiler = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA])
        self.profiler.start()

    def busy_ms(self) -> float:
        try:
            torch.cuda.synchronize()
        finally:
            self.profiler.stop()
        on_device = torch.autograd.DeviceType.CUDA
        events = [event for event in self.profiler.events() if event.device_type == on_device]
        return union_length(sorted((event.time_range.start, event.time_range.end) for event in events)) / 1e3


_own = OwnGpu()


def ask_own_gpu(worker: object, question: str) -> Any:
    """Calls a method of `Gpu` by its name, in a worker process of an engine, which hands itself over first."""
    return getattr(_own, question)()


class WorkersGpus:
    """The GPUs of an engine's workers, one or several that share each step: the slowest decides.

    ask: asks every worker at once, with `ask_own_gpu`; what they answer. A graph that holds collectives can only be
    replayed by all of them together.
    """

    def __init__(self, ask: Callable[[str], Sequence[Any]]) -> None:
        self.ask = ask

    def count_replays(self) -> None:
        self.ask("count_replays")

    def replays(self) -> int:
        return int(max(self.ask("replays")))

    def replayed_ms(self) -> float:
        return float(max(self.ask("replayed_ms")))

    def profile(self) -> None:
        self.ask("profile")

    def busy_ms(self) -> float:
        return float(max(self.ask("busy_ms")))


def decode_step_ms(decode: Decode, gpu: Gpu) -> float:
    """Milliseconds on the GPU for one step of a batch that is decoding."""
    first, all_of_them = (_replays(decode, gpu, tokens) for tokens in (1, 1 + STEPS))
    if STEPS <= all_of_them - first <= STEPS + 1:  # a scheduler may run one ahead
        return gpu.replayed_ms()
    return (_busy_ms(decode, gpu, 1 + PROFILED_STEPS) - _busy_ms(decode, gpu, 1)) / PROFILED_STEPS


def _replays(decode: Decode, gpu: Gpu, tokens: int) -> int:
    gpu.count_replays()
    try:
        decode(tokens)
    finally:  # nobody is to be counted any more, also where it fails
        count = gpu.replays()
    return count


def _busy_ms(decode: Decode, gpu: Gpu, tokens: int) -> float:
    gpu.profile()
    try:
        decode(tokens)
    finally:
        busy = gpu.busy_ms()
    return busy


def union_length(spans: list[tuple[float, float]]) -> float:
    """Of intervals sorted by their start: the length that at least one of them covers."""
    covered, reached = 0.0, float("-inf")
    for start, end in spans:
        covered += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return covered
