"""Device time of a decode step: what remains of TPOT when the host is taken away.

Where a step is one captured CUDA graph, that graph is replayed without the host's work in between. Elsewhere the GPU's
busy time is taken from a profile; a profiler keeps kernels from overlapping as they do without it, so replays say more.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from serving_ops.bench_e2e.layer_profile import Span, added_times, layer_of

STEPS = 16  # that a graph must be replayed for, to count as one a step
REPLAYS, SAMPLES = 30, 10  # the median of SAMPLES, each over REPLAYS
PROFILED_STEPS = 32
HOST_LOOP = 1_000_000  # turns, which take 35 to 70 ms in engines beside each other on one host of H200s

Decode = Callable[[int], object]
"""Serves the requests of one batch, with this number of tokens each."""
Ask = Callable[[str], Any]
"""Calls a method of `Gpu`, by its name, in every process that has a GPU of the engine. The slowest one's answer counts.

All are asked at once: a graph that holds collectives can only be replayed by all of them together.
"""


def event_ms(work: Callable[[], object]) -> float:
    """Of the device, between events around the work, queued while the device is still busy with one more of it."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    work()
    start.record()
    work()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end))


class Gpu:
    """The GPU of this process, asked in pairs around the serving of requests."""

    def count_replays(self) -> None:
        self.count, self.last, self.original = 0, None, torch.cuda.CUDAGraph.replay

        def counted(graph: Any) -> Any:
            self.count, self.last = self.count + 1, graph
            return self.original(graph)

        torch.cuda.CUDAGraph.replay = counted  # type: ignore[method-assign]

    def replays(self) -> int:
        """Of CUDA graphs, since `count_replays`."""
        torch.cuda.CUDAGraph.replay = self.original  # type: ignore[method-assign]
        return self.count

    def replayed_ms(self) -> float:
        """Of the graph that was replayed last, whose buffers still describe its step."""

        def replays() -> None:
            for _ in range(REPLAYS):
                self.last.replay()

        torch.cuda.synchronize()
        return statistics.median(event_ms(replays) for _ in range(SAMPLES)) / REPLAYS

    def host_loop_ms(self) -> float:
        """Of a fixed loop of Python. Not the GPU's: it says how fast the core is on which this process launches."""
        start, total = time.perf_counter(), 0
        for number in range(HOST_LOOP):
            total += number
        return (time.perf_counter() - start) * 1e3

    def profile(self) -> None:
        """Kernels, or operators where there is no GPU."""
        activity = torch.profiler.ProfilerActivity
        activities = [activity.CUDA if torch.cuda.is_available() else activity.CPU]
        self.profiler = torch.profiler.profile(activities=activities)
        self.profiler.start()

    def busy_ms(self) -> float:
        """Time since `profile` in which at least one kernel ran."""
        return sum(added_times(self._spans())) / 1e3

    def layer(self) -> list[dict[str, str | float]] | None:
        return layer_of(self._spans())

    def _spans(self) -> list[Span]:
        """What ran since `profile`. Of operators, those that no other one called."""
        self.profiler.stop()  # waits for the device first
        on_gpu, on_device = torch.cuda.is_available(), torch.autograd.DeviceType.CUDA
        events = [e for e in self.profiler.events() if (e.device_type == on_device if on_gpu else e.cpu_parent is None)]
        return sorted(((e.name, e.time_range.start, e.time_range.end) for e in events), key=lambda span: span[1:])


_own = Gpu()


def ask_own_gpu(worker: object, question: str) -> Any:
    """In a worker process of an engine, which hands itself over first."""
    return getattr(_own, question)()


def slowest(answers: Sequence[Any]) -> Any:
    """The largest time. Of layers the first: their kernels belong together."""
    given = [answer for answer in answers if answer is not None]
    return given[0] if given and isinstance(given[0], list) else max(given, default=None)


def decode_step_ms(decode: Decode, ask: Ask) -> float:
    """Milliseconds on the GPU for one step of a batch that is decoding."""
    first, all_of_them = (around(decode, ask, tokens, "count_replays", "replays") for tokens in (1, 1 + STEPS))
    if STEPS <= all_of_them - first <= STEPS + 1:  # a scheduler may run one ahead
        return float(ask("replayed_ms"))
    one, all_ms = (around(decode, ask, tokens, "profile", "busy_ms") for tokens in (1, 1 + PROFILED_STEPS))
    return float(all_ms - one) / PROFILED_STEPS


def around(decode: Decode, ask: Ask, tokens: int, before: str, after: str) -> Any:
    """What `Gpu` answers to `after` where it was asked `before` the requests were served."""
    ask(before)
    try:
        decode(tokens)
    finally:  # nobody is to be counted or profiled any more, also where it fails
        found = ask(after)
    return found
