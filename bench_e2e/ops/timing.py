"""Microseconds of one call, in alternating rounds: what the machine does meanwhile meets every contestant alike.

On CPU a round is a window of about a millisecond. On CUDA it is a replay of a graph of many calls, which go round over
several sets of tensors: in decode they stay in the L2, as a served token's activations do; in prefill they are several
times as large as it. An eager call has host time too.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from itertools import cycle, islice, repeat
from time import perf_counter_ns
from typing import Any

import torch

from serving_ops.bench_e2e.ops.contestants import Call

Samples = dict[str, list[float]]  # contestant -> one figure a round

WINDOW_NS = 1_000_000  # of calls on the CPU between two clock reads; a read costs about 50 ns
MOST_ROUNDS, FEWEST_ROUNDS = 30, 5
BUDGET_NS = 1_200_000_000  # of one contestant at one size: eager takes 200 ms a call at 4096 x 4096

ROUNDS = 15  # on CUDA
HOST_ROUNDS = 30
HOST_CALLS = 100  # eager launches up to 9 kernels a call, and the launch queue holds 1024
GRAPH_US = 400.0  # of calls in one graph: the gap around a replay, a few us, is then under 1% of it
MOST_CALLS = 200
BYTES_PER_US = 4.0e6  # a first guess at the bandwidth, only to choose how many calls a graph holds
LAUNCH_US = 1.3  # and at the cost of a small kernel in a graph
SETS_DECODE = 8
SETS_PREFILL = 2  # at least; more until they are L2_MULTIPLE times the L2
L2_MULTIPLE = 4
MOST_SETS = 64  # with gradients; where they are less than the L2 multiplied, the rows stay in it
COPY_BYTES, COPY_ROUNDS = 2 << 30, 20  # read, and as many written


def round_robin(
    measure: Callable[[str], float],
    rounds: Mapping[str, int],
    before_round: Callable[[], None] = lambda: None,
) -> Samples:
    """Everyone once a round, each round starting one further on; each stops after its own `rounds`."""
    names, samples = list(rounds), {name: [] for name in rounds}  # type: tuple[list[str], Samples]
    for number in range(max(rounds.values(), default=0)):
        before_round()
        start = number % len(names)
        for name in (*names[start:], *names[:start]):
            if number < rounds[name]:
                samples[name].append(measure(name))
    return samples


def time_on_cpu(calls: Mapping[str, Call], *, quick: bool = False) -> Samples:
    once = {name: _once_ns(call) for name, call in calls.items()}
    rounds = {name: rounds_for(cost, 4 if quick else 1) for name, cost in once.items()}
    return round_robin(lambda name: _window_us(calls[name], inner_calls(once[name])), rounds)


def inner_calls(cost_ns: float) -> int:
    return max(1, round(WINDOW_NS / cost_ns))


def rounds_for(cost_ns: float, share: int = 1) -> int:
    """As many as the budget pays for; a round runs one call more than it times."""
    round_ns = (inner_calls(cost_ns) + 1) * cost_ns
    return int(min(MOST_ROUNDS, max(FEWEST_ROUNDS, BUDGET_NS / share / round_ns)))


def _once_ns(call: Call) -> float:
    """A rough cost of one call: the fastest of three, more of them where the clock would be too coarse."""
    costs = []
    for _ in range(3):
        start = perf_counter_ns()
        call()
        costs.append(perf_counter_ns() - start)
    return min(costs) if min(costs) > WINDOW_NS // 10 else _window_us(call, 50) * 1000


def _window_us(call: Call, inner: int) -> float:
    call()  # whoever ran before has left its own data in the caches
    return _host_us(call, inner)


def time_host(calls: Mapping[str, Call]) -> Samples:
    """Of the host, the device never waited for within a round."""

    def measure(name: str) -> float:
        torch.cuda.synchronize()
        taken = _host_us(calls[name], HOST_CALLS)
        torch.cuda.synchronize()
        return taken

    return round_robin(measure, dict.fromkeys(calls, HOST_ROUNDS))


def _host_us(call: Call, count: int) -> float:
    start = perf_counter_ns()
    for _ in repeat(None, count):
        call()
    return (perf_counter_ns() - start) / count / 1000


def sets_for(set_bytes: int, l2: int, *, trained: bool = False) -> int:
    """Sets of tensors to rotate over: about half the L2 if one set fits there, else several times it.

    trained: several times the L2 where MOST_SETS allow it. What a backward pass reads, its forward pass left long ago.
    """
    several = -(-L2_MULTIPLE * l2 // set_bytes)
    if trained:
        return min(MOST_SETS, max(1, several))
    if set_bytes <= l2 // 2:
        return min(SETS_DECODE, max(2, l2 // 2 // set_bytes))
    return max(SETS_PREFILL, several)


def calls_for(bytes_moved: int, sets: int) -> int:
    """Calls in one graph, a multiple of the sets."""
    estimate_us = max(LAUNCH_US, bytes_moved / BYTES_PER_US)
    wanted = min(MOST_CALLS, max(1, round(GRAPH_US / estimate_us)))
    return -(-wanted // sets) * sets


def capture(
    calls: Sequence[Call], count: int, *, stream: torch.cuda.Stream | None = None, pool: Any = None
) -> torch.cuda.CUDAGraph:
    """One graph of `count` calls, going round over `calls`. Graphs that are never replayed at once may share a pool."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for call in calls:
            call()
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool, stream=stream):
        for call in islice(cycle(calls), count):
            call()
    return graph


def time_graphs(graphs: Mapping[str, torch.cuda.CUDAGraph], count: int) -> Samples:
    """Of the device. count: calls in a graph."""
    return round_robin(lambda name: device_us(graphs[name].replay) / count, dict.fromkeys(graphs, ROUNDS))


def copy_tb_s() -> float:
    """What a large device-to-device copy moves, bytes read plus bytes written, in 1e12 bytes a second."""
    source = torch.empty(COPY_BYTES // 2, dtype=torch.bfloat16, device="cuda").normal_()
    target = torch.empty_like(source)
    times = [device_us(lambda: target.copy_(source)) for _ in range(COPY_ROUNDS)]
    return 2 * COPY_BYTES / statistics.median(times) / 1e6


def device_us(work: Callable[[], object]) -> float:
    """Between events around the work, queued while the device is still busy with one more of it."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    work()
    start.record()
    work()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) * 1000.0
