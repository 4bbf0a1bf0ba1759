"""Device time of a decode step: what remains of TPOT when the host is taken away.

Where a step is one captured CUDA graph, that graph is replayed without the host's work in between. Elsewhere the GPU's
busy time is taken from a profile; a profiler keeps kernels from overlapping as they do without it, so replays say more.

A profile also has the kernels of one layer of the model: what the steps repeat most often.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy
import torch

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

Span = tuple[str, float, float]
"""A kernel, or an operator on CPU: its name, start and end in us."""

LONGEST_LAYER = 400  # kernels; an eager hybrid repeats four layers of about 50
SAME_STEP = 0.99  # of all kernels are again at their place in the next step
NEARLY_BEST = 0.75  # as often as any length repeats: a step repeats more often than a layer, but not exactly
SAME_LAYER = 0.4  # in the next layer: on CPU 6 layers of 27 operators stand beside 90 of the step's own
NAME_LENGTH = 160  # characters; templates of C++ have thousands


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


def layer_of(spans: Sequence[Span]) -> list[dict[str, str | float]] | None:
    """Names and us of the kernels of one layer, in their order; None where nothing repeats.

    spans: of a prompt and of the steps behind it, sorted by start. The layer begins anywhere: it is a cycle. us is the
    median over all layers of what a kernel adds to the time of the one before.
    """
    steps = list(zip([name for name, _, _ in spans], added_times(spans), strict=True))[len(spans) // 2 :]
    names = [name for name, _ in steps]
    length, places = _period(names), range(len(names))
    start = next((at for at in places if names[at : at + length] == names[at + length : at + 2 * length]), None)
    if not length or start is None:
        return None
    cycle, place, layers = names[start : start + length], start, []
    while place + length <= len(names):
        if found := names[place : place + length] == cycle:
            layers.append([us for _, us in steps[place : place + length]])
        place += length if found else 1
    medians = map(statistics.median, zip(*layers, strict=True))
    return [{"name": name[:NAME_LENGTH], "us": round(us, 3)} for name, us in zip(cycle, medians, strict=True)]


def added_times(spans: Sequence[Span]) -> list[float]:
    """Of each span, the time in which none of those before it ran. Their sum is the time in which at least one did."""
    added, reached = [], float("-inf")
    for _, start, end in spans:
        added.append(max(0.0, end - max(start, reached)))
        reached = max(reached, end)
    return added


def _period(names: Sequence[str]) -> int:
    """Of the layers, or of the steps where a step repeats nothing; 0 where these do not repeat either."""
    numbers = {name: number for number, name in enumerate(dict.fromkeys(names))}
    kernels = numpy.array([numbers[name] for name in names])
    share = {length: float((kernels[length:] == kernels[:-length]).mean()) for length in range(1, len(names) // 2 + 1)}
    step = next((length for length in share if share[length] >= SAME_STEP), None)
    longest = min(LONGEST_LAYER, (step or len(names)) // 2)
    shorter = [length for length in share if length <= longest]
    best = max((share[length] for length in shorter), default=0.0)
    layer = next((length for length in shorter if share[length] >= NEARLY_BEST * best), None)
    found = layer if layer and share[layer] >= SAME_LAYER else step
    return found if found and found <= LONGEST_LAYER else 0
