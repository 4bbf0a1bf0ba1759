"""Device time of a decode step: what remains of TPOT when the host is taken away.

Where a step is one captured CUDA graph, that graph is replayed without the host's work in between. Elsewhere the GPU's
busy time is taken from a profile; a profiler keeps kernels from overlapping as they do without it, so replays say more.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any

import torch

STEPS = 16  # that a graph must be replayed for, to count as one a step
WARM_REPLAYS, REPLAYS, SAMPLES = 20, 30, 10  # the median of SAMPLES, each over REPLAYS
PROFILED_STEPS = 32

Decode = Callable[[int], object]
"""Serves the requests of one batch, with this number of tokens each."""
Ask = Callable[[str], Any]
"""Calls a method of `Gpu`, by its name, in every process that has a GPU of the engine. The slowest one's answer counts.

All are asked at once: a graph that holds collectives can only be replayed by all of them together.
"""


class Gpu:
    """The GPU of this process, asked in pairs around the serving of requests."""

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
        """Of CUDA graphs, since `count_replays`."""
        torch.cuda.CUDAGraph.replay = self.original  # type: ignore[method-assign]
        return self.count

    def replayed_ms(self) -> float:
        """Of the graph that was replayed last, whose buffers still describe its step."""
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
        """Time since `profile` in which at least one kernel ran."""
        try:
            torch.cuda.synchronize()
        finally:
            self.profiler.stop()
        on_device = torch.autograd.DeviceType.CUDA
        events = [event for event in self.profiler.events() if event.device_type == on_device]
        return union_length(sorted((event.time_range.start, event.time_range.end) for event in events)) / 1e3


_own = Gpu()


def ask_own_gpu(worker: object, question: str) -> Any:
    """In a worker process of an engine, which hands itself over first."""
    return getattr(_own, question)()


def slowest(answers: Sequence[Any]) -> Any:
    return max((answer for answer in answers if answer is not None), default=None)


def decode_step_ms(decode: Decode, ask: Ask) -> float:
    """Milliseconds on the GPU for one step of a batch that is decoding."""
    first, all_of_them = (_around(decode, ask, tokens, "count_replays", "replays") for tokens in (1, 1 + STEPS))
    if STEPS <= all_of_them - first <= STEPS + 1:  # a scheduler may run one ahead
        return float(ask("replayed_ms"))
    one, all_ms = (_around(decode, ask, tokens, "profile", "busy_ms") for tokens in (1, 1 + PROFILED_STEPS))
    return float(all_ms - one) / PROFILED_STEPS


def _around(decode: Decode, ask: Ask, tokens: int, before: str, after: str) -> Any:
    ask(before)
    try:
        decode(tokens)
    finally:  # nobody is to be counted or profiled any more, also where it fails
        found = ask(after)
    return found


def union_length(spans: list[tuple[float, float]]) -> float:
    """Of intervals sorted by their start: the length that at least one of them covers."""
    covered, reached = 0.0, float("-inf")
    for start, end in spans:
        covered += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return covered
